"""Triton drawer of the cross_entropy room.

The kernels (triton_kernels.py) are imported at the first call, and triton with them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bigkernels.ops import triton_launch, triton_table
from bigkernels.ops.cross_entropy.contract import Facts
from bigkernels.ops.triton_launch import device_of, kind

_FORWARD, _BACKWARD = triton_launch.Replays(), triton_launch.Replays()


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    return triton_launch.common_limits(facts.dtype, facts.chip)


@functools.cache
def tile(op: str, architecture: str, dtype: torch.dtype, classes: int) -> tuple[int, int]:
    """(BLOCK, num_warps): classes of one step of the forward, or of one program of the backward."""
    most = triton_table.tile(op, architecture, dtype)
    block = min(most["block"], max(128, triton_table.padded(classes)))
    return block, max(1, block // (32 * most["elements"]))


def cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count, classes = logits.shape
    dtype = torch.float32 if wide else logits.dtype
    reduced, mean = reduction != "none", reduction == "mean"
    loss = logits.new_empty(count, dtype=torch.float32 if reduced else dtype)
    lse = logits.new_empty(count, dtype=torch.float32)
    out = logits.new_empty((), dtype=dtype) if reduced else loss
    rows = logits.new_empty(() if mean else (0,), dtype=torch.float32)
    if count == 0:
        return out.fill_(torch.nan if mean else 0.0), lse, rows.zero_()
    good = logits.new_empty((), dtype=torch.bool)
    logits, target = logits.contiguous(), target.contiguous()
    of_rows = (logits, target, loss, lse)
    sums = (out if reduced else None, rows if mean else None)
    of_all = (loss if reduced else None, target, *sums, good)
    key = (count, classes, ignore_index, label_smoothing, reduction, wide, logits.dtype)
    with device_of(logits):
        if not _FORWARD.again(key, of_rows, of_all):
            _FORWARD.keep_plain(key, *_launch_forward(of_rows, of_all, *key[:4]))
        # On a GPU it stops the kernels that follow, as torch's own loss does; nobody waits for it.
        torch._assert_async(good, f"index out of range: a target is not in [0, {classes})")
    return out, lse, rows


def _launch_forward(
    of_rows: tuple[Tensor, ...],
    of_all: tuple[Tensor | None, ...],
    count: int,
    classes: int,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[triton_launch.Replay | None, ...]:
    from .triton_kernels import cross_entropy_forward_kernel, cross_entropy_reduce_kernel

    logits = of_rows[0]
    architecture = triton_launch.architecture(logits.device)
    block, num_warps = tile("cross_entropy_forward", architecture, logits.dtype, classes)
    sums = triton_table.tile("cross_entropy_reduce", architecture, logits.dtype)
    first = triton_launch.launch(
        cross_entropy_forward_kernel, (count,), *of_rows, classes, ignore_index, label_smoothing,
        SMOOTHING=label_smoothing > 0.0, BLOCK=block, num_warps=num_warps,
    )  # fmt: skip
    second = triton_launch.launch(
        cross_entropy_reduce_kernel, (1,), *of_all, count, classes, ignore_index,
        BLOCK=sums["block"], num_warps=sums["num_warps"],
    )  # fmt: skip
    return first, second


def cross_entropy_backward(
    dout: Tensor,
    logits: Tensor,
    lse: Tensor,
    rows: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    count, classes = logits.shape
    dlogits = logits.new_empty((count, classes))
    if count == 0:
        return dlogits
    step = 1 if dout.dim() else 0
    given = (dout.contiguous(), logits.contiguous(), lse, target.contiguous())
    pointers = (*given, rows if rows.dim() == 0 else None, dlogits)
    key = (count, classes, ignore_index, label_smoothing, step, *map(kind, pointers))
    with device_of(logits):
        if not _BACKWARD.again(key, pointers):
            from .triton_kernels import cross_entropy_backward_kernel

            architecture = triton_launch.architecture(logits.device)
            block, num_warps = tile("cross_entropy_backward", architecture, logits.dtype, classes)
            known = triton_launch.launch(
                cross_entropy_backward_kernel, (count, -(-classes // block)), *pointers, classes, step,
                ignore_index, label_smoothing,
                SMOOTHING=label_smoothing > 0.0, BLOCK=block, num_warps=num_warps,
            )  # fmt: skip
            _BACKWARD.keep_plain(key, known)
    return dlogits


triton_launch.register(cross_entropy_forward, cross_entropy_backward)
