"""Cases of memory and of threads together: loads and stores, atomics, the warp's exchanges, barriers, copies."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from tests.conformance.cases import THREADS, Case, generator, module, operation, values
from tests.conformance.driver import Argument


def _fresh(name: str, inputs: tuple[str, ...], out: type, count: int) -> list[Argument]:
    random = generator(name)
    arrays = [values(kind, random, row) for row, kind in enumerate(inputs)]
    return [*arrays, np.zeros(count, out)]


def program(
    name: str,
    family: str,
    body: str,
    inputs: tuple[str, ...] = ("32",),
    count: int = THREADS,
    kind: str = "32",
    shared: int = 0,
    target: str = "sm_80",
) -> Case:
    """A body that reads the inputs at %d0 ... and writes `count` words behind the last pointer."""
    out = {"32": np.uint32, "f32": np.float32, "64": np.uint64}.get(kind, np.uint32)
    arguments = functools.partial(_fresh, name, inputs, out, count)
    ptx = module(body, len(inputs) + 1, shared, target)
    return Case(name, family, ptx, arguments, (len(inputs),), (kind,), target=target)


HERE = "  add.u64 %d10, %d0, %d63;\n  add.u64 %d11, %d1, %d63;\n  ld.global.b32 %r1, [%d10];\n"
THERE = "  st.global.b32 [%d11], %r2;"


def memory() -> Iterator[Case]:
    for count, kind in ((2, "b32"), (4, "b32"), (2, "b64"), (2, "f32"), (4, "f32")):
        letter = {"b32": "r", "b64": "d", "f32": "f"}[kind]
        size = count * int(kind[1:]) // 8
        registers = ", ".join(f"%{letter}{30 + i}" for i in range(count))
        body = f"  mul.wide.u32 %d40, %r0, {size};\n  add.u64 %d41, %d0, %d40;\n  add.u64 %d42, %d1, %d40;\n"
        # As many threads as there are vectors in the input.
        body += f"  setp.ge.u32 %p1, %r0, {THREADS * 4 // size};\n  @%p1 bra end;\n"
        body += f"  ld.global.v{count}.{kind} {{{registers}}}, [%d41];\n"
        body += f"  st.global.v{count}.{kind} [%d42], {{{registers}}};\nend:"
        yield program(f"ld.st.v{count}.{kind}", "memory", body)
    for kind in ("s8", "u8", "s16", "u16"):
        size = int(kind[1:]) // 8
        body = f"  mul.wide.u32 %d40, %r0, {size};\n  add.u64 %d41, %d0, %d40;\n"
        body += f"  ld.global.{kind} %r2, [%d41];\n  add.u64 %d11, %d1, %d63;\n{THERE}"
        yield program(f"ld.{kind}", "memory", body)
    body = HERE + (
        "  mov.u32 %r3, memory;\n  shl.b32 %r4, %r0, 2;\n  add.u32 %r5, %r3, %r4;\n"
        "  st.shared.b32 [%r5], %r1;\n  bar.sync 0;\n  xor.b32 %r6, %r4, 252;\n  add.u32 %r7, %r3, %r6;\n"
        "  cvt.u64.u32 %d12, %r7;\n  cvta.shared.u64 %d13, %d12;\n  ld.b32 %r2, [%d13];\n"
    )
    yield program("st.shared bar.sync ld (generic)", "memory", body + THERE, shared=256)


def atomics() -> Iterator[Case]:
    for name, kind in (
        *((f"{o}.{t}", "32") for o in ("min", "max") for t in ("s32", "u32")),
        *((f"{o}.b32", "32") for o in ("and", "or", "xor", "exch")),
        *((f"{o}.u32", "32") for o in ("add", "inc", "dec")),
        ("add.f32", "f32"),
    ):
        # One place a thread: old value and new one.
        body = HERE + f"  atom.global.{name} %r2, [%d11], %r1;\n"
        if kind == "f32":
            body = body.replace("%r1", "%f1").replace("%r2", "%f2").replace(".b32 %f", ".f32 %f")
        body += f"  st.global.{'f32 [%d11+256], %f2' if kind == 'f32' else 'b32 [%d11+256], %r2'};"
        yield program(
            f"atom.global.{name}", "atomic", body, count=2 * THREADS, inputs=(kind,), kind=kind
        )
    body = (
        HERE
        + "  mov.u32 %r3, 0;\n  atom.global.cas.b32 %r2, [%d11], %r3, %r1;\n"
        + THERE.replace("d11]", "d11+256]")
    )
    yield program("atom.global.cas.b32", "atomic", body, count=2 * THREADS)
    body = (
        HERE
        + "  red.global.add.u32 [%d1], %r1;\n  red.global.xor.b32 [%d1+4], %r1;\n  red.global.max.u32 [%d1+8], %r1;"
    )
    yield program("red.global of all threads", "atomic", body, count=3)
    body = HERE + (
        "  mov.u32 %r3, memory;\n  mov.u32 %r4, 0;\n  setp.eq.u32 %p1, %r0, 0;\n  @%p1 st.shared.b32 [%r3], %r4;\n"
        "  bar.sync 0;\n  red.shared.add.u32 [%r3], %r1;\n  bar.sync 0;\n  ld.shared.b32 %r2, [%r3];\n"
    )
    yield program("red.shared of all threads", "atomic", body + THERE, shared=256)
    # Each thread's number to itself: twice it, in shared memory, where small ones stay.
    body = HERE.replace(".b32 %r1", ".f32 %f1") + (
        "  mov.u32 %r3, memory;\n  shl.b32 %r4, %r0, 2;\n  add.u32 %r5, %r3, %r4;\n  st.shared.f32 [%r5], %f1;\n"
        "  red.shared.add.f32 [%r5], %f1;\n  ld.shared.f32 %f2, [%r5];\n  st.global.f32 [%d11], %f2;"
    )
    yield program("red.shared.add.f32", "atomic", body, ("f32",), kind="f32", shared=256)


def vector_reductions() -> Iterator[Case]:
    """Vectors of floats, each thread its own, twice."""
    for vector, sort, size in (
        ("v2", "f32", 8),
        ("v4", "f32", 16),
        ("v4", "bf16x2", 16),
        ("v2", "f16x2", 8),
    ):
        letter = "f" if sort == "f32" else "r"
        count = size // 4
        registers = ", ".join(f"%{letter}{30 + i}" for i in range(count))
        zero = ".noftz" if sort != "f32" else ""
        body = f"  mul.wide.u32 %d40, %r0, {size};\n  add.u64 %d41, %d0, %d40;\n  add.u64 %d42, %d1, %d40;\n"
        body += f"  setp.ge.u32 %p1, %r0, {THREADS * 4 // size};\n  @%p1 bra end;\n"
        body += (
            f"  ld.global.{vector}.{'f32' if sort == 'f32' else 'b32'} {{{registers}}}, [%d41];\n"
        )
        for _ in range(2):
            body += f"  red.global.add{zero}.{vector}.{sort} [%d42], {{{registers}}};\n"
        kind, inputs = sort, (sort,)
        yield program(
            f"red.global.add.{vector}.{sort}",
            "atomic",
            body + "end:",
            inputs,
            kind=kind,
            target="sm_90",
        )


def warps() -> Iterator[Case]:
    make = functools.partial(operation, family="warp")
    for mode, clamps in (
        ("bfly", (31, 0x101F)),
        ("up", (0, 0x1000)),
        ("down", (31, 0x181F)),
        ("idx", (31, 0x101F)),
    ):
        for clamp in clamps:
            for by in (1, 5, 16):
                yield make(f"shfl.sync.{mode}.b32", "32 32", tail=f", {by}, {clamp}, -1")
    for name in (
        "add.s32",
        "add.u32",
        "min.s32",
        "max.s32",
        "min.u32",
        "max.u32",
        "and.b32",
        "or.b32",
        "xor.b32",
    ):
        yield make(f"redux.sync.{name}", "32 32", tail=", -1")
    yield make("match.any.sync.b32", "32 32", tail=", -1", clean=_few)
    for mode in ("all", "any", "uni"):
        body = (
            HERE
            + f"  setp.gt.s32 %p1, %r1, 0;\n  vote.sync.{mode}.pred %p2, %p1, -1;\n  selp.b32 %r2, 1, 0, %p2;\n"
        )
        yield program(f"vote.sync.{mode}.pred", "warp", body + THERE)
    body = HERE + "  setp.gt.s32 %p1, %r1, 0;\n  vote.sync.ballot.b32 %r2, %p1, -1;\n"
    yield program("vote.sync.ballot.b32", "warp", body + THERE)
    # Lanes that part and meet again.
    body = HERE + (
        "  setp.lt.s32 %p1, %r1, 0;\n  mov.b32 %r2, %r1;\n  @%p1 bra low;\n  add.u32 %r2, %r2, 5;\n  bra.uni join;\n"
        "low:\n  xor.b32 %r2, %r2, 77;\njoin:\n  bar.warp.sync -1;\n  shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;\n"
    )
    yield program("bra bar.warp.sync", "warp", body + THERE)


def _few(arrays: list[np.ndarray]) -> None:
    arrays[0][:] %= np.uint32(5)


def copies() -> Iterator[Case]:
    for size in (4, 8, 16):
        kind = "cg" if size == 16 else "ca"
        count = THREADS * 4 // size
        # Backwards through shared memory, the last copy half filled with zeros.
        body = (
            f"  mov.u32 %r3, memory;\n  mad.lo.u32 %r4, %r0, {size}, %r3;\n  mul.wide.u32 %d40, %r0, {size};\n"
            f"  add.u64 %d41, %d0, %d40;\n  setp.ge.u32 %p1, %r0, {count};\n  mov.u32 %r5, {size};\n"
            f"  setp.eq.u32 %p2, %r0, {count - 1};\n  @%p2 mov.u32 %r5, {size // 2};\n"
            f"  @!%p1 cp.async.{kind}.shared.global [%r4], [%d41], {size}, %r5;\n"
            "  cp.async.commit_group;\n  cp.async.wait_group 0;\n  bar.sync 0;\n"
            "  xor.b32 %r6, %r0, 63;\n  shl.b32 %r7, %r6, 2;\n  add.u32 %r8, %r3, %r7;\n"
            "  ld.shared.b32 %r2, [%r8];\n  add.u64 %d11, %d1, %d63;\n"
        )
        yield program(f"cp.async.{kind} {size}", "async", body + THERE, shared=256)


def phase_barriers() -> Iterator[Case]:
    """Words change places with an mbarrier between, twice; each thread arrives `count` times at once."""
    state = "again{n}:\n  mbarrier.test_wait.shared.b64 %p2, [%r3], %d20;\n  @!%p2 bra again{n};\n"
    parity = (
        "again{n}:\n  mbarrier.{kind}.parity.shared.b64 %p2, [%r3], {n};\n  @!%p2 bra again{n};\n"
    )
    for name, wait, count, target in (
        ("test_wait", state, 1, "sm_80"),
        ("test_wait.parity", parity, 1, "sm_90"),
        ("try_wait.parity", parity, 1, "sm_90"),
        ("test_wait of several arrivals", state, 3, "sm_90"),
    ):
        arrive = "mbarrier.arrive.shared.b64 %d20, [%r3]" + (f", {count}" if count > 1 else "")
        body = HERE + (
            "  mov.u32 %r3, memory;\n  setp.eq.u32 %p1, %r0, 0;\n"
            f"  @%p1 mbarrier.init.shared.b64 [%r3], {THREADS * count};\n  bar.sync 0;\n"
            "  shl.b32 %r4, %r0, 2;\n  add.u32 %r5, %r3, %r4;\n"
            "  xor.b32 %r6, %r4, 252;\n  add.u32 %r7, %r3, %r6;\n"
        )
        for n in range(2):
            body += f"  st.shared.b32 [%r5+{64 + 256 * n}], %r1;\n  {arrive};\n"
            body += wait.format(n=n, kind=name.partition(".")[0])
            body += f"  ld.shared.b32 %r2, [%r7+{64 + 256 * n}];\n  add.u32 %r1, %r2, %r0;\n"
        body += "  bar.sync 0;\n  @%p1 mbarrier.inval.shared.b64 [%r3];\n"
        yield program(f"mbarrier.{name}", "async", body + THERE, shared=1024, target=target)


def cases() -> Iterator[Case]:
    for family in (memory, atomics, vector_reductions, warps, copies, phase_barriers):
        yield from family()
