"""The small parts of the CPU kernels, each instruction set of this machine, against float64 and bit formulas.

Neither torch nor the package is imported, so the same tests run a module built with sanitizers: put its
folder on PYTHONPATH.
"""

from __future__ import annotations

import importlib.util
import math
import pathlib
import sys

import numpy as np
import pytest

if importlib.util.find_spec("_native") is None:
    package = importlib.util.find_spec("bigkernels")
    sys.path.extend(package.submodule_search_locations if package else ())
    sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "bigkernels"))
native = pytest.importorskip("_native", reason="bigkernels._native is not built")

ISAS = native.instruction_sets()
CANARY = 0x7FA5A5A5  # a NaN no arithmetic makes: shows stray writes


@pytest.fixture(params=ISAS)
def isa(request) -> str:
    return request.param


def misaligned(values: np.ndarray, shift: int) -> np.ndarray:
    """A copy of `values` that starts `shift` elements after a 64-byte boundary."""
    size = values.itemsize
    buffer = np.empty(values.size + 2 * (64 // size) + shift, values.dtype)
    start = (-buffer.ctypes.data % 64) // size + shift
    view = buffer[start : start + values.size]
    view[...] = values
    return view


def ulps(got: np.ndarray, truth: np.ndarray) -> float:
    """Largest distance from `truth` (float64) in units of the last place of got's dtype."""
    bad = ~np.isfinite(truth) | ~np.isfinite(truth.astype(got.dtype))
    np.testing.assert_array_equal(got[bad], truth[bad].astype(got.dtype))
    spacing = np.spacing(np.abs(truth[~bad]).astype(got.dtype)).astype(np.float64)
    return float(np.max(np.abs(got[~bad].astype(np.float64) - truth[~bad]) / spacing, initial=0.0))


def truth_of(function: str, x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    if function == "erf":
        return np.array([math.erf(v) for v in wide])
    return {
        "exp": np.exp, "tanh": np.tanh, "sqrt": np.sqrt, "round": np.rint, "abs": np.abs
    }[function](wide)  # fmt: skip


SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 1e30, -1e30, 0.5, 1.5, 2.5, -2.5, 88.7, 88.8,
     -87.3, -87.4, -103.9, -104.1, 0.625, 0.93, 3.92, 4.05, 9.1, 10.0, 4194303.5, 8388609.0],
    np.float32,
)  # fmt: skip
# exp, erf, tanh are polynomials (erf and tanh meet one more rounding); the others are exact operations.
LARGEST_ULPS = {"exp": 1.0, "erf": 1.4, "tanh": 1.4, "sqrt": 0.5, "round": 0.0, "abs": 0.0}


@pytest.mark.parametrize("function", LARGEST_ULPS)
def test_verb_is_as_accurate_as_stated(isa: str, function: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-110, 92, 100_000), rng.normal(size=100_000), rng.normal(size=20_000) * 1e-3]
    )
    x = np.concatenate([x.astype(np.float32), SPECIAL])
    if function == "sqrt":
        x = np.concatenate([np.abs(x), [np.float32(-1.0)]])
    out = np.empty_like(x)
    native.map(isa, function, x, out)
    with np.errstate(all="ignore"):
        truth = truth_of(function, x)
        assert ulps(out, truth) <= LARGEST_ULPS[function]
    zero = x == 0
    assert np.array_equal(np.signbit(out[zero]), np.signbit(truth[zero]))


@pytest.mark.parametrize("function", LARGEST_ULPS)
def test_float64_verb_agrees_with_numpy(isa: str, function: str) -> None:
    x = np.concatenate([np.random.default_rng(0).normal(size=5000) * 5, SPECIAL.astype(np.float64)])
    if function == "sqrt":
        x = np.abs(x)
    out = np.empty_like(x)
    native.map(isa, function, x, out)
    with np.errstate(all="ignore"):
        assert ulps(out, truth_of(function, x)) <= 4.0  # both sides are float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tails_read_and_write_exactly_their_elements(isa: str, dtype: type) -> None:
    lanes = native.lanes(isa)
    for n in range(2 * lanes + 2):
        for shift in range(0, 9):
            values = np.linspace(-2, 2, n).astype(dtype)
            padded = misaligned(np.full(n + 2 * lanes, np.nan, dtype), shift)
            padded[lanes : lanes + n] = values
            out = misaligned(np.full(n + 2 * lanes, np.nan, dtype), (shift * 3) % 8)
            out.view(np.uint32)[...] = CANARY
            expected = out.copy()
            native.map(isa, "abs", padded[lanes : lanes + n], out[lanes : lanes + n])
            expected[lanes : lanes + n] = np.abs(values)
            assert np.array_equal(out.view(np.uint32), expected.view(np.uint32)), (n, shift)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tails_of_16_bit_types(isa: str, dtype: str) -> None:
    lanes = native.lanes(isa)
    bits = np.arange(0x3C00, 0x3C00 + 4 * lanes, dtype=np.uint16)
    for n in range(2 * lanes + 2):
        for shift in range(0, 9):
            source = misaligned(bits, shift)[:n]
            out = misaligned(np.full(n + 2 * lanes, 0xA5A5, np.uint16), (shift * 3) % 8)
            expected = out.copy()
            expected[lanes : lanes + n] = bits[:n]
            native.convert(isa, dtype, source, dtype, out[lanes : lanes + n])
            assert np.array_equal(out, expected), (n, shift)


