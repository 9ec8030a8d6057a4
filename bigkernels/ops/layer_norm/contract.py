"""What the layer_norm room promises: the facts a drawer is chosen by, the schemas, the shapes of results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("cuda", "triton", "cpu")


class Facts(NamedTuple):
    """What the choice of a drawer depends on; never sizes other than the normalized width, never strides."""

    op: str  # "layer_norm", "add_layer_norm", "rms_norm" or "add_rms_norm"
    device: str
    dtype: torch.dtype
    weight_dtype: torch.dtype | None
    n: int
    dropout: bool
    needs_grad: bool
    chip: str = ""  # as checks.chip has it


SCHEMAS = {
    # centred: LayerNorm, else RMSNorm: that has no mean, neither here nor in the backward.
    "layer_norm_forward": "(Tensor x, Tensor? weight, Tensor? bias, SymInt n, float eps, bool centred=True)"
    " -> (Tensor out, Tensor mean, Tensor rstd)",
    "layer_norm_backward": "(Tensor dout, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, SymInt n,"
    " bool need_dx, bool need_dweight, bool need_dbias) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    "add_layer_norm_forward": "(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps,"
    " Tensor? x_bias, float dropout_p, Tensor? seed, Tensor? offset, Tensor? rows, bool save_sum,"
    " bool centred=True)"
    " -> (Tensor out, Tensor sum, Tensor mean, Tensor rstd)",
    "add_layer_norm_backward": "(Tensor dout, Tensor? dsum, Tensor sum, Tensor mean, Tensor rstd,"
    " Tensor? weight, float dropout_p, Tensor? seed, Tensor? offset, Tensor? rows,"
    " bool need_dx, bool need_dweight, bool need_dbias, bool need_dx_bias)"
    " -> (Tensor dresidual, Tensor dx, Tensor dweight, Tensor dbias, Tensor dx_bias)",
}


def stat_dtype(dtype: torch.dtype) -> torch.dtype:
    """Statistics and parameter gradients: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _dense(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _stat(x: Tensor, size: int | torch.SymInt) -> Tensor:
    return x.new_empty((size,), dtype=stat_dtype(x.dtype))


def _layer_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    eps: float,
    centred: bool = True,
) -> tuple[Tensor, ...]:
    rows = x.numel() // n
    return _dense(x), _stat(x, rows if centred else 0), _stat(x, rows)


def _layer_norm_backward(
    dout: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    need_dx: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, ...]:
    dx = _dense(x) if need_dx else x.new_empty((0,))
    return dx, _stat(x, n if need_dweight else 0), _stat(x, n if need_dbias else 0)


def _add_layer_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    x_bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    save_sum: bool,
    centred: bool = True,
) -> tuple[Tensor, ...]:
    count = x.numel() // x.shape[-1]
    total = _dense(x) if save_sum else x.new_empty((0,))
    return _dense(x), total, _stat(x, count if centred else 0), _stat(x, count)


def _add_layer_norm_backward(
    dout: Tensor,
    dsum: Tensor | None,
    sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    need_dx: bool,
    need_dweight: bool,
    need_dbias: bool,
    need_dx_bias: bool,
) -> tuple[Tensor, ...]:
    n = sum.shape[-1]
    dx = _dense(sum) if need_dx and dropout_p > 0.0 else sum.new_empty((0,))
    needs = (need_dweight, need_dbias, need_dx_bias)
    return (_dense(sum), dx, *(_stat(sum, n if need else 0) for need in needs))


FAKES = {
    "layer_norm_forward": _layer_norm_forward,
    "layer_norm_backward": _layer_norm_backward,
    "add_layer_norm_forward": _add_layer_norm_forward,
    "add_layer_norm_backward": _add_layer_norm_backward,
}
