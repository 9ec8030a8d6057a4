"""Limits of the encoder's C++ kernels (csrc/encoder, python_bindings/encoder.cpp)."""

from __future__ import annotations

import ctypes
import functools
import pathlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bigkernels import library
from bigkernels.ops.encoder.contract import Facts

_SERVED = ("float32", "high", "bfloat16", "int8", "int8_weights")


def _extension() -> ctypes.CDLL:
    return ctypes.CDLL(str(pathlib.Path(library.__file__).with_name("_C.so")))


@functools.cache
def _isa() -> str:
    function = _extension().bigkernels_cpu_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())


@functools.cache
def _fingerprint_at() -> Callable[..., int]:
    function = _extension().bigkernels_fingerprint_at
    place = ctypes.c_void_p
    function.argtypes = [ctypes.c_int, ctypes.c_int64, place, ctypes.c_int, place]
    function.restype = ctypes.c_uint64
    return function


class Places:
    """Where contiguous weights lie: their fingerprint without looking at hundreds of tensors.

    The caller sees to it that they lie there still, with that dtype and shape.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        # Not tensors: a default device or a mode would change what those are.
        places = [number for w in weights for number in (w.data_ptr(), w.nbytes)]
        self._places = (ctypes.c_int64 * len(places))(*places)
        self._hashes = ctypes.c_uint64 * len(weights)

    def fingerprint(self, pages: bool) -> int:
        """Equal for equal bits; which of them are read is said at ``api.fingerprint``."""
        hashes = self._hashes()
        count, threads = len(hashes), torch.get_num_threads()
        return _fingerprint_at()(threads, count, self._places, pages, hashes)


def sizes_off_tiles(facts: Facts) -> tuple[str, ...]:
    """Which of an encoder's sizes AMX tiles do not serve; empty too where the kernels run without tiles."""
    if _isa() != "amx":
        return ()
    step = 64 if facts.precision in ("int8", "int8_weights") else 32
    reasons = [
        f"{name} {size} is not a multiple of {step}"
        for name, size in (("width", facts.width), ("hidden", facts.hidden))
        if size % step
    ]
    if facts.head_dim % 32 or facts.head_dim > 256:
        reasons.append(f"head_dim {facts.head_dim} is not a multiple of 32 up to 256")
    return tuple(reasons)


def _integer_limits(facts: Facts) -> tuple[str, ...]:
    if _isa() != "amx":
        return (f"precision int8 needs AMX tiles, the kernels run with {_isa()}",)
    return sizes_off_tiles(facts)


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
