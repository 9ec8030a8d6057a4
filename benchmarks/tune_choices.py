"""What tune.py lets each room choose from: tiles by the arithmetic of registers and shared memory, and a call that
launches the kernel. Choices that two launches of one call must share (the order of their sums) are not among them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import bigkernels as bk
from bigkernels.ops import triton_launch, triton_table
from bigkernels.ops.ffn import triton_tiles

Tile = dict[str, int]


class Made(NamedTuple):
    """A call, and what is differentiated where that counts. parts: how many times as much the whole is; sizes: of its
    tensors' dimensions, the whole. deterministic: by torch's setting."""

    call: Callable[[], object]
    wrt: tuple[Tensor, ...] = ()
    parts: float = 1.0
    sizes: dict[int, int] | None = None
    deterministic: bool = False


# Bytes of shared memory that a program may have.
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
DTYPES = {"16 bit": torch.bfloat16, "32 bit": torch.float32}


class Choice(NamedTuple):
    """One op of the table: its kernel, the buckets that are tuned (most wanted first), their candidates on an
    architecture in a dtype, and a call; small: as few programs as say something, to be emulated."""

    room: str
    op: str
    kernel: str
    buckets: tuple[str, ...]
    candidates: Callable[[str, str, str], Iterator[Tile]]
    call: Callable[[str, str, str, bool], Made]
    dtypes: tuple[str, ...] = ("16 bit",)


def _draw(device: str, dtype: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(DTYPES[dtype]).requires_grad_()


def _ffn_tiles(gated: bool, architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    """Sums of 32 to 128 registers a thread, half of them in small planes; block_k, the same for large and small."""
    size = torch.finfo(DTYPES[dtype]).bits // 8
    products = 2 if gated else 1
    few, many = (64, 128) if bucket == "large" else (32, 64)
    for m, n, warps, stages in itertools.product((64, 128), (64, 128, 256), (4, 8), (2, 3)):
        registers = products * m * n // (32 * warps)
        block_k = 64 if architecture != "gfx942" else 32
        shared = stages * (m + products * n) * block_k * size
        if few <= registers <= many and shared <= SHARED[architecture]:
            names = ("block_m", "block_n", "block_k", "num_warps", "num_stages")
            yield dict(zip(names, (m, n, block_k, warps, stages), strict=True))


# (rows, E, F): of BERT-large, and of one short sample; and the tile of the plane that is emulated.
_PLANES = {"large": (16384, 1024, 4096), "small": (128, 768, 3072)}
_EMULATED = (128, 256)


def _ffn(direction: str, dtype: str, bucket: str, device: str, small: bool) -> Made:
    whole, e, wide = _PLANES[bucket]
    m, f = _EMULATED if small else (whole, wide)
    draw = functools.partial(_draw, device, dtype)
    x, up, down = draw(m, e), draw(f, e), draw(e, f)
    gate = draw(f, e) if direction == "gated" else None
    call = functools.partial(
        bk.feed_forward, x, up, None, down, None, weight_gate=gate, backend="triton"
    )
    wrt = (x, up, down) if direction == "backward" else ()
    return Made(call, wrt, whole / m * wide / f, {m: whole, f: wide})


def _row_tiles(backward: bool, architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    """Eight to 32 elements a thread of the forward, half as many of the backward, which keeps several values of each
    and whose programs share all registers."""
    per_thread = (4, 8, 16) if backward else (8, 16, 32)
    for elements, warps in itertools.product((1024, 2048, 4096, 8192), (1, 2, 4, 8, 16)):
        each = elements // (32 * warps)
        if elements < int(bucket) or each not in per_thread:
            continue
        if not backward:
            yield {"elements": elements, "num_warps": warps}
            continue
        for registers in (64, 128):
            if registers * warps <= 2048 and 8 * each <= registers:
                yield {"elements": elements, "num_warps": warps, "registers": registers}


_ROWS, _FEW_ROWS = 16384, 64


def _layer_norm(backward: bool, dtype: str, bucket: str, device: str, small: bool) -> Made:
    m, n = _FEW_ROWS if small else _ROWS, int(bucket)
    draw = functools.partial(_draw, device, dtype)
    x, residual, weight, bias = draw(m, n), draw(m, n), draw(n), draw(n)
    call = functools.partial(bk.add_layer_norm, x, residual, weight, bias, backend="triton")
    return Made(call, (x, residual, weight, bias) if backward else (), _ROWS / m)


def _embedding(backward: bool, dtype: str, bucket: str, device: str, small: bool) -> Made:
    m, n = _FEW_ROWS if small else _ROWS, int(bucket)
    draw = functools.partial(_draw, device, dtype)
    words = 119 if small else 30522
    tables, weight, bias = (draw(words, n), draw(512, n), draw(2, n)), draw(n), draw(n)
    ids = torch.randint(0, words, (m // 64, 64), device=device)
    call = functools.partial(bk.embedding, ids, *tables, weight, bias, backend="triton")
    wrt = (*tables, weight, bias) if backward else ()
    # Of a table no more is read than tokens ask for.
    return Made(call, wrt, _ROWS / m, {m: _ROWS, words: min(words, _ROWS)} if small else None)


def _attention_tiles(kernel: str, architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    """Sums of scores and of gradients in at most 176 registers a thread. The forward's BLOCK_N is the table's: in its
    blocks a row's softmax is rescaled, in plain and masked calls alike; and no row is shared by two warps."""
    d = int(bucket.split()[0])
    own = triton_table.table().get((f"attention_{kernel}", architecture, dtype, bucket))
    if own is None:
        return
    forward = kernel in ("forward", "few")
    # Planes of scores, and of which of q and k a gradient or the result is summed up.
    planes, of_q, of_k = {
        **{"forward": (1, 1, 0), "few": (1, 1, 0), "query": (2, 1, 0)},
        **{"rows": (2, 0, 0), "mask": (2, 0, 0)},
    }.get(kernel, (2, 0, 2))
    columns = (own["block_n"],) if forward else (32, 64, 128)
    for m, n, warps, stages in itertools.product((32, 64, 128), columns, (4, 8), (1, 2, 3)):
        if forward and m < max(64, 16 * warps):
            continue
        if kernel == "few" and m != own["block_m"]:
            continue
        sums = planes * m * n + d * (of_q * m + of_k * n)
        shared = 2 * d * ((m if forward else 2 * n) + 2 * stages * (n if forward else m))
        if 16 <= sums // (32 * warps) <= 176 and shared <= SHARED[architecture]:
            yield {"block_m": m, "block_n": n, "num_warps": warps, "num_stages": stages}


