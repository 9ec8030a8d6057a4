"""Small PTX programs for every opcode family: what a GPU computes must equal, bit for bit, what the emulator
does, wherever the instruction set promises the bits; elsewhere within a bound."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tests.conformance.driver import Argument

THREADS = 64
HEAD = ".version 8.3\n.target {target}\n.address_size 64\n"
REGISTERS = """
  .reg .pred %p<16>;
  .reg .b16 %h<32>;
  .reg .b32 %r<160>;
  .reg .f32 %f<160>;
  .reg .b64 %d<64>;
  .reg .f64 %g<64>;
"""
# Register class and stored type of each kind of operand.
KINDS: dict[str, tuple[str, type]] = {
    "16": ("h", np.uint16),
    "32": ("r", np.uint32),
    "64": ("d", np.uint64),
    "f32": ("f", np.float32),
    "f64": ("g", np.float64),
    "f16": ("h", np.uint16),
    "bf16": ("h", np.uint16),
    "f16x2": ("r", np.uint32),
    "bf16x2": ("r", np.uint32),
    "tf32": ("r", np.uint32),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """family: of opcodes. arguments: makes fresh ones; the arrays named in `results` are compared, as values of
    `kinds`. target: of the PTX; a device of a lower compute capability leaves the case out. bound: largest
    relative difference, 0 where the bits are promised."""

    name: str
    family: str
    ptx: str
    arguments: Callable[[], list[Argument]]
    results: tuple[int, ...]
    kinds: tuple[str, ...]
    threads: int = THREADS
    blocks: int = 1
    shared: int = 0
    target: str = "sm_80"
    bound: float = 0.0

    @property
    def major(self) -> int:
        return int(self.target[3:].rstrip("a")) // 10


def module(
    body: str, parameters: int | Sequence[str], shared: int = 0, target: str = "sm_80"
) -> str:
    """A module with the kernel `test`; pointers arrive in %d0, %d1, ...; %r0 is %tid.x and %d63 four times it.
    parameters: how many pointers, or the text of each parameter."""
    if isinstance(parameters, int):
        parameters = [f".param .u64 parameter_{i}" for i in range(parameters)]
    loads = "".join(
        f"  ld.param.u64 %d{i}, [parameter_{i}];\n"
        for i, text in enumerate(parameters)
        if text.startswith(".param .u64")
    )
    memory = f"  .shared .align 1024 .b8 memory[{shared}];\n" if shared else ""
    thread = "  mov.u32 %r0, %tid.x;\n  mul.wide.u32 %d63, %r0, 4;\n"
    head = HEAD.format(target=target)
    text = ",\n  ".join(parameters)
    return f"{head}.visible .entry test({text})\n{{{REGISTERS}{memory}{loads}{thread}{body}\n  ret;\n}}\n"


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


EXTREMES = {
    16: [0, 1, 0xFFFF, 0x7FFF, 0x8000, 2],
    32: [0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 31, 32, 33],
    64: [0, 1, (1 << 64) - 1, (1 << 63) - 1, 1 << 63, 63, 64, 1 << 32],
}
FLOATS = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 3.0e38, 1e-40, -1e-39, 0.5, 2.5, -2.5]


def values(kind: str, random: np.random.Generator, row: int, count: int = THREADS) -> np.ndarray:
    """Random operands, with extreme ones at places that differ from row to row."""
    stored = KINDS[kind][1]
    if kind in ("f32", "f64"):
        made = (random.normal(size=count) * 8.0 ** random.integers(-3, 4, count)).astype(stored)
        extremes: Sequence[float] = FLOATS
    elif kind in ("f16", "bf16", "f16x2", "bf16x2", "tf32"):
        floats = random.normal(size=2 * count).astype(np.float32)
        floats[: 2 * len(FLOATS) : 2][row:] = FLOATS[: len(FLOATS) - row]
        if kind == "tf32":
            return floats[:count].view(np.uint32) & np.uint32(0xFFFFE000)
        with np.errstate(over="ignore"):
            bits = (
                floats.astype(np.float16).view(np.uint16)
                if kind.startswith("f16")
                else (floats.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
            )
        return bits[:count].copy() if stored is np.uint16 else bits.view(np.uint32).copy()
    else:
        bits_of = int(kind)
        made = random.integers(0, 1 << bits_of, count, dtype=np.uint64).astype(stored)
        extremes = EXTREMES[bits_of]
    for index, extreme in enumerate(extremes):
        made[(index * (row + 1) + row) % count] = extreme
    return made


def operation(
    opcode: str,
    kinds: str,
    family: str,
    tail: str = "",
    target: str = "sm_80",
    bound: float = 0.0,
    clean: Callable[[list[np.ndarray]], None] | None = None,
) -> Case:
    """`opcode d, a, b, ...` on one element of each array a thread; kinds: of d and of the operands, in words.
    clean: takes out operands for which the instruction set promises nothing."""
    result, *operands = kinds.split()
    body, names = "", []
    for index, kind in enumerate((*operands, result)):
        letter, stored = KINDS[kind]
        size = np.dtype(stored).itemsize
        body += f"  mul.wide.u32 %d40, %r0, {size};\n  add.u64 %d{20 + index}, %d{index}, %d40;\n"
        if index < len(operands):
            name = f"%{letter}{20 + index}"
            sort = f"f{8 * size}" if kind in ("f32", "f64") else f"b{8 * size}"
            body += f"  ld.global.{sort} {name}, [%d{20 + index}];\n"
            names.append(name)
    letter, stored = KINDS[result]
    to = f"%{letter}19"
    sort = f"{'f' if result in ('f32', 'f64') else 'b'}{8 * np.dtype(stored).itemsize}"
    body += f"  {opcode} {', '.join([to, *names])}{tail};\n"
    body += f"  st.global.{sort} [%d{20 + len(operands)}], {to};"

    def arguments() -> list[Argument]:
        random = generator(f"{opcode}{tail}")
        arrays = [values(kind, random, row) for row, kind in enumerate(operands)]
        if clean is not None:
            clean(arrays)
        return [*arrays, np.zeros(THREADS, stored)]

    ptx = module(body, len(operands) + 1, target=target)
    results = (len(operands),)
    name = f"{opcode}{tail}"
    return Case(name, family, ptx, arguments, results, (result,), target=target, bound=bound)


@functools.cache
def catalogue() -> dict[str, Case]:
    """Every case by its name."""
    from tests.conformance import arithmetic, bulk, matrices, products, together

    found: dict[str, Case] = {}
    for case in _all(arithmetic, together, matrices, bulk, products):
        assert case.name not in found, case.name
        found[case.name] = case
    return found


def _all(*modules) -> Iterator[Case]:
    for each in modules:
        yield from each.cases()
