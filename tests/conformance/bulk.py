"""Cases of the copy engine: tensor tiles in every swizzle, loaded, stored and added, and lines of bytes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from tests.conformance.cases import Case, generator, module
from tests.conformance.driver import Argument, TensorMap

TILE = 4096  # bytes; the mbarrier lies behind them
SIZES = {"bf16": 2, "f16": 2, "f32": 4, "u8": 1, "u32": 4, "s32": 4}
STORED = {"f16": np.float16, "f32": np.float32, "u8": np.uint8, "u32": np.uint32, "s32": np.int32}
# What a tile does to what it meets: reduction, type.
REDUCTIONS = (
    *((name, kind) for name in ("min", "max") for kind in ("bf16", "f16", "u32", "s32")),
    *((name, "u32") for name in ("add", "inc", "dec", "and", "or", "xor")),
    *(("add", kind) for kind in ("f16", "s32")),
)
START = """
  mov.b64 %d20, parameter_2;
  cvta.param.u64 %d21, %d20;
  mov.u32 %r10, memory;
  add.u32 %r11, %r10, {tile};
  setp.eq.u32 %p1, %r0, 0;
  @%p1 mbarrier.init.shared::cta.b64 [%r11], 1;
  @%p1 fence.mbarrier_init.release.cluster;
  bar.sync 0;
"""
EXPECT = "  @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r11], {bytes};\n"
WAIT = """again:
  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r11], 0;
  @!%p2 bra again;
"""
# Words of shared memory, from it or to it.
EACH_WORD = """  mov.u32 %r30, %r0;
words:
  shl.b32 %r31, %r30, 2;
  add.u32 %r32, %r10, %r31;
  cvt.u64.u32 %d30, %r31;
  add.u64 %d31, %d{pointer}, %d30;
  {move}
  add.u32 %r30, %r30, 64;
  setp.lt.u32 %p3, %r30, {words};
  @%p3 bra words;
"""
OUT = "ld.shared.b32 %r33, [%r32];\n  st.global.b32 [%d31], %r33;"
IN = "ld.global.b32 %r33, [%d31];\n  st.shared.b32 [%r32], %r33;"
DRAIN = """  fence.proxy.async.shared::cta;
  bar.sync 0;
  @%p1 {store};
  @%p1 cp.async.bulk.commit_group;
  @%p1 cp.async.bulk.wait_group 0;
