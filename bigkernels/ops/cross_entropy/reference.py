"""The definition of cross-entropy in differentiable torch; any dtype, any device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bigkernels.ops.cross_entropy.contract import stat_dtype


def losses(
    logits: Tensor,  # (N, V)
    target: Tensor,  # (N,) int64
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """(N,) in the statistics' dtype; 0 for what is ignored."""
    return F.cross_entropy(
        logits.to(stat_dtype(logits.dtype)),
        target,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def reduce(loss: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """The losses of all rows as torch reduces them: "mean" is over those that are not ignored."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / (target != ignore_index).sum()