def test_sum_and_maximum_at_every_length(isa: str) -> None:
    rng = np.random.default_rng(0)
    lanes = native.lanes(isa)
    for n in range(10 * lanes + 2):
        x = misaligned(rng.integers(-1000, 1000, n).astype(np.float32), n % 9)
        assert native.sum(isa, x) == x.sum()
        assert native.maximum(isa, x) == (x.max() if n else -np.inf)


def test_sum_takes_the_same_order_every_time(isa: str) -> None:
    x = np.random.default_rng(0).normal(size=1001).astype(np.float32)
    sums = {native.sum(isa, misaligned(x, shift)) for shift in range(16)}
    assert len(sums) == 1
    assert abs(sums.pop() - x.astype(np.float64).sum()) < 1e-4


def float_from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bfloat16_from_float(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even, by integers; NaN is handled by the caller."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


ALL_16_BITS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def converted(isa: str, source: str, x: np.ndarray, target: str) -> np.ndarray:
    out = np.empty(x.size, {"float32": np.float32}.get(target, np.uint16))
    native.convert(isa, source, np.ascontiguousarray(x).ravel(), target, out)
    return out.reshape(x.shape)


def test_every_bfloat16_and_float16_widens_exactly(isa: str) -> None:
    got = converted(isa, "bfloat16", ALL_16_BITS, "float32")
    assert np.array_equal(got.view(np.uint32), ALL_16_BITS.astype(np.uint32) << 16)
    got = converted(isa, "float16", ALL_16_BITS, "float32")
    np.testing.assert_array_equal(got, ALL_16_BITS.view(np.float16).astype(np.float32))


def test_narrowing_rounds_to_nearest_even_at_every_boundary(isa: str) -> None:
    # Every float32 next to, on, and half way between two neighbouring 16-bit values, of either type.
    exact = np.concatenate(
        [float_from_bfloat16(ALL_16_BITS), ALL_16_BITS.view(np.float16).astype(np.float32)]
    ).view(np.uint32)
    half = {"bfloat16": 0x8000, "float16": 0x1000}
    x = np.concatenate(
        [exact + np.uint32(d) for h in half.values() for d in (0, 1, h - 1, h, h + 1)]
        + [np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)]
        # Subnormal float16 and their ties.
        + [np.arange(0x33000000 - 4096, 0x38800000 + 4096, 1024, dtype=np.uint32)]
    ).view(np.float32)
    nan = np.isnan(x)
    got = converted(isa, "float32", x, "bfloat16")
    assert np.array_equal(got[~nan], bfloat16_from_float(x[~nan]))
    assert np.isnan(float_from_bfloat16(got[nan])).all()
    got = converted(isa, "float32", x, "float16")
    with np.errstate(over="ignore"):
        assert np.array_equal(got[~nan], x[~nan].astype(np.float16).view(np.uint16))
    assert np.isnan(got[nan].view(np.float16)).all()


# The known answers that the generator's authors publish with their library (Random123, kat_vectors).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "seed", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter: tuple, seed: int, words: tuple) -> None:
    counters = np.array([counter] * 5, np.uint32)
    assert tuple(native.scalar_philox(counters[0], seed)) == words
    for isa in ISAS:
        assert (native.philox(isa, counters, seed) == np.array(words, np.uint32)).all()


def test_philox_agrees_with_its_scalar_form(isa: str) -> None:
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 1 << 32, (37, 4), dtype=np.uint32)
    for seed in (0, 1, 1 << 32, 0xDEADBEEFCAFEF00D):
        words = native.philox(isa, counters, seed)
        assert np.array_equal(words, [native.scalar_philox(c, seed) for c in counters])


