"""Cases of matrix instructions. Products are of small integers, whose sums are exact in any order."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from tests.conformance.cases import Case, generator, module
from tests.conformance.driver import Argument
from tests.conformance.together import program

LANE = "  mul.wide.u32 %d40, %r0, {size};\n  add.u64 %d41, %d{pointer}, %d40;\n"


def _words(dtype: str, random: np.random.Generator, count: int) -> np.ndarray:
    """`count` 32-bit words of small integers in a type."""
    if dtype == "tf32":
        return random.integers(-4, 5, count).astype(np.float32).view(np.uint32)
    small = random.integers(-4, 5, 2 * count).astype(np.float32)
    if dtype == "f16":
        return small.astype(np.float16).view(np.uint32)
    return (small.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint32)


def _fragments(
    name: str, dtype: str, sizes: tuple[int, int], sums: str, registers: int
) -> list[Argument]:
    random = generator(name)
    a, b = (_words(dtype, random, 32 * size) for size in sizes)
    c = random.integers(-9, 10, 32 * registers * (2 if sums == "f16" else 1)).astype(np.float32)
    c = c if sums == "f32" else c.astype(np.float16).view(np.uint32)
    return [a, b, np.ascontiguousarray(c), np.zeros_like(c)]


def products() -> Iterator[Case]:
    """mma.sync: each lane's registers of a, b, c lie one behind the other in memory."""
    for shape, dtype, sums, a, b in (
        ("m16n8k16", "bf16", "f32", 4, 2),
        ("m16n8k8", "bf16", "f32", 2, 1),
        ("m16n8k16", "f16", "f32", 4, 2),
        ("m16n8k16", "f16", "f16", 4, 2),
        ("m16n8k8", "f16", "f32", 2, 1),
        ("m16n8k8", "tf32", "f32", 4, 2),
        ("m16n8k4", "tf32", "f32", 2, 1),
    ):
        c = 4 if sums == "f32" else 2
        letter = "f" if sums == "f32" else "r"
        body, lists = "", []
        for pointer, (size, kind, first) in enumerate(
            ((a, "r", 10), (b, "r", 20), (c, letter, 30))
        ):
            body += LANE.format(size=4 * size, pointer=pointer)
            names = [f"%{kind}{first + i}" for i in range(size)]
            sort = "f32" if kind == "f" else "b32"
            body += "".join(
                f"  ld.global.{sort} {n}, [%d41+{4 * i}];\n" for i, n in enumerate(names)
            )
            lists.append("{" + ", ".join(names) + "}")
        out = [f"%{letter}{40 + i}" for i in range(c)]
        name = f"mma.sync.aligned.{shape}.row.col.{sums}.{dtype}.{dtype}.{sums}"
        body += f"  {name} {{{', '.join(out)}}}, {', '.join(lists)};\n" + LANE.format(
            size=4 * c, pointer=3
        )
        sort = "f32" if sums == "f32" else "b32"
        body += "".join(f"  st.global.{sort} [%d41+{4 * i}], {n};\n" for i, n in enumerate(out))
        arguments = functools.partial(_fragments, name, dtype, (a, b), sums, c)
        kind = "f32" if sums == "f32" else "f16x2"
        yield Case(name, "matrix", module(body, 4), arguments, (3,), (kind,), threads=32)


def tiles() -> Iterator[Case]:
    """64 words through shared memory; rows of 16 bytes, of which each of the first 16 lanes names one."""
    start = (
        "  mov.u32 %r3, memory;\n  shl.b32 %r4, %r0, 2;\n  add.u32 %r5, %r3, %r4;\n  add.u64 %d10, %d0, %d63;\n"
        "  ld.global.b32 %r1, [%d10];\n  and.b32 %r6, %r0, 15;\n  mad.lo.u32 %r7, %r6, 16, %r3;\n"
    )
    for trans in ("", ".trans"):
        for count in (1, 2, 4):
            names = [f"%r{20 + i}" for i in range(count)]
            xor = "".join(f"  xor.b32 %r2, %r2, {n};\n" for n in names)
            body = start + "  st.shared.b32 [%r5], %r1;\n  bar.sync 0;\n"
            body += f"  ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{', '.join(names)}}}, [%r7];\n"
            # Registers are told apart by a rotation of each.
            turned = "".join(f"  shf.l.wrap.b32 {n}, {n}, {n}, {i};\n" for i, n in enumerate(names))
            body += f"  mov.b32 %r2, 0;\n{turned}{xor}  add.u64 %d11, %d1, %d63;\n  st.global.b32 [%d11], %r2;"
            yield program(f"ldmatrix.x{count}{trans}", "matrix", body, shared=256)
            if count > 2:
                continue
            names = [f"%r{20 + i}" for i in range(count)]
            fill = "".join(f"  add.u32 {n}, %r1, {i};\n" for i, n in enumerate(names))
            body = start + f"  mov.b32 %r8, 0;\n  st.shared.b32 [%r5], %r8;\n  bar.sync 0;\n{fill}"
            # The second warp has nothing to store: rows of the first one are 128 bytes a tile.
            body += "  setp.ge.u32 %p1, %r0, 32;\n  @%p1 bra over;\n"
            body += f"  stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r7], {{{', '.join(names)}}};\nover:\n"
            body += "  bar.sync 0;\n  ld.shared.b32 %r2, [%r5];\n  add.u64 %d11, %d1, %d63;\n"
            body += "  st.global.b32 [%d11], %r2;"
            yield program(f"stmatrix.x{count}{trans}", "matrix", body, shared=256, target="sm_90")
    body = "  add.u64 %d10, %d0, %d63;\n  add.u64 %d11, %d1, %d63;\n  ld.global.b32 %r1, [%d10];\n"
    body += "  movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;\n  st.global.b32 [%d11], %r2;"
    yield program("movmatrix.trans", "matrix", body)


def cases() -> Iterator[Case]:
    yield from products()
    yield from tiles()
