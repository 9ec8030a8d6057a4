"""The emulator's core from Python: PTX modules, launches on host memory, and what the checks found."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Sequence

from tests.emulator import build


class _Region(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("granule", ctypes.c_uint32),
        ("watched", ctypes.c_uint32),
        ("initialised", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("checked", ctypes.c_int32),
        ("counted", ctypes.c_int32),
        ("init_fences", ctypes.c_int32),
        ("arguments", ctypes.c_void_p),
        ("region_count", ctypes.c_uint32),
        ("regions", ctypes.POINTER(_Region)),
    ]


@dataclasses.dataclass(frozen=True)
class Region:
    """Memory that a launch may touch.

    granule: bytes of one element. initialised: address of a byte for each byte of the region, 0 until it
    is written, or 0 if all of it counts as written.
    """

    name: str
    address: int
    bytes: int
    granule: int = 4
    initialised: int = 0


@dataclasses.dataclass(frozen=True)
class Options:
    """seed: of the order of warps and blocks. checked: whether races and the like are looked for (bounds
    always are). counted: whether memory traffic is. limit: instructions of a block that count as a hang.
    init_fences: whether an mbarrier needs a fence before the copy engine uses it, as the manual says. last: so
    many of the last blocks of every launch alone run, 0 for all: of a grid too large to be run."""

    seed: int = 1
    checked: bool = True
    counted: bool = False
    threads: int = 1
    limit: int = 50_000_000
    init_fences: bool = True
    last: int = 0


@dataclasses.dataclass(frozen=True)
class Traffic:
    """One instruction's work. moved: 32-byte sectors of global memory or wavefronts of shared memory;
    ideal: the fewest that would have done."""

    opcode: str
    ptx_line: int
    source_line: int
    executed: int
    accesses: int
    bytes: int
    moved: int
    ideal: int
    shared: bool


@dataclasses.dataclass
class Report:
    """What came of a launch. A clean one has no findings and no fatal error."""

    kernel: str
    findings: list[str] = dataclasses.field(default_factory=list)
    fatal: str | None = None
    instructions: int = 0
    traffic: list[Traffic] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.findings and self.fatal is None

    def __str__(self) -> str:
        lines = [*self.findings, *([f"fatal: {self.fatal}"] if self.fatal else [])]
        return f"{self.kernel}: " + ("clean" if not lines else "".join(f"\n  {x}" for x in lines))

    def read(self, text: str) -> Report:
        for line in text.splitlines():
            kind, _, rest = line.partition("\t")
            if kind == "finding":
                self.findings.append(rest)
            elif kind == "fatal":
                self.fatal = rest
            elif kind == "instructions":
                self.instructions = int(rest)
            elif kind == "instruction":
                opcode, *numbers = rest.split("\t")
                *counts, space = map(int, numbers)
                self.traffic.append(Traffic(opcode, *counts, shared=space == _SHARED))
            elif self.fatal is not None:
                self.fatal += "\n" + line
        return self


_SHARED = 2


@functools.cache
def _library() -> ctypes.CDLL:
    build.build(build.why_no_cuda() is None)
    library = ctypes.CDLL(str(build.core_library()))
    for name in ("emulator_text", "emulator_kernels", "emulator_parameters"):
        getattr(library, name).restype = ctypes.c_char_p
    library.emulator_open.restype = ctypes.c_void_p
    for name in ("emulator_close", "emulator_kernels", "emulator_parameters", "emulator_launch"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.emulator_parameters.argtypes += [ctypes.c_char_p]
    library.emulator_launch.argtypes += [ctypes.POINTER(_Launch)]
    return library


class EmulatorError(RuntimeError):
    """PTX that the emulator cannot read or run."""


class Module:
    """A PTX file, read. Kernels are decoded when they are first launched."""

    def __init__(self, ptx: str) -> None:
        self.ptx = ptx
        self._library = _library()
        self._handle = self._library.emulator_open(ptx.encode())
        if not self._handle:
            raise EmulatorError(_text())

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.emulator_close(self._handle)

    @property
    def kernels(self) -> list[str]:
        return _library().emulator_kernels(self._handle).decode().split()

    def parameters(self, kernel: str) -> list[int]:
        """Bytes of each of a kernel's parameters. Raises EmulatorError if it cannot be decoded."""
        found = _library().emulator_parameters(self._handle, kernel.encode())
        if found is None:
            raise EmulatorError(_text())
        return [int(word) for word in found.decode().split()]

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes] | int,
        regions: Sequence[Region],
        dynamic_shared: int = 0,
        options: Options = Options(),
    ) -> Report:
        """Runs a kernel. arguments: the bytes of each parameter, or the address of pointers to them."""
        keep: list[object] = []
        if not isinstance(arguments, int):
            buffers = [ctypes.create_string_buffer(a, max(len(a), 1)) for a in arguments]
            pointers = (ctypes.c_void_p * max(len(buffers), 1))(*map(ctypes.addressof, buffers))
            keep += [buffers, pointers]
            arguments = ctypes.addressof(pointers)
        table = (_Region * max(len(regions), 1))(
            *(
                _Region(r.address, r.bytes, r.granule, 1, r.initialised or None, r.name.encode())
                for r in regions
            )
        )
        wanted = _Launch(
            kernel.encode(),
            _three(grid),
            _three(block),
            dynamic_shared,
            options.threads,
            options.seed,
            options.limit,
            options.last,
            options.checked,
            options.counted,
            options.init_fences,
            arguments,
            len(regions),
            table,
        )
        _library().emulator_launch(self._handle, ctypes.byref(wanted))
        return Report(kernel).read(_text())


def _three(size: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 3)(*[*size, 1, 1][:3])


def _text() -> str:
    return _library().emulator_text().decode(errors="replace")
