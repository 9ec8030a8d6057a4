"""How the feed-forward network's Triton kernels are launched: tiles.json, a table by op, architecture, dtype and
size, which benchmarks/tune.py writes where a GPU is. Each row says where it is from: "by hand", "predicted", or
"measured" and on what. By hand: the least registers that hold the sums, two buffers or more of shared memory and no
spills (`make static-gate` has the figures). Small planes take small tiles, of which there are enough for every
multiprocessor.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import NamedTuple

import torch

# Tiles of the large kind that a plane must have for them to be worth it: about the multiprocessors of a GPU.
_ENOUGH = 128


class Tile(NamedTuple):
    """BLOCK_M, BLOCK_N, BLOCK_K and Triton's options."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# One tile for each way to multiply float32, whatever the plane.
_FLOAT32 = {
    "tf32": Tile(64, 64, 32, 4, 2),
    "bf16x3": Tile(64, 64, 32, 4, 2),
    # True float32 is summed over blocks of 16, then over the blocks: one long chain loses twice as much.
    "ieee": Tile(64, 64, 16, 4, 3),
}
_FLOAT32_GATED = Tile(64, 32, 16, 4, 3)
TABLE = pathlib.Path(__file__).with_name("tiles.json")
# Of 16-bit elements, by architecture, direction ("gated" is the forward of two products) and size of the plane.
TILES = {
    (row["architecture"], row["op"].removeprefix("ffn_"), row["size"]): Tile(*row["tile"])
    for row in json.loads(TABLE.read_text())
}


def tile_of(
    architecture: str, direction: str, dtype: torch.dtype, precision: str, large: bool
) -> Tile:
    """The tile of a kind of plane; precision is tl.dot's for float32."""
    if dtype == torch.float32:
        return _FLOAT32_GATED if direction == "gated" else _FLOAT32[precision]
    return TILES[architecture, direction, "large" if large else "small"]


@functools.lru_cache(maxsize=4096)
def choose(
    architecture: str, direction: str, dtype: torch.dtype, precision: str, m: int, f: int
) -> Tile:
    """The tile of a product whose result is (m, f)."""
    tile = tile_of(architecture, direction, dtype, precision, True)
    large = -(-m // tile.block_m) * -(-f // tile.block_n) >= _ENOUGH
    return tile if large else tile_of(architecture, direction, dtype, precision, False)
