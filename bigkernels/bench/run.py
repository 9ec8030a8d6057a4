"""One run of the harness: chosen cases, every peer that is here, one record."""

from __future__ import annotations

import datetime
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bigkernels
from bigkernels.cli import machine
from bigkernels.training.data import DataError

from . import cases, ceilings, encoders, peers, record
from .cases import Case
from .fleet import Fleet


class Effort(NamedTuple):
    """How much of each case is timed: rounds, seconds after which a disturbed case ends, seconds a
    peer may take to set a case up; clock: "wall", or "cpu" for the CPU time of the process."""

    name: str
    rounds: int
    seconds: float
    setup: float
    clock: str = "wall"


QUICK = Effort("quick", 5, 8.0, 180.0)
FULL = Effort("full", 11, 45.0, 400.0)


def run(
    chosen: Sequence[Case],
    effort: Effort,
    threads: int,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Times the cases and returns the record. only: names of peers, () = all of the effort's."""
    start = time.monotonic()
    roofs = ceilings.measure(threads, 0.1 if effort.name == QUICK.name else 0.4)
    wanted = [p for p in peers.PEERS if effort.name != QUICK.name or not p.full]
    wanted = [p for p in wanted if not only or p.name in only]
    listed = [_listed(peer) for peer in wanted]
    rows: list[dict[str, Any]] = []
    for group in cases.GROUPS:
        mine = [case for case in chosen if case.group == group]
        running = [p for p in wanted if group in p.groups and p.build and not p.missing()]
        if mine and running:
            rows += _group(mine, running, effort, threads, roofs, say)
    return {
        "schema": record.SCHEMA,
        "mode": effort.name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "bigkernels": bigkernels.__version__,
        "commit": _commit(),
        "threads": threads,
        "clock": effort.clock,
        "machine": {"versions": machine.versions(), "processor": machine.processor()},
        "ceilings": roofs,
        "peers": listed,
        "rows": rows,
    }


def _group(
    mine: Sequence[Case],
    running: Sequence[peers.Peer],
    effort: Effort,
    threads: int,
    roofs: Any,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:  # fetched before the peers ask for it all at once
        for model in {case.batch[0] for case in mine if case.batch}:
            encoders.batch(model, 1, 16, "dense")
    except (DataError, ImportError) as error:
        say(f"encoders are left out: {str(error).splitlines()[0]}")
        return found
    truths = [peers.TRUTH] if any(case.batch and case.mode != "training" for case in mine) else []
    with (
        Fleet(running, threads, effort.setup, effort.clock) as fleet,
        Fleet(truths, threads, 600.0) as truth,
    ):
        for case in mine:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                answers = fleet.run(
                    case,
                    effort.rounds,
                    effort.seconds,
                    folder,
                    lambda: ceilings.core_state(threads),
                )
                errors = _errors(case, folder, running, truth)
                rows = record.rows(case, answers, errors, roofs)
            found += rows
            say(f"{case.id}: {_summary(rows)}")
    return found


def _errors(
    case: Case, folder: Path, running: Sequence[peers.Peer], truth: Fleet
) -> dict[str, dict[str, float]]:
    names = [peer.name for peer in running]
    if case.problem is not None:
        return record.room_errors(case, folder, names)
    if case.mode == "training":
        return {}
    file = str(folder / "truth.npz")
    answer = truth.processes[0].ask(do="results", case=case.id, results=file)
    if "refused" in answer:
        return {}
    return record.encoder_errors(Path(file), folder, names)


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    ours = [r for r in rows if r["peer"].startswith(peers.OURS) and r.get("speed_up")]
    refused = sum(1 for row in rows if row["refused"])
    shown = ", ".join(f"{row['peer']} {row['speed_up']:.2f}x" for row in ours)
    return f"{shown or 'no row of ours'}{f'; {refused} refused' if refused else ''}"


def _listed(peer: peers.Peer) -> dict[str, Any]:
    missing = peer.missing()
    return {
        "name": peer.name,
        "groups": list(peer.groups),
        "available": not missing,
        "missing": missing,
        "install": peer.install if missing else "",
        "precision": peer.precision,
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
