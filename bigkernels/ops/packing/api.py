"""Padding-free batches: the tokens of a padded batch one after another, and back.

One plan per batch serves every layer: run a layer on the packed tokens (T, ...) with ``varlen_attn``
and ``rows``, pad once at the end. Padding rows of the padded result are zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigkernels import backends, library
from bigkernels.ops import checks
from bigkernels.ops.packing import contract, reference
from bigkernels.ops.packing.contract import Facts, Plan

_OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}
backends.register("packing", ("triton", "cpu"))
# Of earlier calls: the drawer, whether gradients are wanted.
_KNOWN: backends.Remembered[tuple[str, bool]] = backends.Remembered()


def notes(facts: Facts, chosen: str) -> tuple[str, ...]:
    """Remarks for ``explain``."""
    return ()


class _Rows(torch.autograd.Function):
    """Rows of x by `source`; `back` is the inverse, by which the gradient goes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, back: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(source, back)
        ctx.backend = backend
        return _OPS["packing_forward"][backend](x, source)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        source, back = ctx.saved_tensors
        if checks.recomputing():
            return checks.apply(_Rows, dout, back, source, ctx.backend), None, None, None
        return _OPS["packing_forward"][ctx.backend](dout, back), None, None, None


def _check_keep(keep: object, tokens: object) -> None:
    if not isinstance(keep, Tensor):
        raise TypeError(f"keep: expected a tensor, got {type(keep).__name__}")
    checks.check_dense("keep", keep)
    if keep.dim() != 2 or keep.is_complex():
        raise ValueError(f"keep: {keep.dtype} of shape {tuple(keep.shape)}, expected (B, L)")
    checks.check_integer_or_none("tokens", tokens)
    if tokens is not None:
        checks.check_number("tokens", tokens, 0, keep.shape[0] * keep.shape[1])


