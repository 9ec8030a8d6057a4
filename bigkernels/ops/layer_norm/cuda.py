"""Limits of the CUDA C++ kernels; none are built into this drawer yet."""

from __future__ import annotations

from bigkernels.ops.layer_norm.contract import Facts


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    return ("the CUDA kernels are not built",)
