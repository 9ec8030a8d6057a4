"""Two records against each other: what became slower beyond the noise that both measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import peers

# A change smaller than this is nobody's business, however quiet the machine was.
SMALLEST = math.log(1.05)
SIGMAS = 3.0
Record = Mapping[str, Any]


class Change(NamedTuple):
    """One row of both records. before, after: speed-up over the baseline of the same run. change:
    logarithm of after / before; limit: what it may be, from the noise. disturbed: one of the four
    measurements has disturbed samples only, and nothing can be said. regressed: whether it is worse
    than the limit, ours, and not disturbed."""

    case: str
    peer: str
    before: float
    after: float
    change: float
    limit: float
    disturbed: bool
    regressed: bool


def compare(before: Record, after: Record) -> list[Change]:
    """Every row that both records have, with a speed-up over the baseline.

    Each row's noise is the standard error of the median of its rounds' ratios, in both runs. What the
    two runs differ in for reasons of the machine is seen in the peers, which did not change: their
    spread is everybody's noise. The limit is the larger of the two, times SIGMAS.
    """
    pairs = _pairs(before, after)
    spread = {group: _between_runs(pairs, group) for group in {key[0] for key in pairs}}
    found = []
    unsure = _disturbed(before) | _disturbed(after)
    for (group, case, peer), ((a, noise_a), (b, noise_b)) in pairs.items():
        own = math.hypot(noise_a, noise_b)
        limit = max(SMALLEST, SIGMAS * own, SIGMAS * spread[group])
        disturbed = bool({(case, peer), (case, peers.BASELINES[group])} & unsure)
        regressed = peer.startswith(peers.OURS) and not disturbed and b - a < -limit
        change = Change(case, peer, math.exp(a), math.exp(b), b - a, limit, disturbed, regressed)
        found.append(change)
    return sorted(found, key=lambda c: c.change)


Pairs = dict[tuple[str, str, str], tuple[tuple[float, float], tuple[float, float]]]


def _disturbed(record: Record) -> set[tuple[str, str]]:
    return {(row["case"], row["peer"]) for row in record["rows"] if row.get("disturbed")}


def _pairs(before: Record, after: Record) -> Pairs:
    old, new = _ratios(before), _ratios(after)
    return {key: (old[key], new[key]) for key in old if key in new}


def _ratios(record: Record) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Of each row the median of log(baseline / own seconds) over shared rounds, and its error."""
    timed = [row for row in record["rows"] if row.get("samples")]
    base = {
        r["case"]: dict(r["samples"]) for r in timed if r["peer"] == peers.BASELINES[r["group"]]
    }
    found = {}
    for row in timed:
        theirs, mine = base.get(row["case"]), dict(row["samples"])
        if theirs is None or row["peer"] == peers.BASELINES[row["group"]]:
            continue
        logs = [math.log(theirs[r] / mine[r]) for r in theirs.keys() & mine.keys()]
        if len(logs) >= 2:
            key = (row["group"], row["case"], row["peer"])
            found[key] = (statistics.median(logs), standard_error(logs))
    return found


def standard_error(values: Sequence[float]) -> float:
    """Of the median, from the median absolute deviation."""
    return 1.2533 * _deviation(values) / math.sqrt(len(values))


def _deviation(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def _between_runs(pairs: Pairs, group: str) -> float:
    """The deviation of the peers' changes, of all groups where this one has too few peers."""
    theirs = {
        key: b - a for key, ((a, _), (b, _)) in pairs.items() if not key[2].startswith(peers.OURS)
    }
    own = [change for key, change in theirs.items() if key[0] == group]
    chosen = own if len(own) >= 5 else list(theirs.values())
    return _deviation(chosen) if len(chosen) >= 5 else 0.0
