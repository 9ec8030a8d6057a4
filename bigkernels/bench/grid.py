"""The never-slower grid: accelerated against stock over batch and length, no padding, and the table
of what `accelerate` leaves to stock."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import cases, encoders, peers
from .compare import standard_error

BATCHES, LENGTHS = (1, 4, 16), (16, 32, 64, 128, 256, 512, 1024)
# Ours and stock of the same precision; the first is what `accelerate` would have left in place.
AGAINST = {
    "float32": (peers.OURS, (peers.BASELINES["encoder"], "nn.TransformerEncoder")),
    "bfloat16": ("bigkernels bf16", ("HF bf16",)),
    "autocast": ("bigkernels autocast", ("HF autocast",)),
}
PEERS = tuple(name for ours, stock in AGAINST.values() for name in (ours, *stock))


class Cell(NamedTuple):
    """speed_up of an accelerated model over the faster stock one; slower: below it beyond the noise of
    the rounds; keep: below the one that it was made from."""

    precision: str
    model: str
    batch: int
    length: int
    speed_up: float
    slower: bool
    keep: bool


def grid_cases(quick: bool) -> list[cases.Case]:
    """Every cell's case; quick leaves out the larger model and every second length. The real MiniLM
    has no position beyond 511."""
    lengths = LENGTHS[::2] if quick else LENGTHS
    return [
        cases.encoder_case(model, batch, length, "dense", "forward", quick)
        for model in encoders_of(quick)
        for batch in BATCHES
        for length in lengths
        if (model, length) != ("minilm", 1024)
    ]


def encoders_of(quick: bool) -> tuple[str, ...]:
    """The models of the grid."""
    return ("minilm",) if quick else ("minilm", "bert-base")


def cells(record: Mapping[str, Any]) -> list[Cell]:
    """What a record of grid cases says of each cell."""
    rows = {(r["case"], r["peer"]): r for r in record["rows"] if r.get("samples")}
    found = []
    for precision, (ours, stock) in AGAINST.items():
        for (case, peer), row in rows.items():
            judged = [_against(row, rows[case, name]) for name in stock if (case, name) in rows]
            if peer == ours and judged:
                model, size = row["shape"].split()[:2]
                batch, length = (int(n) for n in size.split("x"))
                speed_up, slower = min(judged)
                cell = Cell(precision, model, batch, length, speed_up, slower, judged[0][1])
                found.append(cell)
    return found


def _against(row: Mapping[str, Any], stock: Mapping[str, Any]) -> tuple[float, bool]:
    """Speed-up over one stock row, and whether it is surely below 1."""
    theirs, mine = dict(stock["samples"]), dict(row["samples"])
    logs = [math.log(theirs[r] / mine[r]) for r in theirs.keys() & mine.keys()]
    if not logs:
        return stock["median"] / row["median"], False
    middle = statistics.median(logs)
    noise = max(math.log(1.03), 3 * standard_error(logs))
    # Disturbed samples say nothing, and two rounds next to nothing.
    certain = len(logs) > 2 and not (row["disturbed"] or stock["disturbed"])
    return math.exp(middle), certain and middle < -noise


def slower_table(record: Mapping[str, Any]) -> str:
    """The text of bigkernels/integrations/slower.json: what `accelerate` leaves to stock."""
    kept = [
        [cell.precision, encoders.facts(cell.model)["hidden"], cell.batch, cell.length]
        for cell in cells(record)
        if cell.keep
    ]
    lines = ",\n".join(f"  {json.dumps(cell)}" for cell in kept)
    return f'{{"cells": [\n{lines}\n]}}\n' if kept else '{"cells": []}\n'


def rows(found: list[Cell], model: str, precision: str) -> list[list[str]]:
    """A table: one row a batch size, one column a length; cells below stock are marked."""
    shown = {
        (c.batch, c.length): f"{c.speed_up:.2f}{' !' if c.slower else ''}"
        for c in found
        if (c.model, c.precision) == (model, precision)
    }
    lengths = sorted({length for _, length in shown})
    batches = sorted({batch for batch, _ in shown})
    return [[str(b), *(shown.get((b, length), "") for length in lengths)] for b in batches]
