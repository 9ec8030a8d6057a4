"""Matrix tiles, their products, and vectors of reductions: the stored programs against formulas of the PTX manual."""

import numpy as np
import pytest

from tests.conformance import driver
from tests.conformance.__main__ import canonical
from tests.conformance.cases import catalogue
from tests.emulator import build

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
LANES = np.arange(32)


def run(name):
    """(inputs, what came out) of a stored program."""
    case = catalogue()[name]
    before, after = case.arguments(), case.arguments()
    driver.emulated().run(case.ptx, after, case.threads, case.blocks, case.shared)
    return before, after[case.results[0]]


def fragment(tile, trans):
    """The words that lanes hold of an 8x8 tile of halves: row l / 4, columns 2 (l % 4) and one more."""
    tile = tile.T if trans else tile
    return np.ascontiguousarray(tile).view(np.uint32).reshape(32)


def rotated(words, by):
    return (words << np.uint32(by)) | (words >> np.uint32(32 - by)) if by else words


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_loads_rows_named_by_lanes(count, trans):
    (words, _), got = run(f"ldmatrix.x{count}{trans}")
    rows = words.view(np.uint16).reshape(16, 8)
    expected = np.zeros(32, np.uint32)
    for k in range(count):
        tile = rows[(8 * k + np.arange(8)) % 16]
        expected ^= rotated(fragment(tile, trans), k)
    np.testing.assert_array_equal(got, np.tile(expected, 2))


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2])
def test_stmatrix_is_the_inverse_of_ldmatrix(count, trans):
    (words, _), got = run(f"stmatrix.x{count}{trans}")
    rows = got.view(np.uint16).reshape(16, 8)
    for k in range(count):
        held = words[:32] + np.uint32(k)
        np.testing.assert_array_equal(fragment(rows[8 * k : 8 * k + 8], trans), held)
    assert (rows[8 * count :] == 0).all()


def test_movmatrix_transposes():
    (words, _), got = run("movmatrix.trans")
    for warp in (slice(0, 32), slice(32, 64)):
        tile = words[warp].view(np.uint16).reshape(8, 8)
        np.testing.assert_array_equal(got[warp], fragment(tile.T, ""))


def widened(words, dtype):
    """Each word's elements as float32, along a new last axis."""
    if dtype == "tf32":
        return words.view(np.float32)[..., None]
    halves = words[..., None].view(np.uint16)
    if dtype == "f16":
        return halves.view(np.float16).astype(np.float32)
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def operands(arguments, shape, dtype, sums):
    """The matrices a, b and c, from the registers of each lane."""
    depth = int(shape.partition("k")[2])
    row, column = LANES // 4, LANES % 4
    a, b, c = (np.zeros(size, np.float32) for size in ((16, depth), (depth, 8), (16, 8)))
    held_a = widened(arguments[0].reshape(32, -1), dtype)
    held_b = widened(arguments[1].reshape(32, -1), dtype)
    per = held_a.shape[-1]
    for register in range(held_a.shape[1]):
        for half in range(per):
            at = column * per + half + 4 * per * (register // 2)
            a[row + 8 * (register % 2), at] = held_a[:, register, half]
    for register in range(held_b.shape[1]):
        for half in range(per):
            b[column * per + half + 4 * per * register, row] = held_b[:, register, half]
    return a, b, spread(arguments[2], sums, c)


def spread(held, sums, out):
    held = (
        held.reshape(32, 4) if sums == "f32" else widened(held.reshape(32, 2), "f16").reshape(32, 4)
    )
    for k in range(4):
        out[LANES // 4 + 8 * (k // 2), 2 * (LANES % 4) + k % 2] = held[:, k]
    return out


@pytest.mark.parametrize("name", [name for name in catalogue() if name.startswith("mma.sync")])
def test_products_of_tiles(name):
    *_, shape, _, _, sums, dtype, _, _ = name.split(".")
    arguments, got = run(name)
    a, b, c = operands(arguments, shape, dtype, sums)
    result = spread(got, sums, np.zeros((16, 8), np.float32))
    np.testing.assert_array_equal(result, a @ b + c)
    assert np.unique(result).size > 20


@pytest.mark.parametrize("name", [n for n in catalogue() if n.startswith("red.global.add.v")])
def test_vectors_of_reductions_add_every_element(name):
    (values, before), got = run(name)
    assert (before == 0).all()
    kind = name.rpartition(".")[2]
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "f32":
            once = np.where(np.abs(values) < 2.0**-126, np.float32(0), values)  # in global memory
            twice = np.float32(0) + once + once
        elif kind == "f16x2":
            halves = values.view(np.float16)
            twice = (np.float16(0) + halves + halves).view(np.uint32)
        else:
            floats = np.float32(0) + widened(values, "bf16").reshape(-1)
            # Twice a bfloat16 is one, or infinite.
            twice = (
                ((floats + floats).view(np.uint32) >> np.uint32(16))
                .astype(np.uint16)
                .view(np.uint32)
            )
    np.testing.assert_array_equal(canonical(got, kind), canonical(twice, kind))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_fill_with_zeros_what_their_source_lacks(size):
    name = f"cp.async.{'cg' if size == 16 else 'ca'} {size}"
    (words, _), got = run(name)
    expected = words.copy().view(np.uint8)
    expected[-(size - size // 2) :] = 0
    np.testing.assert_array_equal(got[::-1], expected.view(np.uint32))


def test_lanes_that_parted_meet_again():
    (words, _), got = run("bra bar.warp.sync")
    signed = words.view(np.int32)
    changed = np.where(signed < 0, words ^ np.uint32(77), words + np.uint32(5))
    np.testing.assert_array_equal(got, changed.reshape(-1, 2)[:, ::-1].reshape(-1))
