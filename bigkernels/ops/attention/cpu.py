"""Limits of the vectorised C++ kernels (csrc/attention, python_bindings/attention.cpp)."""

from __future__ import annotations

import torch

from bigkernels.ops.attention.contract import Facts

_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    reasons = []
    if facts.dtype not in _DTYPES:
        reasons.append(f"dtype {facts.dtype} not in float32, bfloat16, float16, float64")
    reasons += [
        f"{name} is not served" for name in ("softcap", "alibi", "sinks") if getattr(facts, name)
    ]
    return tuple(reasons)
