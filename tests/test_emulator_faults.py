"""Each check of the emulator catches the fault it is for, at every seed, and clean kernels pass at every seed."""

import re

import pytest
import torch

from tests.emulator import build
from tests.emulator.core import EmulatorError, Module, Options
from tests.emulator.ptx import kernel, run

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
SEEDS = range(25)

# Two warps swap values through shared memory, twice. Each barrier is needed.
EXCHANGE = """
  add.u64 %d2, %d0, %d32;
  ld.global.f32 %f0, [%d2];
  mov.u32 %r1, memory;
  shl.b32 %r2, %r0, 2;
  add.u32 %r3, %r1, %r2;
  sub.u32 %r4, 252, %r2;
  add.u32 %r5, %r1, %r4;
  st.shared.f32 [%r3], %f0;
  bar.sync 0;  // first
  ld.shared.f32 %f1, [%r5];
  bar.sync 0;  // second
  add.f32 %f1, %f1, %f1;
  st.shared.f32 [%r3], %f1;
  bar.sync 0;  // third
  ld.shared.f32 %f2, [%r5];
  add.u64 %d3, %d1, %d32;
  st.global.f32 [%d3], %f2;
"""
# Each thread copies one element, of its block's 32.
COPY = """
  mov.u32 %r1, %ctaid.x;
  mad.lo.u32 %r2, %r1, 32, %r0;
  mul.wide.u32 %d2, %r2, 4;
  add.u64 %d3, %d0, %d2;
  ld.global.f32 %f0, [%d3];
  add.u64 %d4, %d1, %d2;
  st.global.f32 [%d4], %f0;
"""


def exchange(change=lambda text: text, seed=1):
    x, out = torch.randn(64), torch.zeros(64)
    report = run(kernel(change(EXCHANGE), 2, 256), [x, out], 64, options=Options(seed=seed))
    return report, x, out


def copy(change=lambda text: text, blocks=2, seed=1, n=64, **kwargs):
    x, out = torch.randn(n), torch.zeros(64)
    report = run(kernel(change(COPY), 2), [x, out], 32, blocks, Options(seed=seed), **kwargs)
    return report, x, out


def assert_found(what, report):
    text = str(report)
    assert re.search(what, text), text


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_kernels_raise_no_alarm(seed):
    report, x, out = exchange(seed=seed)
    assert report, report
    assert torch.equal(out, 2 * x)
    report, x, out = copy(seed=seed)
    assert report, report
    assert torch.equal(out, x)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("barrier", "what"),
    [("first", "race|never written"), ("second", "race"), ("third", "race")],
)
def test_a_missing_barrier_is_a_race(barrier, what, seed):
    line = f"  bar.sync 0;  // {barrier}\n"
    report, _, _ = exchange(lambda text: text.replace(line, ""), seed)
    assert_found(what, report)


