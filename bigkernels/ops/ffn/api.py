"""Public function of the ffn room: checks, the choice of a drawer, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigkernels import backends, library
from bigkernels.ops import checks, dropout
from bigkernels.ops.ffn import contract, reference
from bigkernels.ops.ffn.contract import ACTIVATIONS, Facts

_OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}
backends.register("ffn", contract.BACKENDS)

_KNOWN: backends.Remembered[tuple[str, bool]] = backends.Remembered()  # drawer, gradients
_plain_cpu = _OPS["ffn_forward"]["cpu"]._op
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def notes(facts: Facts, chosen: str) -> tuple[str, ...]:
    """Remarks for ``explain``."""
    if chosen == "triton":
        return ("its first product is the kernel's, the second runs on aten::linear",)
    if chosen == "cpu" and facts.dtype == torch.bfloat16:
        return ("its products run on tiles where the CPU has AMX and widths are multiples of 32",)
    return ("its products run on aten::linear",)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        weight_gate: Tensor | None,
        bias_gate: Tensor | None,
        activation: str,
        dropout_p: float,
        seed: Tensor | None,
        offset: Tensor | None,
        rows: Tensor | None,
        save: int,
        backend: str,
    ) -> Tensor:
        out, pre, gate, hidden = _OPS["ffn_forward"][backend](
            x,
            weight1,
            bias1,
            weight2,
            bias2,
            weight_gate,
            bias_gate,
            activation,
            dropout_p,
            seed,
            offset,
            rows,
            save,
        )
        ctx.save_for_backward(
            x,
            weight1,
            bias1,
            weight2,
            bias2,
            weight_gate,
            bias_gate,
            pre,
            gate,
            hidden,
            seed,
            offset,
            rows,
        )
        ctx.activation, ctx.dropout_p, ctx.backend = activation, dropout_p, backend
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, bias2, weight_gate, bias_gate, *rest = ctx.saved_tensors
        pre, gate, hidden, *where = rest
        inputs = (x, weight1, bias1, weight2, bias2, weight_gate, bias_gate)
        needs = ctx.needs_input_grad[:7]
        options = (ctx.activation, ctx.dropout_p, *where)
        if checks.recomputing():
            found = checks.differentiate(
                lambda *given: reference.feed_forward(*given, *options), inputs, needs, (dout,)
            )
            return (*found, *(None,) * 7)
        found = _OPS["ffn_backward"][ctx.backend](
            dout,
            x,
            weight1,
            bias1,
            weight2,
            weight_gate,
            bias_gate,
            pre,
            gate,
            hidden,
            *options,
            *needs,
        )
        return (*(g if need else None for g, need in zip(found, needs, strict=True)), *(None,) * 7)


def _check_weight(name: str, value: object, x: Tensor, shape: tuple[Any, ...]) -> None:
    checks.check_like(name, value, "x", x)
    got = tuple(value.shape)  # type: ignore[attr-defined]
    if len(got) != len(shape) or any(
        s is not None and s != g for g, s in zip(got, shape, strict=True)
    ):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: shape {got}, expected ({wanted})")


def _check(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    weight_gate: Tensor | None,
    bias_gate: Tensor | None,
    activation: object,
    dropout_p: object,
    rows: Tensor | None,
) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected a last dimension of at least 1")
    _check_weight("weight1", weight1, x, (None, x.shape[-1]))
    hidden = weight1.shape[0]
    if hidden == 0:
        raise ValueError(f"weight1: shape {tuple(weight1.shape)} has no rows")
    _check_weight("weight2", weight2, x, (None, hidden))
    if weight2.shape[0] == 0:
        raise ValueError(f"weight2: shape {tuple(weight2.shape)} has no rows")
    if bias1 is not None:
        _check_weight("bias1", bias1, x, (hidden,))
    if bias2 is not None:
        _check_weight("bias2", bias2, x, (weight2.shape[0],))
    if weight_gate is not None:
        _check_weight("weight_gate", weight_gate, x, (hidden, x.shape[-1]))
    if bias_gate is not None:
        if weight_gate is None:
            raise ValueError("bias_gate: given without weight_gate")
        _check_weight("bias_gate", bias_gate, x, (hidden,))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    checks.check_number("dropout_p", dropout_p, 0.0, 1.0)
    if rows is not None:
        checks.check_rows(rows, x, x.numel() // x.shape[-1])


def _autocast(x: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    dtype = checks.autocast_dtype(x.device.type)
    if dtype is None or x.dtype == torch.float64:
        return (x, *parameters)
    # What is no tensor is told by the checks that follow.
    return tuple(t.to(dtype) if isinstance(t, Tensor) else t for t in (x, *parameters))


def _facts(
    x: Tensor, activation: str, dropout_p: float, gate: Tensor | None, *rest: Tensor | None
) -> Facts:
    tensors = (x, gate, *rest)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    rest_of = (activation, gate is not None, dropout_p > 0.0, needs_grad, checks.chip(x.device))
    return Facts(x.device.type, x.dtype, *rest_of)


def ffn_facts(*args: Any, **kwargs: Any) -> Facts:
    """The facts by which ``feed_forward`` chooses its drawer; takes its arguments."""
    for name in ("seed", "offset"):
        kwargs.pop(name, None)
    return _prepare(*args, **kwargs)[1]


def _prepare(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str = "gelu",
    dropout_p: float = 0.0,
    *,
    weight_gate: Tensor | None = None,
    bias_gate: Tensor | None = None,
    recompute: int = 0,
    rows: Tensor | None = None,
) -> tuple[tuple[Any, ...], Facts]:
    checks.check_float_tensor("x", x)
    tensors = _autocast(x, weight1, bias1, weight2, bias2, weight_gate, bias_gate)
    _check(*tensors, activation, dropout_p, rows)  # type: ignore[arg-type, call-arg]
    if isinstance(recompute, bool) or not isinstance(recompute, int) or not 0 <= recompute <= 2:
        raise ValueError(f"recompute: got {recompute!r}, expected 0, 1 or 2")
    assert tensors[0] is not None
    facts = _facts(tensors[0], activation, dropout_p, tensors[5], *tensors[1:5], tensors[6])
    return (*tensors, activation, float(dropout_p)), facts


def _plain(tensors: tuple[Tensor | None, ...], activation: str) -> Tensor | None:
    """A CPU call without dropout, gate and gradients, by the fewest steps; None if it is not one.

    The kernel checks its arguments itself. Whatever it does not take goes the long way, where faults are named.
    """
    if torch.compiler.is_compiling() or not backends.undisturbed() or not checks.nothing_active():
        return None
    grad = torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        if type(t) not in _PLAIN_TYPES or not t.is_cpu or (grad and t.requires_grad):
            return None
    try:
        return _plain_cpu(*tensors, None, None, activation, 0.0, None, None, None, 0)[0]  # type: ignore[no-any-return]
    except (RuntimeError, TypeError):
        return None


def _feed_forward(
    tensors: tuple[Any, ...],
    activation: str,
    dropout_p: float,
    recompute: int,
    seed: int | Tensor | None,
    offset: int | Tensor | None,
    rows: Tensor | None,
    backend: str | None,
) -> Tensor:
    """tensors: x, weight1, bias1, weight2, bias2, weight_gate, bias_gate."""
    key = backends.call_key((activation, dropout_p, recompute, backend), *tensors, rows)
    known = None if key is None else _KNOWN.get(key)
    through = False
    if known is not None:
        arguments: tuple[Any, ...] = (*tensors, activation, float(dropout_p))
    else:
        x, weight1, bias1, weight2, bias2, weight_gate, bias_gate = tensors
        arguments, facts = _prepare(
            x, weight1, bias1, weight2, bias2, activation, dropout_p, weight_gate=weight_gate, bias_gate=bias_gate,
            recompute=recompute, rows=rows,
        )  # fmt: skip
        known = backends.choose("ffn", facts, backend), facts.needs_grad
        through = known[0] == "reference"
        if key is not None and not through:
            _KNOWN.keep(key, known)
    name, needs_grad = known
    arguments = (*arguments, *dropout.seeds(seed, offset, tensors[0], dropout_p), rows)
    if through:
        return reference.feed_forward(*arguments)
    if needs_grad:
        return checks.apply(_FeedForward, *arguments, 2 - recompute, name)  # type: ignore[no-any-return]
    return _OPS["ffn_forward"][name](*arguments, 0)[0]  # type: ignore[no-any-return]


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str = "gelu",
    dropout_p: float = 0.0,
    *,
    weight_gate: Tensor | None = None,
    bias_gate: Tensor | None = None,
    recompute: int = 0,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Linear, activation, dropout, Linear: the feed-forward half of a Transformer layer.

    ``dropout(act(x W1' + b1)) W2' + b2``; with a gate ``dropout(act(x Wg' + bg) * (x W1' + b1)) W2' + b2``.

    Args:
        x: (..., E), float32, bfloat16, float16 or float64.
        weight1, bias1: (F, E) and (F,) or None, as in ``torch.nn.Linear``; "up" of a gated network.
        weight2, bias2: (E2, F) and (E2,) or None.
        activation: "gelu" (exact), "gelu_tanh", "relu" or "silu".
        dropout_p: probability of dropping a hidden element; no ``training`` flag: pass 0.0 for evaluation.
        weight_gate, bias_gate: (F, E) and (F,): SwiGLU, GeGLU, ReGLU.
        recompute: what the backward computes again to save memory: 0 nothing, 1 the activation, 2 everything.
        seed, offset, rows: as in ``add_layer_norm``.
        backend: forces a backend.

    Returns:
        (..., E2) in x's dtype (autocast's where it is active).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, range or device.
        Unsupported: the forced backend cannot serve the call.
    """
    no_gate = weight_gate is None and bias_gate is None
    unset = no_gate and seed is None and offset is None and rows is None and backend is None
    usual = type(dropout_p) is float and type(recompute) is int
    if unset and usual and not (dropout_p or recompute):
        out = _plain((x, weight1, bias1, weight2, bias2), activation)
        if out is not None:
            return out
    tensors = (x, weight1, bias1, weight2, bias2, weight_gate, bias_gate)
    return _feed_forward(tensors, activation, dropout_p, recompute, seed, offset, rows, backend)