def test_multiply_wide_is_exact(isa: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = rng.integers(0, 1 << 32, (2, native.lanes(isa)), dtype=np.uint32)
        high, low = native.multiply_wide(isa, a, b)
        product = a.astype(np.uint64) * b.astype(np.uint64)
        assert np.array_equal(high, (product >> np.uint64(32)).astype(np.uint32))
        assert np.array_equal(low, product.astype(np.uint32))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_dropout_keeps_what_its_definition_keeps(isa: str, p: float) -> None:
    seed, offset, i, b, n = -12345678901, 7 + (5 << 32), 1000, 17, 103
    words = [
        native.scalar_philox(np.array([c // 4, i, b, 7], np.uint32), seed % 2**64)[c % 4]
        for c in range(n)
    ]
    expected = np.array([int(w) >= int(p * 2**32) for w in words])
    assert np.array_equal(native.dropout_mask(isa, p, seed, offset, i, b, n), expected)


def layer_norm_truth(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    x = x.astype(np.float64)
    deviations = x - x.mean(1, keepdims=True)
    return deviations / np.sqrt((deviations**2).mean(1, keepdims=True) + eps)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_layer_norm_of_every_width_and_both_directions(isa: str, dtype: str) -> None:
    """Also what the sanitizers run: each tail, each dtype, rows apart, dropout, two threads."""
    rng = np.random.default_rng(0)
    wide = np.float64 if dtype == "float64" else np.float32
    lanes = native.lanes(isa)

    def store(values: np.ndarray) -> np.ndarray:
        values = values.astype(wide)
        return (
            values if dtype in ("float32", "float64") else converted(isa, "float32", values, dtype)
        )

    def read(stored: np.ndarray) -> np.ndarray:
        return stored if stored.dtype != np.uint16 else converted(isa, dtype, stored, "float32")

    eps = {"float32": 2e-6, "float64": 1e-13, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    for n in [*range(1, 2 * lanes + 2), 5 * lanes + 3, 4100]:
        rows = 11 if n < 4000 else 9
        x, residual, dout, dsum = (
            store(rng.normal(size=(rows, n + 3)))[:, 1 : n + 1] for _ in range(4)
        )
        weight, bias, x_bias = (store(rng.normal(size=n)) for _ in range(3))
        out, total, mean, rstd = native.layer_norm_forward(
            isa, dtype, x, residual, x_bias, weight, bias, 1e-5, 0.25, 3, 2
        )
        keep = np.array([native.dropout_mask(isa, 0.25, 3, 0, i, 0, n) for i in range(rows)])
        branch = np.where(keep, (read(x) + read(x_bias).astype(np.float64)) / 0.75, 0.0)
        expected = read(residual) + branch
        assert np.abs(read(total) - expected).max() <= eps * np.abs(expected).max()
        normalized = layer_norm_truth(expected) * read(weight) + read(bias)
        # A row of few elements may be nearly constant: its error grows with rstd.
        bound = eps * (np.abs(normalized).max() + np.abs(expected).max() * rstd.max())
        assert np.abs(read(out) - normalized).max() <= bound
        gradients = native.layer_norm_backward(
            isa, dtype, dout, dsum, total, mean, rstd, weight, 0.25, 3, 2
        )
        x_hat = (read(total) - mean.astype(np.float64)[:, None]) * rstd[:, None]
        g = read(dout) * read(weight).astype(np.float64)
        dx = g - g.mean(1, keepdims=True) - x_hat * (g * x_hat).mean(1, keepdims=True)
        dx = dx * rstd[:, None] + read(dsum)
        dropped = np.where(keep, dx / 0.75, 0.0)
        truth = (dx, dropped, (read(dout) * x_hat).sum(0), read(dout).sum(0), dropped.sum(0))
        for got, want in zip(gradients, truth, strict=True):
            assert np.abs(read(got) - want).max() <= 4 * eps * (1 + np.abs(want).max() + rstd.max())


def test_layer_norm_does_not_depend_on_threads(isa: str) -> None:
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=(2, 300, 200)).astype(np.float32)
    weight = rng.normal(size=200).astype(np.float32)

    def run(num_threads: int) -> list[np.ndarray]:
        out, _, mean, rstd = native.layer_norm_forward(
            isa, "float32", x, weight=weight, num_threads=num_threads
        )
        gradients = native.layer_norm_backward(
            isa, "float32", dout, None, x, mean, rstd, weight, num_threads=num_threads
        )
        return [out, mean, rstd, *gradients]

    for one, many in zip(run(1), run(2), strict=True):
        assert np.array_equal(one, many)
