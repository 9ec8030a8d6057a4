"""Triton drawer of the attention room: dense and packed, forward and backward, head dims up to 256.

The kernels are imported at the first call, and triton with them. See triton_tiles.py for their form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigkernels.ops import triton_launch
from bigkernels.ops.attention import contract, triton_config
from bigkernels.ops.attention.contract import Facts
from bigkernels.ops.attention.triton_arguments import (
    Backward,
    additive,
    columns_of,
    key_of,
    pointers_of,
    results_of,
    rows_of,
    strides_of,
    whole,
)

MAX_DIM = 256
OPEN = 1 << 30  # a side on which the diagonal bounds nothing


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    reasons = triton_launch.common_limits(facts.dtype, facts.chip)
    dims = {"head_dim": facts.head_dim, "head_dim_v": facts.head_dim_v}
    wide = (f"{name} {d} not in 1..{MAX_DIM}" for name, d in dims.items() if not 1 <= d <= MAX_DIM)
    learned = ("learned alibi_slopes or sinks get no gradient",) if facts.learned else ()
    return (*reasons, *wide, *learned)


class Call(NamedTuple):
    """The arguments that forward and backward share, as the kernels take them."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    lengths: Tensor | None
    cu_q: Tensor | None
    cu_k: Tensor | None
    slopes: Tensor | None
    sinks: Tensor | None
    dropout: triton_launch.Dropout
    scale: float
    softcap: float
    left: int
    right: int
    bottom_right: int
    longest: int  # bound of a sequence's queries and keys

    @property
    def flags(self) -> int:
        ranged = self.left < OPEN or self.right < OPEN
        masked = self.mask is not None and self.mask.dtype != torch.bool
        added = masked or self.slopes is not None
        on = {"ranged": ranged, "softcap": self.softcap > 0.0, "added": added}
        on |= {"dropout": self.dropout.p > 0.0, "negative": self.scale < 0.0}
        return sum(triton_config.FLAGS[name] for name, value in on.items() if value)

    @property
    def load(self) -> str:
        dtype = None if self.mask is None else self.mask.dtype
        kind = {None: "none", torch.bool: "bool"}.get(dtype, "float")
        wide = dtype == torch.float32 != self.q.dtype
        others = self.softcap > 0.0, self.dropout.p > 0.0, self.slopes is not None, wide
        ranged = self.flags & triton_config.FLAGS["ranged"] > 0
        return triton_config.load_of(kind, ranged, sum(others))

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """(batch, heads, group, Lq, Lk); packed: of lengths, all tokens' number."""
        if self.cu_q is not None:
            (tokens, heads, _), keys = self.q.shape, self.k.shape[0]
            return self.cu_q.shape[0] - 1, heads, heads // max(1, self.k.shape[1]), tokens, keys
        batch, heads, queries, _ = self.q.shape
        return batch, heads, heads // max(1, self.k.shape[1]), queries, self.k.shape[2]

    def tiles(self, block: int, length: int) -> int:
        """Programs a head."""
        if self.cu_q is not None:
            return length // block + self.cu_q.shape[0]
        return -(-length // block)

    def mask_strides(self) -> tuple[int, ...]:
        if self.mask is None:
            return 0, 0, 0, 0
        return tuple(
            s if n > 1 else 0 for n, s in zip(self.mask.shape, self.mask.stride(), strict=True)
        )

    def statistic_strides(self) -> tuple[int, int]:
        """Of lse, by sample and head."""
        _, heads, _, queries, _ = self.sizes
        return (0 if self.cu_q is not None else heads * queries), queries

    def numbers(self) -> tuple[float, ...]:
        return self.scale, self.softcap, *self.dropout.rule()

    def dims(self) -> dict[str, Any]:
        d, dv = self.q.shape[-1], self.v.shape[-1]
        block_d, block_dv = triton_config.padded(d), triton_config.padded(dv)
        wanted = triton_launch.float32_products(self.q.dtype)
        return {
            "FLAGS": self.flags,
            "PRECISION": triton_config.products(wanted, max(block_d, block_dv)),
            "D": d,
            "DV": dv,
            "BLOCK_D": block_d,
            "BLOCK_DV": block_dv,
        }


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    key_lengths: Tensor | None,
    cu_seq_q: Tensor | None,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    scale: float,
    causal: int,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
) -> Call:
    """An op's arguments in the kernels' form: causal is a window without a right side."""
    dropout = triton_launch.Dropout(dropout_p, seed, offset, rows)
    left = OPEN if window_left < 0 else min(window_left, OPEN)
    right = OPEN if window_right < 0 else min(window_right, OPEN)
    if causal in (contract.TOP_LEFT, contract.BOTTOM_RIGHT):
        right = min(right, 0)
    dense, length_dim = triton_launch.dense, -2 if cu_seq_q is None else 0
    bounds = ((q.shape[length_dim], max_q), (k.shape[length_dim], max_k))
    longest = max(n if most < 0 else min(n, most) for n, most in bounds)
    return Call(
        q, k, v, columns_of(mask), dense(key_lengths), dense(cu_seq_q), dense(cu_seq_k),
        dense(alibi_slopes), dense(sinks), dropout, scale, softcap, left, right,
        int(causal >= contract.BOTTOM_RIGHT), longest,
    )  # fmt: skip


