"""The tensors of an attention op as its kernels take them, and what tells one call from another."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigkernels.ops import triton_launch
from bigkernels.ops.attention import triton_config

# 127 of them, and a column, are below 2^31; those of a mask, below 2^32.
FAR_ROWS, FAR_MASK_ROWS = 1 << 23, 1 << 25


@functools.lru_cache(maxsize=4096)
def _in_place(shape: torch.Size, steps: tuple[int, ...]) -> bool:
    if steps[-1] != 1 and shape[-1] != 1:
        return False
    apart = [step for n, step in zip(shape[:-1], steps, strict=False) if n > 1]
    near = steps[-2 if len(steps) == 4 else 0] < FAR_ROWS
    return near and all(step % triton_config.UNIT == 0 for step in apart)


def _aligned(x: Tensor) -> Tensor:
    """An empty tensor of x's shape, with rows that the kernels can read and write in place."""
    *leading, d = x.shape
    return x.new_empty(*leading, -(-d // triton_config.UNIT) * triton_config.UNIT)[..., :d]


def rows_of(x: Tensor) -> Tensor:
    """x, or a copy of it where the kernels cannot read its rows in place."""
    if x.data_ptr() % 16 == 0 and _in_place(x.shape, x.stride()):
        return x
    return _aligned(x).copy_(x)


def whole(*results: Tensor) -> bool:
    """Whether the kernels can write the rows of new tensors, which have no gaps."""
    return all(x.shape[-1] % triton_config.UNIT == 0 for x in results)


def results_of(x: Tensor) -> Tensor:
    """x, which is new, or what is written in its place where the kernels cannot write its rows."""
    return x if whole(x) else _aligned(x)


def columns_of(mask: Tensor | None) -> Tensor | None:
    """A mask whose columns are neighbours, or all one: other strides give the tiles another layout, and sums
    another order. Its rows may not lie so far apart that an offset inside a tile leaves 32 bits."""
    if mask is None or (mask.shape[-2] > 1 and mask.stride(-2) >= FAR_MASK_ROWS):
        return None if mask is None else mask.contiguous()
    if mask.shape[-1] == 1 or mask.stride(-1) == 1:
        return mask
    return mask.contiguous()


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as numbers to add, 0 and -inf: what the backward is given for want of registers. Of bytes, its
    transposed tiles take float32 in three layouts, and the words of dropout. No bit of a gradient depends on it."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    for dim in range(4):  # what is broadcast stays small
        if mask.stride(dim) == 0 and mask.shape[dim] > 1:
            mask = mask.narrow(dim, 0, 1)
    return mask.to(dtype).log_()


def strides_of(x: Tensor) -> tuple[int, int, int]:
    """Of batch, heads and rows."""
    return (
        (x.stride(0), x.stride(1), x.stride(2)) if x.dim() == 4 else (0, x.stride(1), x.stride(0))
    )


def key_of(arguments: tuple[Any, ...], *others: Tensor) -> triton_launch.Key:
    """Of an op's arguments from q to rows: what every number of its launches follows from. others: with rows too."""
    q, k, v, mask, lengths, cu_q, cu_k, *numbers, slopes, sinks, p, seed, offset, rows = arguments
    return (
        q.dtype, q.device, q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride(), *[x.stride() for x in others],
        *numbers, p, seed is None, offset is None, rows is None or p == 0.0, triton_launch.float32_products(q.dtype),
        *map(triton_launch.kind, (lengths, cu_q, cu_k, slopes, sinks)), None if cu_q is None else cu_q.shape,
        None if mask is None else (mask.dtype, mask.shape, mask.stride()),
    )  # fmt: skip


def pointers_of(arguments: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """As the kernels take them; q, k and v as they are."""
    q, k, v, mask, lengths, cu_q, cu_k, *_, slopes, sinks, p, seed, offset, rows = arguments
    rows = rows if p > 0.0 else None  # nothing else reads them: one form of a kernel less
    mask = columns_of(mask)
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.int8)
    behind = (lengths, cu_q, cu_k, slopes, sinks, seed, offset, rows)
    return q, k, v, mask, *map(triton_launch.dense, behind)


class Backward(NamedTuple):
    """The tensors of a backward, as the kernels take them."""

    shared: tuple[Tensor | None, ...]
    dout: Tensor
    out: Tensor
    lse: Tensor
    dlse: Tensor | None
    statistics: list[Tensor]  # three like lse
    gradients: tuple[Tensor, Tensor, Tensor]
    dmask: Tensor | None

    def key(self, arguments: tuple[Any, ...]) -> triton_launch.Key:
        """Of the op's arguments and these."""
        without = self.dlse is None, self.dmask is None, triton_launch.deterministic()
        return (*key_of(arguments, self.dout, self.out, *self.gradients), *without)

    def in_place(self, arguments: tuple[Any, ...]) -> Backward:
        """With rows that the kernels can read and write, as those of q, k and v in `arguments` are already."""
        dq, dk, dv = map(results_of, self.gradients)
        shared = (*arguments[:3], *self.shared[3:])
        dout, out = rows_of(self.dout), rows_of(self.out)
        return self._replace(shared=shared, dout=dout, out=out, gradients=(dq, dk, dv))

    def short(self, scratch: int) -> tuple[Tensor | None, ...]:
        part = self.lse.new_empty(scratch) if scratch else self.statistics[0]
        return (
            *self.shared, self.dout, self.out, self.lse, self.dlse, *self.statistics, part, *self.gradients,
        )  # fmt: skip

    def long(self, scratch: int) -> Iterator[tuple[Tensor | None, ...]]:
        """Of the kernels rows, query, key and, with a mask's gradient, mask; with scratch in which dq is added up, of
        rows, once and round in place of the first three."""
        statistics, (dq, dk, dv) = self.statistics, self.gradients
        part = self.lse.new_empty(scratch) if scratch else None
        yield *self.shared, self.dout, self.out, self.lse, self.dlse, *statistics, part
        if part is None:
            yield *self.shared, self.dout, *statistics, dq
            yield *self.shared, self.dout, *statistics, dk, dv
        else:
            yield *self.shared, self.dout, *statistics, part, dk, dv
            yield self.shared[5], self.shared[6], part, dq  # cu_q, cu_k
        if self.dmask is not None:
            yield *self.shared, self.dout, *statistics, self.dmask

    def again(self, known: tuple[triton_launch.Replay, ...] | None) -> bool:
        """Whether the launches of an earlier call could serve this one."""
        if known is None:
            return False
        if len(known) == 1:
            return triton_launch.replay(known[0], self.short(known[0].scratch))
        return all(map(triton_launch.replay, known, self.long(known[0].scratch)))
