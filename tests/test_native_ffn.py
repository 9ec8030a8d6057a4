"""feed_forward's products on tiles, and what lies between products, each instruction set, against float64.

As test_native.py: without torch, so that the sanitizers run it too.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from test_native import CANARY, ISAS, converted, misaligned, native

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Of the result's largest value: a few roundings to the dtype, or of float32's polynomials.
EPS = {"float32": 4e-7, "bfloat16": 8e-3, "float16": 1e-3, "float64": 4e-15}


@pytest.fixture(params=ISAS)
def isa(request) -> str:
    return request.param


def act(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The activation and its derivative in float64, by torch's formulas."""
    with np.errstate(all="ignore"):
        if name == "relu":
            return np.where(x <= 0, 0.0, x), np.where(x <= 0, 0.0, 1.0)
        if name == "silu":
            s = 1 / (1 + np.exp(-x))
            return x * s, s * (1 + x * (1 - s))
        if name == "gelu":
            s = 0.5 * (
                1 + np.array([math.erf(v) for v in x.ravel() / math.sqrt(2)]).reshape(x.shape)
            )
            return x * s, s + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        k = math.sqrt(2 / math.pi)
        t = np.tanh(k * (x + 0.044715 * x**3))
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x)
        return 0.5 * x * (1 + t), slope


def stored(isa: str, dtype: str, values: np.ndarray) -> np.ndarray:
    if dtype in ("float32", "float64"):
        return values.astype(dtype)
    return converted(isa, "float32", values.astype(np.float32), dtype)


def read(isa: str, dtype: str, values: np.ndarray) -> np.ndarray:
    if dtype not in ("float32", "float64"):
        values = converted(isa, dtype, values, "float32")
    return values.astype(np.float64)


def close(got: np.ndarray, truth: np.ndarray, dtype: str, terms: int = 1) -> None:
    bound = EPS[dtype] * math.sqrt(terms) * max(1.0, float(np.abs(truth).max(initial=0.0)))
    assert np.abs(got - truth).max(initial=0.0) <= bound