SWAP_IN_WARP = """
  mov.u32 %r1, memory;
  shl.b32 %r2, %r0, 2;
  add.u32 %r3, %r1, %r2;
  xor.b32 %r4, %r2, 4;
  add.u32 %r5, %r1, %r4;
  st.shared.u32 [%r3], %r0;
  bar.warp.sync -1;
  ld.shared.u32 %r6, [%r5];
  add.u64 %d3, %d0, %d32;
  st.global.u32 [%d3], %r6;
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_of_a_warp_need_its_barrier(seed):
    out = torch.zeros(32, dtype=torch.int32)
    options = Options(seed=seed)
    assert run(kernel(SWAP_IN_WARP, 1, 128), [out], options=options)
    assert torch.equal(out, torch.arange(32, dtype=torch.int32) ^ 1)
    without = SWAP_IN_WARP.replace("  bar.warp.sync -1;\n", "")
    assert_found("race", run(kernel(without, 1, 128), [out], options=options))


@pytest.mark.parametrize("seed", SEEDS)
def test_an_access_past_the_end_is_found(seed):
    report, _, _ = copy(seed=seed, n=63)
    assert_found(r"global read of 4 bytes out of bounds, 0 bytes off float32\[63\]", report)
    assert "PTX line" in str(report)


def test_an_access_between_two_rows_is_not_out_of_bounds_but_outside_the_view_is():
    x, out = torch.randn(66), torch.zeros(64)
    assert_found("out of bounds", run(kernel(COPY, 2), [x[1:64], out], 32, 2))
    assert run(kernel(COPY, 2), [x[1:65], out], 32, 2)


# Warp 0 writes 16 bytes a lane, warp 1 reads and changes words of them, warp 0 reads 16 bytes again.
WIDE_AND_NARROW = """
  mov.u32 %r1, memory;
  and.b32 %r2, %r0, 31;
  shl.b32 %r2, %r2, 4;
  add.u32 %r3, %r1, %r2;
  setp.lt.u32 %p0, %r0, 32;
  @%p0 st.shared.v4.u32 [%r3], {%r0, %r0, %r0, %r0};
  bar.sync 0;
  @!%p0 ld.shared.u32 %r4, [%r3+8];
  @!%p0 st.shared.u32 [%r3+8], %r0;
  bar.sync 0;
  @%p0 ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r3];
  bar.sync 0;
  @!%p0 st.shared.v4.u32 [%r3], {%r0, %r0, %r0, %r0};
  bar.sync 0;
  @%p0 ld.shared.v2.u32 {%r9, %r10}, [%r3+8];
  add.u64 %d3, %d0, %d32;
  add.u32 %r9, %r9, %r7;
  @%p0 st.global.u32 [%d3], %r9;
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_accesses_of_16_bytes_and_of_words_are_watched_together(seed):
    def one(body):
        out = torch.zeros(32, dtype=torch.int32)
        return run(kernel(body, 1, 512), [out], 64, options=Options(seed=seed)), out

    report, out = one(WIDE_AND_NARROW)
    assert report, report
    assert torch.equal(out, 2 * torch.arange(32, 64, dtype=torch.int32))
    parts = WIDE_AND_NARROW.split("  bar.sync 0;\n")
    for number in range(1, len(parts)):
        joined = parts[number - 1] + parts[number]
        body = "  bar.sync 0;\n".join([*parts[: number - 1], joined, *parts[number + 1 :]])
        assert_found("race|never written", one(body)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_misaligned_access_is_found(seed):
    body = "  ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%d0+4];"
    report = run(kernel(body, 1), [torch.zeros(64)], 64, options=Options(seed=seed))
    assert_found("misaligned access of 16 bytes", report)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", [-4, 256, 1 << 20])
def test_shared_memory_has_bounds(offset, seed):
    body = f"  mov.u32 %r1, memory;\n  st.shared.u32 [%r1+{offset}], 7;"
    report = run(kernel(body, 0, 256), [], 64, options=Options(seed=seed))
    assert_found("shared write of 4 bytes out of bounds", report)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_read_of_unwritten_memory_is_found(seed):
    body, options = "  mov.u32 %r1, memory;\n  ld.shared.u32 %r2, [%r1];", Options(seed=seed)
    assert_found("never written", run(kernel(body, 0, 256), [], 64, options=options))
    x, out = torch.randn(64), torch.zeros(64)
    assert_found(
        r"uninitialised memory of float32\[64\]",
        run(kernel(COPY, 2), [x, out], 32, 2, options, fresh=[x]),
    )
    assert run(kernel(COPY, 2), [x, out], 32, 2, options, fresh=[out])


@pytest.mark.parametrize("seed", SEEDS)
def test_races_between_blocks_are_found_in_either_order(seed):
    same_place = COPY.replace("add.u64 %d4, %d1, %d2", "add.u64 %d4, %d1, %d32")
    report, _, _ = copy(lambda _: same_place, seed=seed)
    assert_found("blocks . and . both write", report)
    # Each block reads what the other writes.
    swap = "  xor.b32 %r2, %r2, 32;\n  mul.wide.u32 %d2, %r2, 4;\n  add.u64 %d4"
    x = torch.randn(64)
    text = kernel(COPY.replace("  add.u64 %d4", swap), 2)
    assert_found("another block reads|writes", run(text, [x, x], 32, 2, Options(seed=seed)))


def test_atomics_of_several_blocks_do_not_race():
    body = "  mov.f32 %f0, 0f3F800000;\n  red.global.add.f32 [%d0], %f0;"
    total = torch.zeros(1)
    assert run(kernel(body, 1), [total], 64, 9, Options(threads=2))
    assert total == 64 * 9


DIVERGENT = """
  setp.lt.u32 %p0, %r0, 16;
  @%p0 bra skip;
  {instruction}
skip:
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_divergence_at_what_the_whole_warp_must_reach_is_found(seed):
    options = Options(seed=seed)
    barrier = DIVERGENT.format(instruction="bar.sync 0;")
    assert_found(
        "divergence: lanes ffff0000 of ffffffff", run(kernel(barrier, 0), [], 32, options=options)
    )
    matrix = DIVERGENT.format(instruction="movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0;")
    assert_found("divergence|deadlock", run(kernel(matrix, 0), [], 32, options=options))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shuffle_that_some_lanes_never_reach_is_a_deadlock(seed):
    shuffle = DIVERGENT.format(instruction="shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;")
    loop = shuffle.replace("skip:", "skip:\n  @%p0 bra skip;")
    assert_found(
        "divergence|deadlock|hangs",
        run(kernel(loop, 0), [], options=Options(seed=seed, limit=10_000)),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_that_some_warps_never_reach_is_a_deadlock(seed):
    body = "  setp.lt.u32 %p0, %r0, 32;\n  @%p0 bar.sync 1, 64;"
    report = run(kernel(body, 0), [], 64, options=Options(seed=seed))
    assert_found("deadlock in block 0.*\n.*warp 0 at barrier 1", report)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_endless_loop_is_a_hang(seed):
    options = Options(seed=seed, limit=10_000)
    assert_found("hangs", run(kernel("again:\n  bra again;", 0), [], 64, options=options))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_trap_is_found(seed):
    assert_found("trap in thread", run(kernel("  trap;", 0), [], 64, options=Options(seed=seed)))


def test_what_the_emulator_does_not_know_is_named():
    for text in ("frobnicate.b32 %r1, %r0", "add.u32.wild %r1, %r0, %r0", "mov.u32 %r1, %nosuch"):
        with pytest.raises(EmulatorError, match=re.escape(text.split()[-1].rstrip(";"))):
            Module(kernel(f"  {text};", 0)).parameters("test")
    for text in (
        "redux.sync.add.f32 %f1, %f0, -1",
        "shfl.sync.wild.b32 %r1, %r0, 1, 31, -1",
        "testp.odd.f32 %p1, %f0",
    ):
        with pytest.raises(EmulatorError, match=r"redux|wild|odd"):
            Module(kernel(f"  {text};", 0)).parameters("test")
    with pytest.raises(EmulatorError, match="unknown instruction frobnicate"):
        Module(kernel("  frobnicate.b32 %r1, %r0;", 0)).parameters("test")


def test_a_finding_names_its_source_line():
    text = kernel("  .loc 1 42 3\n" + COPY, 2, head='.file 1 "folder/name.cu"\n')
    x, out = torch.randn(63), torch.zeros(64)
    report = run(text, [x, out], 32, 2)
    assert_found(r"out of bounds.*name\.cu:42", report)
    report = run(text, [out, out.clone()], 32, 2, Options(counted=True))
    assert {t.source_line for t in report.traffic if "global" in t.opcode} == {42}
    assert {t.opcode: t.executed for t in report.traffic}["mad.lo.u32"] == 2


def test_counters_see_conflicts_and_wasted_sectors():
    def traffic(step, space):
        at = "memory" if space == "shared" else "%d0"
        body = f"  mov.u64 %d1, {at};\n  mul.wide.u32 %d2, %r0, {step};\n  add.u64 %d3, %d1, %d2;\n"
        body += f"  st.{space}.u32 [%d3], %r0;"
        report = run(kernel(body, 1, 4096), [torch.zeros(1024)], options=Options(counted=True))
        assert report, report
        (found,) = (t for t in report.traffic if t.opcode.startswith("st."))
        return found.moved, found.ideal

    assert traffic(4, "shared") == (1, 1)
    assert traffic(8, "shared") == (2, 1)
    assert traffic(128, "shared") == (32, 1)
    assert traffic(4, "global") == (4, 4)
    assert traffic(64, "global") == (32, 4)
