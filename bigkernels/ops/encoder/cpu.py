"""Limits of the encoder's C++ kernels (csrc/encoder, python_bindings/encoder.cpp)."""

from __future__ import annotations

import ctypes
import functools
import pathlib

import torch

from bigkernels import library
from bigkernels.ops.encoder.contract import Facts

_SERVED = ("float32", "high", "bfloat16", "int8", "int8_weights")


@functools.cache
def _isa() -> str:
    extension = pathlib.Path(library.__file__).with_name("_C.so")
    function = ctypes.CDLL(str(extension)).bigkernels_cpu_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())


def _integer_limits(facts: Facts) -> list[str]:
    if _isa() != "amx":
        return [f"precision int8 needs AMX tiles, the kernels run with {_isa()}"]
    reasons = [
        f"{name} {size} is not a multiple of 64"
        for name, size in (("width", facts.width), ("hidden", facts.hidden))
        if size % 64
    ]
    if facts.head_dim % 32 or facts.head_dim > 256:
        reasons.append(f"head_dim {facts.head_dim} is not a multiple of 32 up to 256")
    return reasons


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    reasons = []
    if facts.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"dtype {facts.dtype} not in float32, bfloat16")
    if facts.precision not in _SERVED:
        reasons.append(f"precision {facts.precision} not in {', '.join(_SERVED)}")
    if facts.precision == "int8":
        reasons += _integer_limits(facts)
    if facts.needs_grad:
        reasons.append("there is no backward")
    return tuple(reasons)
