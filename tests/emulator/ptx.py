"""Small PTX kernels written by hand, for tests of the emulator itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tests.emulator.core import Module, Options, Report
from tests.emulator.memory import Running

HEAD = ".version 8.0\n.target sm_90a\n.address_size 64\n"
REGISTERS = """
  .reg .pred %p<16>;
  .reg .b16 %h<32>;
  .reg .b32 %r<64>;
  .reg .f32 %f<64>;
  .reg .b64 %d<64>;
  .reg .f64 %g<64>;
"""


def kernel(body: str, parameters: int, shared: int = 0, head: str = "") -> str:
    """A module with the kernel `test`. `parameters` pointers are in %d0, %d1, ...; %r0 is %tid.x, and
    %d32 four times it; `shared` bytes are at `memory`."""
    names = ", ".join(f".param .u64 parameter_{i}" for i in range(parameters))
    loads = "".join(f"  ld.param.u64 %d{i}, [parameter_{i}];\n" for i in range(parameters))
    memory = f"  .shared .align 1024 .b8 memory[{shared}];\n" if shared else ""
    thread = "  mov.u32 %r0, %tid.x;\n  mul.wide.u32 %d32, %r0, 4;\n"
    return f"{HEAD}{head}.visible .entry test({names})\n{{{REGISTERS}{memory}{loads}{thread}{body}\n  ret;\n}}\n"


def run(
    ptx: str,
    tensors: Sequence[Tensor],
    threads: int = 32,
    blocks: int = 1,
    options: Options = Options(),
    fresh: Sequence[Tensor] = (),
) -> Report:
    """Launches `test` of a module on CPU tensors; those in `fresh` count as unwritten."""
    running = Running([])
    for tensor in fresh:
        running.note(torch.ops.aten.empty.memory_format, (), tensor)
    regions = [running.region_of(tensor) for tensor in tensors]
    arguments = [tensor.data_ptr().to_bytes(8, "little") for tensor in tensors]
    return Module(ptx).launch("test", (blocks,), (threads,), arguments, regions, 0, options)


_SYNCHRONISES = re.compile(
    r"^\s*(@\S+\s+)?(bar\.|barrier\.|cp\.async\.(bulk\.)?wait|fence|membar|wgmma\.(wait|fence))"
)


def mutants(ptx: str, name: str) -> Iterator[tuple[str, str]]:
    """(the line, the module without it) for each barrier, wait and fence of a kernel."""
    start = ptx.index(name + "(")
    end = ptx.find(".entry", start)
    lines = ptx.splitlines(keepends=True)
    first = ptx.count("\n", 0, start)
    last = len(lines) if end < 0 else ptx.count("\n", 0, end)
    for number in range(first, last):
        if _SYNCHRONISES.match(lines[number]):
            without = [*lines[:number], ";\n", *lines[number + 1 :]]
            yield f"{number + 1}: {lines[number].strip()}", "".join(without)
