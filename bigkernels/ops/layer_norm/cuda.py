"""Limits of the CUDA C++ kernels (csrc/layer_norm/cuda_*.cu, python_bindings/layer_norm_cuda.cpp)."""

from __future__ import annotations

import pathlib

import torch

from bigkernels import library
from bigkernels.ops.layer_norm.contract import Facts

MAX_COLUMNS = 8192
# Wider rows are differentiated with 16-byte accesses only.
MAX_ODD_COLUMNS_BACKWARD = 4096
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _missing() -> str | None:
    """Why there are no kernels in this installation, or None."""
    if library.extension_error is not None:
        return library.extension_error
    if not pathlib.Path(library.__file__).with_name("libbigkernels_cuda.so").exists():
        return "libbigkernels_cuda.so is not built"
    return None


_MISSING = _missing()


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if _MISSING is not None:
        return (_MISSING,)
    reasons = []
    if facts.dtype not in _DTYPES:
        reasons.append(f"dtype {facts.dtype} not in float32, bfloat16, float16")
    if facts.op not in ("layer_norm", "add_layer_norm"):
        reasons.append(f"there is no {facts.op}")
    if not 1 <= facts.n <= MAX_COLUMNS:
        reasons.append(f"n {facts.n} not in 1..{MAX_COLUMNS}")
    odd = facts.n % (4 if facts.dtype == torch.float32 else 8) != 0
    if facts.needs_grad and odd and facts.n > MAX_ODD_COLUMNS_BACKWARD:
        reasons.append(
            f"n {facts.n} above {MAX_ODD_COLUMNS_BACKWARD} is not a multiple of 16 bytes"
        )
    if facts.chip:
        reasons.append(f"the GPU is {facts.chip}, below sm_80")
    return tuple(reasons)
