"""What this project wants to reach on a CPU, and what a record says of it: each target beside the strongest peer
of the same precision in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import peers
from .record import FEWEST

# Of a call's time the mere reading of its weights takes so much, in the same rounds: it cannot be much faster.
SHARE = 0.85


class Target(NamedTuple):
    """ours is to be `least` times as fast as the fastest of `rivals` in a case. saturated: or SHARE of its
    time is that of reading its weights. most: ours is to have its first result within so many seconds."""

    name: str
    case: str
    ours: str
    rivals: tuple[str, ...]
    least: float
    saturated: bool = False
    most: float | None = None


class Outcome(NamedTuple):
    """What became of a target. rival: the fastest. ratio: median over shared rounds of its seconds through ours.
    by_state: the ratio in each core state of which both have FEWEST samples. share: of the time that reading the
    weights takes. seconds: of the first result. rounds: shared ones. disturbed: they were. met: whether all that has
    to hold does, in each core state."""

    name: str
    case: str
    ours: str
    rival: str
    least: float
    ratio: float
    by_state: dict[str, float]
    share: float | None
    seconds: float | None
    rounds: int
    disturbed: bool
    met: bool


def _of(precision: str) -> tuple[str, ...]:
    """Encoder peers of a precision, ours, those held to AVX2 and the mere reading left out."""
    found = [p for p in peers.PEERS if "encoder" in p.groups and not p.ours]
    rivals = [p for p in found if not (p.narrow or p.streams)]
    return tuple(p.name for p in rivals if p.precision == precision)


def targets() -> Iterator[Target]:
    """Every target, in the order of the table."""
    single, half, whole = "bigkernels", "bigkernels bf16", "bigkernels int8"
    full, ragged = "bert-base dense 8x128", "bert-base ragged 16x128"
    floats, halves = _of("float32"), _of("bfloat16")
    for name, case, ours, rivals, least, *rest in (
        ("BERT-base bfloat16, 8x128", full, half, halves, 1.6),
        ("BERT-base bfloat16, 16x128, 56 % real", ragged, half, halves, 2.8),
        ("MiniLM bfloat16, 8x128, first result within 2 s", "minilm dense 8x128", half, halves, 1.4, False, 2.0),
        ("BERT-base bfloat16, 1x16", "bert-base dense 1x16", half, halves, 2.0, True),
        ("BERT-base float32, 1x16", "bert-base dense 1x16", single, floats, 1.3, True),
        ("BERT-base bfloat16, 1x512", "bert-base dense 1x512", half, halves, 1.4),
        ("BERT-base bfloat16, 4x512", "bert-base dense 4x512", half, halves, 1.4),
        ('BERT-base float32 "highest", 8x128', full, single, floats, 1.15),
        ('BERT-base float32 "high", 8x128', full, "bigkernels high", floats, 2.0),
        ("BERT-base float32, 16x128, 56 % real", ragged, single, floats, 1.6),
        ("BERT-base int8, 8x128", full, whole, ("OpenVINO int8",), 1.3),
        ("BERT-base int8, 16x128, 56 % real", ragged, whole, ("OpenVINO int8",), 2.0),
        ("BERT-base float32 by AVX2, 8x128", full, "bigkernels AVX2", ("HF sdpa AVX2",), 1.0),
        ("the same, stock's products by AVX-512", full, "bigkernels AVX2", ("HF sdpa ATen AVX2",), 1.0),
        ("BERT-base float32 by AVX2, 16x128, 56 % real", ragged, "bigkernels AVX2", ("HF sdpa AVX2",), 1.6),
        ("the same, stock's products by AVX-512", ragged, "bigkernels AVX2", ("HF sdpa ATen AVX2",), 1.6),
    ):  # fmt: skip
        yield Target(name, f"encoder forward {case}", ours, rivals, least, *rest)
    for shape, least in (
        ("32x12x32x64", 3.0), ("8x12x128x64", 2.2), ("1x12x512x64", 1.6), ("1x12x2048x64", 1.3)
    ):  # fmt: skip
        case = f"attention forward {shape} bfloat16"
        yield Target(f"attention bfloat16, {shape}", case, single, ("torch",), least)
    for shape in ("1024x768", "8192x768"):
        case = f"add_layer_norm forward {shape} float32"
        yield Target(f"add and LayerNorm float32, {shape}", case, single, (peers.COPY,), 1 / 1.15)


def outcomes(record: Mapping[str, Any]) -> list[Outcome]:
    """Of the targets that the record says something of; a grid, which has stock peers alone, is for
    ``never_slower``."""
    if record["mode"] == "grid":
        return []
    timed = {(row["case"], row["peer"]): row for row in record["rows"] if row.get("median")}
    found = []
    for target in targets():
        rivals = [
            timed[target.case, name] for name in target.rivals if (target.case, name) in timed
        ]
        mine = timed.get((target.case, target.ours))
        if mine is not None and rivals:
            fastest = min(rivals, key=lambda row: float(row["median"]))
            read = timed.get((target.case, peers.READS.get(mine["dtype"], "")))
            found.append(_outcome(target, mine, fastest, read if target.saturated else None))
    return found


def _ratio(other: Any, mine: Any) -> tuple[float, int]:
    """Seconds of the other through mine, and the rounds this is the median of."""
    theirs, ours = dict(other["samples"]), dict(mine["samples"])
    shared = [theirs[turn] / ours[turn] for turn in theirs.keys() & ours.keys()]
    return statistics.median(shared) if shared else other["median"] / mine["median"], len(shared)


def _outcome(target: Target, mine: Any, rival: Any, read: Any) -> Outcome:
    ratio, rounds = _ratio(rival, mine)
    by_state = {
        state: rival["by_state"][state]["median"] / facts["median"]
        for state, facts in mine["by_state"].items()
        if min(facts["samples"], rival["by_state"].get(state, {}).get("samples", 0)) >= FEWEST
    }
    share = None if read is None else _ratio(read, mine)[0]
    seconds = mine["first_result_seconds"] if target.most else None
    fast = min(ratio, *(by_state.get(state, ratio) for state in ("fast", "slow"))) >= target.least
    met = fast or (share is not None and share >= SHARE)
    if target.most is not None:
        met = met and seconds is not None and seconds <= target.most
    return Outcome(
        target.name,
        target.case,
        target.ours,
        rival["peer"],
        target.least,
        ratio,
        by_state,
        share,
        seconds,
        rounds,
        mine["disturbed"] or rival["disturbed"],
        met,
    )


def never_slower(cells: Sequence[Mapping[str, Any]]) -> Outcome:
    """Of a grid's cells, one at least: the smallest ratio, and whether none is surely below 1."""
    worst = min(cells, key=lambda cell: float(cell["speed_up"]))
    place = f"{worst['model']} {worst['batch']}x{worst['length']} {worst['precision']}"
    name, below = f"never slower, {len(cells)} cells", any(cell["slower"] for cell in cells)
    ratio = worst["speed_up"]
    return Outcome(
        name, place, peers.OURS, "stock", 1.0, ratio, {}, None, None, 0, False, not below
    )


HEADS = ("target", "wanted", "measured", "fastest rival", "fast cores", "slow cores", "rounds", "")


def cells(outcome: Outcome) -> list[str]:
    """The outcome as a row under HEADS."""
    measured = [f"{outcome.ratio:.2f}x"]
    wanted = [f"{outcome.least:.2f}x"]
    if outcome.share is not None:
        wanted.append(f"or {SHARE:.0%} reading weights")
        measured.append(f"{outcome.share:.0%}")
    if outcome.seconds is not None:
        measured.append(f"{outcome.seconds:.1f} s")
    states = [outcome.by_state.get(state) for state in ("fast", "slow")]
    return [
        outcome.name,
        " ".join(wanted),
        ", ".join(measured),
        outcome.rival,
        *("" if ratio is None else f"{ratio:.2f}x" for ratio in states),
        f"{outcome.rounds}{', disturbed' if outcome.disturbed else ''}",
        "met" if outcome.met else "missed",
    ]


def markdown(found: Sequence[Outcome]) -> str:
    """The outcomes as a table for a README."""
    lines = [HEADS, ["---"] * len(HEADS), *(cells(outcome) for outcome in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