class _Launch:
    """One op's launches: what they have in common."""

    def __init__(self, call: Call) -> None:
        self.call, self.dims = call, call.dims()
        d = max(self.dims["BLOCK_D"], self.dims["BLOCK_DV"])
        bits, precision = call.q.element_size() * 8, self.dims["PRECISION"]
        architecture, load = triton_launch.architecture(call.q.device), call.load
        halves = triton_config.FLAGS["pinned"] if bits == 16 else 0
        self.pinned = halves if architecture == "sm_90" else 0
        self.tiles = triton_config.tiles(architecture, bits, precision, d, load)
        few = triton_config.few(architecture, bits, d, load, call.longest)
        if few is not None:
            self.tiles = {**self.tiles, "forward": few}
        fills = self.dims["D"] == self.dims["BLOCK_D"] and self.dims["DV"] == self.dims["BLOCK_DV"]
        rows = call.dropout.rows if call.dropout.p > 0.0 else None
        numbered = call.lengths is not None or rows is not None
        held = triton_config.with_columns(load, d, fills, numbered)
        short = triton_config.short(architecture, bits, d, held, call.longest)
        self.short = None if call.scale < 0.0 else short
        once = triton_config.once(architecture, bits, d, held)  # adds up dq in no order
        self.once = None if triton_launch.deterministic() else once

    def strides(self, *tensors: Tensor) -> list[int]:
        return [step // triton_config.UNIT for x in tensors for step in strides_of(x)]

    def numbers(self, tiles: int) -> tuple[Any, ...]:
        """From stride_mb on to the end."""
        call = self.call
        return (
            *call.mask_strides(), *call.statistic_strides(), tiles, *call.sizes,
            call.left, call.right, call.bottom_right, *call.numbers(),
        )  # fmt: skip

    def constants(self, tile: triton_config.Tile, flags: int = 0) -> dict[str, Any]:
        return {
            **self.dims,
            "FLAGS": self.dims["FLAGS"] | flags,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
            "maxnreg": triton_config.REGISTERS,
        }

    def grid(self, block: int, of_keys: bool = False) -> tuple[int, int]:
        """(programs a head, programs), of a kernel that goes over queries, or keys, in blocks."""
        batch, heads, group, queries, keys = self.call.sizes
        tiles = self.call.tiles(block, keys if of_keys else queries)
        units = heads // group if of_keys else heads
        return tiles, tiles * units * (1 if self.call.cu_q is not None else batch)


_FORWARD, _BACKWARD = triton_launch.Replays(), triton_launch.Replays()


def attention_forward(*given: Any) -> tuple[Tensor, Tensor]:
    q, v, cu_q = given[0], given[2], given[5]
    out = contract.like_layout(q, v.shape[-1])
    *places, _ = q.shape
    lse = q.new_empty(*(places if cu_q is None else places[::-1]), dtype=torch.float32)
    if lse.numel() == 0:
        return out, lse
    with triton_launch.device_of(q):
        # Strides of a known key are those of rows in place; that they begin at 16 bytes, replay sees.
        if not (whole(out) and _FORWARD.again(key_of(given, out), (*pointers_of(given), out, lse))):
            _forward(given, out, lse)
    return out, lse


def _forward(given: tuple[Any, ...], out: Tensor, lse: Tensor) -> None:
    """Launches the forward, with copies of rows that the kernels cannot read or write where they are."""
    arguments = (*map(rows_of, given[:3]), *given[3:])
    written = results_of(out)
    key, pointers = key_of(arguments, written), pointers_of(arguments)
    if not _FORWARD.again(key, (*pointers, written, lse)):
        _FORWARD.keep_plain(key, _launch_forward(_call(*arguments), pointers, written, lse))
    if written is not out:
        out.copy_(written)


def _launch_forward(
    call: Call, pointers: tuple[Tensor | None, ...], out: Tensor, lse: Tensor
) -> triton_launch.Replay | None:
    from .triton_forward import attention_forward_kernel

    launch = _Launch(call)
    tile = launch.tiles["forward"]
    tiles, programs = launch.grid(tile.block_m)
    return triton_launch.launch(
        attention_forward_kernel, (programs,), *pointers, out, lse, *launch.strides(call.q, call.k, call.v, out),
        *launch.numbers(tiles), **launch.constants(tile),
    )  # fmt: skip


def attention_forward_plain(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: int
) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    nothing = (None, None, None, None, -1, -1, scale, causal, -1, -1, 0.0, None, None, 0.0)
    return attention_forward(q, k, v, *nothing, None, None, None)[0]


def _fills(call: Call) -> bool:
    """Whether programs that each have a whole sequence keep half of the multiprocessors busy."""
    batch, heads, group, _, _ = call.sizes
    return 2 * batch * (heads // group) >= triton_launch.multiprocessors(call.q.device)


def _launch_short(
    launch: _Launch, tile: triton_config.Tile, given: Backward
) -> triton_launch.Replay | None:
    from .triton_backward_short import attention_backward_short_kernel

    call = launch.call
    batch, heads, group, _, keys = call.sizes
    # By the tensors' own sizes: a wrong maximum of the user's may cost time, but no memory of others.
    several = keys > tile.block_n
    scratch = given.lse.numel() * launch.dims["BLOCK_D"] if several else 0
    found = triton_launch.launch(
        attention_backward_short_kernel, (batch * (heads // group),), *given.short(scratch),
        *launch.strides(call.q, call.k, call.v, given.dout, given.out, *given.gradients),
        *launch.numbers(1), **launch.constants(tile, launch.pinned), ROWS_M=triton_config.SHORT_ROWS,
    )  # fmt: skip
    return None if found is None else found._replace(scratch=scratch)


def _launch_long(launch: _Launch, given: Backward) -> Iterator[triton_launch.Replay | None]:
    from .triton_backward_key import attention_backward_key_kernel
    from .triton_backward_mask import attention_backward_mask_kernel
    from .triton_backward_query import attention_backward_query_kernel
    from .triton_backward_rows import attention_backward_rows_kernel

    call, once = launch.call, launch.once
    scratch = given.lse.numel() * launch.dims["BLOCK_D"] if once is not None else 0
    pointers = given.long(scratch)
    dq, dk, dv = given.gradients
    inputs = (call.q, call.k, call.v, given.dout)
    # A bias wants every single gradient of a score: delta may not have the rounding of out in it.
    sums = given.dmask is not None and given.out.dtype != torch.float32
    summed = triton_config.FLAGS["summed"] if sums else 0
    kernels: list[tuple[str, Any, tuple[Tensor, ...], int]] = [
        ("rows", attention_backward_rows_kernel, (given.out,), summed),
        ("query", attention_backward_query_kernel, (dq,), 0),
        ("key", attention_backward_key_kernel, (dk, dv), launch.pinned),
    ]
    for name, kernel, others, flags in kernels[: 3 if once is None else 1]:
        tile, of_keys = launch.tiles[name], name == "key"
        tiles, programs = launch.grid(tile.block_n if of_keys else tile.block_m, of_keys)
        found = triton_launch.launch(
            kernel, (programs,), *next(pointers), *launch.strides(*inputs, *others),
            *launch.numbers(tiles), **launch.constants(tile, flags),
        )  # fmt: skip
        yield None if found is None else found._replace(scratch=scratch)
    if once is not None:
        yield from _launch_once(launch, once, given, pointers)
    if given.dmask is not None:
        tile = launch.tiles["mask"]
        batch, heads, queries, keys = given.dmask.shape
        programs = batch * heads * -(-queries // tile.block_m) * -(-keys // tile.block_n)
        yield triton_launch.launch(
            attention_backward_mask_kernel, (programs,), *next(pointers), *launch.strides(*inputs),
            *given.dmask.shape, *launch.numbers(programs), **launch.constants(tile),
        )  # fmt: skip


def _launch_once(
    launch: _Launch,
    tile: triton_config.Tile,
    given: Backward,
    pointers: Iterator[tuple[Tensor | None, ...]],
) -> Iterator[triton_launch.Replay | None]:
    """One pass that adds up dq in float32, and what rounds it."""
    from .triton_backward_once import (
        attention_backward_once_kernel,
        attention_backward_round_kernel,
    )

    call, (dq, dk, dv) = launch.call, given.gradients
    tiles, programs = launch.grid(tile.block_n, of_keys=True)
    yield triton_launch.launch(
        attention_backward_once_kernel, (programs,), *next(pointers),
        *launch.strides(call.q, call.k, call.v, given.dout, dk, dv),
        *launch.numbers(tiles), **launch.constants(tile, launch.pinned),
    )  # fmt: skip
    batch, heads, _, queries, keys = call.sizes
    (tiles, programs), dims = launch.grid(triton_config.ROUND_ROWS), launch.dims
    yield triton_launch.launch(
        attention_backward_round_kernel, (programs,), *next(pointers),
        *launch.strides(dq), *call.statistic_strides(), tiles, batch, heads, queries, keys, abs(call.scale),
        D=dims["D"], BLOCK_D=dims["BLOCK_D"], BLOCK_M=triton_config.ROUND_ROWS,
        num_warps=triton_config.ROUND_WARPS,
    )  # fmt: skip


def attention_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Tensor | None, *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (contract.like_layout(x, x.shape[-1]) for x in (q, k, v))
    *_, dropout_p, _, _, _, need_dmask = numbers
    dmask = mask.new_empty(mask.shape) if need_dmask and mask is not None else None
    results = (dq, dk, dv, q.new_empty(0) if dmask is None else dmask)
    if q.numel() == 0 or k.numel() == 0:
        for gradient in results:
            gradient.zero_()
        return results
    if dropout_p > 0.0 or q.dtype == torch.float32:
        mask = additive(mask, q.dtype)
    arguments = (q, k, v, mask, *numbers[:-1])
    lse, dlse, shared = lse.contiguous(), triton_launch.dense(dlse), pointers_of(arguments)
    statistics = [torch.empty_like(lse) for _ in range(3)]
    given = Backward(shared, dout, out, lse, dlse, statistics, (dq, dk, dv), dmask)
    with triton_launch.device_of(q):
        if not (whole(dq, dv) and given.again(_BACKWARD.get(given.key(arguments)))):
            _backward(arguments, given)
    return results


def _backward(arguments: tuple[Any, ...], results: Backward) -> None:
    """Launches the backward, likewise."""
    arguments = (*map(rows_of, arguments[:3]), *arguments[3:])
    given = results.in_place(arguments)
    key = given.key(arguments)
    if not given.again(_BACKWARD.get(key)):
        launch = _Launch(call := _call(*arguments))
        if given.dmask is None and launch.short is not None and _fills(call):
            _BACKWARD.keep_plain(key, _launch_short(launch, launch.short, given))
        else:
            _BACKWARD.keep_plain(key, *_launch_long(launch, given))
    for gradient, rows in zip(results.gradients, given.gradients, strict=True):
        if rows is not gradient:
            gradient.copy_(rows)


triton_launch.register(attention_forward, attention_forward_plain, attention_backward)
