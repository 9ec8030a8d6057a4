"""Fills the table from which the Triton drawers take their tiles: times every candidate, keeps the fastest.

    python benchmarks/tune.py [--rehearse] [--only OP] [--seconds N] [--write FILE]

tune_choices.py has what each room can choose from. Where a GPU is, each candidate's kernel is timed alone, behind a
flushed cache; the fastest is kept if every configuration of it that ships compiles without spills (tests/static), and
if it is faster than the table's by more than the noise. Its row says "measured on" and the GPU. `make static-gate
ARGS=--update` then makes the gate's table, before both are committed. --rehearse goes the same way on the emulated
device, with small shapes: the least predicted time wins (predict.py has the formula), and rows say "predicted". What
matters most comes first; all of it takes about ten minutes of a GPU. Nothing is tuned while a model runs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict
from tune_choices import Choice, Made, Tile, choices

from bigkernels import backends
from bigkernels.ops import triton_launch, triton_table

# What is not faster by more than this is not faster.
NOISE = 0.02
SAMPLES = 20
# Tiles that are tried, those most like the table's, and seconds that an op has at least, if there are any left.
MOST, LEAST_SECONDS = 16, 15.0
Seconds = Callable[[Choice, str, str], float]


def forget() -> None:
    """What drawers remember of the table's tiles and of launches with them."""
    modules = [m for name, m in sys.modules.items() if name.startswith("bigkernels.ops")]
    for value in [value for module in modules for value in vars(module).values()]:
        if isinstance(value, backends.Remembered):
            value.clear()
        elif value is not triton_table.table and hasattr(value, "cache_clear"):
            value.cache_clear()


@contextlib.contextmanager
def trying(key: triton_table.Key, tile: Tile) -> Iterator[None]:
    """Inside, the table has this tile for this key."""
    forget()
    with mock.patch.dict(triton_table.table(), {key: tile}):  # type: ignore[arg-type]
        yield
    forget()


def _run(made: Made) -> None:
    """The call, with its backward where that counts."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(made.deterministic, warn_only=True)
    try:
        if made.wrt:
            out: Any = made.call()
            torch.autograd.grad(out, made.wrt, torch.ones_like(out))
        else:
            with torch.no_grad():
                made.call()
    finally:
        torch.use_deterministic_algorithms(before)


def on_gpu(choice: Choice, dtype: str, bucket: str) -> float:
    """Seconds of the kernel's launches in a call, repeated with nothing else."""
    from gpu_peers import FLUSH_BYTES, sample_cuda

    noted: list[Callable[[], object]] = []
    launch = triton_launch.launch

    def noting(kernel: Any, *given: Any, **constants: Any) -> Any:
        if kernel.__name__ == choice.kernel:
            noted.append(functools.partial(launch, kernel, *given, **constants))
        return launch(kernel, *given, **constants)

    with mock.patch.object(triton_launch, "launch", noting):
        _run(choice.call(dtype, bucket, "cuda", False))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    return statistics.median(sample_cuda(lambda: [again() for again in noted], SAMPLES, flush))


def predicted(choice: Choice, dtype: str, bucket: str) -> float:
    """Seconds that the kernel is predicted to take; endless where it spills."""
    made = choice.call(dtype, bucket, "cpu", True)
    with predict.as_the_whole() as launches:
        _run(made)
    mine = [x for x in launches if x.report.kernel == choice.kernel]
    assert mine, f"the call of {choice.op} does not launch {choice.kernel}"
    found = [predict.predicted(x, made.parts, made.sizes) for x in mine]
    return float("inf") if any(x.spilled for x in found) else sum(x.seconds for x in found)


def faults(room: str, key: triton_table.Key, tile: Tile) -> list[str]:
    """What the static gate says of every configuration of a room in which this tile would be launched."""
    from tests.static import row, triton_kernels

    architecture, known = key[1], row.load()
    module = importlib.import_module(f"tests.static.triton_{room}")

    def shipped() -> dict[str, Any]:
        return {c.name: c for c in module.configurations() if architecture in c.architectures}

    before = shipped()
    with trying(key, tile):
        now = shipped()

    def check(name: str) -> list[str]:
        configuration, old = now[name], before.get(name)
        same = old and (old.constants, old.options) == (
            configuration.constants,
            configuration.options,
        )
        made = known.get((name, architecture))
        if same or (made and made.holds(configuration.digest(architecture))):
            return []
        return [
            f"{name}: {fault}" for fault in triton_kernels.checked(configuration, architecture)[1]
        ]

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [fault for found in pool.map(check, now) for fault in found]


