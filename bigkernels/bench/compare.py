"""Two records against each other: what became slower beyond the noise that both measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import peers

# A change smaller than this is nobody's business, however quiet the machine was.
SMALLEST = math.log(1.05)
# One row alone, and the middle of a kernel's rows: there are many rows, and their tails are long.
SIGMAS_OF_ROW, SIGMAS_OF_KERNEL = 5.0, 3.5
# The error of a median, in units of that of a mean.
OF_MEDIAN = 1.2533
# What two runs differ in at least; in the logarithm.
LEAST_NOISE = 0.015
Record = Mapping[str, Any]


class Change(NamedTuple):
    """One row of both records, or all rows of a kernel. before, after: speed-up over the baseline of
    the same run; change: logarithm of after / before; of a kernel the medians of its rows. limit: what
    it may be, from the noise. disturbed: one of the four measurements has disturbed samples only, and
    nothing can be said. regressed: whether it is worse than the limit, ours, and not disturbed."""

    case: str
    peer: str
    before: float
    after: float
    change: float
    limit: float
    disturbed: bool
    regressed: bool

    @staticmethod
    def judged(
        case: str, peer: str, logs: tuple[float, float], change: float, limit: float, unsure: bool
    ) -> Change:
        """With what follows from its numbers."""
        worse = peer.startswith(peers.OURS) and not unsure and change < -limit
        before, after = math.exp(logs[0]), math.exp(logs[1])
        return Change(case, peer, before, after, change, limit, unsure, worse)


def compare(before: Record, after: Record) -> list[Change]:
    """Every row that both records have with a speed-up over the baseline, then every kernel that has
    several: operation, mode and dtype, or an encoder in one precision.

    A process keeps the memory it was given, which makes the same code up to a tenth faster or slower
    from run to run, however tight its samples are. Nobody touched the peers: their changes say how
    much. A row's noise is that, or the standard error of the median of its rounds' ratios.
    """
    pairs = _pairs(before, after)
    unsure = _disturbed(before) | _disturbed(after)
    spread = {kind: _between_runs(pairs, unsure, kind) for kind in (False, True)}
    found = []
    kernels: dict[tuple[str, str], list[Change]] = {}
    for (group, case, peer), ((a, noise_a), (b, noise_b)) in pairs.items():
        baseline = (case, peers.BASELINES[group])
        noise = max(spread[group == "encoder"], math.hypot(noise_a, noise_b))
        limit = max(SMALLEST, SIGMAS_OF_ROW * noise)
        disturbed = bool({(case, peer), baseline} & unsure)
        found.append(Change.judged(case, peer, (a, b), b - a, limit, disturbed))
        if not disturbed:
            kernels.setdefault((_kernel(case), peer), []).append(found[-1])
    found.sort(key=lambda change: change.change)
    return found + [_together(*key, rows) for key, rows in kernels.items() if len(rows) > 1]


def _kernel(case: str) -> str:
    """Operation, mode and dtype of a room's case; "encoder forward minilm" of an encoder's."""
    words = case.split()
    return " ".join(words[:3] if words[0] == "encoder" else [*words[:2], words[-1]])


def _together(kernel: str, peer: str, rows: Sequence[Change]) -> Change:
    middle = statistics.median(row.change for row in rows)
    noise = statistics.median(row.limit for row in rows) / SIGMAS_OF_ROW
    limit = max(SMALLEST, SIGMAS_OF_KERNEL * OF_MEDIAN * noise / math.sqrt(len(rows)))
    logs = (
        statistics.median(math.log(row.before) for row in rows),
        statistics.median(math.log(row.after) for row in rows),
    )
    return Change.judged(f"{kernel}, {len(rows)} rows", peer, logs, middle, limit, False)


def _between_runs(pairs: Pairs, unsure: set[tuple[str, str]], encoders: bool) -> float:
    """The deviation of what changed for the peers of one kind of cases."""
    theirs = [
        b - a
        for (group, case, peer), ((a, _), (b, _)) in pairs.items()
        if (group == "encoder") == encoders
        and not peer.startswith(peers.OURS)
        and (case, peer) not in unsure
    ]
    return max(LEAST_NOISE, _deviation(theirs) if len(theirs) >= 5 else 0.0)


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
    return OF_MEDIAN * _deviation(values) / math.sqrt(len(values))


def _deviation(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)
