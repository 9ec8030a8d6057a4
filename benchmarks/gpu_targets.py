"""What this project wants to reach on an H100 SXM, and what a record of gpu_peers.py says of it; of what was not
measured, what predicted.md says of our own kernels: "predicted", never measured.

    python benchmarks/gpu_targets.py [RECORD.json]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gpu_more_cases

PREDICTED = Path(__file__).with_name("predicted.md")
SHAPES = {
    "short": "128x16x128x64",
    "medium": "32x16x512x64",
    "long": "8x16x2048x64",
    "wide": "8x16x2048x128",
    "varlen": gpu_more_cases.shape_of_varlen(*gpu_more_cases.VARLEN),
    "bias": "x".join(map(str, gpu_more_cases.BIAS)),
    "rows": "32768x1024",
    "ffn": "24576x1024x4096",
}
FORWARD, BACKWARD, BOTH = ("forward",), ("backward",), ("forward", "backward")
OURS, COPY = "bigkernels triton", "ceilings copy 1024 MiB"
# Units of what a caller spends, and where a result has it: at most so much is wanted.
HOST = {"us": "host_us", "us at worst": "host_worst_us"}


class Target(NamedTuple):
    """ours: calls as a record names them ("group name shape"), whose times add up; rivals: such sums, of which the
    fastest counts. unit: "x" (the fastest rival's time through ours), "TFLOP/s", "of copy" (bytes a second through
    those of a copy) or one of HOST (at most so many of the host, in the mean or of the slowest call)."""

    name: str
    wanted: float
    unit: str
    ours: tuple[str, ...]
    rivals: tuple[tuple[str, ...], ...] = ()
    calls: tuple[str, ...] = ()  # of predicted.md


class Outcome(NamedTuple):
    """measured: None where nothing was. predicted: of our kernels alone, TFLOP/s or the share of the roofline."""

    target: Target
    measured: float | None
    rival: str
    predicted: float | None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        least = self.target.unit not in HOST
        return self.measured >= self.target.wanted if least else self.measured <= self.target.wanted


def _calls(group: str, name: str, shape: str, modes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{group} {name} {mode} {shape}" for mode in modes)


def _target(
    name: str,
    wanted: float,
    unit: str,
    group: str,
    size: str,
    modes: tuple[str, ...],
    rivals: tuple[str, ...] = (),
    ours: str = OURS,
) -> Target:
    shape = SHAPES[size]
    others = tuple(_calls(group, rival, shape, modes) for rival in rivals)
    calls = tuple(f"{group} {shape} {mode}" for mode in modes)
    return Target(name, wanted, unit, _calls(group, ours, shape, modes), others, calls)


def targets() -> Iterator[Target]:
    """Every target, in the order of the table."""
    backends = ("default", "flash", "efficient", "cudnn", "math")
    padded = ("default padded",)
    for name, wanted, unit, *case in (
        ("lengths U(32, 512), forward and backward", 3.0, "x", "varlen", "varlen", BOTH, padded, f"{OURS} packed"),
        ("attention S = 128, forward", 1.3, "x", "attention", "short", FORWARD, backends),
        ("attention S = 128, backward", 1.5, "x", "attention", "short", BACKWARD, backends),
        ("attention S = 512, forward", 1.1, "x", "attention", "medium", FORWARD, backends),
        ("attention S = 512, backward", 1.5, "x", "attention", "medium", BACKWARD, backends),
        ("attention S = 2048, head_dim 64, forward", 400.0, "TFLOP/s", "attention", "long", FORWARD),
        ("attention S = 2048, head_dim 128, forward", 470.0, "TFLOP/s", "attention", "wide", FORWARD),
        ("attention S = 2048, head_dim 64, backward", 300.0, "TFLOP/s", "attention", "long", BACKWARD),
        ("attention S = 2048, head_dim 128, backward", 300.0, "TFLOP/s", "attention", "wide", BACKWARD),
        ("bias with gradient, forward and backward", 1.5, "x", "bias", "bias", BOTH, ("efficient", "flex")),
        ("add and LayerNorm, forward", 0.87, "of copy", "add_layer_norm", "rows", FORWARD),
        ("add and LayerNorm, backward", 0.8, "of copy", "add_layer_norm", "rows", BACKWARD),
        ("add and LayerNorm, backward", 1.5, "x", "add_layer_norm", "rows", BACKWARD, ("compile",)),
    ):  # fmt: skip
        yield _target(name, wanted, unit, *case)
    ffn = _target("feed-forward, forward and backward", 0.85, "x", "feed_forward", "ffn", BOTH)
    yield ffn._replace(rivals=((f"products six of cublas {SHAPES['ffn']}",),))
    length = gpu_more_cases.shape_of_new_lengths(gpu_more_cases.NEW_LENGTHS)
    new = tuple(f"new_length {OURS} {form} {length}" for form in gpu_more_cases.NEW_FORMS)
    yield Target("first call on a new length, warm", 1000.0, "us at worst", new)
    for name in gpu_more_cases.HOST:
        yield Target(f"host time, {name}", 10.0, "us", (f"host {OURS} {name}",))


def named() -> set[str]:
    """Every call that a target asks for: what is timed first."""
    return {COPY}.union(*(set().union(t.ours, *t.rivals) for t in targets()))


def timed(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A record's bfloat16 results and its copy, by name; of what was not timed nothing."""
    rows = [row for row in record["results"] if row["median_us"] is not None]
    return {
        f"{row['group']} {row['name']} {row['shape']}": row
        for row in rows
        if row["dtype"] == "bfloat16" or row["name"] == "copy"
    }


