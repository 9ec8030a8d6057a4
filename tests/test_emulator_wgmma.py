"""wgmma: the stored programs against formulas of the PTX manual."""

import numpy as np
import pytest

from tests.conformance.products import BITS, LAYOUTS, products
from tests.emulator import build
from tests.test_emulator_bulk import place
from tests.test_emulator_tiles import run, widened

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
THREADS = np.arange(128)
ROWS = THREADS // 32 * 16 + THREADS % 32 // 4


def tile(words, product, count):
    """The matrix (count, k) that lies in shared memory."""
    values, size = widened(words, product.dtype).reshape(-1), BITS[product.dtype] // 8
    made = np.zeros((count, product.depth), np.float32)
    for (row, k), _ in np.ndenumerate(made):
        if product.transposed:
            byte = k * 128 + row * size
        elif product.swizzle:
            byte = row * product.swizzle + k * size
        else:
            leading, stride, _ = LAYOUTS[0]
            byte = row // 8 * stride + k * size // 16 * leading + row % 8 * 16 + k * size % 16
        made[row, k] = values[place(byte, product.swizzle) // size]
    return made


def fragments(words, product):
    """The matrix (64, k) that lies in the threads' registers."""
    per = 32 // BITS[product.dtype]
    held = widened(words.reshape(-1, 4)[:128], product.dtype).reshape(128, 4, per)
    made = np.zeros((64, product.depth), np.float32)
    for register in range(4):
        for h in range(per):
            column = per * (THREADS % 4) + h + 4 * per * (register // 2)
            made[ROWS + 8 * (register % 2), column] = held[:, register, h]
    return made


@pytest.mark.parametrize("product", list(products()), ids=lambda product: product.name)
def test_products_of_tiles_in_shared_memory(product):
    (words_a, words_b, _), got = run(product.name)
    a = fragments(words_a, product) if product.registers else tile(words_a, product, 64)
    exact = product.sign * (a @ tile(words_b, product, product.n).T)
    for register, sums in enumerate(got.reshape(128, -1).T):
        column = register // 4 * 8 + 2 * (THREADS % 4) + register % 2
        expected = exact[ROWS + 8 * (register // 2 % 2), column] + register
        np.testing.assert_array_equal(sums, expected)
    assert np.unique(exact).size > 20
