"""Padding-free batches: the tokens of a padded batch one after another, and back.

One plan per batch serves every layer: run a layer on the packed tokens (T, ...) with ``varlen_attn``
and ``rows``, pad once at the end. Padding rows of the padded result are zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Where the tokens of a padded (B, L) batch lie in its packed form."""

    indices: Tensor  # (T,) int64, b * L + i of each token, rising
    cu_seq: Tensor  # (B + 1,) int32, 0 and then the ends of the sequences
    rows: Tensor  # (T,) int64, b << 32 | i: sample and position in the padded batch, for dropout
    max_length: int | None  # longest sequence; None where reading it would wait for the device
    batch: int
    length: int

    @property
    def full(self) -> bool:
        """Whether there is no padding at all, so that packing and padding are views."""
        if torch._C._get_tracing_state():  # the trace serves other batches too
            return False
        return self.indices.shape[0] == self.batch * self.length


def plan(keep: Tensor) -> Plan:
    """The plan of a batch.

    Args:
        keep: (B, L), nonzero = token, zero = padding. Any pattern; a sequence may be empty.
    """
    batch, length = keep.shape
    tokens = keep if keep.dtype == torch.bool else keep != 0
    indices = tokens.flatten().nonzero().squeeze(1)
    lengths = tokens.sum(1, dtype=torch.int32)
    cu_seq = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    sample = indices // max(length, 1)
    rows = (sample << 32) | (indices - sample * length)
    seen = batch and keep.device.type == "cpu" and not torch._C._get_tracing_state()
    longest = int(lengths.max()) if seen else None
    return Plan(indices, cu_seq, rows, longest, batch, length)


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


def unpad(x: Tensor, plan: Plan) -> Tensor:
    """The packed tokens (T, ...) of a padded x (B, L, ...)."""
    if plan.full:
        return x.flatten(0, 1)
    return x.flatten(0, 1).index_select(0, plan.indices)


def pad(x: Tensor, plan: Plan) -> Tensor:
    """The padded (B, L, ...) form of packed tokens x (T, ...); padding is zero."""
    rest = x.shape[1:]
    if plan.full:
        return x.reshape(plan.batch, plan.length, *rest)
    empty = x.new_zeros((plan.batch * plan.length, *rest))
    return empty.index_copy(0, plan.indices, x).reshape(plan.batch, plan.length, *rest)


def plain_padding(keep: Tensor) -> Tensor:
    """Whether keep (B, L) bool pads every row on the right, or every row on the left; bool (), not read here."""
    length = keep.shape[1]
    place = torch.arange(length, device=keep.device)
    tokens = keep.sum(1, keepdim=True)
    right, left = keep == (place < tokens), keep == (place >= length - tokens)
    return right.all() | left.all()
