"""The definition of the feed-forward network in differentiable torch; any dtype, any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bigkernels.ops import dropout


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation by its contract name."""
    if activation == "gelu":
        return F.gelu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return F.relu(x) if activation == "relu" else F.silu(x)


def _stat(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def feed_forward(
    x: Tensor,  # (..., E)
    weight1: Tensor,  # (F, E)
    bias1: Tensor | None,
    weight2: Tensor,  # (E2, F)
    bias2: Tensor | None,
    weight_gate: Tensor | None,  # (F, E)
    bias_gate: Tensor | None,
    activation: str,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
) -> Tensor:
    """``dropout(act(x W1' + b1)) W2' + b2``; gated: ``dropout(act(x Wg' + bg) * (x W1' + b1)) W2' + b2``.

    Products are rounded to x's dtype where torch's linear rounds them; what lies between runs in float32.
    """
    keep = None
    if dropout_p > 0.0:
        hidden = x.new_empty(()).expand(*x.shape[:-1], weight1.shape[0])
        keep = dropout.keep_rows(hidden, dropout_p, seed, offset, rows)
    return feed_forward_keeping(
        x, weight1, bias1, weight2, bias2, weight_gate, bias_gate, activation, dropout_p, keep
    )


def feed_forward_keeping(
    x: Tensor,  # (..., E)
    weight1: Tensor,  # (F, E)
    bias1: Tensor | None,
    weight2: Tensor,  # (E2, F)
    bias2: Tensor | None,
    weight_gate: Tensor | None,  # (F, E)
    bias_gate: Tensor | None,
    activation: str,
    dropout_p: float,
    keep: Tensor | None,  # (..., F) bool, or None without dropout
) -> Tensor:
    """feed_forward with the keep mask drawn already."""
    pre = F.linear(x, weight1, bias1).to(_stat(x))
    if weight_gate is None:
        hidden = activate(pre, activation)
    else:
        hidden = activate(F.linear(x, weight_gate, bias_gate).to(_stat(x)), activation) * pre
    if keep is not None:
        hidden = dropout.drop(hidden, keep, dropout_p)
    return F.linear(hidden.to(x.dtype), weight2, bias2)