def _distance(own: Tile, tile: Tile) -> float:
    """How often a number of one is doubled or halved to get the other."""
    return sum(abs(math.log2(value / own[name])) for name, value in tile.items())


def _timed(
    choice: Choice, key: triton_table.Key, seconds: Seconds, until: float
) -> list[tuple[float, Tile]]:
    """Those candidates that ran before the time was over, the fastest first; the table's own always."""
    from triton.runtime.errors import OutOfResources

    _, architecture, dtype, bucket = key
    own = dict(triton_table.table()[key])
    others = [t for t in choice.candidates(architecture, dtype, bucket) if t != own]
    others = sorted(others, key=functools.partial(_distance, own))[:MOST]
    found: list[tuple[float, Tile]] = []
    for tile in (own, *others):
        if tile != own and time.monotonic() > until:
            print(f"{' '.join(key)}: out of time, {len(found)} of {len(others) + 1} tried")
            break
        with trying(key, tile), contextlib.suppress(OutOfResources):
            found.append((seconds(choice, dtype, bucket), tile))
    return sorted(found, key=lambda pair: pair[0])


def _row(choice: Choice, key: triton_table.Key, found: list[tuple[float, Tile]]) -> Tile:
    """The fastest tile without faults, and the table's own if nothing is faster than that."""
    own = dict(triton_table.table()[key])
    standing = next((seconds for seconds, tile in found if tile == own), float("inf"))
    for seconds, tile in found:
        if seconds >= (1 - NOISE) * standing:
            break
        wrong = faults(choice.room, key, tile)
        if not wrong:
            return tile
        print(f"{' '.join(key)} {tile}: left out: {wrong[0]}")
    return own


def tune(
    architecture: str, seconds: Seconds, source: str, wanted: list[Choice], limit: float
) -> Iterator[dict[str, Any]]:
    """The table's rows of one architecture. limit: seconds of all. An op has an equal share of what is left of them, or
    LEAST_SECONDS: what matters least is left out where they are few."""
    end = time.monotonic() + limit
    for place, choice in enumerate(wanted):
        now = time.monotonic()
        share = max(LEAST_SECONDS, (end - now) / (len(wanted) - place))
        until = min(end, now + share)
        for dtype in choice.dtypes:
            for bucket in choice.buckets:
                if time.monotonic() > until:
                    break
                key = (choice.op, architecture, dtype, bucket)
                if key not in triton_table.table():  # another kernel serves it
                    continue
                found = _timed(choice, key, seconds, until)
                for value, tile in found:
                    print(f"{' '.join(key)} {tile}: {1e6 * value:.2f} us", flush=True)
                names = dict(zip(("op", "architecture", "dtype", "bucket"), key, strict=True))
                yield {**names, "tile": _row(choice, key, found), "source": source}


def merged(table: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table with these rows instead of its own for the same key, or behind those of their op."""
    names = ("op", "architecture", "dtype", "bucket")
    new = {tuple(row[n] for n in names): row for row in rows}
    kept = [new.pop(tuple(row[n] for n in names), row) for row in table]
    ops = list(dict.fromkeys(row["op"] for row in table))
    return sorted([*kept, *new.values()], key=lambda row: ops.index(row["op"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="on the emulated device")
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all ops together")
    parser.add_argument("--write", type=Path, help="the new table; without it nothing is written")
    arguments = parser.parse_args()
    wanted = [choice for choice in choices() if arguments.only in choice.op]
    if arguments.rehearse:
        rows = list(tune("sm_90", predicted, "predicted", wanted, arguments.seconds))
    elif torch.cuda.is_available():
        source = f"measured on {torch.cuda.get_device_name()}"
        architecture = triton_launch.architecture(torch.device("cuda"))
        rows = list(tune(architecture, on_gpu, source, wanted, arguments.seconds))
    else:
        sys.exit("no CUDA device: --rehearse goes the same way on the emulated one")
    if arguments.write:
        table = merged(json.loads(triton_table.TABLE.read_text()), rows)
        lines = ",\n".join(f" {json.dumps(row)}" for row in table)
        arguments.write.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
