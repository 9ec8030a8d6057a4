"""How the feed-forward network's Triton kernels are launched: a table, made for the architectures below.

Chosen by the least registers that hold the sums, two buffers or more of shared memory and no spills (`make static-gate`
has the figures). Small planes take small tiles, of which there are enough for every multiprocessor.
"""

from __future__ import annotations

import functools
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


# Products of 16-bit elements by direction ("gated" is the forward of two products); one tile for each way to multiply
# float32, whatever the plane.
_SMALL = Tile(64, 64, 64, 4, 3)
_FLOAT32 = {
    "tf32": Tile(64, 64, 32, 4, 2),
    "bf16x3": Tile(64, 64, 32, 4, 2),
    # True float32 is summed over blocks of 16, then over the blocks: one long chain loses twice as much.
    "ieee": Tile(64, 64, 16, 4, 3),
}
_FLOAT32_GATED = Tile(64, 32, 16, 4, 3)
TILES = {
    ("sm_90", "forward"): Tile(128, 256, 64, 8, 3),
    ("sm_90", "gated"): Tile(128, 128, 64, 8, 3),
    ("sm_90", "backward"): Tile(128, 128, 64, 8, 3),
    ("sm_80", "forward"): Tile(128, 128, 64, 8, 3),
    ("sm_80", "gated"): Tile(128, 64, 64, 8, 3),
    ("sm_80", "backward"): Tile(128, 128, 64, 8, 3),
    ("gfx942", "forward"): Tile(128, 128, 32, 8, 2),
    ("gfx942", "gated"): Tile(128, 64, 32, 8, 2),
    ("gfx942", "backward"): Tile(128, 128, 32, 8, 2),
}


def tile_of(
    architecture: str, direction: str, dtype: torch.dtype, precision: str, large: bool
) -> Tile:
    """The tile of a kind of plane; precision is tl.dot's for float32."""
    if dtype == torch.float32:
        return _FLOAT32_GATED if direction == "gated" else _FLOAT32[precision]
    return TILES[architecture, direction] if large else _SMALL


@functools.lru_cache(maxsize=4096)
def choose(
    architecture: str, direction: str, dtype: torch.dtype, precision: str, m: int, f: int
) -> Tile:
    """The tile of a product whose result is (m, f)."""
    tile = tile_of(architecture, direction, dtype, precision, True)
    large = -(-m // tile.block_m) * -(-f // tile.block_n) >= _ENOUGH
    return tile if large else tile_of(architecture, direction, dtype, precision, False)
