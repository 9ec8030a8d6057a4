"""How the feed-forward network's Triton kernels are launched: tiles of ../tiles.json. Small planes take small tiles, of
which there are enough for every multiprocessor; float32 one for each way to multiply, whatever the plane. By hand: the
least registers that hold the sums, two buffers or more of shared memory and no spills (`make static-gate` has the
figures); true float32 is summed over blocks of 16, then over the blocks, as one long chain loses twice as much.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from bigkernels.ops import triton_table

DIRECTIONS = ("forward", "gated", "backward")
# Tiles of the large kind that a plane must have for them to be worth it: about the multiprocessors of a GPU.
_ENOUGH = 128


class Tile(NamedTuple):
    """BLOCK_M, BLOCK_N, BLOCK_K and Triton's options."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def tile_of(
    architecture: str, direction: str, dtype: torch.dtype, precision: str, large: bool
) -> Tile:
    """The tile of a kind of plane: precision is tl.dot's for float32, direction "gated" the forward of two products."""
    size = "large" if large else "small"
    bucket = precision if dtype == torch.float32 else size
    return Tile(**triton_table.tile(f"ffn_{direction}", architecture, dtype, bucket))


@functools.lru_cache(maxsize=4096)
def choose(
    architecture: str, direction: str, dtype: torch.dtype, precision: str, m: int, f: int
) -> Tile:
    """The tile of a product whose result is (m, f)."""
    tile = tile_of(architecture, direction, dtype, precision, True)
    large = -(-m // tile.block_m) * -(-f // tile.block_n) >= _ENOUGH
    return tile if large else tile_of(architecture, direction, dtype, precision, False)
