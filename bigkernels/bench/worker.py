"""One peer in a process of its own: ``python -m bigkernels.bench.worker KIND NAME THREADS CLOCK``.

Reads one JSON message a line on stdin, answers each with one on stdout:

* ``{"do": "prepare", "case": ID, "results": FILE}``: sets the case up, runs it, writes its results
  as .npz, answers what is known before any clock runs;
* ``{"do": "results", "case": ID, "results": FILE}``: only writes the results;
* ``{"do": "sample"}``: times the case once more;
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

from . import cases, encoders, peers
from .built import Built

SAMPLE_SECONDS = 0.02


class Worker:
    """Holds a peer, and the case it has prepared."""

    def __init__(self, peer: peers.Peer, threads: int, clock: str) -> None:
        self.peer, self.threads, self.clock = peer, threads, clock
        self.models: dict[str, Built] = {}
        self.call: Callable[[], object] = lambda: None
        self.calls = 1

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What a message asks for."""
        if message["do"] == "prepare":
            return self.prepare(cases.find(message["case"]), message["results"])
        if message["do"] == "results":
            np.savez(message["results"], **self._encoder(cases.find(message["case"]))[2]())
            return {}
        if message["do"] == "sample":
            # The other processes have had the caches since: the first calls would pay for that.
            for _ in range(1 + self.calls // 4):
                self.call()
            start = time.process_time()
            seconds, quiet = timing.sample(self.call, self.calls, _nothing)
            if self.clock == "cpu":  # waiting for a CPU is not part of it
                return {"seconds": (time.process_time() - start) / self.calls, "quiet": True}
            return {"seconds": seconds, "quiet": quiet}
        self.call = lambda: None
        gc.collect()
        return {}

    def prepare(self, case: cases.Case, results: str) -> dict[str, Any]:
        """Sets a case up; the first call is part of the time to the first result."""
        start = time.perf_counter()
        setup = self._encoder if case.batch else self._room
        facts: dict[str, Any]
        call, forward, save, facts = setup(case)
        call()
        facts["first_result_seconds"] = time.perf_counter() - start
        np.savez(results, **save())
        facts |= _memory(call, forward)
        self.call, self.calls = call, timing.calls_per_sample(call, 1, SAMPLE_SECONDS, _nothing)
        return facts | {"calls": self.calls}

    def _room(self, case: cases.Case) -> Any:
        import torch

        from . import rooms

        torch.set_num_threads(self.threads)
        call = self.peer.builder()(*self.peer.arguments, case.problem)
        made = rooms.timed(call, case.problem.problem(), case.mode)

        def save() -> dict[str, Any]:
            return {
                name: t.detach().to(torch.promote_types(t.dtype, torch.float32)).numpy()
                for name, t in made.results().items()
            }

        facts = {"configuration": f"{self.threads} threads", "version": torch.__version__}
        return made.call, made.forward, save, facts

    def _encoder(self, case: cases.Case) -> Any:
        assert case.batch is not None
        model = case.batch[0]
        if model not in self.models:
            self.models.clear()
            self.models[model] = self.peer.builder()(model, self.threads, *self.peer.arguments)
        built = self.models[model]
        batch = encoders.batch(*case.batch)
        facts: dict[str, Any] = {"configuration": built.configuration, "version": built.version}
        facts |= {"tokens": batch.tokens, "fill": batch.tokens / batch.ids.size}
        facts |= _work(model, batch, case.mode, self.peer.precision)
        if case.mode == "training":
            if built.step is None or built.forward_step is None:
                raise RuntimeError("it does not train")
            return built.step(batch), built.forward_step(batch), dict, facts
        call = built.prepare(batch)
        if case.mode == "end_to_end":
            call = _end_to_end(built, case.batch, batch.texts)

        def save() -> dict[str, Any]:
            return {"hidden": built.numpy(built.prepare(batch)()), "mask": batch.mask}

        return call, None, save, facts


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


def _work(model: str, batch: encoders.Batch, mode: str, precision: str) -> dict[str, Any]:
    """flops of the real tokens (forward and backward in training), bytes of the weights."""
    shape = encoders.facts(model)
    flops = cases.encoder_flops(shape, batch.mask.sum(1).tolist())
    size = int(cases.encoder_bytes(shape) * {"bfloat16": 0.5, "int8": 0.25}.get(precision, 1.0))
    times = 3 if mode == "training" else 1
    return {"dtype": precision, "flops": times * flops, "bytes": times * size}


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
    worker = Worker(peers.find(kind, name), int(threads), clock)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # a peer that refuses a case must not end the run
            text = str(error).strip() or type(error).__name__
            answer = {"refused": text.splitlines()[0][:200]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
