"""Honest clocks for a shared machine: interleaved rounds, medians and quartiles, disturbed samples
dropped and counted."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

# A sample whose threads waited for a CPU for more than this share of it says nothing about the
# code.
WAIT_SHARE = 0.02

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles of the samples kept; dropped counts the disturbed
    ones.

    samples: (round, seconds) of those kept. calls: calls a sample consisted of.
    """

    median: float
    lower: float
    upper: float
    dropped: int
    calls: int
    samples: tuple[tuple[int, float], ...]

    def times_faster_than(self, other: Timing) -> float:
        """Median over the rounds in which both were undisturbed of other / self; of the medians if
        no round is shared."""
        mine, theirs = dict(self.samples), dict(other.samples)
        shared = [theirs[r] / mine[r] for r in mine.keys() & theirs.keys()]
        return statistics.median(shared) if shared else other.median / self.median


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 11,
    warmup: int = 2,
    sample_seconds: float = 0.02,
    synchronize: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Times callables in turn, so that a slow moment of the machine meets them all.

    functions: what to time, by name. rounds: samples of each. warmup: untimed calls of each first.
    sample_seconds: a sample repeats its callable for about this long. synchronize: waits for the
    device after each sample; None means torch.cuda.synchronize once CUDA is initialised. Samples in
    which our threads waited for a CPU (from Linux' schedstat; elsewhere from a process clock that
    fell behind the wall) are dropped and drawn again, at most twice as often in all; if nothing
    undisturbed was left the disturbed samples are kept, and counted all the same. Raises ValueError
    if there is nothing to time or rounds < 1.
    """
    if not functions or rounds < 1:
        raise ValueError("functions, rounds: at least one of each is needed")
    wait = synchronize or _synchronize
    calls = {
        name: calls_per_sample(function, warmup, sample_seconds, wait)
        for name, function in functions.items()
    }
    kept: dict[str, list[tuple[int, float]]] = {name: [] for name in functions}
    disturbed: dict[str, list[tuple[int, float]]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(3 * rounds):
        missing = [name for name in names if len(kept[name]) < rounds]
        if not missing:
            break
        for name in turned(names, turn):
            seconds, quiet = sample(functions[name], calls[name], wait)
            (kept if quiet else disturbed)[name].append((turn, seconds))
    return {
        name: timing_of(kept[name] or disturbed[name], len(disturbed[name]), calls[name])
        for name in names
    }


def turned(items: Sequence[T], turn: int) -> list[T]:
    """The order of a round: all of them run in every one, and another one begins each time."""
    shift = turn % len(items)
    return [*items[shift:], *items[:shift]]


def timing_of(samples: Sequence[tuple[int, float]], dropped: int, calls: int) -> Timing:
    """Median and quartiles of (round, seconds) samples; there must be one."""
    seconds = sorted(s for _, s in samples)
    lower, median, upper = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return Timing(median, lower, upper, dropped, calls, tuple(samples))


def sample(
    function: Callable[[], object], calls: int, wait: Callable[[], None] | None = None
) -> tuple[float, bool]:
    """Seconds a call, and whether our threads had their CPUs all the time."""
    wait = wait or _synchronize
    waited, used, start = _waited(), time.process_time(), time.perf_counter()
    for _ in range(calls):
        function()
    wait()
    wall = time.perf_counter() - start
    after = _waited()
    if waited is not None and after is not None:
        lost = after - waited
    else:
        lost = wall - (time.process_time() - used)
    return wall / calls, lost <= WAIT_SHARE * wall


def calls_per_sample(
    function: Callable[[], object],
    warmup: int,
    seconds: float,
    wait: Callable[[], None] | None = None,
) -> int:
    """How many calls take about `seconds`, at least one, by the fastest of three; after `warmup` untimed
    ones."""
    wait = wait or _synchronize
    for _ in range(warmup):
        function()
    wait()
    fastest = math.inf
    for _ in range(3):
        start = time.perf_counter()
        function()
        wait()
        fastest = min(fastest, time.perf_counter() - start)
        if fastest > seconds:  # one call fills a sample
            break
    return max(1, round(seconds / max(fastest, 1e-7)))


def _waited() -> float | None:
    """Seconds that threads of this process have been runnable without a CPU; None where the kernel
    does not say."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            total += int(Path("/proc/self/task", task, "schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return total * 1e-9


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
