"""The never-slower grid: accelerated against stock over batch and length, both models, no padding."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import cases, peers
from .compare import SIGMAS, standard_error

BATCHES, LENGTHS = (1, 4, 16), (16, 32, 64, 128, 256, 512)
PEERS = (peers.BASELINES["encoder"], peers.OURS)


class Cell(NamedTuple):
    """speed_up of an accelerated model; slower: below stock beyond the noise of its rounds."""

    model: str
    batch: int
    length: int
    speed_up: float
    slower: bool


def grid_cases(quick: bool) -> list[cases.Case]:
    """Every cell's case; quick leaves out the larger model and every second length."""
    models = encoders_of(quick)
    lengths = LENGTHS[::2] if quick else LENGTHS
    return [
        cases.encoder_case(model, batch, length, "dense", "forward", quick)
        for model in models
        for batch in BATCHES
        for length in lengths
    ]


def encoders_of(quick: bool) -> tuple[str, ...]:
    """The models of the grid."""
    return ("minilm",) if quick else ("minilm", "bert-base")


def cells(record: Mapping[str, Any]) -> list[Cell]:
    """What a record of grid cases says of each cell."""
    samples = {(r["case"], r["peer"]): r for r in record["rows"] if r.get("samples")}
    found = []
    for (case, peer), row in samples.items():
        stock = samples.get((case, PEERS[0]))
        if peer != peers.OURS or stock is None:
            continue
        theirs, mine = dict(stock["samples"]), dict(row["samples"])
        logs = [math.log(theirs[r] / mine[r]) for r in theirs.keys() & mine.keys()]
        if not logs:
            continue
        middle = statistics.median(logs)
        noise = max(math.log(1.03), SIGMAS * standard_error(logs))
        # Disturbed samples say nothing, and two rounds next to nothing.
        certain = len(logs) > 2 and not (row["disturbed"] or stock["disturbed"])
        slower = certain and middle < -noise
        model, size = row["shape"].split()[:2]
        batch, length = (int(n) for n in size.split("x"))
        found.append(Cell(model, batch, length, math.exp(middle), slower))
    return found


def rows(found: list[Cell], model: str) -> list[list[str]]:
    """A table: one row a batch size, one column a length; cells below stock are marked."""
    shown = {
        (c.batch, c.length): f"{c.speed_up:.2f}{' !' if c.slower else ''}"
        for c in found
        if c.model == model
    }
    lengths = sorted({length for _, length in shown})
    batches = sorted({batch for batch, _ in shown})
    return [[str(b), *(shown.get((b, length), "") for length in lengths)] for b in batches]
