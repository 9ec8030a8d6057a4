"""What compiled GPU code says of itself without a GPU: registers, stack, shared memory, instructions."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess


@dataclasses.dataclass
class Resources:
    """Of one kernel for one architecture; `instructions` counts opcodes, global accesses by width."""

    registers: int
    stack: int
    local: int
    shared: int
    instructions: dict[str, int] = dataclasses.field(default_factory=dict)

    def spills(self) -> int:
        return self.instructions.get("LDL", 0) + self.instructions.get("STL", 0)

    def products(self) -> int:
        """Instructions on tensor cores."""
        return sum(self.instructions.get(opcode, 0) for opcode in ("HGMMA", "HMMA", "IMMA"))

    def total(self) -> int:
        """Instructions: counts by width come on top of their opcodes'."""
        widths = re.compile(r"\w+\.\d+|LDG|STG|HMMA")
        hip = any(name.startswith(("v_", "s_")) for name in self.instructions)
        return sum(
            count
            for name, count in self.instructions.items()
            if not (widths.fullmatch(name) if hip else "." in name)
        )

    def faults(self) -> list[str]:
        """What no shipped kernel may do."""
        counts = {"stack bytes": self.stack, "local bytes": self.local, "spills": self.spills()}
        return [f"{count} {name}" for name, count in counts.items() if count]


def find_tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: the toolkit's, or the copy in Triton's wheel (the toolkit may lack them,
    and cuobjdump needs an nvdisasm beside it or on the PATH)."""
    spec = importlib.util.find_spec("triton")
    folders = [os.path.dirname(spec.origin)] if spec and spec.origin else []
    wheel = [os.path.join(f, "backends", "nvidia", "bin", name) for f in folders]
    return shutil.which(name) or next((p for p in wheel if os.access(p, os.X_OK)), None)


def _run(tool: str, *arguments: str) -> str:
    found = find_tool(tool)
    assert found, f"{tool} is not installed"
    path = os.pathsep.join([os.path.dirname(found), os.environ.get("PATH", "")])
    done = subprocess.run(
        [found, *arguments], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _width(modifiers: str) -> str:
    """Bits of one thread's access: LDG.E.128.CONSTANT -> 128; no width is 32."""
    found = re.search(r"\.(?:U|S)?(8|16|64|128)\b", modifiers)
    return found.group(1) if found else "32"


def read(path: str) -> dict[tuple[int, str], Resources]:
    """{(architecture, kernel): Resources} of an object, library or cubin."""
    kernels: dict[tuple[int, str], Resources] = {}
    sass = _run("cuobjdump", "-sass", path)
    header = re.search(r"sm_(\d+)", sass)  # a bare cubin names its architecture only here
    arch, name = int(header.group(1)) if header else 0, ""
    for line in _run("cuobjdump", "-res-usage", path).splitlines():
        if found := re.search(r"arch = sm_(\d+)", line):
            arch = int(found.group(1))
        if found := re.search(r"Function (\S+):", line):
            name = found.group(1)
        if found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, found.groups())
            kernels[arch, name] = Resources(registers, stack, local, shared)
    counts: dict[tuple[int, str], collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for line in sass.splitlines():
        if found := re.search(r"(?:arch =|code for) sm_(\d+)", line):
            arch = int(found.group(1))
        elif found := re.search(r"Function : (\S+)", line):
            name = found.group(1)
        elif found := re.match(
            r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)([.\w]*)", line
        ):
            opcode, modifiers = found.groups()
            counts[arch, name][opcode] += 1
            if opcode in ("LDG", "STG"):
                counts[arch, name][f"{opcode}.{_width(modifiers)}"] += 1
    for key, kernel in kernels.items():
        kernel.instructions = dict(counts[key])
    return kernels
