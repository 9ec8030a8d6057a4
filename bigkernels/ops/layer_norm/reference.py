"""The definition of layer_norm, rms_norm and what is fused with them in differentiable torch; any dtype, any device."""

from __future__ import annotations

from torch import Tensor

from bigkernels.ops import dropout
from bigkernels.ops.layer_norm.contract import stat_dtype


def _normalize(
    total: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """LayerNorm (RMSNorm if it is not centred) over the last dim of total, already in the statistics' dtype."""
    value = total - total.mean(-1, keepdim=True) if centred else total
    out = value * (value.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        out = out * weight.to(total.dtype)
    if bias is not None:
        out = out + bias.to(total.dtype)
    return out


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    eps: float,
    centred: bool = True,
) -> Tensor:
    """LayerNorm (or RMSNorm) over the trailing dims of x whose sizes multiply to n; weight and bias hold n values."""
    rows = x.reshape(-1, n).to(stat_dtype(x.dtype))
    flat_weight = None if weight is None else weight.reshape(n)
    flat_bias = None if bias is None else bias.reshape(n)
    return _normalize(rows, flat_weight, flat_bias, eps, centred).to(x.dtype).reshape(x.shape)


def add_layer_norm(
    x: Tensor,  # (..., N)
    residual: Tensor,  # (..., N)
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    x_bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """(out, sum): sum = residual + dropout(x + x_bias), out = LayerNorm(sum), or RMSNorm(sum)."""
    keep = dropout.keep_rows(x, dropout_p, seed, offset, rows) if dropout_p > 0.0 else None
    return add_layer_norm_keeping(x, residual, weight, bias, eps, x_bias, dropout_p, keep, centred)


def add_layer_norm_keeping(
    x: Tensor,  # (..., N)
    residual: Tensor,  # (..., N)
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    x_bias: Tensor | None,
    dropout_p: float,
    keep: Tensor | None,  # (..., N) bool, or None without dropout
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """add_layer_norm with the keep mask drawn already; statistics are those of the unrounded sum."""
    stat = stat_dtype(x.dtype)
    branch = x.to(stat)
    if x_bias is not None:
        branch = branch + x_bias.to(stat)
    if keep is not None:
        branch = dropout.drop(branch, keep, dropout_p)
    total = residual.to(stat) + branch
    return _normalize(total, weight, bias, eps, centred).to(x.dtype), total.to(x.dtype)


def drop_gradient(
    dsum: Tensor, dropout_p: float, seed: Tensor | None, offset: Tensor | None, rows: Tensor | None
) -> Tensor:
    """Gradient of add_layer_norm's x (and, summed over rows, of x_bias) given that of its sum."""
    if dropout_p <= 0.0:
        return dsum
    return dropout.drop(dsum, dropout.keep_rows(dsum, dropout_p, seed, offset, rows), dropout_p)
