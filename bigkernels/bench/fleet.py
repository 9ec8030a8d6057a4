"""The processes of the peers, and rounds over them: one sample of each in turn."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bigkernels.testing.timing import turned

from . import cases
from .peers import Peer

# Threads out of work spin for some milliseconds, then sleep: as by default as long as a model runs,
# but the next peer is not held up by the last one's spinning (16 ms in GNU's OpenMP, 200 in LLVM's).
SPIN = {"GOMP_SPINCOUNT": "60000", "KMP_BLOCKTIME": "3"}
SPINNING = 4e-3


class Process:
    """One peer's process; a dead or silent one refuses everything with the reason."""

    def __init__(self, peer: Peer, threads: int, seconds: float, clock: str = "wall") -> None:
        self.peer, self.seconds, self.reason = peer, seconds, ""
        kind = "encoder" if "encoder" in peer.groups else "room"
        command = [sys.executable, "-m", "bigkernels.bench.worker", kind, peer.name]
        command += [str(threads), clock]
        inherited = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        environment = {
            **inherited,
            **dict(peer.environment),
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            **SPIN,
            "TOKENIZERS_PARALLELISM": "false",
            # Freed memory stays mapped. Otherwise glibc decides by a process' history whether a
            # buffer of megabytes costs page faults in every call: a factor of two, at random.
            "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        }
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            bufsize=0,
            start_new_session=True,  # an interrupt is the caller's: it closes its processes in order
        )

    def ask(self, **message: Any) -> dict[str, Any]:
        """The answer to one message; {"refused": why} if there is none."""
        if self.reason:
            return {"refused": self.reason}
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            self.child.stdin.write((json.dumps(message) + "\n").encode())
            text, end = b"", time.monotonic() + self.seconds
            while not text.endswith(b"\n"):
                ready, _, _ = select.select(
                    [self.child.stdout], [], [], max(0, end - time.monotonic())
                )
                if not ready:
                    return self._lost(f"no answer within {self.seconds:.0f} s")
                piece = self.child.stdout.read(1 << 20)
                if not piece:
                    return self._lost("its process ended")
                text += piece
        except (BrokenPipeError, ValueError):
            return self._lost("its process ended")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _lost(self, reason: str) -> dict[str, Any]:
        self.child.kill()
        self.child.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        self.reason = f"{reason}: {lines[-1][:160]}" if lines else reason
        return {"refused": self.reason}

    def close(self) -> None:
        """Ends the process."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        try:
            self.child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        if self.child.stdout is not None:
            self.child.stdout.close()
        self.errors.close()


class Fleet:
    """Processes of several peers, as a context; all start at once."""

    def __init__(
        self, peers: Sequence[Peer], threads: int, seconds: float, clock: str = "wall"
    ) -> None:
        self.processes = [Process(peer, threads, seconds, clock) for peer in peers]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.close()

    def run(
        self,
        case: cases.Case,
        names: Sequence[str],
        rounds: int,
        seconds: float,
        folder: Path,
        state: Callable[[], str],
    ) -> list[dict[str, Any]]:
        """Prepares a case in the processes of the named peers, then takes samples in rounds until each
        has `rounds` undisturbed ones, or three times as many were drawn, or `seconds` have passed.

        state: the core's state, asked before and after each sample. Returns what each peer answered
        with its samples: [round, seconds, state, undisturbed]; results lie in folder as NAME.npz.
        """
        answers = []
        asked = [process for process in self.processes if process.peer.name in names]
        for process in asked:
            answer = process.ask(do="prepare", case=case.id, folder=str(folder))
            answers.append({"peer": process.peer.name, "samples": [], **answer})
        start = time.monotonic()
        for turn in range(3 * rounds):
            short = [i for i, a in enumerate(answers) if "refused" not in a and _kept(a) < rounds]
            if not short or (turn >= 3 and time.monotonic() - start > seconds):
                break
            for i in turned(range(len(answers)), turn):
                _sample(asked[i], answers[i], turn, state)
        for process in asked:
            process.ask(do="release")
        return answers


def _sample(process: Process, answer: dict[str, Any], turn: int, state: Callable[[], str]) -> None:
    if "refused" in answer:
        return
    before = state()
    got = process.ask(do="sample")
    after = state()
    if "refused" in got:
        answer["refused"] = got["refused"]
        return
    seen = before if before == after else "mixed"
    answer["samples"].append([turn, got["seconds"], seen, got["quiet"]])


def _kept(answer: dict[str, Any]) -> int:
    return sum(1 for sample in answer["samples"] if sample[3])
