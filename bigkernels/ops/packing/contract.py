"""What the packing room promises: the plan, the facts a drawer is chosen by, the schemas, the shapes of results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("triton",)


class Plan(NamedTuple):
    """Where the tokens of a padded (B, L) batch lie in its packed form of T rows."""

    indices: Tensor  # (T,) int64, b * L + i of each token, rising; -1 behind the last token
    cu_seq: Tensor  # (B + 1,) int32, 0 and then the ends of the sequences
    rows: Tensor  # (T,) int64, b << 32 | i: sample and position in the padded batch, for dropout
    max_length: int | None  # longest sequence; None where reading it would wait for the device
    batch: int
    length: int
    slack: bool = False  # whether T may be more than there are tokens
    places: Tensor | None = None  # (B * L,) int64, packed row of each position, -1 of padding

    @property
    def full(self) -> bool:
        """Whether there is no padding at all, so that packing and padding are views."""
        if self.slack or torch._C._get_tracing_state():  # a trace serves other batches too
            return False
        return self.indices.shape[0] == self.batch * self.length


class Facts(NamedTuple):
    """What the choice of a drawer depends on; never sizes or strides."""

    device: str
    dtype: torch.dtype  # of what is packed, or of the mask
    needs_grad: bool
    chip: str = ""  # as checks.chip has it


SCHEMAS = {
    # The tensors of a Plan for keep (B, L), nonzero = token; tokens = T, not less than there are tokens, nor more than
    # B * L.
    "packing_plan": "(Tensor keep, SymInt tokens)"
    " -> (Tensor indices, Tensor places, Tensor cu_seq, Tensor rows)",
    # out (S, ...): row source[s] of x (R, ...), zeros where source (S,) int64 is -1.
    "packing_forward": "(Tensor x, Tensor source) -> Tensor out",
}


def _plan(keep: Tensor, tokens: int) -> tuple[Tensor, ...]:
    sizes = (tokens, keep.shape[0] * keep.shape[1], keep.shape[0] + 1, tokens)
    dtypes = (torch.int64, torch.int64, torch.int32, torch.int64)
    return tuple(keep.new_empty(n, dtype=d) for n, d in zip(sizes, dtypes, strict=True))


def _forward(x: Tensor, source: Tensor) -> Tensor:
    return x.new_empty((source.shape[0], *x.shape[1:]))


FAKES = {"packing_plan": _plan, "packing_forward": _forward}
