"""Public functions of the layer_norm room: checks, the choice of a drawer, autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bigkernels import backends
from bigkernels.ops import checks, dropout
from bigkernels.ops.layer_norm import arguments, contract, reference
from bigkernels.ops.layer_norm.autograd import OPS, AddNorm, Norm
from bigkernels.ops.layer_norm.contract import Facts

backends.register("layer_norm", contract.BACKENDS)
_plain_cpu = OPS["layer_norm_forward"]["cpu"]._op
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})
# Of layer_norm: n, eps, drawer, whether gradients are wanted. With a residual: eps, p, drawer, gradients.
_KNOWN: backends.Remembered[Any] = backends.Remembered()
_KNOWN_SUMS: backends.Remembered[Any] = backends.Remembered()


def notes(facts: Facts, chosen: str) -> tuple[str, ...]:
    """Remarks for ``explain``."""
    return ()


def _wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _layer_norm_facts(
    op: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int
) -> Facts:
    needs_grad = _wants_grad(x, weight, bias)
    weight_dtype = None if weight is None else weight.dtype
    chip = checks.chip(x.device)
    return Facts(op, x.device.type, x.dtype, weight_dtype, n, False, needs_grad, chip)


def _autocast_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """torch's autocast runs layer_norm in float32 on CUDA, but float64's, and leaves it alone on the CPU."""
    autocast = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")
    if not autocast or x.dtype == torch.float64:
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
    return _layer_norm_facts(
        "layer_norm", *_autocast_layer_norm(input, weight, bias), math.prod(shape)
    )


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
    return _norm("layer_norm", input, normalized_shape, weight, bias, eps, backend)


def _norm(
    op: str,
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    backend: str | None,
) -> Tensor:
    """layer_norm or rms_norm."""
    one = type(normalized_shape) is tuple and list(map(type, normalized_shape)) == [int]
    key = None
    if one or type(normalized_shape) is int:
        key = backends.call_key((op, normalized_shape, eps, backend), input, weight, bias)
    known = None if key is None else _KNOWN.get(key)
    if known is not None:
        n, eps, name, needs_grad = known
        if needs_grad:
            given = (input, weight, bias, n, eps, op == "layer_norm", name)
            return checks.apply(Norm, *given)  # type: ignore[no-any-return]
        call = OPS["layer_norm_forward"][name]
        return call(input, weight, bias, n, eps, op == "layer_norm")[0]  # type: ignore[no-any-return]
    shape = arguments.as_shape(normalized_shape)
    checked = 0.0 if eps is None and op == "rms_norm" else eps
    arguments.check_layer_norm(input, shape, weight, bias, checked)
    eps = _rms_eps(input.dtype, eps)
    x, weight, bias = _autocast_layer_norm(input, weight, bias)
    n = math.prod(shape)
    facts = _layer_norm_facts(op, x, weight, bias, n)
    name = backends.choose("layer_norm", facts, backend)
    centred = op == "layer_norm"
    if key is not None and n > 0 and name != "reference":  # a compiled call may not even look there
        _KNOWN.keep(key, (n, eps, name, facts.needs_grad))
    if n == 0:  # nothing to normalize
        weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
        return torch.nn.functional.layer_norm(x, shape, weight, bias, eps)
    if name == "reference":
        return reference.layer_norm(x, weight, bias, n, eps, centred)
    if facts.needs_grad:
        return checks.apply(Norm, x, weight, bias, n, eps, centred, name)  # type: ignore[no-any-return]
    return OPS["layer_norm_forward"][name](x, weight, bias, n, eps, centred)[0]  # type: ignore[no-any-return]


def _rms_eps(dtype: torch.dtype, eps: float | None) -> float:
    """torch's: without eps that of the dtype the statistics are taken in."""
    return torch.finfo(contract.stat_dtype(dtype)).eps if eps is None else float(eps)


