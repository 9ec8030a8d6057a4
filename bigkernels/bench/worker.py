"""One peer in a process of its own: ``python -m bigkernels.bench.worker KIND NAME THREADS CLOCK``.

Reads one JSON message a line on stdin, answers each with one on stdout:

* ``{"do": "prepare", "case": ID, "folder": PATH}``: sets the case up (an encoder's batch lies in the
  folder), runs it, writes its results there as PEER.npz, answers what is known before any clock runs;
* ``{"do": "results", "case": ID, "folder": PATH}``: only writes the results;
* ``{"do": "sample"}``: times the case once more;
* ``{"do": "ceilings", "seconds": S}``: measures what the machine can do, S seconds a figure;
* ``{"do": "state"}``: the state the cores are in;
* ``{"do": "release"}``: forgets the case.

An exception becomes ``{"refused": reason}``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigkernels.testing import timing

from . import cases, ceilings, encoders, peers
from .built import Built

SAMPLE_SECONDS = 0.02
BATCH = "batch.npz"
# Where its inputs happen to lie can make a kernel a tenth slower: samples take several places in turn.
PLACES = 3


class Worker:
    """Holds a peer, and the case it has prepared; others: the same calls on inputs elsewhere in memory,
    made by elsewhere, None where there is one place only."""

    def __init__(self, peer: peers.Peer, threads: int, clock: str) -> None:
        self.peer, self.threads, self.clock = peer, threads, clock
        self.models: dict[str, Built] = {}
        self.loading = 0.0
        self.call: Callable[[], object] = lambda: None
        self.others: list[Callable[[], object]] = []
        self.elsewhere: Callable[[], Callable[[], object]] | None = None
        self.calls = 1

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What a message asks for."""
        if message["do"] == "prepare":
            return self.prepare(cases.find(message["case"]), Path(message["folder"]))
        if message["do"] == "results":
            folder = Path(message["folder"])
            call, _, save, _ = self._encoder(cases.find(message["case"]), folder)
            self._save(save(call()), folder)
            return {}
        if message["do"] == "state":
            return {"state": ceilings.core_state(self.threads)}
        if message["do"] == "ceilings":
            return ceilings.measure(self.threads, message["seconds"])
        if message["do"] == "sample":
            self.others.append(self.call)
            self.call = self.others.pop(0)
            self._warm()
            start = time.process_time()
            seconds, quiet = timing.sample(self.call, self.calls, _nothing)
            if self.clock == "cpu":  # waiting for a CPU is not part of it
                return {"seconds": (time.process_time() - start) / self.calls, "quiet": True}
            return {"seconds": seconds, "quiet": quiet}
        self.call = lambda: None
        self.others.clear()
        gc.collect()
        return {}

    def _warm(self) -> None:
        """The other processes have had the caches since the last sample: calls that are short beside
        the milliseconds of filling them again do not pay for that."""
        end = time.perf_counter() + SAMPLE_SECONDS / 4
        while self.calls > 1 and time.perf_counter() < end:
            self.call()

    def _save(self, results: dict[str, Any], folder: Path) -> None:
        np.savez(folder / f"{self.peer.name}.npz", **results)

    def prepare(self, case: cases.Case, folder: Path) -> dict[str, Any]:
        """Sets a case up; loading the model, for whichever case that was done, and the first call are
        the time to the first result."""
        start, loaded = time.perf_counter(), self.loading
        setup = self._encoder if case.batch else self._room
        self.others, self.elsewhere = [], None
        facts: dict[str, Any]
        call, forward, save, facts = setup(case, folder)
        result = call()
        seconds = time.perf_counter() - start
        # A model that was loaded just now is in `seconds` already.
        facts["first_result_seconds"] = seconds + (self.loading if loaded == self.loading else 0)
        self._save(save(result), folder)
        if case.batch:
            facts |= _work(case.batch[0], folder, case.mode, self.peer.precision)
        facts |= _memory(call, forward)
        if self.elsewhere is not None:
            self.others = [self.elsewhere() for _ in range(PLACES - 1)]
        self.call, self.calls = call, timing.calls_per_sample(call, 0, SAMPLE_SECONDS, _nothing)
        return facts | {"calls": self.calls}

    def _room(self, case: cases.Case, _: Path) -> Any:
        import torch

        from . import rooms

        torch.set_num_threads(self.threads)
        call = self.peer.builder()(*self.peer.arguments, case.problem)
        made = rooms.timed(call, case.problem.problem(), case.mode)
        self.elsewhere = lambda: rooms.timed(call, case.problem.problem(), case.mode).call

        def save(_: object) -> dict[str, Any]:
            return {
                name: t.detach().to(torch.promote_types(t.dtype, torch.float32)).numpy()
                for name, t in made.results().items()
            }

        facts = {"configuration": f"{self.threads} threads", "version": torch.__version__}
        return made.call, made.forward, save, facts

    def _encoder(self, case: cases.Case, folder: Path) -> Any:
        assert case.batch is not None
        model = case.batch[0]
        if model not in self.models:
            self.models.clear()
            start = time.perf_counter()
            self.models[model] = self.peer.builder()(model, self.threads, *self.peer.arguments)
            self.loading = time.perf_counter() - start
        built = self.models[model]
        batch = encoders.Batch.load(folder / BATCH)
        facts: dict[str, Any] = {"configuration": built.configuration, "version": built.version}
        if case.mode == "training":
            if built.step is None or built.forward_step is None:
                raise RuntimeError("it does not train")
            return built.step(batch), built.forward_step(batch), lambda _: {}, facts
        call = built.prepare(batch)
        whole = _end_to_end(built, case.batch, batch.texts) if case.mode == "end_to_end" else call

        def save(result: Any) -> dict[str, Any]:
            hidden = result if whole is call else call()
            return {"hidden": built.numpy(hidden), "mask": batch.mask}

        return whole, None, save, facts