"""
PARAMETERS = (
    ".param .u64 parameter_0",
    ".param .u64 parameter_1",
    ".param .align 64 .b8 parameter_2[128]",
)


def view(
    dtype: str, shape: tuple[int, ...], box: tuple[int, ...], swizzle: int, of: int
) -> TensorMap:
    """A dense array of this shape (outermost first), as a tensor map."""
    strides = np.cumprod([SIZES[dtype], *reversed(shape[1:])])[1:]
    sizes = tuple(reversed(shape))
    return TensorMap(of, dtype, sizes, tuple(map(int, strides)), tuple(reversed(box)), swizzle)


def array(name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    made = generator(name).integers(-99, 100, shape)
    if dtype == "bf16":
        return (made.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return made.astype(STORED[dtype])  # negative ones are large where there is no sign


def _coordinates(at: tuple[int, ...]) -> tuple[str, str]:
    """(instructions, operand) for the tile at a place, outermost first."""
    names = [f"%r{20 + i}" for i in range(len(at))]
    moves = "".join(f"  mov.s32 {n}, {c};\n" for n, c in zip(names, reversed(at), strict=True))
    return moves, "{" + ", ".join(names) + "}"


def load(name: str, dtype: str, shape, box, at, swizzle: int = 0) -> Case:
    """A tile of a tensor, and then what lies in shared memory word by word."""
    size = int(np.prod(box)) * SIZES[dtype]
    moves, place = _coordinates(at)
    form = (
        f"cp.async.bulk.tensor.{len(box)}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    )
    body = START.format(tile=TILE) + moves + EXPECT.format(bytes=size)
    body += f"  @%p1 {form} [%r10], [%d21, {place}], [%r11];\n{WAIT}"
    body += EACH_WORD.format(pointer=1, move=OUT, words=size // 4)
    ptx = module(body, PARAMETERS, TILE + 64, "sm_90")
    arguments = functools.partial(_load_arguments, name, dtype, shape, box, swizzle, size)
    return Case(name, "bulk", ptx, arguments, (1,), ("32",), target="sm_90")


def _load_arguments(name, dtype, shape, box, swizzle, size) -> list[Argument]:
    out = np.zeros(size // 4, np.uint32)
    return [array(name, dtype, shape), out, view(dtype, shape, box, swizzle, 0)]


def store(name: str, dtype: str, shape, box, at, swizzle: int = 0, reduction: str = "") -> Case:
    """Words into shared memory, and that as a tile into a tensor, or onto what it holds."""
    size = int(np.prod(box)) * SIZES[dtype]
    moves, place = _coordinates(at)
    form = f"cp.async.bulk.tensor.{len(box)}d.global.shared::cta.tile.bulk_group"
    if reduction:
        form = f"cp.reduce.async.bulk.tensor.{len(box)}d.global.shared::cta.{reduction}.tile.bulk_group"
    body = START.format(tile=TILE) + moves
    body += EACH_WORD.format(pointer=0, move=IN, words=size // 4)
    body += DRAIN.format(store=f"{form} [%d21, {place}], [%r10]")
    ptx = module(body, PARAMETERS, TILE + 64, "sm_90")
    arguments = functools.partial(_store_arguments, name, dtype, shape, box, swizzle)
    kind = dtype if dtype in ("bf16", "f16", "f32") else "32"
    return Case(name, "bulk", ptx, arguments, (1,), (kind,), target="sm_90")


def _store_arguments(name, dtype, shape, box, swizzle) -> list[Argument]:
    source = array(name, dtype, (int(np.prod(box)),))
    return [source, array(f"{name} before", dtype, shape), view(dtype, shape, box, swizzle, 1)]


def line(name: str, loads: bool, reduction: str = "") -> Case:
    """A run of bytes."""
    size = 1024
    body = START.format(tile=TILE).replace("parameter_2;", "parameter_0;")
    if loads:
        form = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
        body += EXPECT.format(bytes=size) + f"  @%p1 {form} [%r10], [%d0], {size}, [%r11];\n{WAIT}"
        body += EACH_WORD.format(pointer=1, move=OUT, words=size // 4)
    else:
        form = "cp.async.bulk.global.shared::cta.bulk_group"
        if reduction:
            form = f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{reduction}"
        body += EACH_WORD.format(pointer=0, move=IN, words=size // 4)
        body += DRAIN.format(store=f"{form} [%d1], [%r10], {size}")

    def arguments() -> list[Argument]:
        return [array(name, "f32", (size // 4,)), array(f"{name} before", "f32", (size // 4,))]

    ptx = module(body, 2, TILE + 64, "sm_90")
    return Case(name, "bulk", ptx, arguments, (1,), ("f32",), target="sm_90")


def cases() -> Iterator[Case]:
    for swizzle, dtype in itertools.product((0, 32, 64, 128), ("bf16", "f32")):
        width = (swizzle or 64) // SIZES[dtype]
        shape, box = (40, 2 * width), (16, width)
        yield load(
            f"tile load swizzle {swizzle} {dtype}", dtype, shape, box, (3, width // 2), swizzle
        )
        for action in ("store", "add"):
            name, at = f"tile {action} swizzle {swizzle} {dtype}", (5, width // 2)
            reduction = action.replace("store", "")
            yield store(name, dtype, shape, box, at, swizzle, reduction)
    for reduction, dtype in REDUCTIONS:
        name, box = f"tile {reduction} {dtype} at 30 8", (16, 64 // SIZES[dtype])
        yield store(name, dtype, (40, 64), box, (30, 8), 64, reduction)
    for at in ((-3, -5), (34, 50), (60, 0)):
        name = f"at {at[0]} {at[1]}"
        yield load(f"tile load {name}", "bf16", (40, 64), (16, 32), at, 64)
        yield store(f"tile store {name}", "bf16", (40, 64), (16, 32), at, 64)
    shape, box = (3, 4, 5, 6, 16), (2, 1, 3, 2, 16)
    yield load("tile load rank 1", "f32", (96,), (64,), (16,))
    for rank in (3, 4, 5):
        at = (1, 2, 1, 3, 0)[5 - rank :]
        yield load(f"tile load rank {rank}", "f32", shape[5 - rank :], box[5 - rank :], at)
    yield load("tile load u8", "u8", (20, 64), (8, 32), (2, 16), 32)
    yield store("tile add f32", "f32", (40, 64), (16, 32), (30, 40), 128, "add")
    yield store("tile add bf16", "bf16", (40, 64), (16, 32), (8, 16), 64, "add")
    yield line("line load", True)
    yield line("line store", False)
    yield line("line add f32", False, "add.f32")