def _check(x: object, plan: object, dims: int) -> None:
    """Raises unless x has the plan's sizes in front, (T,) of one dimension or (B, L) of two."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected what packing.plan returns, got {type(plan).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    checks.check_dense("x", x)
    if x.device != plan.indices.device:
        raise ValueError(f"x: device {x.device}, but the plan is on {plan.indices.device}")
    if checks.recorded():
        return  # sizes may be other ones at another call
    expected = (plan.batch, plan.length) if dims == 2 else (plan.indices.shape[0],)
    if tuple(x.shape[:dims]) != expected:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"x: shape {tuple(x.shape)}, expected ({sizes}, ...) as the plan has it")


def plan_facts(keep: Tensor, tokens: int | None = None) -> Facts:
    """The facts by which ``plan`` chooses its drawer."""
    _check_keep(keep, tokens)
    return Facts(keep.device.type, keep.dtype, False, checks.chip(keep.device))


def plan(keep: Tensor, tokens: int | None = None, *, backend: str | None = None) -> Plan:
    """The plan of a batch.

    Args:
        keep: (B, L), nonzero = token, zero = padding, any dtype but complex. Any pattern; a sequence may be empty. Of
            lengths: ``torch.arange(L) < lengths[:, None]``.
        tokens: rows of the packed form, where the caller knows how many tokens there are, or at most can be: then
            nothing waits for the device, and sizes depend on no values. None: as many as there are, which on a GPU
            waits for the mask.
        backend: forces a backend.

    Returns:
        A Plan; with `tokens`, packed rows behind the last token are zeros.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape, or, on the CPU, more than `tokens` tokens; a GPU
            stops with an assertion.
        Unsupported: the forced backend cannot serve the call.
    """
    key = backends.call_key((tokens, backend), keep)
    known = None if key is None else _KNOWN.get(key)
    if known is None:
        name = backends.choose("packing", plan_facts(keep, tokens), backend)
        # Recorded, the number of tokens is one of the sizes that torch finds at each call.
        if name != "triton" or (tokens is None and checks.recorded()):
            return reference.plan(keep, tokens)
        if key is not None:
            _KNOWN.keep(key, (name, False))
    batch, length = keep.shape
    most = batch * length if tokens is None else tokens
    indices, places, cu_seq, rows = _OPS["packing_plan"]["triton"](keep, most)
    if tokens is None:
        total = int(cu_seq[-1])
        indices, rows = indices[:total], rows[:total]
    return Plan(indices, cu_seq, rows, None, batch, length, tokens is not None, places)


_full_plans: dict[tuple[int, int], Plan] = {}
_FULL_PLANS = 64  # kept; batches of one shape follow each other


def full_plan_cpu(batch: int, length: int) -> Plan:
    """The plan of a batch without padding on the CPU, made once; its tensors must not be written."""
    found = _full_plans.get((batch, length))
    if found is None:
        if len(_full_plans) >= _FULL_PLANS:
            _full_plans.clear()
        with torch.inference_mode(False):  # it also serves calls that record gradients
            found = full_plan(batch, length, torch.device("cpu"))
        if batch * length <= 1 << 16:
            _full_plans[batch, length] = found
    return found


def full_plan(batch: int, length: int, device: torch.device) -> Plan:
    """The plan of a batch without padding."""
    indices = torch.arange(batch * length, device=device)
    cu_seq = torch.arange(batch + 1, dtype=torch.int32, device=device) * length
    sample = torch.arange(batch, device=device)[:, None]
    rows = (sample << 32) | torch.arange(length, device=device)
    return Plan(indices, cu_seq, rows.flatten(), length, batch, length)


def _rows_facts(x: Tensor) -> Facts:
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    return Facts(x.device.type, x.dtype, needs_grad, checks.chip(x.device))


def _copied(x: Tensor, plan: Plan, dims: int, backend: str | None) -> Tensor | None:
    """Rows of x: of (B, L) in two dimensions the packed ones, of (T,) in one the padded ones; None where there is no
    padding."""
    key = None
    if type(plan) is Plan:
        sizes = (dims, plan.batch, plan.length, plan.full)
        key = backends.call_key((*sizes, backend), x, plan.indices)
    known = None if key is None else _KNOWN.get(key)
    if known is None:
        _check(x, plan, dims)
        if plan.full:
            return None
        facts = _rows_facts(x)
        known = backends.choose("packing", facts, backend), facts.needs_grad
        if known[0] != "triton":
            if dims == 2:
                return reference.unpad(x.flatten(0, 1), plan)
            return reference.pad(x, plan)
        if key is not None:
            _KNOWN.keep(key, known)
    name, needs_grad = known
    places = reference.places(plan) if plan.places is None else plan.places
    x, source, back = (
        (x.flatten(0, 1), plan.indices, places) if dims == 2 else (x, places, plan.indices)
    )
    if needs_grad:
        return checks.apply(_Rows, x, source, back, name)  # type: ignore[no-any-return]
    return _OPS["packing_forward"][name](x, source)  # type: ignore[no-any-return]


def unpad_facts(x: Tensor, plan: Plan) -> Facts:
    """The facts by which ``unpad`` chooses its drawer."""
    _check(x, plan, 2)
    return _rows_facts(x)


def unpad(x: Tensor, plan: Plan, *, backend: str | None = None) -> Tensor:
    """The tokens of a padded batch.

    Args:
        x: (B, L, ...), any dtype.
        plan: of the batch.
        backend: forces a backend.

    Returns:
        (T, ...), a view of x if there is no padding. Rows behind the last token are zeros.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or x of other sizes than the plan's.
        Unsupported: the forced backend cannot serve the call.
    """
    found = _copied(x, plan, 2, backend)
    return x.flatten(0, 1) if found is None else found


def pad_facts(x: Tensor, plan: Plan) -> Facts:
    """The facts by which ``pad`` chooses its drawer."""
    _check(x, plan, 1)
    return _rows_facts(x)


def pad(x: Tensor, plan: Plan, *, backend: str | None = None) -> Tensor:
    """The padded form of packed tokens; what ``unpad`` undoes.

    Args:
        x: (T, ...), any dtype; what is behind the last token is not read.
        plan: of the batch.
        backend: forces a backend.

    Returns:
        (B, L, ...), a view of x if there is no padding; padding is zero.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or x of another size than the plan's.
        Unsupported: the forced backend cannot serve the call.
    """
    found = _copied(x, plan, 1, backend)
    return (x if found is None else found).reshape(plan.batch, plan.length, *x.shape[1:])


def plain_padding(keep: Tensor) -> Tensor:
    """Whether keep (B, L) bool pads every row on the right, or every row on the left; bool (), not read here."""
    length = keep.shape[1]
    place = torch.arange(length, device=keep.device)
    tokens = keep.sum(1, keepdim=True)
    right, left = keep == (place < tokens), keep == (place >= length - tokens)
    return right.all() | left.all()
