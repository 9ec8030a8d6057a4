"""Triton drawer of the packing room: the plan without waiting for the device, and copies of rows.

The kernels (triton_kernels.py) are imported at the first call, and triton with them.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from bigkernels.ops import triton_launch, triton_table
from bigkernels.ops.packing.contract import Facts
from bigkernels.ops.triton_launch import device_of

_DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_PLANS, _COPIES = triton_launch.Replays(), triton_launch.Replays()


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    reasons = triton_launch.chip_limits(facts.chip)
    if facts.dtype not in _DTYPES:
        reasons += (f"dtype {facts.dtype} is neither real nor an integer of Triton's",)
    return reasons


def _plain(x: Tensor) -> Tensor:
    """Contiguous, and booleans as the bytes they are."""
    x = x.contiguous()
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def _launch_plan(
    keep: Tensor,
    counts: Tensor,
    results: tuple[Tensor, ...],
    key: tuple[int, int, int, torch.dtype],
) -> tuple[triton_launch.Replay | None, ...]:
    from . import triton_kernels as kernels

    batch, length, tokens, dtype = key
    tile = triton_table.tile("packing_plan", triton_launch.architecture(keep.device), dtype)
    options = {"BLOCK": tile["block"], "num_warps": tile["num_warps"]}
    count = triton_launch.launch(
        kernels.packing_count_kernel, (batch,), keep, counts, length, **options
    )
    plan = triton_launch.launch(
        kernels.packing_plan_kernel, (batch,), keep, counts, *results, batch, length, tokens, **options
    )  # fmt: skip
    return count, plan


def packing_plan(keep: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length = keep.shape
    long = functools.partial(keep.new_empty, dtype=torch.int64)
    indices, places, rows = long(tokens), long(batch * length), long(tokens)
    cu_seq = keep.new_empty(batch + 1, dtype=torch.int32)
    if batch * length == 0:
        return indices, places, cu_seq.zero_(), rows
    counts, fits = cu_seq.new_empty(batch), cu_seq.new_empty(())
    given = _plain(keep)
    results = (indices, places, cu_seq, rows, fits)
    key = (batch, length, tokens, keep.dtype)
    with device_of(keep):
        if not _PLANS.again(key, (given, counts), (given, counts, *results)):
            _PLANS.keep_plain(key, *_launch_plan(given, counts, results, key))
        if tokens < batch * length:
            torch._assert_async(fits, f"tokens: {tokens}, but keep has more")
    return indices, places, cu_seq, rows


@functools.cache
def tile(architecture: str, dtype: torch.dtype, columns: int) -> tuple[int, int, int]:
    """(BLOCK_M, BLOCK_N, num_warps) of the copies of rows."""
    most = triton_table.tile("packing_forward", architecture, dtype)
    block_n = min(most["columns"], triton_table.padded(columns))
    return min(1024, most["elements"] // block_n), block_n, most["num_warps"]


def packing_forward(x: Tensor, source: Tensor) -> Tensor:
    (rows, *row), (count,) = x.shape, source.shape
    columns, out = math.prod(row), x.new_empty(count, *row)
    if count * columns == 0:
        return out
    if rows == 0:
        return out.zero_()
    pointers = (_plain(x), source, _plain(out))
    key = (count, columns, x.dtype)
    with device_of(x):
        if not _COPIES.again(key, pointers):
            from .triton_kernels import packing_forward_kernel

            architecture = triton_launch.architecture(x.device)
            block_m, block_n, num_warps = tile(architecture, x.dtype, columns)
            known = triton_launch.launch(
                packing_forward_kernel, (-(-count // block_m), -(-columns // block_n)), *pointers, count, columns,
                BLOCK_M=block_m, BLOCK_N=block_n, num_warps=num_warps,
            )  # fmt: skip
            _COPIES.keep_plain(key, known)
    return out


triton_launch.register(packing_plan, packing_forward)