def rms_norm_facts(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Facts:
    """The facts by which ``rms_norm`` chooses its drawer."""
    shape = arguments.as_shape(normalized_shape)
    arguments.check_layer_norm(input, shape, weight, None, 0.0 if eps is None else eps)
    return _layer_norm_facts(
        "rms_norm", *_autocast_layer_norm(input, weight, None), math.prod(shape)
    )


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Root mean square normalization over the trailing dimensions; ``torch.nn.functional.rms_norm``.

    Args:
        input: (..., *normalized_shape), float32, bfloat16, float16 or float64, any strides.
        normalized_shape: sizes of the trailing dimensions to normalize over.
        weight: normalized_shape, of input's dtype, or float32 beside a 16-bit input.
        eps: added to the mean square; None is that of float32 (of float64 for float64).
        backend: forces a backend.

    Returns:
        A contiguous tensor of input's shape and dtype. Statistics are float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device.
        Unsupported: the forced backend cannot serve the call.
    """
    return _norm("rms_norm", input, normalized_shape, weight, None, eps, backend)


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
    return _add_layer_norm_facts("add_layer_norm", x, residual, weight, bias, x_bias, dropout_p)


def _add_layer_norm_facts(
    op: str,
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
        op,
        x.device.type,
        dtype,
        weight_dtype,
        x.shape[-1],
        dropout_p > 0.0,
        needs_grad,
        checks.chip(x.device),
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
    given = (weight, bias, eps, x_bias, dropout_p, return_sum, seed, offset, rows, backend)
    out, total = _add_norm("add_layer_norm", x, residual, *given)
    return (out, total) if return_sum else out


def _add_norm(
    op: str,
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    x_bias: Tensor | None,
    dropout_p: float,
    return_sum: bool,
    seed: int | Tensor | None,
    offset: int | Tensor | None,
    rows: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """add_layer_norm or add_rms_norm; without return_sum the sum may be empty."""
    centred, through = op == "add_layer_norm", False
    scalars = (op, eps, dropout_p, return_sum, backend)
    key = backends.call_key(scalars, x, residual, weight, bias, x_bias, rows)
    known = None if key is None else _KNOWN_SUMS.get(key)
    if known is None:
        checked = 0.0 if eps is None and not centred else eps
        arguments.check_add_layer_norm(x, residual, weight, bias, checked, x_bias, dropout_p, rows)
        checks.check_flag("return_sum", return_sum)
        if x.dtype != residual.dtype:
            dtype, key = torch.result_type(x, residual), None
            x, residual = x.to(dtype), residual.to(dtype)
        facts = _add_layer_norm_facts(op, x, residual, weight, bias, x_bias, dropout_p)
        name = backends.choose("layer_norm", facts, backend)
        known = _rms_eps(x.dtype, eps), float(dropout_p), name, facts.needs_grad
        through = name == "reference"
        if key is not None and not through:
            _KNOWN_SUMS.keep(key, known)
    eps, dropout_p, name, needs_grad = known
    seed_, offset_ = dropout.seeds(seed, offset, x, dropout_p)
    inputs = (x, residual, weight, bias, eps, x_bias, dropout_p, seed_, offset_, rows)
    if through:
        return reference.add_layer_norm(*inputs, centred)
    if needs_grad:
        return checks.apply(AddNorm, *inputs, centred, name)  # type: ignore[no-any-return]
    return OPS["add_layer_norm_forward"][name](*inputs, return_sum, centred)[:2]  # type: ignore[no-any-return]


def add_rms_norm_facts(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    x_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    return_sum: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
) -> Facts:
    """The facts by which ``add_rms_norm`` chooses its drawer."""
    arguments.check_add_layer_norm(
        x, residual, weight, None, 0.0 if eps is None else eps, x_bias, dropout_p, rows
    )
    return _add_layer_norm_facts("add_rms_norm", x, residual, weight, None, x_bias, dropout_p)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    x_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    return_sum: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> Any:
    """``rms_norm(residual + dropout(x + x_bias))`` over the last dimension, in one pass.

    Arguments, results and errors are those of ``add_layer_norm``, without its bias; eps is ``rms_norm``'s.
    """
    given = (weight, None, eps, x_bias, dropout_p, return_sum, seed, offset, rows, backend)
    out, total = _add_norm("add_rms_norm", x, residual, *given)
    return (out, total) if return_sum else out