def _sum(found: Mapping[str, Mapping[str, Any]], calls: tuple[str, ...]) -> float | None:
    """Microseconds, if all of them were timed."""
    if not all(call in found for call in calls):
        return None
    return math.fsum(found[call]["median_us"] for call in calls)


def _measured(target: Target, found: Mapping[str, Mapping[str, Any]]) -> tuple[float | None, str]:
    """The figure, and the fastest rival's name."""
    ours = _sum(found, target.ours)
    if ours is None:
        return None, ""
    first = found[target.ours[0]]
    if target.unit in HOST:
        return max(found[call][HOST[target.unit]] for call in target.ours), ""
    if target.unit == "TFLOP/s":
        return first["tflops"], ""
    if target.unit == "of copy":
        copy = found.get(COPY)
        return (first["gbytes"] / copy["gbytes"], "copy") if copy else (None, "")
    times = {" + ".join(calls): _sum(found, calls) for calls in target.rivals}
    known = {name: time for name, time in times.items() if time is not None}
    if not known:
        return None, ""
    fastest = min(known, key=lambda name: known[name])
    return known[fastest] / ours, fastest


def predictions() -> dict[str, tuple[float, float | None, float]]:
    """Microseconds, TFLOP/s and share of the roofline by call, from predicted.md."""
    found = {}
    for line in PREDICTED.read_text().splitlines():
        words = [word.strip() for word in line.strip("|").split("|")]
        if len(words) == 4 and words[1].replace(".", "").isdigit():
            rate = float(words[2]) if words[2] else None
            found[words[0]] = float(words[1]), rate, float(words[3])
    return found


def _predicted(
    target: Target, known: Mapping[str, tuple[float, float | None, float]]
) -> float | None:
    calls = [known[call] for call in target.calls if call in known]
    if not calls or len(calls) != len(target.calls):
        return None
    if target.unit == "TFLOP/s":
        return calls[0][1]
    return sum(time * share for time, _, share in calls) / sum(time for time, _, _ in calls)


def outcomes(record: Mapping[str, Any] | None) -> list[Outcome]:
    """Of every target; record: None where nothing was measured, as of tiny shapes nothing is."""
    found = timed(record) if record is not None and not record["smoke"] else {}
    known = predictions()
    return [
        Outcome(target, *_measured(target, found), _predicted(target, known))
        for target in targets()
    ]


def _figure(value: float, unit: str) -> str:
    if unit == "TFLOP/s" or unit in HOST:
        return f"{value:.0f} {unit}" if unit == "TFLOP/s" else f"{value:.1f} {unit}"
    return f"{value:.2f}x" if unit == "x" else f"{value:.0%} of copy"


HEADS = ("target", "wanted", "measured", "fastest rival", "", "predicted")


def cells(outcome: Outcome) -> list[str]:
    """The outcome as a row under HEADS."""
    target, measured, rival, predicted = outcome
    sign = "<=" if target.unit in HOST else ">="
    said = "-"
    if predicted is not None:
        rate = target.unit == "TFLOP/s"
        said = f"{predicted:.0f} TFLOP/s" if rate else f"{predicted:.0%} of the roofline"
    return [
        target.name,
        f"{sign} {_figure(target.wanted, target.unit)}",
        "-" if measured is None else _figure(measured, target.unit),
        rival,
        {True: "met", False: "missed", None: "not measured"}[outcome.met],
        said,
    ]


def table(found: list[Outcome]) -> str:
    lines = [list(HEADS), ["---"] * len(HEADS), *map(cells, found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else None
    print(table(outcomes(record)))


if __name__ == "__main__":
    main()
