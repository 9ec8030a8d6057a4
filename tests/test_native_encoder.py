"""All layers of an encoder, and embedding tables, each instruction set of this machine, against float64.

As test_native.py: without torch, so that the sanitizers run it too.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from test_native import ISAS, native

PRECISIONS = ("float32", "high", "bfloat16", "int8", "int8_weights")


def has_tiles() -> bool:
    try:
        return native.lanes("amx") == 16
    except ValueError:
        return False


ALL_ISAS = [*ISAS, *(["amx"] if has_tiles() else [])]
# Of the largest result: roundings of the products' operands, through two layers.
BOUND = {"float32": 2e-5, "high": 2e-4, "bfloat16": 0.05, "int8": 0.15, "int8_weights": 0.1}
LENGTHS = (5, 1, 40, 17)


@pytest.fixture(params=ALL_ISAS)
def isa(request) -> str:
    return request.param


def layers(width: int, hidden: int, biases: bool = True, count: int = 2) -> list[np.ndarray]:
    """Weights of that many layers in the order of the encoder room's contract."""
    draw = np.random.default_rng(3)
    found = []
    for _ in range(count):
        for rows, columns in ((width, width),) * 4:
            found += [
                draw.normal(size=(rows, columns)) / math.sqrt(columns),
                draw.normal(size=rows) / 5,
            ]
        found += [1 + draw.normal(size=width) / 5, draw.normal(size=width) / 5]
        found += [
            draw.normal(size=(hidden, width)) / math.sqrt(width),
            draw.normal(size=hidden) / 5,
        ]
        found += [
            draw.normal(size=(width, hidden)) / math.sqrt(hidden),
            draw.normal(size=width) / 5,
        ]
        found += [1 + draw.normal(size=width) / 5, draw.normal(size=width) / 5]
    arrays = [a.astype(np.float32) for a in found]
    if not biases:
        arrays = [a if a.ndim == 2 else np.empty(0, np.float32) for a in arrays]
    return arrays


def normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * (weight if weight.size else 1) + (bias if bias.size else 0)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x @ weight.astype(np.float64).T + (bias if bias.size else 0)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, causal: bool) -> np.ndarray:
    q, k, v = (np.stack(np.split(a, heads, axis=1)) for a in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[1:])), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.concatenate(list(weights / weights.sum(-1, keepdims=True) @ v), axis=1)


def truth(x, weights, heads, norm_first, causal):
    """The encoder in float64 with ReLU."""
    ends = np.cumsum((0, *LENGTHS))
    x = x.astype(np.float64)
    for first in range(0, len(weights), 16):
        w = weights[first : first + 16]
        inner = normed(x, *w[8:10]) if norm_first else x
        q, k, v = (linear(inner, *w[i : i + 2]) for i in (0, 2, 4))
        parts = [slice(a, b) for a, b in pairwise(ends)]
        mixed = np.concatenate([attended(q[p], k[p], v[p], heads, causal) for p in parts])
        x = x + linear(mixed, *w[6:8])
        x = x if norm_first else normed(x, *w[8:10])
        inner = normed(x, *w[14:16]) if norm_first else x
        x = x + linear(np.maximum(linear(inner, *w[10:12]), 0), *w[12:14])
        x = x if norm_first else normed(x, *w[14:16])
    return x


def run(isa, precision, weights, width, heads, threads=1, **options):
    draw = np.random.default_rng(5)
    x = draw.normal(size=(sum(LENGTHS), width)).astype(np.float32)
    starts = np.cumsum((0, *LENGTHS)).astype(np.int64)
    out = native.encoder(isa, precision, x, starts, weights, heads, num_threads=threads, **options)
    return x, out


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    ("width", "hidden", "heads", "biases"),
    [(64, 128, 2, True), (40, 72, 4, False), (96, 32, 3, True)],
)
def test_all_layers_in_every_precision(isa, precision, norm_first, width, hidden, heads, biases):
    weights = layers(width, hidden, biases)
    options = {"activation": "relu", "norm_first": norm_first, "causal": norm_first}
    x, out = run(isa, precision, weights, width, heads, **options)
    if out is None:
        assert precision == "int8" and (isa != "amx" or width % 64 or hidden % 64)
        return
    exact = truth(x, weights, heads, norm_first, norm_first)
    assert np.abs(out - exact).max() <= BOUND[precision] * np.abs(exact).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_change_no_bit(isa, precision):
    weights = layers(64, 128)
    found = [run(isa, precision, weights, 64, 2, threads)[1] for threads in (1, 2, 3, 7)]
    for out in found[1:]:
        assert (out is None and found[0] is None) or np.array_equal(out, found[0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("spoilt", [np.nan, -np.nan])
def test_a_weight_that_is_nan_spoils_the_result(isa, precision, activation, spoilt):
    for tensor in (0, 4, 6, 10, 12):  # query, value, output, up, down of the first layer
        weights = layers(64, 128)
        weights[tensor][3, 4] = spoilt
        out = run(isa, precision, weights, 64, 2, activation=activation)[1]
        assert out is None or np.isnan(out).all(), tensor


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spoilt", [np.nan, -np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_sequence(isa, precision, spoilt):
    weights = layers(64, 128)
    x, plain = run(isa, precision, weights, 64, 2)
    if plain is None:
        return
    first, after = sum(LENGTHS[:2]), sum(LENGTHS[:3])
    x[first + 7, 5] = spoilt
    starts = np.cumsum((0, *LENGTHS)).astype(np.int64)
    out = native.encoder(isa, precision, x, starts, weights, 2)
    assert np.isnan(out[first:after]).all()
    others = np.r_[:first, after : len(x)]
    assert np.array_equal(out[others], plain[others])


@pytest.mark.parametrize("columns", [1, 7, 33, 96])
def test_embeddings_and_their_gradients(isa, columns):
    draw = np.random.default_rng(1)
    rows = 131
    tables = [draw.normal(size=(count, columns)).astype(np.float32) for count in (11, 140, 2)]
    ids = [draw.integers(0, len(t), rows) for t in tables]
    out, mean, rstd = native.embedding(isa, tables, ids)
    total = sum(t[i].astype(np.float64) for t, i in zip(tables, ids, strict=True))
    spread = 1 / np.sqrt(total.var(1, keepdims=True) + 1e-5)
    exact = (total - total.mean(1, keepdims=True)) * spread
    assert np.abs(out - exact).max() <= 1e-4 * max(1.0, np.abs(exact).max())
    for threads in (2, 5):
        assert np.array_equal(native.embedding(isa, tables, ids, num_threads=threads)[0], out)
    dropped = native.embedding(isa, tables, ids, p=0.5)[0]
    kept = dropped != 0
    assert np.allclose(dropped[kept], 2 * out[kept], rtol=1e-6)

    dout = draw.normal(size=(rows, columns)).astype(np.float32)
    *found, dbias = native.embedding_backward(isa, dout, mean, rstd, tables, ids)
    d = dout.astype(np.float64)
    dsum = spread * (d - d.mean(1, keepdims=True) - exact * (d * exact).mean(1, keepdims=True))
    for gradient, table, at in zip(found, tables, ids, strict=True):
        expected = np.zeros(table.shape)
        np.add.at(expected, at, dsum)
        assert np.abs(gradient - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max())
    assert np.abs(dbias - d.sum(0)).max() <= 1e-4 * max(1.0, np.abs(d.sum(0)).max())
    again = native.embedding_backward(isa, dout, mean, rstd, tables, ids, num_threads=3)
    assert all(np.array_equal(a, b) for a, b in zip(again[:-1], found, strict=True))
