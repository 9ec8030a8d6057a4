"""What the public functions of the layer_norm room are given, checked."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from bigkernels.ops import checks


def check_layer_norm(
    input: object, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: object
) -> None:
    """Raises unless layer_norm takes these arguments."""
    checks.check_float_tensor("input", input)
    assert isinstance(input, Tensor)
    if not shape:
        raise ValueError("normalized_shape: expected at least one dimension, got ()")
    if input.dim() < len(shape) or tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"normalized_shape: {shape} is not the end of input's shape {tuple(input.shape)}"
        )
    if weight is not None:
        checks.check_parameter("weight", weight, "input", input, shape)
    if bias is not None:
        checks.check_parameter("bias", bias, "input", input, shape)
    checks.check_number("eps", eps, 0.0)


def as_shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """normalized_shape as a tuple of integers; raises TypeError if it is none."""
    if isinstance(normalized_shape, (tuple, list)):
        shape = tuple(normalized_shape)
    elif isinstance(normalized_shape, (int, torch.SymInt, numbers.Integral)):
        shape = (normalized_shape,)
    else:
        raise TypeError(
            f"normalized_shape: expected integers, got {type(normalized_shape).__name__}"
        )
    if any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) for n in shape):
        if any(isinstance(n, bool) or not isinstance(n, numbers.Integral) for n in shape):
            raise TypeError(f"normalized_shape: expected integers, got {shape}")
        shape = tuple(int(n) for n in shape)  # NumPy's
    return shape


def check_add_layer_norm(
    x: object,
    residual: object,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: object,
    x_bias: Tensor | None,
    dropout_p: object,
    rows: Tensor | None,
) -> None:
    """Raises unless add_layer_norm takes these arguments."""
    checks.check_float_tensor("x", x)
    checks.check_float_tensor("residual", residual)
    assert isinstance(x, Tensor) and isinstance(residual, Tensor)
    if x.shape != residual.shape:
        raise ValueError(f"residual: shape {tuple(residual.shape)}, expected {tuple(x.shape)} as x")
    if x.device != residual.device:
        raise ValueError(f"residual: device {residual.device}, but x is on {x.device}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected a last dimension of at least 1")
    n = x.shape[-1]
    total = (
        x if x.dtype == residual.dtype else x.new_empty((0,), dtype=torch.result_type(x, residual))
    )
    for name, value in (("weight", weight), ("bias", bias), ("x_bias", x_bias)):
        if value is not None:
            checks.check_parameter(name, value, "the sum", total, (n,))
    checks.check_number("eps", eps, 0.0)
    checks.check_number("dropout_p", dropout_p, 0.0, 1.0)
    if rows is not None:
        checks.check_rows(rows, x, x.numel() // n)