def _attention(kernel: str, dtype: str, bucket: str, device: str, small: bool) -> Made:
    """Lengths for which the kernel is chosen; busy: with an additive bias."""
    d, busy = int(bucket.split()[0]), bucket.endswith("busy")
    length = {"few": 64, "short": 512 if d == 64 else 256}.get(kernel, 1024)
    heads, parts = (1, 256.0) if small else (256, 1.0)
    draw = functools.partial(_draw, device, dtype)
    q, k, v = (draw(1, heads, length, d) for _ in range(3))
    mask = draw(1, 1, length, length) if busy else None
    wrt = [] if kernel in ("forward", "few") else [q, k, v]
    if mask is not None and kernel == "mask":
        wrt.append(mask)
    elif mask is not None:
        mask = mask.detach()
    attend = functools.partial(bk.scaled_dot_product_attention, q, k, v, mask)
    call = functools.partial(attend, backend="triton")
    return Made(call, tuple(wrt), parts, deterministic=kernel in ("rows", "query", "key"))


def _scatter_tiles(architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    for m, n in itertools.product((8, 16, 32), (128, 256, 512)):
        if m * n <= 64 * 128:
            yield {"block_m": m, "block_n": n, "num_warps": 4}


def _scatter(dtype: str, bucket: str, device: str, small: bool) -> Made:
    """Of a table that is not cut into shares: a part of its rows and of the tokens, likewise."""
    words, m, n = (2048, 1024, 256) if small else (30522, 16384, 1024)
    word = _draw(device, dtype, words, n)
    ids = torch.randint(0, words, (1, m), device=device)
    call = functools.partial(bk.embedding, ids, word, backend="triton")
    return Made(call, (word,), 30522 * 1024 / (words * n))


def _loss_tiles(architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    for block, elements in itertools.product((1024, 2048, 4096, 8192), (8, 16, 32)):
        if 1 <= block // (32 * elements) <= 16:
            yield {"block": block, "elements": elements}


def _loss(backward: bool, dtype: str, bucket: str, device: str, small: bool) -> Made:
    rows, classes = 4 if small else 4096, 30522
    logits = _draw(device, dtype, rows, classes)
    target = torch.zeros(rows, dtype=torch.int64, device=device)
    call = functools.partial(bk.cross_entropy, logits, target, backend="triton")
    return Made(call, (logits,) if backward else (), 4096 / rows)


def _copy_tiles(architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    for columns, elements, warps in itertools.product((1024, 2048), (2048, 4096, 8192), (4, 8)):
        if elements >= columns and elements // (32 * warps) <= 32:
            yield {"columns": columns, "elements": elements, "num_warps": warps}


def _vector_tiles(architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    for block, warps in itertools.product((512, 1024, 2048), (2, 4, 8)):
        yield {"block": block, "num_warps": warps}


def _packing(dtype: str, bucket: str, device: str, small: bool) -> Made:
    batch = 4 if small else 128
    lengths = torch.arange(batch) * 384 // (batch - 1) + 128
    keep = (torch.arange(512) < lengths[:, None]).to(device)
    x = _draw(device, dtype, batch, 512, 768).detach()

    def call() -> object:
        plan = bk.packing.plan(keep, tokens=batch * 512, backend="triton")
        return bk.packing.unpad(x, plan, backend="triton")

    return Made(call, (), 128 / batch)


def _sum_tiles(architecture: str, dtype: str, bucket: str) -> Iterator[Tile]:
    for m, n, warps in itertools.product((32, 64, 128), (32, 64), (4, 8)):
        yield {"block_m": m, "block_n": n, "num_warps": warps}


def _sums(dtype: str, bucket: str, device: str, small: bool) -> Made:
    partials: list[Tensor | None] = [torch.randn(528, 1024, device=device) for _ in range(3)]
    return Made(functools.partial(triton_launch.column_sums, partials, torch.float32))


_PAIRS = ("64 plain", "128 plain", "64 busy", "128 busy")
_ALL = (*_PAIRS, "256 plain", "256 busy")
# Kernels of attention and their buckets: what everybody runs, and what is left.
_FIRST = {"forward": _ALL, "short": _PAIRS, "once": _PAIRS}
_LAST = {
    "few": _PAIRS[:2],
    "mask": ("64 busy", "128 busy", "256 busy"),
    "key": _ALL,
    "query": _ALL,
    "rows": _ALL,
}


def _of_attention(kernels: dict[str, tuple[str, ...]]) -> Iterator[Choice]:
    for name, buckets in kernels.items():
        kernel = "forward" if name in ("forward", "few") else f"backward_{name}"
        tiles, call = functools.partial(_attention_tiles, name), functools.partial(_attention, name)
        op = f"attention_{name}"
        yield Choice("attention", op, f"attention_{kernel}_kernel", buckets, tiles, call)


def choices() -> Iterator[Choice]:
    """What is tuned, in the order of what it matters."""
    part = functools.partial
    yield from _of_attention(_FIRST)
    wide = ("1024", "4096", "512", "2048", "256")
    for direction in ("forward", "backward"):
        back = direction == "backward"
        yield Choice(
            "layer_norm", f"layer_norm_{direction}", f"layer_norm_{direction}_kernel",
            (*wide, "8192"), part(_row_tiles, back), part(_layer_norm, back), tuple(DTYPES),
        )  # fmt: skip
    for direction in triton_tiles.DIRECTIONS:
        kernel = "ffn_backward_kernel" if direction == "backward" else "ffn_forward_kernel"
        tiles, call = part(_ffn_tiles, direction == "gated"), part(_ffn, direction)
        yield Choice("ffn", f"ffn_{direction}", kernel, tuple(_PLANES), tiles, call)
    yield from _of_attention(_LAST)
    for direction in ("forward", "backward"):
        back = direction == "backward"
        yield Choice(
            "embedding", f"embedding_{direction}", f"embedding_{direction}_kernel",
            wide, part(_row_tiles, back), part(_embedding, back),
        )  # fmt: skip
        loss = f"cross_entropy_{direction}"
        yield Choice(
            "cross_entropy", loss, f"{loss}_kernel", ("any",), _loss_tiles, part(_loss, back)
        )
    reduce = "cross_entropy_reduce"
    loss_sum = part(_loss, False)
    yield Choice("cross_entropy", reduce, f"{reduce}_kernel", ("any",), _vector_tiles, loss_sum)
    scatter = "embedding_scatter"
    yield Choice("embedding", scatter, f"{scatter}_kernel", ("any",), _scatter_tiles, _scatter)
    copies, plan = "packing_forward", "packing_plan"
    yield Choice("packing", copies, f"{copies}_kernel", ("any",), _copy_tiles, _packing)
    yield Choice("packing", plan, f"{plan}_kernel", ("any",), _vector_tiles, _packing)
    sums = "column_sum"
    yield Choice("sums", sums, f"{sums}_kernel", ("any",), _sum_tiles, _sums, ("32 bit",))
