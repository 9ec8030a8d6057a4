"""The clock: interleaved, robust, and honest about disturbed samples."""

import multiprocessing
import os
import time

import pytest

from bigkernels.testing import Timing, interleave, timing


def busy(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_the_slower_one_is_measured_as_slower(monkeypatch):
    # This thread's own time, so that other programs on the machine do not matter.
    monkeypatch.setattr(timing.time, "perf_counter", time.thread_time)
    times = interleave(
        {"one": lambda: busy(0.002), "three": lambda: busy(0.006)}, rounds=7, sample_seconds=0.01
    )
    assert 2 < times["one"].times_faster_than(times["three"]) < 4.5, times
    assert times["one"].lower <= times["one"].median <= times["one"].upper
    assert 0.0015 < times["one"].median < 0.02


def test_callables_take_turns():
    order = []
    interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=3,
        warmup=0,
        sample_seconds=0,
    )
    rounds = "".join(order[2:])
    for start in range(0, 6, 2):
        assert set(rounds[start : start + 2]) == {"a", "b"}
    assert "abba" in rounds or "baab" in rounds


def test_samples_that_waited_for_a_cpu_are_dropped(monkeypatch):
    clock = iter(range(1000))
    # Every second reading says that a thread has waited for a whole second more.
    monkeypatch.setattr(timing, "_waited", lambda: float(next(clock) // 2 % 2 and next(clock)))
    found = interleave({"a": lambda: busy(1e-4)}, rounds=3, sample_seconds=1e-4)["a"]
    assert found.dropped > 0


def test_waiting_for_a_cpu_is_seen():
    if timing._waited() is None:
        pytest.skip("this kernel has no schedstat")
    rivals = [multiprocessing.Process(target=busy, args=(1.5,)) for _ in range(2)]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        for rival in rivals:
            rival.start()
        time.sleep(0.3)
        before = timing._waited()
        busy(0.5)
        assert timing._waited() - before > 0.1
    finally:
        os.sched_setaffinity(0, cores)
        for rival in rivals:
            rival.join()


def test_nothing_to_time_is_an_error():
    with pytest.raises(ValueError, match="functions"):
        interleave({})
    with pytest.raises(ValueError, match="rounds"):
        interleave({"a": lambda: None}, rounds=0)


def test_ratio_without_shared_rounds_uses_the_medians():
    slow = Timing(4.0, 4.0, 4.0, 0, 1, ((0, 4.0),))
    fast = Timing(2.0, 2.0, 2.0, 0, 1, ((1, 2.0),))
    assert fast.times_faster_than(slow) == 2
