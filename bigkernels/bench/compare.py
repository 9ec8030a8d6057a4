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
# What two runs differ in at least; in the logarithm.
LEAST_NOISE = 0.015
Record = Mapping[str, Any]


class Change(NamedTuple):
    """One row of both records. before, after: speed-up over the baseline of the same run. change:
    logarithm of after / before, less what changed for the case's peers; limit: what it may be, from
    the noise. disturbed: one of the two measurements has disturbed samples only, and nothing can be
    said. regressed: whether it is worse than the limit, ours, and not disturbed."""

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

    Nobody touched the peers: the median of what changed for a case's peers is the machine's, and is
    taken off. A row's noise is the standard error of the median of its rounds' ratios, in both runs;
    in units of it, the peers' own changes say how much more two runs differ than rounds do.
    """
    pairs = _pairs(before, after)
    unsure = _disturbed(before) | _disturbed(after)
    moved = {key: b - a - _common(pairs, key) for key, ((a, _), (b, _)) in pairs.items()}
    noise = {
        key: math.hypot(noise_a, noise_b, LEAST_NOISE)
        for key, ((_, noise_a), (_, noise_b)) in pairs.items()
    }
    theirs = [
        moved[key] / noise[key]
        for key in pairs
        if not key[2].startswith(peers.OURS) and key[1:] not in unsure
    ]
    sigmas = SIGMAS * max(1.0, _spread(theirs))
    found = []
    for key, ((a, _), (b, _)) in pairs.items():
        limit = max(SMALLEST, sigmas * noise[key])
        disturbed = key[1:] in unsure
        regressed = key[2].startswith(peers.OURS) and not disturbed and moved[key] < -limit
        found.append(
            Change(*key[1:], math.exp(a), math.exp(b), moved[key], limit, disturbed, regressed)
        )
    return sorted(found, key=lambda c: c.change)


Key = tuple[str, str, str]
Pairs = dict[Key, tuple[tuple[float, float], tuple[float, float]]]


def _common(pairs: Pairs, key: Key) -> float:
    """What changed for the other peers of a row's case; the baseline, which is one, has changed by 0."""
    others = [
        b - a
        for other, ((a, _), (b, _)) in pairs.items()
        if other[1] == key[1] and other != key and not other[2].startswith(peers.OURS)
    ]
    return statistics.median([0.0, *others])


def _spread(values: Sequence[float]) -> float:
    """The deviation that the middle and the tails of the values call for; 0 of a few."""
    if len(values) < 5:
        return 0.0
    tail = statistics.quantiles((abs(value) for value in values), n=20)[-1]
    return max(_deviation(values), tail / 1.96)


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
