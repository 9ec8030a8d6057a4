"""Limits of the vectorised C++ kernels (csrc/ffn/cpu-inl.h, python_bindings/ffn.cpp)."""

from __future__ import annotations

import torch

from bigkernels.ops.ffn.contract import Facts

_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if facts.dtype not in _DTYPES:
        return (f"dtype {facts.dtype} not in float32, bfloat16, float16, float64",)
    return ()
