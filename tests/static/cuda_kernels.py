"""The CUDA C++ kernels, compiled from their sources for each architecture that is shipped."""

from __future__ import annotations

import collections
import functools
import hashlib
import pathlib
import re
import subprocess

from tests.emulator import build
from tests.static import occupancy, resources
from tests.static.row import Row

FOLDER = build.ROOT / "build" / "static"
# As in build_backend/rules.ninja.
FLAGS = ("-std=c++20", "-O3", "-lineinfo", "-Icsrc")
# (kernels, what their code must contain). Template arguments of the row kernels: element type, elements
# of an access, of which 4 and 8 make 16 bytes.
PROMISES = ((r"layer_norm_(for|back)ward_kernel\w* \w*Li[48]E", ("LDG.128", "STG.128")),)


def short_name(mangled: str) -> str:
    """Without what depends on the file that a kernel stands in."""
    found = re.search(r"_cu_[0-9a-f]{8}(\d+)", mangled)
    if found is None:
        return mangled
    end = found.end() + int(found[1])
    arguments = re.match(r"(I\w+E)Ev", mangled[end:])
    return f"{mangled[found.end() : end]} {arguments[1] if arguments else ''}".strip()


@functools.cache
def compiler() -> str:
    toolchain = build._toolchain()
    version = subprocess.run(
        [toolchain.find_nvcc()[0], "--version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", version)
    assert found, version
    return f"nvcc {found.group(1)}"


def _kernels(ptx: str) -> dict[str, tuple[str, int]]:
    """{mangled name: (text that says what the code is, threads of the largest block)}"""
    ptx = re.sub(r"^\s*(\.loc|\.file|//).*\n", "", ptx, flags=re.M)
    ptx = re.sub(
        r"_cu_[0-9a-f]{8}", "_cu_", re.sub(r"_GLOBAL__N__[0-9a-f]{8}", "_GLOBAL__N__", ptx)
    )
    ptx = ptx.partition(".section")[0]
    found = {}
    for part in re.split(r"^(?:\.visible )?\.entry ", ptx, flags=re.M)[1:]:
        threads = 1024
        if limit := re.search(r"^\.maxntid (\d+)(?:, (\d+), (\d+))?", part, flags=re.M):
            threads = int(limit[1]) * int(limit[2] or 1) * int(limit[3] or 1)
        found[re.match(r"\w+", part)[0]] = part, threads
    return found


def digests() -> dict[tuple[str, str], tuple[str, int, pathlib.Path]]:
    """{(kernel, architecture): (digest, threads, source)} of every kernel, from its PTX."""
    build.build(True)
    rows = {}
    for source in build.cuda_sources():
        for device, architecture in build.ARCHITECTURES.items():
            text = build.ptx_of(source, device).read_text()
            for name, (part, threads) in _kernels(text).items():
                text = f"{compiler()} {architecture} {part}"
                digest = hashlib.sha256(text.encode()).hexdigest()[:12]
                room = source.parent.name
                key = f"cuda {room} {short_name(_restored(name))}", f"sm_{architecture}"
                assert key not in rows, key
                rows[key] = digest, threads, source
    return rows


def _restored(name: str) -> str:
    return name.replace("_cu_", "_cu_00000000")


def compiled(source: pathlib.Path, arch: str) -> dict[str, resources.Resources]:
    """{kernel: what became of it} of a source."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    out = FOLDER / f"{source.parent.name}_{source.stem}.{arch}.cubin"
    nvcc = build._toolchain().find_nvcc()[0]
    command = [nvcc, *FLAGS, "-cubin", f"-arch={arch}", str(source), "-o", str(out)]
    subprocess.run(command, check=True, cwd=build.ROOT)
    found = resources.read(str(out))
    return {f"cuda {source.parent.name} {short_name(n)}": r for (_, n), r in found.items()}


def row(
    kernel: str, arch: str, digest: str, threads: int, found: resources.Resources
) -> tuple[Row, list[str]]:
    """The row of a kernel, and what is wrong with its code whatever the table says."""
    warps = -(-threads // 32)
    counts = collections.Counter(found.instructions)
    # From sm_90 on the system's share counts as static shared memory.
    counted = occupancy.RESERVED if arch.startswith("sm_90") else 0
    shared = max(0, found.shared - counted)
    blocks = occupancy.cuda(arch.removeprefix("sm_"), warps, found.registers, shared)
    wide = {k: round(100 * counts[f"{k}.128"] / max(1, counts[k])) for k in ("LDG", "STG")}
    faults = found.faults()
    for pattern, opcodes in PROMISES:
        if re.search(pattern, kernel):
            faults += [f"no {opcode}" for opcode in opcodes if not counts[opcode]]
    made = Row(
        kernel=kernel,
        arch=arch,
        registers=found.registers,
        shared=shared,
        blocks=blocks,
        warps=blocks * warps,
        instructions=found.total(),
        wide_loads=wide["LDG"],
        wide_stores=wide["STG"],
        products=found.products(),
    )
    return made.sealed(digest), faults
