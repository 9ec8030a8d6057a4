"""Public functions of the layer_norm room: checks, the choice of a drawer, autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bigkernels import backends, library
from bigkernels.ops import checks, dropout
from bigkernels.ops.layer_norm import arguments, contract, reference
from bigkernels.ops.layer_norm.contract import Facts

_OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}
backends.register("layer_norm", contract.BACKENDS)
_plain_cpu = _OPS["layer_norm_forward"]["cpu"]._op
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})


def notes(facts: Facts, chosen: str) -> tuple[str, ...]:
    """Remarks for ``explain``."""
    return ()


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        n: int,
        eps: float,
        backend: str,
    ) -> Tensor:
        out, mean, rstd = _OPS["layer_norm_forward"][backend](x, weight, bias, n, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.n, ctx.eps, ctx.backend = n, eps, backend
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if checks.recomputing():
            grads = checks.differentiate(
                lambda x, w, b: reference.layer_norm(x, w, b, ctx.n, ctx.eps),
                (x, weight, bias),
                needs,
                (dout,),
            )
            return (*grads, None, None, None)
        op = _OPS["layer_norm_backward"][ctx.backend]
        dx, dweight, dbias = op(dout, x, mean, rstd, weight, ctx.n, *needs)
        return (
            dx if needs[0] else None,
            dweight.to(weight.dtype).view(weight.shape) if needs[1] else None,
            dbias.to(bias.dtype).view(bias.shape) if needs[2] else None,
            None,
            None,
            None,
        )


class _AddLayerNorm(torch.autograd.Function):
    """Returns (out, sum) always: the saved sum then carries this node's own graph, which makes a second
    differentiation possible without keeping x and residual alive."""

    @staticmethod
    def forward(
        ctx: Any,
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
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        out, total, mean, rstd = _OPS["add_layer_norm_forward"][backend](
            x, residual, weight, bias, eps, x_bias, dropout_p, seed, offset, rows, True
        )
        ctx.save_for_backward(total, mean, rstd, weight, bias, x_bias, seed, offset, rows)
        ctx.eps, ctx.dropout_p, ctx.backend = eps, dropout_p, backend
        ctx.set_materialize_grads(False)
        return out, total

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dsum: Tensor | None) -> tuple[Tensor | None, ...]:
        total, mean, rstd, weight, bias, x_bias, seed, offset, rows = ctx.saved_tensors
        need_x, need_residual, need_weight, need_bias, _, need_x_bias = ctx.needs_input_grad[:6]
        p = ctx.dropout_p
        if dout is None:
            dout = torch.zeros_like(total)
        if checks.recomputing():
            need = need_x or need_residual or need_x_bias
            dresidual, dweight, dbias = checks.differentiate(
                lambda t, w, b: reference.layer_norm(t, w, b, t.shape[-1], ctx.eps),
                (total, weight, bias),
                (need, need_weight, need_bias),
                (dout,),
            )
            dx = dx_bias = None
            if need:
                assert dresidual is not None
                dresidual = dresidual if dsum is None else dresidual + dsum
                dx = reference.drop_gradient(dresidual, p, seed, offset, rows)
                dx_bias = None if x_bias is None else dx.reshape(-1, dx.shape[-1]).sum(0)
        else:
            dresidual, dx, dweight, dbias, dx_bias = _OPS["add_layer_norm_backward"][ctx.backend](
                dout, dsum, total, mean, rstd, weight, p, seed, offset, rows,
                need_x, need_weight, need_bias, need_x_bias,
            )  # fmt: skip
            dx = dx if p > 0.0 else dresidual
        return (
            dx if need_x else None,
            dresidual if need_residual else None,
            dweight.to(weight.dtype) if need_weight else None,  # type: ignore[union-attr]
            dbias.to(bias.dtype) if need_bias else None,  # type: ignore[union-attr]
            None,
            dx_bias.to(x_bias.dtype) if need_x_bias else None,  # type: ignore[union-attr]
            *(None,) * 5,
        )


def _wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _layer_norm_facts(x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int) -> Facts:
    needs_grad = _wants_grad(x, weight, bias)
    weight_dtype = None if weight is None else weight.dtype
    return Facts("layer_norm", x.device.type, x.dtype, weight_dtype, n, False, needs_grad)


def _autocast_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """torch's autocast runs layer_norm in float32 on CUDA and leaves it alone on the CPU."""
    if x.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return x, weight, bias
    return (
        x.float(),
        None if weight is None else weight.float(),
        None if bias is None else bias.float(),
    )


