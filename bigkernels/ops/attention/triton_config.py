"""How the Triton kernels of attention are launched: a pure function of architecture, dtype, head dims and what a
tile of scores holds. Batches are not in it, and of lengths only whether all are short: none of them changes a bit, and
lengths cost one more build at most.

BLOCK_N of the forward, in whose blocks a row's softmax is rescaled, follows from architecture, dtype and head dims
alone: padded, packed and masked calls agree in every bit. The one exception is 16-bit heads of 65 to 128 on sm_90,
which with a mask take half the block: at 64 by 64 an additive one spills, and 32 queries are too few for wgmma.
"""

from __future__ import annotations

import functools
from typing import NamedTuple


class Tile(NamedTuple):
    """Queries and keys of a tile of scores, warps, stages of loads."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# All that a thread can have. Said aloud, because ptxas otherwise spills two or three to fit a warp more.
REGISTERS = 255
KERNELS = ("forward", "rows", "query", "key", "mask")

# By (architecture, head dim up to, plain), of 16-bit elements: the tiles of KERNELS.
_HALVES = {
    ("sm_90", 64, True): ((128, 64, 4, 3), (64, 32, 4, 1), (128, 64, 8, 2), (64, 128, 8, 2), None),
    ("sm_90", 64, False): ((64, 64, 4, 3), (64, 32, 4, 1), (64, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 1)),
    ("sm_90", 128, True): ((128, 64, 8, 2), (64, 32, 4, 1), (64, 64, 8, 2), (32, 64, 8, 2), None),
    ("sm_90", 128, False): ((64, 32, 4, 2), (32, 16, 4, 1), (64, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 1)),
    ("sm_90", 256, True): ((64, 16, 4, 2), (64, 16, 4, 1), (32, 32, 8, 2), (32, 32, 8, 1), None),
    ("sm_90", 256, False): ((64, 16, 8, 2), (64, 16, 4, 1), (32, 32, 8, 2), (32, 32, 8, 1), (64, 32, 8, 1)),
    ("sm_80", 64, True): ((64, 32, 4, 3), (32, 32, 4, 1), (64, 32, 4, 2), (32, 64, 4, 2), None),
    ("sm_80", 64, False): ((64, 32, 4, 2), (32, 32, 4, 1), (32, 64, 4, 2), (32, 32, 4, 2), (32, 64, 4, 1)),
    ("sm_80", 128, True): ((64, 32, 4, 2), (32, 16, 4, 1), (32, 64, 4, 2), (32, 32, 4, 2), None),
    ("sm_80", 128, False): ((32, 32, 4, 2), (32, 16, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    ("sm_80", 256, True): ((64, 32, 8, 1), (32, 16, 4, 1), (32, 32, 8, 1), (32, 32, 8, 1), None),
    ("sm_80", 256, False): ((32, 32, 8, 1), (32, 16, 4, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
}  # fmt: skip
# Of the forward of plain calls where no sequence is longer than this tile of queries: of the usual one, on sm_90 and
# up to a head dim of 128, half would be empty. BLOCK_N is the usual one, and so are the bits. (On sm_80, tiles of
# fewer than 64 queries add up a row in another order.)
_FEW = Tile(64, 64, 4, 2)
# Of the kernel of short sequences, likewise. It reads the keys of a tile into registers once and sums dk and dv there:
# tiles are what these leave room for.
_SHORT = {
    ("sm_90", 64, True): (64, 128, 8, 2),
    ("sm_90", 64, False): (32, 64, 8, 1),
    ("sm_90", 128, True): (32, 64, 8, 1),
    ("sm_90", 128, False): (32, 32, 8, 2),
    ("sm_80", 64, True): (32, 64, 8, 2),
    ("sm_80", 64, False): (32, 64, 8, 1),
    ("sm_80", 128, True): (32, 32, 8, 1),
    ("sm_80", 128, False): (32, 32, 8, 1),
}
# The longest sequences it is for, by head dim up to. Longer ones keep the multiprocessors busy without it.
SHORT = {64: 512, 128: 256}
SHORT_ROWS = 32  # queries at a time of which it computes the numbers
# Of the kernel of one pass over longer ones: those in which nothing spills. On sm_80, of float32 and of wider heads two
# kernels serve: there one is not predicted to gain a tenth, or does not fit the registers.
_ONCE = {
    ("sm_90", 64, True): (64, 128, 8, 2),
    ("sm_90", 64, False): (32, 128, 8, 2),
    ("sm_90", 128, True): (32, 128, 8, 2),
    ("sm_90", 128, False): (32, 64, 8, 2),
}
ROUND_ROWS, ROUND_WARPS = 64, 4  # of the kernel that rounds its dq
# Of float32, by (products, head dim up to, plain): one tile for all. In halves of "bf16x3" heads over 64 do not
# fit the registers: true products are taken instead.
_FLOATS = {
    ("tf32", 64, True): (64, 32, 4, 2),
    ("tf32", 64, False): (32, 32, 4, 1),
    ("tf32", 128, True): (32, 32, 4, 1),
    ("tf32", 128, False): (16, 32, 4, 1),
    ("tf32", 256, True): (16, 16, 4, 1),
    ("tf32", 256, False): (16, 16, 4, 1),
    ("bf16x3", 64, True): (32, 16, 4, 1),
    ("bf16x3", 64, False): (32, 16, 4, 1),
    ("ieee", 64, True): (32, 16, 4, 1),
    ("ieee", 64, False): (32, 16, 4, 1),
    ("ieee", 128, True): (16, 16, 4, 1),
    ("ieee", 128, False): (16, 16, 8, 1),
    ("ieee", 256, True): (16, 16, 8, 1),
    ("ieee", 256, False): (16, 16, 8, 1),
}
# On AMD, where nothing has run yet, the smallest: all larger ones spill somewhere.
_AMD = Tile(16, 16, 4, 1)
_AMD_WIDE_MASK = Tile(16, 16, 8, 1)  # of float32 heads over 128


def padded(dim: int) -> int:
    """Columns of a tile of a head dim."""
    return max(16, 1 << (dim - 1).bit_length())


def products(precision: str, dim: int) -> str:
    """The products of float32 heads of which the larger, padded, is `dim`, where `precision` is wanted."""
    return "ieee" if precision == "bf16x3" and dim > 64 else precision


@functools.cache
def short(architecture: str, bits: int, dim: int, plain: bool, longest: int) -> Tile | None:
    """The tile with which one kernel does the backward of sequences up to `longest`; None if it does not.

    On AMD its scalars spill, and of float32 too little fits on chip.
    """
    bucket = 64 if dim <= 64 else dim
    if architecture.startswith("gfx") or bits == 32 or longest > SHORT.get(bucket, 0):
        return None
    return Tile(*_SHORT[architecture if architecture == "sm_90" else "sm_80", bucket, plain])


@functools.cache
def once(architecture: str, bits: int, dim: int, plain: bool) -> Tile | None:
    """The tile with which one pass over the scores does the backward; None if two do."""
    found = _ONCE.get((architecture, 64 if dim <= 64 else dim, plain)) if bits == 16 else None
    return None if found is None else Tile(*found)


def few(architecture: str, bits: int, dim: int, plain: bool, longest: int) -> Tile | None:
    """The forward's tile for sequences up to `longest`, if it is not that of longer ones."""
    served = architecture == "sm_90" and bits == 16 and dim <= 128 and plain
    return _FEW if served and longest <= _FEW.block_m else None


@functools.cache
def tiles(architecture: str, bits: int, precision: str, dim: int, plain: bool) -> dict[str, Tile]:
    """By kernel. bits: of the dtype. precision: of float32 products. dim: the larger head dim, padded. plain: no
    mask, dropout, softcap or ALiBi, which take registers."""
    bucket = 64 if dim <= 64 else dim
    if architecture.startswith("gfx"):
        wide = {"mask": _AMD_WIDE_MASK} if bits == 32 and dim > 128 else {}
        return dict.fromkeys(KERNELS, _AMD) | wide
    if bits == 32:
        return dict.fromkeys(KERNELS, Tile(*_FLOATS[precision, bucket, plain]))
    known = architecture if architecture == "sm_90" else "sm_80"
    found = zip(KERNELS, _HALVES[known, bucket, plain], strict=True)
    return {name: Tile(*tile) for name, tile in found if tile is not None}
