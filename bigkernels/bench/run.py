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

from . import ceilings, encoders, peers, record, targets
from .cases import Case
from .fleet import SPINNING, Fleet, Process
from .worker import BATCH


class Effort(NamedTuple):
    """How much of each case is timed: rounds, seconds after which a disturbed case ends, seconds a
    peer may take to set a case up; clock: "wall", or "cpu" for the CPU time of the process."""

    name: str
    rounds: int
    seconds: float
    setup: float
    clock: str = "wall"


# Processes that a room's case is timed in, one after the other: a process keeps the memory it was
# given, which makes the same code up to a tenth faster or slower than in the next one.
PASSES = 2
Answered = tuple[list[dict[str, Any]], dict[str, dict[str, float]]]

QUICK = Effort("quick", 5, 4.0, 180.0)
FULL = Effort("full", 11, 30.0, 400.0)


def run(
    chosen: Sequence[Case],
    effort: Effort,
    threads: int,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Times the cases and returns the record. only: names of peers, () = all of the effort's."""
    start = time.monotonic()
    wanted = [p for p in peers.PEERS if effort.name != QUICK.name or not p.full]
    wanted = [p for p in wanted if not only or p.name in only]
    rows: list[dict[str, Any]] = []
    with Fleet([peers.TRUTH], threads, 600.0) as helper:
        bench = Bench(effort, threads, helper.processes[0], say)
        for kind in ("room", "encoder"):
            mine = [case for case in chosen if (case.group == "encoder") == (kind == "encoder")]
            groups = {case.group for case in mine}
            running = [p for p in wanted if groups & {*p.groups} and p.build and not p.missing()]
            if mine and running and not bench.interrupted:
                rows += bench.time(mine, running)
    for row in rows:
        row |= record.roof(row, bench.roofs)
    found = {
        "schema": record.SCHEMA,
        "mode": effort.name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "bigkernels": bigkernels.__version__,
        "commit": _commit(),
        "threads": threads,
        "clock": effort.clock,
        "machine": {"versions": machine.versions(), "processor": machine.processor()},
        "ceilings": bench.roofs,
        "peers": [_listed(peer) for peer in wanted],
        "rows": rows,
        "interrupted": bench.interrupted,
    }
    return found | {"targets": [outcome._asdict() for outcome in targets.outcomes(found)]}


class Bench:
    """One run's effort, its ceilings so far, and the helper: a process that measures them, the cores'
    state and the truth."""

    def __init__(
        self, effort: Effort, threads: int, helper: Process, say: Callable[[str], None]
    ) -> None:
        self.effort, self.threads, self.helper, self.say = effort, threads, helper, say
        self.roofs: ceilings.Roofs = {}
        self.interrupted = False  # what was timed before is kept

    def time(self, mine: Sequence[Case], running: Sequence[peers.Peer]) -> list[dict[str, Any]]:
        """Rows of the cases: rooms or encoders."""
        try:  # fetched before the peers ask for it all at once
            for model in {case.batch[0] for case in mine if case.batch}:
                encoders.batch(model, 1, 16, "dense")
        except (DataError, ImportError) as error:
            self.say(f"encoders are left out: {str(error).splitlines()[0]}")
            return []
        passes = [self._pass(mine, running, 0)]
        if mine[0].problem is not None:
            again = [peer for peer in running if not peer.full]
            passes += [self._pass(mine, again, number) for number in range(1, PASSES)]
        found: list[dict[str, Any]] = []
        for case in mine:
            if case.id not in passes[0]:
                continue
            answers, errors = passes[0][case.id]
            for other in passes[1:]:
                if case.id in other:
                    record.add_samples(answers, other[case.id][0])
            rows = record.rows(case, answers, errors)
            self.say(f"{case.id}: {_summary(rows)}")
            found += rows
        return found

    def _pass(
        self, mine: Sequence[Case], running: Sequence[peers.Peer], number: int
    ) -> dict[str, Answered]:
        """What all cases gave, in processes that live as long as this takes."""
        found: dict[str, Answered] = {}
        with Fleet(running, self.threads, self.effort.setup, self.effort.clock) as fleet:
            try:
                for case in () if self.interrupted else mine:
                    if not found:  # the processes have started by then
                        self._measure_ceilings()
                    names = [peer.name for peer in running if _takes(peer, case)]
                    found[case.id] = self._case(case, fleet, names, number)
                    self.say(f"  timed {case.id}")
                self._measure_ceilings()
            except KeyboardInterrupt:
                if not found and number == 0:
                    raise  # nothing to keep
                self.interrupted = True
        return found

    def _case(self, case: Case, fleet: Fleet, names: Sequence[str], number: int) -> Answered:
        rounds = self.effort.rounds
        if case.problem is not None:
            rounds = -(-rounds // PASSES)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if case.batch:
                encoders.batch(*case.batch).save(folder / BATCH)
            seconds = case.patience * self.effort.seconds
            answers = fleet.run(case, names, rounds, seconds, folder, self._state)
            return answers, {} if number else _errors(case, folder, names, self.helper)

    def _state(self) -> str:
        state: str = self.helper.ask(do="state").get("state", "")
        time.sleep(SPINNING)
        return state

    def _measure_ceilings(self) -> None:
        seconds = 0.05 if self.effort.name == QUICK.name else 0.4
        found = self.helper.ask(do="ceilings", seconds=seconds)
        if "refused" in found:
            raise RuntimeError(f"the ceilings could not be measured: {found['refused']}")
        self.roofs = ceilings.highest(self.roofs, found)


OTHERS = tuple(name for name in encoders.NAMES if name not in encoders.BERTS)


def _takes(peer: peers.Peer, case: Case) -> bool:
    special = (peer.full, case.compiled), (peer.narrow, case.narrow), (peer.streams, case.streams)
    if any(limited and not fits for limited, fits in special):
        return False
    if case.heavy and peer.name in peers.NEVER_FASTEST:
        return False
    other = case.batch is not None and case.batch[0] in OTHERS and peer.berts
    return case.group in peer.groups and not other


def _errors(
    case: Case, folder: Path, names: Sequence[str], truth: Process
) -> dict[str, dict[str, float]]:
    if case.problem is not None:
        return record.room_errors(case, folder, names)
    if case.mode == "training":
        return {}
    if "refused" in truth.ask(do="results", case=case.id, folder=str(folder)):
        return {}
    return record.encoder_errors(folder / f"{peers.TRUTH.name}.npz", folder, names)


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
