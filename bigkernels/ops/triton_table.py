"""From what Triton drawers take their tiles: tiles.json, a table by op, architecture, dtype and bucket of sizes, which
benchmarks/tune.py writes where a GPU is. A row says where it is from: "compiled" (by hand, among what compiles without
spills), "predicted", or "measured on" a GPU. Nothing is tuned while a model runs.

A tile is a function of its key alone: it may change the order of sums, and so their last bits, from one GPU, dtype or
width to another, but never with the number of rows, lengths or neighbours.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

TABLE = pathlib.Path(__file__).with_name("tiles.json")
ARCHITECTURES = ("sm_80", "sm_90", "gfx942")
DTYPES = ("16 bit", "32 bit")
ANY = "any"
Key = tuple[str, str, str, str]  # op, architecture, one of DTYPES, bucket
Tile = Mapping[str, int]


def dtype_of(dtype: torch.dtype) -> str:
    """The table's word: elements of at most two bytes, or larger ones."""
    return DTYPES[0] if dtype.itemsize <= 2 else DTYPES[1]


def expanded(rows: list[dict[str, Any]]) -> dict[Key, Tile]:
    """By key. Rows for "any" architecture or dtype are for those that no row names."""

    def anys(row: dict[str, Any]) -> int:
        return [row["architecture"], row["dtype"]].count(ANY)

    found: dict[Key, Tile] = {}
    for row in sorted(rows, key=anys, reverse=True):
        architectures = ARCHITECTURES if row["architecture"] == ANY else (row["architecture"],)
        dtypes = DTYPES if row["dtype"] == ANY else (row["dtype"],)
        for architecture, dtype in itertools.product(architectures, dtypes):
            found[row["op"], architecture, dtype, row["bucket"]] = row["tile"]
    return found


@functools.cache
def table() -> dict[Key, Tile]:
    return expanded(json.loads(TABLE.read_text()))


def tile(op: str, architecture: str, dtype: torch.dtype, bucket: str = ANY) -> Tile:
    """What the table has for a launch; bucket: the room's word for its size. Drawers remember what they make of it."""
    return table()[op, architecture, dtype_of(dtype), bucket]


def padded(n: int) -> int:
    """The power of two that holds n."""
    return 1 << (n - 1).bit_length()


# The narrowest bucket of rows: narrower ones share its tile's elements.
NARROWEST_ROW = 256


class RowTile(NamedTuple):
    """Rows and columns of a program, its warps, and the registers a thread may have, where that is said."""

    block_m: int
    block_n: int
    num_warps: int
    registers: int | None

    def options(self) -> dict[str, int]:
        """Triton's."""
        said = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.num_warps, **said}


@functools.cache
def row_tile(op: str, architecture: str, dtype: torch.dtype, n: int) -> RowTile:
    """For whole rows of n columns, however many there are."""
    block_n = max(16, padded(n))
    chosen = tile(op, architecture, dtype, str(max(NARROWEST_ROW, block_n)))
    block_m = max(1, chosen["elements"] // block_n)
    return RowTile(block_m, block_n, chosen["num_warps"], chosen.get("registers"))