def layer_norm_facts(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Facts:
    """The facts by which ``layer_norm`` chooses its drawer."""
    shape = arguments.as_shape(normalized_shape)
    arguments.check_layer_norm(input, shape, weight, bias, eps)
    return _layer_norm_facts(*_autocast_layer_norm(input, weight, bias), math.prod(shape))


def _plain(
    x: Tensor,
    normalized_shape: object,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor | None:
    """A CPU call over the last dimension without gradients, by the fewest steps; None if it is not one.

    What this and the kernel, which checks dtypes and sizes itself, do not take goes the long way, where faults are
    named.
    """
    if torch.compiler.is_compiling() or not backends.undisturbed() or not checks.nothing_active():
        return None
    shape = (normalized_shape,) if type(normalized_shape) is int else normalized_shape
    if type(shape) is not tuple or len(shape) != 1 or type(eps) is not float or x is None:
        return None
    grad = torch.is_grad_enabled()
    for t in (x, weight, bias):
        if t is None:
            continue
        if type(t) not in _PLAIN_TYPES or not t.is_cpu or (grad and t.requires_grad):
            return None
        if t.dtype is not x.dtype and (t.dtype is not torch.float32 or x.dtype is torch.float64):
            return None
    try:
        fits = x.shape[-1:] == shape and 0.0 <= eps < math.inf
        for t in (weight, bias):
            fits = fits and (t is None or t.shape == shape)
        return _plain_cpu(x, weight, bias, shape[0], eps)[0] if fits else None
    except (RuntimeError, TypeError):
        return None


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    backend: str | None = None,
) -> Tensor:
    """Layer normalization over the trailing dimensions; matches ``torch.nn.functional.layer_norm``.

    Args:
        input: (..., *normalized_shape), float32, bfloat16, float16 or float64, any strides.
        normalized_shape: sizes of the trailing dimensions to normalize over.
        weight, bias: normalized_shape, of input's dtype, or float32 beside a 16-bit input.
        eps: added to the variance.
        backend: forces a backend ("cuda", "triton", "cpu", "reference").

    Returns:
        A contiguous tensor of input's shape and dtype. Statistics are float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        Unsupported: the forced backend cannot serve the call.
    """
    if backend is None:
        out = _plain(input, normalized_shape, weight, bias, eps)
        if out is not None:
            return out
    shape = arguments.as_shape(normalized_shape)
    arguments.check_layer_norm(input, shape, weight, bias, eps)
    eps = float(eps)
    x, weight, bias = _autocast_layer_norm(input, weight, bias)
    n = math.prod(shape)
    facts = _layer_norm_facts(x, weight, bias, n)
    name = backends.choose("layer_norm", facts, backend)
    if n == 0:  # nothing to normalize
        weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
        return torch.nn.functional.layer_norm(x, shape, weight, bias, eps)
    if name == "reference" or checks.through_reference():
        return reference.layer_norm(x, weight, bias, n, eps)
    if facts.needs_grad:
        return checks.apply(_LayerNorm, x, weight, bias, n, eps, name)  # type: ignore[no-any-return]
    return _OPS["layer_norm_forward"][name](x, weight, bias, n, eps)[0]  # type: ignore[no-any-return]


def add_layer_norm_facts(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-5,
    *,
    x_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    return_sum: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
) -> Facts:
    """The facts by which ``add_layer_norm`` chooses its drawer."""
    arguments.check_add_layer_norm(x, residual, weight, bias, eps, x_bias, dropout_p, rows)
    return _add_layer_norm_facts(x, residual, weight, bias, x_bias, dropout_p)


def _add_layer_norm_facts(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_bias: Tensor | None,
    dropout_p: float,
) -> Facts:
    needs_grad = _wants_grad(x, residual, weight, bias, x_bias)
    dtype = x.dtype if x.dtype == residual.dtype else torch.result_type(x, residual)
    weight_dtype = None if weight is None else weight.dtype
    return Facts(
        "add_layer_norm",
        x.device.type,
        dtype,
        weight_dtype,
        x.shape[-1],
        dropout_p > 0.0,
        needs_grad,
    )


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-5,
    *,
    x_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    return_sum: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> Any:
    """``layer_norm(residual + dropout(x + x_bias))`` over the last dimension, in one pass.

    Args:
        x, residual: (..., N), same shape; the result has their promoted dtype.
        weight, bias: (N,) or None, of the result's dtype, or float32 beside 16-bit inputs.
        eps: added to the variance.
        x_bias: (N,), for example the bias of the Linear that made x.
        dropout_p: probability of dropping an element of x + x_bias; no ``training`` flag: pass 0.0 for evaluation.
        return_sum: also return the sum, rounded to the result's dtype.
        seed, offset: int or int64 (); equal values drop equal elements. None draws a seed, offset 0.
        rows: int64, ``b << 32 | i`` of each row, for packed batches (see docs/design.md, dropout).
        backend: forces a backend.

    Returns:
        out (..., N), or (out, sum).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, range or device.
        Unsupported: the forced backend cannot serve the call.
    """
    arguments.check_add_layer_norm(x, residual, weight, bias, eps, x_bias, dropout_p, rows)
    checks.check_flag("return_sum", return_sum)
    eps, dropout_p = float(eps), float(dropout_p)
    if x.dtype != residual.dtype:
        dtype = torch.result_type(x, residual)
        x, residual = x.to(dtype), residual.to(dtype)
    facts = _add_layer_norm_facts(x, residual, weight, bias, x_bias, dropout_p)
    name = backends.choose("layer_norm", facts, backend)
    seed_, offset_ = dropout.seeds(seed, offset, x, dropout_p)
    if name == "reference" or checks.through_reference():
        out, total = reference.add_layer_norm(
            x, residual, weight, bias, eps, x_bias, dropout_p, seed_, offset_, rows
        )
        return (out, total) if return_sum else out
    if facts.needs_grad:
        out, total = checks.apply(
            _AddLayerNorm, x, residual, weight, bias, eps, x_bias, dropout_p, seed_, offset_, rows, name
        )  # fmt: skip
        return (out, total) if return_sum else out
    out, total, _, _ = _OPS["add_layer_norm_forward"][name](
        x, residual, weight, bias, eps, x_bias, dropout_p, seed_, offset_, rows, return_sum
    )
    return (out, total) if return_sum else out