def _end_to_end(built: Built, key: tuple[str, int, int, str], texts: tuple[str, ...]) -> Any:
    """Sentences to the means of their tokens' vectors."""
    tokens = encoders.tokenizer(key[0])

    def call() -> Any:
        made = tokens(list(texts), padding=True, truncation=True, max_length=key[2])
        ids, mask = (np.array(made[n], dtype=np.int64) for n in ("input_ids", "attention_mask"))
        hidden = built.numpy(built.prepare(encoders.Batch(ids, mask, texts))())
        weights = mask[..., None].astype(np.float32)
        return (hidden * weights).sum(1) / weights.sum(1)

    return call


def _work(model: str, folder: Path, mode: str, precision: str) -> dict[str, Any]:
    """What the batch in the folder asks for: real tokens and their share, their flops (forward and
    backward in training), bytes of the weights. Reading the model's configuration takes a second of
    imports, which are nobody's time to a first result."""
    batch, shape = encoders.Batch.load(folder / BATCH), encoders.facts(model)
    flops = cases.encoder_flops(shape, batch.mask.sum(1).tolist())
    size = int(cases.encoder_bytes(shape) * {"bfloat16": 0.5, "int8": 0.25}.get(precision, 1.0))
    times = 3 if mode == "training" else 1
    facts = {"tokens": batch.tokens, "fill": batch.tokens / batch.ids.size, "dtype": precision}
    return facts | {"flops": times * flops, "bytes": times * size}


def _memory(call: Callable[[], object], forward: Callable[[], object] | None) -> dict[str, Any]:
    """peak_bytes: what one call adds to the process at most; activation_bytes: what the forward
    keeps for backward; process_bytes: the whole process at its largest. None where Linux does not
    say."""
    try:
        start = _settle()
        call()
        peak = _status("VmHWM")
        held = None
        if forward is not None:
            before = _settle()
            kept = forward()
            held = _status("VmRSS") - before
            del kept
    except OSError:
        return {"peak_bytes": None, "activation_bytes": None, "process_bytes": None}
    return {"peak_bytes": peak - start, "activation_bytes": held, "process_bytes": peak}


def _settle() -> int:
    """Gives freed memory back to the system, restarts its high-water mark; bytes in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def _nothing() -> None:
    pass


def main() -> None:
    """Serves until stdin ends."""
    # What libraries print must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    kind, name, threads, clock = sys.argv[1:5]
    peer = peers.find(kind, name)
    worker = Worker(peer, int(threads), clock)
    peer.load()  # while the other processes do the same: imports are nobody's time
    gc.freeze()  # or each collection would look at a quarter of a second of modules
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # a peer that refuses a case must not end the run
            text = str(error).strip() or type(error).__name__
            answer = {"refused": text.splitlines()[0][:200]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
