"""Public function of the cross_entropy room: checks, the choice of a drawer, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigkernels import backends, library
from bigkernels.ops import checks
from bigkernels.ops.cross_entropy import contract, reference
from bigkernels.ops.cross_entropy.contract import Facts

REDUCTIONS = ("mean", "sum", "none")
_OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}
backends.register("cross_entropy", contract.BACKENDS)
_KNOWN: backends.Remembered[tuple[str, bool]] = backends.Remembered()  # drawer, gradients


def notes(facts: Facts, chosen: str) -> tuple[str, ...]:
    """Remarks for ``explain``."""
    return ()


def _reference(
    logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float, reduction: str
) -> Tensor:
    loss = reference.losses(logits, target, ignore_index, label_smoothing)
    return reference.reduce(loss, target, ignore_index, reduction)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        ignore_index: int,
        label_smoothing: float,
        reduction: str,
        wide: bool,
        backend: str,
    ) -> Tensor:
        rule = (ignore_index, label_smoothing, reduction)
        forward = _OPS["cross_entropy_forward"][backend]
        out, lse, rows = checks.raising_index_errors(forward, logits, target, *rule, wide)
        ctx.save_for_backward(logits, lse, rows, target)
        ctx.rule, ctx.backend = rule, backend
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        logits, lse, rows, target = ctx.saved_tensors
        if checks.recomputing():
            found = checks.differentiate(
                lambda x: _reference(x, target, *ctx.rule).to(dout.dtype),
                (logits,),
                (True,),
                (dout,),
            )
            return (found[0], *(None,) * 6)
        backward = _OPS["cross_entropy_backward"][ctx.backend]
        return (backward(dout, logits, lse, rows, target, *ctx.rule[:2]), *(None,) * 6)


def _check(
    input: object, target: object, ignore_index: object, reduction: object, label_smoothing: object
) -> None:
    checks.check_float_tensor("input", input)
    assert isinstance(input, Tensor)
    if input.dim() != 2 or input.shape[1] == 0:
        raise ValueError(f"input: shape {tuple(input.shape)}, expected (N, V), V at least 1")
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected int64, got {target.dtype}")
    checks.check_dense("target", target)
    if target.shape != input.shape[:1]:
        raise ValueError(f"target: shape {tuple(target.shape)}, expected ({input.shape[0]},)")
    if target.device != input.device:
        raise ValueError(f"target: device {target.device}, but input is on {input.device}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(
            f"ignore_index: got {ignore_index}, expected an int of 64 bits, as targets are"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    checks.check_number("label_smoothing", label_smoothing, 0.0, 1.0)


def _facts(input: Tensor, label_smoothing: float) -> Facts:
    needs_grad = torch.is_grad_enabled() and input.requires_grad
    device = input.device
    return Facts(device.type, input.dtype, label_smoothing > 0.0, needs_grad, checks.chip(device))


def _loss_dtype(input: Tensor) -> torch.dtype:
    """torch's autocast runs it in float32, but float64's: a loss of float16 times a GradScaler's factor is inf."""
    autocast = checks.autocast_dtype(input.device.type) is not None
    return contract.stat_dtype(input.dtype) if autocast else input.dtype


def cross_entropy_facts(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Facts:
    """The facts by which ``cross_entropy`` chooses its drawer."""
    _check(input, target, ignore_index, reduction, label_smoothing)
    return _facts(input, label_smoothing)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """``torch.nn.functional.cross_entropy`` of class indices; rows that are ignored count nowhere.

    The backward keeps one number a row beside the logits and writes their gradient in one pass.

    Args:
        input: (N, V) logits, float32, bfloat16, float16 or float64.
        target: (N,) int64, in [0, V) or ignore_index.
        ignore_index: rows with this target have loss 0, no gradient, and do not count in the mean.
        reduction: "mean", "sum" or "none".
        label_smoothing: share of the target that all classes have alike, in [0, 1].
        backend: forces a backend.

    Returns:
        (), or (N,) for "none", in input's dtype, under autocast float32 as torch's. Sums are float32 (float64 for
        float64). The mean of no rows is NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, range or device.
        IndexError: a target outside [0, V), on the CPU; a GPU stops with an assertion, as torch's does.
        Unsupported: the forced backend cannot serve the call.
    """
    key = backends.call_key((ignore_index, reduction, label_smoothing, backend), input, target)
    known = None if key is None else _KNOWN.get(key)
    if known is None:
        _check(input, target, ignore_index, reduction, label_smoothing)
        facts = _facts(input, label_smoothing)
        known = backends.choose("cross_entropy", facts, backend), facts.needs_grad
        if known[0] == "reference":
            loss = _reference(input, target, ignore_index, float(label_smoothing), reduction)
            return loss.to(_loss_dtype(input))
        if key is not None:
            _KNOWN.keep(key, known)
    name, needs_grad = known
    wide = key is None and _loss_dtype(input) != input.dtype  # under autocast nothing is remembered
    given = (input, target, ignore_index, float(label_smoothing), reduction, wide)
    if needs_grad:
        return checks.apply(_Loss, *given, name)  # type: ignore[no-any-return]
    return checks.raising_index_errors(_OPS["cross_entropy_forward"][name], *given)[0]  # type: ignore[no-any-return]
