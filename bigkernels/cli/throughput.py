"""Tokens a second of stock and accelerated on real sentences, for the demo."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bigkernels.testing.timing import Timing, interleave

from . import encoders
from .encoders import Encoder

CODE = "import bigkernels; bigkernels.accelerate(model)"


class Effort(NamedTuple):
    """How much of each order is timed. A disturbed machine may end it after ``seconds``."""

    batches: int
    rounds: int
    seconds: float


QUICK = Effort(6, 3, 40.0)


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Forward passes over the same batches: seconds are sums of each batch's median."""

    order: str
    batches: int
    tokens: int  # real ones: padding does not count
    stock_seconds: float
    seconds: float
    disturbed: int  # samples thrown away because another program had the processor

    @property
    def speed_up(self) -> float:
        """How many times faster than stock."""
        return self.stock_seconds / self.seconds

    def as_json(self) -> dict[str, Any]:
        """The fields and the speed-up as plain values."""
        return dataclasses.asdict(self) | {"speed_up": self.speed_up}


def throughputs(
    stock: Encoder, ours: Encoder, texts: Sequence[str], size: int, effort: Effort
) -> list[Throughput]:
    """Times both models on evenly spread batches of ``size`` texts, in file order and by length."""
    orders = {"file order": list(texts), "length-sorted": sorted(texts, key=len)}
    return [
        _throughput(name, stock, ours, _spread(ordered, size, effort.batches), effort)
        for name, ordered in orders.items()
    ]


def _spread(texts: list[str], size: int, batches: int) -> list[list[str]]:
    # The order is mixed, so that a measurement cut short has still seen short and long batches.
    whole = [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)] or [texts]
    step = max(1, len(whole) // batches)
    chosen = whole[step // 2 :: step][:batches]
    return chosen[::3] + chosen[1::3] + chosen[2::3]


def _throughput(
    order: str, stock: Encoder, ours: Encoder, batches: list[list[str]], effort: Effort
) -> Throughput:
    pairs: list[tuple[Timing, Timing]] = []
    tokens, start = 0, time.perf_counter()
    for texts in batches:
        if pairs and time.perf_counter() - start > effort.seconds:
            break
        batch = encoders.encode(ours, texts)
        tokens += int(batch["attention_mask"].sum())
        forwards = {
            "stock": functools.partial(stock.model, **batch),
            "ours": functools.partial(ours.model, **batch),
        }
        with torch.no_grad():
            timings = interleave(forwards, rounds=effort.rounds, warmup=1)
        pairs.append((timings["stock"], timings["ours"]))
    stock_seconds, seconds = (sum(t.median for t in column) for column in zip(*pairs, strict=True))
    disturbed = sum(t.dropped for pair in pairs for t in pair)
    return Throughput(order, len(pairs), tokens, stock_seconds, seconds, disturbed)


def rate_rows(measured: list[Throughput]) -> list[list[str]]:
    """Rows of tokens/s: order, stock, accelerated, speed-up."""
    rates = [(m.tokens / m.stock_seconds, m.tokens / m.seconds) for m in measured]
    return [
        [m.order, f"{theirs:.0f}", f"{ours:.0f}", f"{m.speed_up:.2f}x"]
        for m, (theirs, ours) in zip(measured, rates, strict=True)
    ]
