"""What this machine is and can run: processor, instruction sets, AMX permission, GPUs."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

# The features that decide between the instruction-set variants of the CPU kernels.
ISA_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16",
    "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8",
)  # fmt: skip
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
PACKAGES = ("torch", "triton", "numpy", "transformers", "accelerate", "datasets", "rich")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter; None = not installed. Imports none of them."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def processor() -> dict[str, Any]:
    """Model name, the flags of ISA_FLAGS that are there, logical CPUs, and AMX's permission."""
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    model = info.get("model name") or platform.processor() or platform.machine()
    return {
        "model": model,
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "isa_flags": [flag for flag in ISA_FLAGS if flag in flags],
        "amx": _amx(flags),
    }


def gpus() -> list[dict[str, Any]]:
    """The CUDA devices torch sees: name, compute capability, memory in GiB."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = f"{facts.major}.{facts.minor}"
        memory = round(facts.total_memory / 2**30, 1)
        found.append({"name": facts.name, "capability": capability, "memory_gib": memory})
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    try:
        block = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _amx(flags: set[str]) -> str:
    """Linux hands out the AMX tile registers only to a process that asks; it may refuse."""
    if "amx_tile" not in flags:
        return "the processor has none"
    libc = ctypes.CDLL(None, use_errno=True)
    status = libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    if status == 0:
        return "permitted"
    why = os.strerror(ctypes.get_errno())
    return f"refused by the kernel ({why}): the kernels do without"
