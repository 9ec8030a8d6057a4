"""Attention's kernels, each instruction set of this machine, against float64 and themselves.

As test_native.py: without torch, so that the sanitizers run it too. Scratch and outputs start as NaN.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from test_native import ISAS, native
from test_native_ffn import DTYPES, close, placed, read, stored, walls_intact

SEED = 12345678901


@pytest.fixture(params=ISAS)
def isa(request) -> str:
    return request.param


def visible(queries: int, keys: int, causal: int = 0, window: tuple = (-1, -1)) -> np.ndarray:
    """Which keys the band leaves on, (Lq, Lk)."""
    distance = np.arange(keys) - np.arange(queries)[:, None]
    distance -= keys - queries if causal >= 2 else 0
    on = np.ones((queries, keys), bool)
    if causal in (1, 2):
        on &= distance <= 0
    elif window[1] >= 0:
        on &= distance <= window[1]
    return on & (distance >= -window[0]) if window[0] >= 0 else on


def kept(isa: str, shape: tuple, p: float) -> np.ndarray:
    """What dropout multiplies the weights (B, H, Lq, Lk) by."""
    if not p:
        return np.ones(shape)
    batch, heads, queries, keys = shape
    rows = [
        native.dropout_mask(isa, p, SEED, 0, i, bh, keys)
        for bh in range(batch * heads)
        for i in range(queries)
    ]
    return np.array(rows).reshape(shape) / (1 - p)


def truth(isa, q, k, v, dout, dlse, *, mask=None, lengths=None, scale=1.0, p=0.0, **band):
    """(out, lse, dq, dk, dv, dmask) in float64, by the formulas of the room's README."""
    group = q.shape[1] // k.shape[1]
    k1, v1 = k.repeat(group, 1), v.repeat(group, 1)
    s = scale * q @ k1.swapaxes(2, 3)
    off = ~visible(*s.shape[2:], **band)[None, None]
    if lengths is not None:
        off = off | (np.arange(s.shape[3]) >= lengths[:, None, None, None])
    if mask is not None:
        off, s = (off | ~mask, s) if mask.dtype == bool else (off, s + mask)
    s = np.where(off, -np.inf, s)
    top = s.max(3, keepdims=True, initial=-np.inf)
    top[np.isneginf(top)] = 0
    e = np.exp(s - top)
    total = e.sum(3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    weights = e / np.where(total, total, 1)
    keep = kept(isa, s.shape, p)
    out = (weights * keep) @ v1
    delta = (dout * out).sum(3, keepdims=True) - dlse[..., None]
    ds = weights * (keep * (dout @ v1.swapaxes(2, 3)) - delta)
    dk = scale * ds.swapaxes(2, 3) @ q
    dv = (weights * keep).swapaxes(2, 3) @ dout
    dk, dv = (g.reshape(*k.shape[:2], group, *g.shape[2:]).sum(2) for g in (dk, dv))
    dmask = None
    if mask is not None and mask.dtype != bool:
        dims = tuple(d for d in range(4) if mask.shape[d] == 1)
        dmask = ds.sum(dims, keepdims=True)
    return out, lse, scale * ds @ k1, dk, dv, dmask


def split_heads(values: np.ndarray) -> np.ndarray:
    """The same (B, H, L, D) in memory order (B, L, H, D)."""
    return np.ascontiguousarray(values.swapaxes(1, 2)).swapaxes(1, 2)


def inputs(isa: str, dtype: str, rng, batch, heads, heads_kv, queries, keys, dim, dim_v) -> list:
    """q, k, v, dout, dlse as stored."""
    shapes = (
        (batch, heads, queries, dim),
        (batch, heads_kv, keys, dim),
        (batch, heads_kv, keys, dim_v),
        (batch, heads, queries, dim_v),
    )
    parts = [stored(isa, dtype, rng.normal(size=shape)) for shape in shapes]
    if rng.random() < 0.5:
        parts = [split_heads(part) for part in parts]
    wide = np.float64 if dtype == "float64" else np.float32
    return [*parts, rng.normal(size=shapes[3][:3]).astype(wide)]


def random_mask(isa: str, dtype: str, rng, kind: str, full: tuple) -> tuple:
    """(mask as stored, what it means in float64 or bool), broadcast along random dimensions."""
    shape = tuple(n if rng.random() < 0.6 else 1 for n in full)
    if kind == "bool":
        on = rng.random(shape) > 0.3
        return on, on
    values = rng.normal(size=shape)
    values[rng.random(shape) < 0.1] = -np.inf
    if kind == "float32":
        return values.astype(np.float32), values.astype(np.float32).astype(np.float64)
    mask = stored(isa, dtype, values)
    return mask, read(isa, dtype, mask)


def both(isa, dtype, q, k, v, dout, dlse, **options) -> list[np.ndarray]:
    """(out, lse, dq, dk, dv, dmask or None) of the kernels."""
    forward = native.attention_forward(isa, dtype, q, k, v, **options)
    backward = native.attention_backward(isa, dtype, dout, dlse, q, k, v, *forward, **options)
    return [*forward, *backward]


def check(isa, dtype, got, expected) -> None:
    terms = 16 * max(expected[3].shape[2], expected[2].shape[2], 4)
    for name, values, exact in zip(
        ("out", "lse", "dq", "dk", "dv", "dmask"), got, expected, strict=True
    ):
        if exact is None:
            assert values is None
            continue
        if name == "lse":
            assert np.array_equal(np.isneginf(values), np.isneginf(exact))
            live = np.isfinite(exact)
            close(values[live], exact[live], "float64" if dtype == "float64" else "float32", terms)
            continue
        kind = "float32" if values.dtype == np.float32 else dtype
        # A float32 mask beside 16-bit inputs gets what rounding `out` left.
        close(read(isa, kind, values), exact, kind if dtype == "float64" else dtype, terms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_remainder_of_every_size(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    lanes = native.lanes(isa)
    lengths = (*range(1, 10), lanes - 1, lanes + 1, 3 * lanes - 1, 3 * lanes, 3 * lanes + 1)
    for n in lengths:
        for queries, keys, dim, dim_v in (
            (n, 5, 3, 4),
            (3, n, 5, 2),
            (4, 3, n, 5),
            (2, 9, 4, n),
            (n, n, n, n),
        ):
            q, k, v, dout, dlse = inputs(isa, dtype, rng, 2, 2, 1, queries, keys, dim, dim_v)
            walls = [placed(part, n % 7) for part in (q, k, v)]
            got = both(isa, dtype, *(view for _, view in walls), dout, dlse, scale=0.5)
            assert all(walls_intact(buffer, view.size) for buffer, view in walls)
            numbers = [read(isa, dtype, part) for part in (q, k, v, dout)]
            check(isa, dtype, got, truth(isa, *numbers, dlse, scale=0.5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_calls(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for number in range(48):
        batch, heads_kv = rng.integers(1, 4), rng.integers(1, 3)
        heads = heads_kv * rng.integers(1, 4)
        longest = 150 if number % 8 == 0 else 40
        queries, keys = rng.integers(1, longest, 2)
        dim, dim_v = rng.integers(1, 40, 2)
        q, k, v, dout, dlse = inputs(
            isa, dtype, rng, batch, heads, heads_kv, queries, keys, dim, dim_v
        )
        band = {"causal": int(rng.integers(0, 4))}
        if rng.random() < 0.3:
            band["window"] = tuple(int(w) for w in rng.integers(-1, 20, 2))
        common = {"scale": float(dim) ** -0.5, "p": float(rng.choice([0.0, 0.3])), **band}
        ours, theirs = {}, {}
        if (kind := rng.choice(["", "bool", "same", "float32"])) != "":
            full = (batch, heads, queries, keys)
            ours["mask"], theirs["mask"] = random_mask(isa, dtype, rng, kind, full)
        if rng.random() < 0.3:
            lengths = rng.integers(0, keys + 1, batch)
            ours["key_lengths"], theirs["lengths"] = lengths.astype(np.int32), lengths
        ours |= {"seed": SEED, "num_threads": int(rng.integers(1, 3))}
        got = both(isa, dtype, q, k, v, dout, dlse, **ours, **common)
        numbers = [read(isa, dtype, part) for part in (q, k, v, dout)]
        check(isa, dtype, got, truth(isa, *numbers, dlse, **theirs, **common))


def packs(values: np.ndarray, lengths) -> np.ndarray:
    """(B, H, L, D) or (B, H, L), padded to the right, as (T, H, D) or (H, T)."""
    if values.ndim == 3:
        return np.concatenate(
            [x[:, :n] for x, n in zip(values, lengths, strict=True)], 1, dtype=values.dtype
        )
    return np.concatenate([x[:, :n].swapaxes(0, 1) for x, n in zip(values, lengths, strict=True)])


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_sequences_have_the_bits_of_padded_ones(isa: str, dtype: str, p: float) -> None:
    rng = np.random.default_rng(2)
    for lengths in ((5, 1, 33), (0, 7, 0, 50, 0), (3,)):
        longest = max(lengths)
        q, k, v, dout, dlse = inputs(isa, dtype, rng, len(lengths), 4, 2, longest, longest, 19, 24)
        for b, n in enumerate(lengths):
            dout[b, :, n:], dlse[b, :, n:] = 0, 0
        ends = np.array([0, *accumulate(lengths)], np.int32)
        options = {"p": p, "seed": SEED, "scale": 0.3}
        padded = both(isa, dtype, q, k, v, dout, dlse, key_lengths=np.array(lengths), **options)
        packed = both(
            isa, dtype, *(packs(t, lengths) for t in (q, k, v, dout)), packs(dlse, lengths),
            starts_q=ends, starts_k=ends.astype(np.int64), num_threads=2, **options,
        )  # fmt: skip
        for one, two in zip(padded[:5], packed[:5], strict=True):
            np.testing.assert_array_equal(packs(one, lengths), two)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_threads(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    # Many heads, and one of so many keys that threads share it; then scores of hundreds.
    for heads, queries, keys, scale in ((6, 50, 40, 0.3), (1, 70, 600, 0.3), (1, 70, 300, 40.0)):
        q, k, v, dout, dlse = inputs(isa, dtype, rng, 1, heads, 1, queries, keys, 8, 8)
        mask = stored(isa, dtype, rng.normal(size=(1, heads, 1, keys)))
        one, two = (
            both(
                isa, dtype, q, k, v, dout, dlse,
                mask=mask, p=0.1, seed=SEED, scale=scale, num_threads=threads,
            )
            for threads in (1, 2)
        )  # fmt: skip
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_large_scores_lose_nothing_but_their_own_rounding(isa: str) -> None:
    rng = np.random.default_rng(4)
    q, k, v, dout, dlse = inputs(isa, "float32", rng, 2, 2, 2, 40, 130, 16, 16)
    # Multiples of 2^-4: their sums of products are exact, so lse alone is rounded.
    q, k = (np.round(x * 16) / 16 for x in (q * 8, k))
    least = np.full((1, 1, 1, 130), np.finfo(np.float32).min)
    for mask in (None, least):
        options = {} if mask is None else {"mask": mask}
        got = both(isa, "float32", q, k, v, dout, dlse, **options)
        numbers = [x.astype(np.float64) for x in (q, k, v, dout)]
        if mask is not None:  # which swallows the scores
            options["mask"] = mask.astype(np.float64)
        check(isa, "float32", got, truth(isa, *numbers, dlse, **options))
