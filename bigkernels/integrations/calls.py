"""What the backbones inside a model did while it ran: ``verify`` checks the path that was taken."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from bigkernels.ops.packing.contract import Plan


class Call(NamedTuple):
    """One call of a backbone: its padding mask (B, L) as bool, if it has such, its plan, if it ran packed, and the
    precision of its products and whether tokens saw those before them alone, if all layers were one native call."""

    backbone: nn.Module
    keep: Tensor | None
    plan: Plan | None
    precision: str | None = None
    causal: bool = False


_calls: contextvars.ContextVar[list[Call] | None] = contextvars.ContextVar("calls", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Call]]:
    """Collects the calls of backbones within it, in order."""
    found: list[Call] = []
    token = _calls.set(found)
    try:
        yield found
    finally:
        _calls.reset(token)


def wanted() -> bool:
    """Whether anybody collects calls."""
    return _calls.get() is not None


def record(call: Call) -> None:
    """Tells whoever collects calls."""
    found = _calls.get()
    if found is not None:
        found.append(call)
