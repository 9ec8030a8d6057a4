"""Triton drawer of the cross_entropy room.

The kernels (triton_kernels.py) are imported at the first call, and triton with them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bigkernels.ops import triton_launch
from bigkernels.ops.cross_entropy.contract import Facts
from bigkernels.ops.triton_launch import device_of

MOST_CLASSES = 2048  # of one step, or of one program of the backward


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    return triton_launch.common_limits(facts.dtype, facts.chip)


@functools.cache
def tile(classes: int) -> tuple[int, int]:
    """(BLOCK, num_warps): a function of V alone, so that a row's sum does not depend on the others."""
    block = min(MOST_CLASSES, max(128, 1 << (classes - 1).bit_length()))
    return block, max(1, block // 256)


def cross_entropy_forward(
    logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    from .triton_kernels import cross_entropy_forward_kernel

    count, classes = logits.shape
    loss, lse = (logits.new_empty(count, dtype=torch.float32) for _ in range(2))
    if count == 0:
        return loss, lse
    block, num_warps = tile(classes)
    target = target.contiguous()
    with device_of(logits):
        good = (target >= 0) & (target < classes) | (target == ignore_index)
        torch._assert_async(good.all(), f"index out of range: a target is not in [0, {classes})")
        triton_launch.launch(
            cross_entropy_forward_kernel, (count,),
            logits.contiguous(), target, loss, lse, classes, ignore_index, label_smoothing,
            SMOOTHING=label_smoothing > 0.0, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
    return loss, lse


def cross_entropy_backward(
    dloss: Tensor,
    logits: Tensor,
    lse: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    from .triton_kernels import cross_entropy_backward_kernel

    count, classes = logits.shape
    dlogits = logits.new_empty(logits.shape)
    if count == 0:
        return dlogits
    block, num_warps = tile(classes)
    with device_of(logits):
        triton_launch.launch(
            cross_entropy_backward_kernel, (count, -(-classes // block)),
            dloss.contiguous(), logits.contiguous(), lse, target.contiguous(), dlogits, classes,
            ignore_index, label_smoothing,
            SMOOTHING=label_smoothing > 0.0, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
    return dlogits


triton_launch.register(cross_entropy_forward, cross_entropy_backward)
