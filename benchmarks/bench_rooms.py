"""The harness's room cases under pytest-benchmark, in one process: for working on one kernel.

    pytest benchmarks/bench_rooms.py --benchmark-enable -k "attention and backward" --benchmark-save=before

Same cases and peers as `bigkernels bench`, which is what results are reported from.
"""

import pytest

from bigkernels.bench import cases, peers, rooms

CASES = [case for case in cases.catalogue().values() if case.problem is not None and case.quick]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id.replace(" ", "-"))
@pytest.mark.parametrize("name", ["torch", "bigkernels"])
def test_time(benchmark, case, name):
    peer = peers.find("room", name)
    call = peer.builder()(*peer.arguments, case.problem)
    timed = rooms.timed(call, case.problem.problem(), case.mode)
    benchmark.group = case.id
    benchmark.extra_info.update(bytes=case.bytes, flops=case.flops)
    benchmark.pedantic(timed.call, rounds=20, iterations=5, warmup_rounds=3)
