"""Batches that stock runs faster, by measurement: there an accelerated model keeps stock.

``slower.json`` beside this file is what ``bigkernels bench --grid`` wrote; what it was made from lies in
``benchmarks/results/grid.json``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_name("slower.json")

_stock: contextvars.ContextVar[bool] = contextvars.ContextVar("stock", default=False)


class Cell(NamedTuple):
    """A batch without padding on the CPU, without gradients; precision as in the names of ``_precision``."""

    precision: str
    hidden: int
    batch: int
    length: int


@functools.cache
def table() -> frozenset[Cell]:
    """The cells below stock."""
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    return frozenset(Cell(*cell) for cell in found["cells"])


def keeps_stock(dtype: torch.dtype, width: int, batch: int, length: int) -> str | None:
    """Why a batch of this size is left to stock, or None. The table is for its neighbourhood: a batch belongs to a
    cell if each of its sizes is within a factor of 1.5 of the cell's."""
    cells = table()
    if not cells or torch.is_grad_enabled():
        return None
    precision = _precision(dtype)
    for cell in cells:
        near = ((cell.hidden, width), (cell.batch, batch), (cell.length, length))
        if cell.precision == precision and all(_near(a, b) for a, b in near):
            return f"stock is faster for batches of about {cell.batch}x{cell.length}"
    return None


def _near(a: int, b: int) -> bool:
    return abs(math.log(a / b)) <= math.log(1.5)


def _precision(dtype: torch.dtype) -> str:
    if torch.is_autocast_enabled("cpu"):
        return "autocast"
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def as_stock() -> Iterator[None]:
    """Twins within it run their stock forwards."""
    token = _stock.set(True)
    try:
        yield
    finally:
        _stock.reset(token)


def runs_stock() -> bool:
    """Whether twins are asked to run their stock forwards."""
    return not torch.compiler.is_compiling() and _stock.get()