def placed(values: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """(buffer, the values in it): a copy that starts off any alignment, between canaries."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[values.itemsize]
    wall = np.full(8, CANARY, np.uint64).view(values.dtype)
    buffer = misaligned(np.concatenate([wall, values.ravel(), wall]), shift)
    return buffer.view(bits), buffer[wall.size : wall.size + values.size].reshape(values.shape)


def walls_intact(buffer: np.ndarray, size: int) -> bool:
    wall = np.full(8, CANARY, np.uint64).view(buffer.dtype)
    return np.array_equal(buffer[: wall.size], wall) and np.array_equal(
        buffer[wall.size + size :], wall
    )


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_and_both_directions(
    isa: str, dtype: str, activation: str, gated: bool
) -> None:
    rng = np.random.default_rng(0)
    lanes, p, seed = native.lanes(isa), 0.25, 3
    for n in (*range(1, 18), 4 * lanes - 1, 4 * lanes, 6 * lanes + 3, 1100):
        rows = 35 if n < 1000 else 17
        pre, gate, dhidden = (stored(isa, dtype, 2 * rng.normal(size=(rows, n))) for _ in range(3))
        bias, gate_bias = (stored(isa, dtype, rng.normal(size=n)) for _ in range(2))
        if not gated:
            gate = gate_bias = None
        keep = np.array([native.dropout_mask(isa, p, seed, 0, i, 0, n) for i in range(rows)])
        scale = keep / (1 - p)
        x = read(isa, dtype, pre) + read(isa, dtype, bias)
        g = read(isa, dtype, gate) + read(isa, dtype, gate_bias) if gated else x
        value, slope = act(activation, g)
        truth = value * x * scale if gated else value * scale
        buffer, hidden = placed(np.zeros_like(pre), 1 + n % 5)
        options = {"pre_bias": bias, "gate_bias": gate_bias, "p": p, "seed": seed, "num_threads": 2}
        native.ffn_forward(isa, dtype, activation, pre, hidden, gate, **options)
        close(read(isa, dtype, hidden), truth, dtype)
        assert walls_intact(buffer, hidden.size)

        d = read(isa, dtype, dhidden) * scale
        dpre, dgate = (d * value, d * x * slope) if gated else (d * slope, None)
        buffer, ours = placed(dhidden, n % 7)
        ours_gate = np.empty_like(pre) if gated else None
        again = np.empty_like(pre)
        sums = native.ffn_backward(
            isa, dtype, activation, pre, ours, gate, ours_gate, again, **options
        )
        close(read(isa, dtype, ours), dpre, dtype)
        assert np.array_equal(again, hidden)
        assert walls_intact(buffer, ours.size)
        close(read(isa, dtype, sums[0]), dpre.sum(0), dtype, rows)
        if gated:
            close(read(isa, dtype, ours_gate), dgate, dtype)
            close(read(isa, dtype, sums[1]), dgate.sum(0), dtype, rows)
        in_place = pre.copy()
        native.ffn_forward(isa, dtype, activation, in_place, in_place, gate, **options)
        assert np.array_equal(in_place, hidden)


def test_biased_products_are_kept_only_where_asked_for(isa: str) -> None:
    rng = np.random.default_rng(0)
    pre, gate = rng.normal(size=(2, 9, 50)).astype(np.float32)
    bias, gate_bias = rng.normal(size=(2, 50)).astype(np.float32)
    hidden = np.empty_like(pre)
    for keep in (False, True):
        a, b = pre.copy(), gate.copy()
        native.ffn_forward(isa, "float32", "silu", a, hidden, b, bias, gate_bias, keep)
        assert np.array_equal(a, pre + bias if keep else pre)
        assert np.array_equal(b, gate + gate_bias if keep else gate)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_slopes_over_the_whole_range(isa: str, activation: str) -> None:
    x = np.concatenate([np.linspace(-40, 40, 160_001), np.linspace(-1e-3, 1e-3, 2_000)])
    x = x.astype(np.float32)[None]
    hidden, slope = np.empty_like(x), np.ones_like(x)
    native.ffn_forward(isa, "float32", activation, x, hidden)
    native.ffn_backward(isa, "float32", activation, x, slope)
    value_truth, slope_truth = act(activation, x.astype(np.float64))
    # One rounding of a result as large as |x|, and what the step function is off by.
    assert (np.abs(hidden - value_truth) <= 1.5e-7 * np.abs(x) + 1e-10).all()
    assert np.abs(slope - slope_truth).max() <= 4e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_ends_as_in_torch(isa: str, activation: str, dtype: str) -> None:
    special = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e5, -1e5, 0.0, -0.0, 1e-40], dtype)
    x = np.repeat(special, 64)[None]  # some in single vectors, most in step
    hidden, slope = np.empty_like(x), np.ones_like(x)
    native.ffn_forward(isa, dtype, activation, x, hidden)
    native.ffn_backward(isa, dtype, activation, x, slope)
    value_truth, slope_truth = act(activation, x.astype(np.float64))
    finite = np.isfinite(value_truth)
    assert (np.abs(hidden[finite] - value_truth[finite]) <= 2e-7 * np.abs(x[finite])).all()
    assert np.array_equal(np.isnan(hidden), np.isnan(value_truth))
    assert np.array_equal(np.isinf(hidden), np.isinf(value_truth))
    plain = np.abs(x) < 1e20  # beyond, tanh GELU's formula multiplies 0 by infinity
    assert np.array_equal(np.isnan(slope)[plain], np.isnan(slope_truth)[plain])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_far_tails_take_no_longer(isa: str, activation: str) -> None:
    """Subnormal numbers on the way, even those rounded to 0, made the kernels fifteen times slower."""
    dhidden = np.full((32, 1024), 1e-3, np.float32)
    spent = {}
    for where in (-1.0, -12.0, -13.2, -14.0, -60.0, -100.0, -1000.0):
        pre, hidden = np.full_like(dhidden, where), np.empty_like(dhidden)
        best = math.inf
        for _ in range(15):
            d = dhidden.copy()
            start = time.perf_counter()
            native.ffn_forward(isa, "float32", activation, pre, hidden)
            native.ffn_backward(isa, "float32", activation, pre, d)
            best = min(best, time.perf_counter() - start)
        spent[where] = best
    assert max(spent.values()) < 4 * spent[-1.0], spent


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_threads(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    pre, gate, dhidden = (stored(isa, dtype, rng.normal(size=(301, 200))) for _ in range(3))

    def run(num_threads: int) -> list[np.ndarray]:
        hidden, d, dgate = np.empty_like(pre), dhidden.copy(), np.empty_like(pre)
        options = {"p": 0.1, "seed": 7, "num_threads": num_threads}
        native.ffn_forward(isa, dtype, "gelu", pre, hidden, gate, **options)
        sums = native.ffn_backward(isa, dtype, "gelu", pre, d, gate, dgate, **options)
        return [hidden, d, dgate, *sums, native.column_sums(isa, dtype, pre, num_threads)]

    for one, two in zip(run(1), run(2), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sums_of_any_height(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 600), (31, 17), (32, 16), (33, 40), (700, 9)):
        data = stored(isa, dtype, rng.normal(size=(rows, columns + 3)))[:, 1 : columns + 1]
        sums = native.column_sums(isa, dtype, data, 2)
        close(read(isa, dtype, sums), read(isa, dtype, data).sum(0), dtype, rows)
    nothing = np.ascontiguousarray(stored(isa, dtype, np.ones((1, 5)))[:0])
    assert not native.column_sums(isa, dtype, nothing).any()


def test_one_row_does_not_know_the_others(isa: str) -> None:
    rng = np.random.default_rng(0)
    pre = rng.normal(size=(40, 531)).astype(np.float32)
    together, alone = np.empty_like(pre), np.empty_like(pre)
    native.ffn_forward(isa, "float32", "gelu_tanh", pre, together, num_threads=2)
    for r in range(40):
        native.ffn_forward(isa, "float32", "gelu_tanh", pre[r : r + 1], alone[r : r + 1])
    assert np.array_equal(together, alone)
    pre[7] = np.nan
    poisoned = np.empty_like(pre)
    native.ffn_forward(isa, "float32", "gelu_tanh", pre, poisoned, num_threads=2)
    assert np.isnan(poisoned[7]).all()
    assert np.array_equal(np.delete(poisoned, 7, 0), np.delete(together, 7, 0))


# (M, K, N): a lone tile of rows, K in pieces, more rows than a unit of work, K and M no whole tiles, no columns.
PRODUCTS = (
    (32, 32, 32), (1, 64, 96), (48, 96, 64), (130, 1056, 64), (37, 40, 32), (700, 64, 32), (128, 2048, 0),
)  # fmt: skip


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
@pytest.mark.parametrize("stored_columns", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_products_on_tiles_in_every_layout(isa: str, shape, stored_columns) -> None:
    rng = np.random.default_rng(0)
    m, k, n = shape

    def operand(rows: int, columns: int, by_columns: int) -> tuple[np.ndarray, np.ndarray]:
        size = (columns, rows) if by_columns else (rows, columns)
        buffer, bits = placed(stored(isa, "bfloat16", rng.normal(size=size)), 2)
        return buffer, bits.T if by_columns else bits

    a_walls, a = operand(m, k, stored_columns[0])
    b_walls, b = operand(k, n, stored_columns[1])
    bias = stored(isa, "bfloat16", rng.normal(size=n))
    out_walls, out = placed(np.zeros((m, n), np.uint16), 2)
    whole = (m if stored_columns[0] else k) % 32 == 0 and (k if stored_columns[1] else n) % 32 == 0
    served = native.ffn_multiply(isa, a, b, out, bias, num_threads=2)
    assert served == (isa == "amx" and whole and n > 0)
    if not served:
        return
    truth = read(isa, "bfloat16", np.ascontiguousarray(a)) @ read(
        isa, "bfloat16", np.ascontiguousarray(b)
    )
    close(read(isa, "bfloat16", out), truth + read(isa, "bfloat16", bias), "bfloat16")
    first = out.copy()
    assert native.ffn_multiply(isa, a, b, out, bias, num_threads=1)
    assert np.array_equal(first, out)
    assert native.ffn_multiply(isa, a, b, out, add=True)
    more = truth + read(isa, "bfloat16", first)
    close(read(isa, "bfloat16", out), more, "bfloat16")
    assert walls_intact(out_walls, out.size)
    assert walls_intact(a_walls, a.size) and walls_intact(b_walls, b.size)
