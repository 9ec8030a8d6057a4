"""Limits of the vectorised C++ kernels (csrc/embedding/cpu-inl.h, python_bindings/embedding.cpp)."""

from __future__ import annotations

from bigkernels.ops.embedding.contract import Facts


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    return ()
