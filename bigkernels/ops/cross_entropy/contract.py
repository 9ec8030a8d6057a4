"""What the cross_entropy room promises: the facts a drawer is chosen by, the schemas, the shapes of results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("triton",)


class Facts(NamedTuple):
    """What the choice of a drawer depends on; never sizes or strides."""

    device: str
    dtype: torch.dtype
    smoothing: bool
    needs_grad: bool
    chip: str = ""  # as checks.chip has it


SCHEMAS = {
    # out: (N,), or () where `reduction` is not "none"; in logits' dtype, or as wide as the statistics. lse, the
    # logarithm of the sum of the exponentials: (N,), 0 for what is ignored. rows: (), those not ignored, for "mean".
    "cross_entropy_forward": "(Tensor logits, Tensor target, int ignore_index, float label_smoothing, str reduction,"
    " bool wide) -> (Tensor out, Tensor lse, Tensor rows)",
    "cross_entropy_backward": "(Tensor dout, Tensor logits, Tensor lse, Tensor rows, Tensor target, int ignore_index,"
    " float label_smoothing) -> Tensor dlogits",
}


def stat_dtype(dtype: torch.dtype) -> torch.dtype:
    """Losses of single rows: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _forward(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    wide: bool,
) -> tuple[Tensor, ...]:
    stat = stat_dtype(logits.dtype)
    out = logits.new_empty(
        target.shape if reduction == "none" else (), dtype=stat if wide else logits.dtype
    )
    rows = logits.new_empty(() if reduction == "mean" else (0,), dtype=stat)
    return out, logits.new_empty(target.shape, dtype=stat), rows


def _backward(
    dout: Tensor,
    logits: Tensor,
    lse: Tensor,
    rows: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return logits.new_empty(logits.shape)


FAKES = {"cross_entropy_forward": _forward, "cross_entropy_backward": _backward}
