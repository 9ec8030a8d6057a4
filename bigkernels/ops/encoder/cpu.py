"""Limits of the encoder's C++ kernels (csrc/encoder, python_bindings/encoder.cpp)."""

from __future__ import annotations

import torch

from bigkernels.ops.encoder.contract import Facts

_SERVED = ("float32", "high", "bfloat16")


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    reasons = []
    if facts.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"dtype {facts.dtype} not in float32, bfloat16")
    if facts.precision not in _SERVED:
        reasons.append(f"precision {facts.precision} not in {', '.join(_SERVED)}")
    if facts.needs_grad:
        reasons.append("there is no backward")
    return tuple(reasons)
