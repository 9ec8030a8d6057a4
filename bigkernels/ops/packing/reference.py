"""The definition of packing in differentiable torch; any dtype, any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bigkernels.ops.packing.contract import Plan


def plan(keep: Tensor, tokens: int | None) -> Plan:
    """The plan of keep (B, L) with `tokens` rows, or as many as there are tokens: finding out waits for the device."""
    batch, length = keep.shape
    is_token = keep if keep.dtype == torch.bool else keep != 0
    indices = is_token.flatten().nonzero().squeeze(1)
    lengths = is_token.sum(1, dtype=torch.int32)
    cu_seq = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    sample = indices // max(length, 1)
    rows = (sample << 32) | (indices - sample * length)
    seen = batch and keep.device.type == "cpu" and not torch._C._get_tracing_state()
    longest = int(lengths.max()) if seen else None
    if tokens is not None:
        behind = tokens - indices.shape[0]
        if behind < 0:
            raise ValueError(f"tokens: {tokens}, but keep has {indices.shape[0]} tokens")
        indices, rows = F.pad(indices, (0, behind), value=-1), F.pad(rows, (0, behind))
    return Plan(indices, cu_seq, rows, longest, batch, length, tokens is not None)


def unpad(x: Tensor, plan: Plan) -> Tensor:
    """The rows (T, ...) of x (B * L, ...) that hold tokens; zeros behind the last one."""
    if not plan.slack:
        return x.index_select(0, plan.indices)
    tokens = (plan.indices >= 0).reshape(-1, *[1] * (x.dim() - 1))
    # With no position at all there is nothing to select from, and nothing but slack of no rows.
    rows = x.index_select(0, plan.indices.clamp(min=0)) if plan.indices.shape[0] else x[:0]
    return torch.where(tokens, rows, torch.zeros_like(rows))


def pad(x: Tensor, plan: Plan) -> Tensor:
    """The (B * L, ...) rows of packed x (T, ...); padding is zero."""
    size = plan.batch * plan.length
    if not plan.slack:
        return x.new_zeros((size, *x.shape[1:])).index_copy(0, plan.indices, x)
    # What lies behind the last token goes to a row of its own, which is left out.
    target = torch.where(plan.indices < 0, size, plan.indices)
    return x.new_zeros((size + 1, *x.shape[1:])).index_copy(0, target, x)[:size]


def places(plan: Plan) -> Tensor:
    """(B * L,) int64: the packed row of each position, -1 of padding."""
    rows = torch.arange(plan.indices.shape[0], device=plan.indices.device) + 1
    return pad(torch.where(plan.indices < 0, 0, rows), plan) - 1
