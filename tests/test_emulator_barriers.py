"""mbarriers, atomics and spinning lanes: clean programs pass and faulty ones are caught, at every order of warps."""

import re

import numpy as np
import pytest
import torch

from tests.conformance import driver
from tests.conformance.cases import catalogue
from tests.emulator import build
from tests.emulator.core import EmulatorError, Module, Options
from tests.emulator.ptx import kernel, run

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
SEEDS = range(25)
START = "  mov.u32 %r10, memory;\n  setp.eq.u32 %p1, %r0, 0;\n"
ARRIVE = "  mbarrier.arrive.shared::cta.b64 %d9, [%r10];\n"
WAIT = "wait:\n  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r10], 0;\n  @!%p2 bra wait;\n"
FREE = "  bar.sync 0;\n  @%p1 mbarrier.inval.shared::cta.b64 [%r10];\n"
# Two warps swap their threads' numbers, an mbarrier between.
SWAP = f"""{START}  @%p1 mbarrier.init.shared::cta.b64 [%r10], 64;
  bar.sync 0;
  shl.b32 %r12, %r0, 2;
  add.u32 %r13, %r10, %r12;
  sub.u32 %r14, 252, %r12;
  add.u32 %r14, %r10, %r14;
  st.shared.u32 [%r13+64], %r0;
{ARRIVE}{WAIT}  ld.shared.u32 %r15, [%r14+64];
  add.u64 %d3, %d0, %d32;
  st.global.u32 [%d3], %r15;
{FREE}"""
# What is changed, into what, and what is said of it.
FAULTS = {
    "no wait": (WAIT, "", "race|never written"),
    "the wrong phase": ("[%r10], 0;", "[%r10], 1;", "race|never written"),
    "an early arrival": (
        f"  st.shared.u32 [%r13+64], %r0;\n{ARRIVE}",
        f"{ARRIVE}  st.shared.u32 [%r13+64], %r0;\n",
        "race|never written",
    ),
    "arrivals that release nothing": ("arrive.shared", "arrive.relaxed.cta.shared", "race"),
    "a wait that acquires nothing": ("parity.shared", "parity.relaxed.cta.shared", "race"),
    "a store over it": (ARRIVE, f"  @%p1 st.shared.u32 [%r10], %r0;\n{ARRIVE}", "over an mbarrier"),
    "a load of it": (ARRIVE, f"  ld.shared.u32 %r20, [%r10];\n{ARRIVE}", "reads an mbarrier"),
    "a second beginning": (
        "  add.u64 %d3",
        "  bar.sync 0;\n  @%p1 mbarrier.init.shared::cta.b64 [%r10], 64;\n  add.u64 %d3",
        "initialised again",
    ),
    "its end while others wait": (FREE, FREE.replace("  bar.sync 0;\n", ""), "race|no mbarrier"),
}


def swap(text, seed):
    out = torch.zeros(64, dtype=torch.int32)
    return run(kernel(text, 1, 512), [out], 64, options=Options(seed=seed)), out


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clean_mbarrier_raises_no_alarm(seed):
    report, out = swap(SWAP, seed)
    assert report, report
    assert torch.equal(out, 63 - torch.arange(64, dtype=torch.int32))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_of_mbarriers_are_found(fault):
    old, new, what = FAULTS[fault]
    assert old in SWAP
    for seed in SEEDS:
        report, _ = swap(SWAP.replace(old, new), seed)
        assert re.search(what, str(report)), f"seed {seed}: {report}"


# Thread 0 sets free the other lanes of its warp, which spin at a lower address than it goes on.
SPINS = {
    "mbarrier": (
        "mbarrier.init.shared::cta.b64 [%r10], 1",
        "mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r10], 0",
        "mbarrier.arrive.shared::cta.b64 _, [%r10]",
    ),
    "atomic": (
        "st.shared.u32 [%r10], 0",
        "atom.shared.add.u32 %r3, [%r10], 0;\n  setp.ne.u32 %p2, %r3, 0",
        "atom.shared.exch.b32 %r4, [%r10], 1",
    ),
}


@pytest.mark.parametrize("kind", SPINS)
def test_lanes_that_spin_let_those_they_wait_for_go_on(kind):
    first, test, free = SPINS[kind]
    body = f"{START}  @%p1 {first};\n  bar.sync 0;\n  @%p1 bra free;\n"
    body += (
        f"spin:\n  {test};\n  @!%p2 bra spin;\n  bra end;\nfree:\n  {free};\nend:\n  bar.sync 0;"
    )
    for seed in SEEDS:
        report = run(kernel(body, 0, 64), [], 64, options=Options(seed=seed, limit=200_000))
        assert report, report


SUM = f"""{START}  @%p1 st.shared.u32 [%r10], 5;
  bar.sync 0;
  red.shared.add.u32 [%r10], 1;
  bar.sync 0;
  ld.shared.u32 %r11, [%r10];
  @%p1 st.global.u32 [%d0], %r11;
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics_race_with_what_comes_before_and_after_them(seed):
    total = torch.zeros(1, dtype=torch.int32)
    report = run(kernel(SUM, 1, 64), [total], 64, options=Options(seed=seed))
    assert report, report
    assert total == 69
    before, _, after = SUM.partition("  bar.sync 0;\n")
    for text in (before + after, SUM.replace("1;\n  bar.sync 0;\n", "1;\n")):
        assert text != SUM
        report = run(kernel(text, 1, 64), [total], 64, options=Options(seed=seed))
        assert "race" in str(report), report


@pytest.mark.parametrize("seed", SEEDS)
def test_warps_that_disagree_on_a_barrier_are_found(seed):
    body = "  setp.lt.u32 %p0, %r0, 32;\n  @%p0 bar.sync 1, 64;\n  @!%p0 bar.sync 1, 96;"
    report = run(kernel(body, 0), [], 64, options=Options(seed=seed))
    assert re.search("barrier 1 of (64|96) threads is one of (96|64)", str(report)), report


def test_fences_that_it_does_not_know_are_named():
    for text in ("fence.proxy.nonsense", "fence.wild.cta", "membar.wild", "griddepcontrol.wild"):
        with pytest.raises(EmulatorError, match=r"wild|nonsense"):
            Module(kernel(f"  {text};", 0)).parameters("test")


@pytest.mark.parametrize("name", [name for name in catalogue() if name.startswith("mbarrier")])
def test_words_change_places_in_each_phase(name):
    case = catalogue()[name]
    words, got = case.arguments()
    driver.emulated().run(case.ptx, [words, got], case.threads, case.blocks, case.shared)
    assert (got == words + 63 - np.arange(64, dtype=np.uint32)).all()
