"""Triton kernels compiled ahead of time, for GPUs that need not be here.

A room with a Triton drawer has `tests/static/triton_<room>.py`, whose `configurations()` are the drawer's.
Only where TRITON_INTERPRET is unset: Triton decides once, at import, whether it interprets its kernels.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib
import pathlib
import re
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bigkernels.ops import triton_launch
from tests.static import occupancy, resources
from tests.static.row import Row

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """types: of each argument as Triton writes them (those of constants do not matter). divisible: integers
    that a call passes as multiples of 16. promises: of "wide load", "wide store", "HMMA", "HGMMA" (the last
    on sm_90 alone): what the code must contain. architectures: those it is launched on."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]
    divisible: tuple[str, ...] = ()
    promises: tuple[str, ...] = ()
    architectures: tuple[str, ...] = tuple(TARGETS)

    def source(self) -> ASTSource:
        signature = {
            name: "constexpr" if name in self.constants else self.types[name]
            for name in self.kernel.arg_names
        }
        # What the JIT finds out at a call: pointers, and sizes of rows, are multiples of 16.
        attributes = {
            (index,): [["tt.divisibility", 16]]
            for index, (name, kind) in enumerate(signature.items())
            if kind.startswith("*") or name in self.divisible
        }
        return ASTSource(self.kernel, signature, self.constants, attributes)

    def options_for(self, target: GPUTarget) -> dict[str, int]:
        return triton_launch.known_options(self.options, target.backend == "hip")

    def digest(self, arch: str) -> str:
        target = TARGETS[arch]
        options = sorted(self.options_for(target).items())
        text = f"{self.source().hash()} {options} {target} {triton.__version__}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def configurations() -> dict[tuple[str, str], Configuration]:
    """Those of all rooms, by name and architecture: one name may stand for others elsewhere."""
    found: dict[tuple[str, str], Configuration] = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("triton_*.py")):
        if path.stem != "triton_kernels":
            module = importlib.import_module(f"tests.static.{path.stem}")
            for c in module.configurations():
                for arch in c.architectures:
                    assert (c.name, arch) not in found, (c.name, arch)
                    found[c.name, arch] = c
    for configuration in found.values():
        # Triton's key of a kernel depends on which other kernels' it was asked for before: always on all.
        _ = configuration.kernel.cache_key
    return found


def _share(counts: collections.Counter[str], kind: str) -> int:
    return round(100 * counts[f"{kind}.128"] / counts[kind]) if counts[kind] else 100


def compiled(name: str, arch: str) -> tuple[Row, list[str]]:
    """The row of a configuration, and what is wrong with its code whatever the table says."""
    return checked(configurations()[name, arch], arch)


def checked(configuration: Configuration, arch: str) -> tuple[Row, list[str]]:
    """As compiled, of a configuration that need not be shipped."""
    target = TARGETS[arch]
    built = triton.compile(
        configuration.source(), target=target, options=configuration.options_for(target)
    )
    read = _read_cuda if target.backend == "cuda" else _read_hip
    found = read(built)
    counts = collections.Counter(found.instructions)
    warps, shared = configuration.options["num_warps"], built.metadata.shared
    if target.backend == "cuda":
        blocks = occupancy.cuda(str(target.arch), warps, found.registers, shared)
    else:
        blocks = occupancy.gfx942(warps, found.registers, shared)
    row = Row(
        kernel=configuration.name,
        arch=arch,
        registers=found.registers,
        shared=shared,
        blocks=blocks,
        warps=blocks * warps,
        instructions=found.total(),
        wide_loads=_share(counts, "LDG"),
        wide_stores=_share(counts, "STG"),
        products=found.products(),
    )
    return row.sealed(configuration.digest(arch)), _faults(configuration, arch, found)


def _faults(configuration: Configuration, arch: str, found: resources.Resources) -> list[str]:
    faults = found.faults()
    # Twice as many lanes to a warp leave fewer elements to each: 128 bits are promised on NVIDIA alone.
    narrow = arch == "gfx942"
    has = {
        "wide load": narrow or found.instructions.get("LDG.128", 0),
        "wide store": narrow or found.instructions.get("STG.128", 0),
        "HMMA": found.products(),
        "HGMMA": found.instructions.get("HGMMA", 0) if arch == "sm_90" else 1,
    }
    return faults + [f"no {promise}" for promise in configuration.promises if not has[promise]]


def _read_cuda(built: Any) -> resources.Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(built.asm["cubin"])
        cubin.flush()
        (found,) = resources.read(cubin.name).values()
    return found


def _read_hip(built: Any) -> resources.Resources:
    """From the assembly text; accesses are named as on CUDA."""
    text = built.asm["amdgcn"]

    def number(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", text)
        assert found, name
        return int(found.group(1))

    counts: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        opcode = re.match(r"\t([sv]_\w+|global_\w+|buffer_\w+|ds_\w+|flat_\w+)", line)
        if opcode is None:
            continue
        word = opcode.group(1)
        counts[word] += 1
        if access := re.match(r"(?:global|buffer)_(load|store)_\w+?(x4)?$", word):
            kind = "LDG" if access.group(1) == "load" else "STG"
            counts.update([kind, f"{kind}.128"] if access.group(2) else [kind])
        counts["HMMA"] += word.startswith("v_mfma")
    spills = number(r"\.vgpr_spill_count") + number(r"\.sgpr_spill_count")
    counts["STL"] = spills
    return resources.Resources(
        registers=number("; TotalNumVgprs"),
        stack=number("; ScratchSize"),
        local=0,
        shared=built.metadata.shared,
        instructions=dict(counts),
    )
