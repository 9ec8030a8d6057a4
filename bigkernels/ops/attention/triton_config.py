"""How the Triton kernels of attention are launched: tiles of ../tiles.json, by architecture, dtype, head dims, what
a tile of scores holds, and whether all sequences are short, which costs one more build at most. Neither lengths nor
batches change a bit, but of dq where one pass serves the backward: its programs add in no order.

BLOCK_N of the forward, in whose blocks a row's softmax is rescaled, follows from architecture, dtype and head dims
alone: padded, packed and masked calls agree in every bit. The one exception is 16-bit heads of 65 to 128 on sm_90,
which with a mask take half the block, and there both they and narrower ones half of that with most: at 64 by 64 an
additive mask spills, and 32 queries are too few for wgmma.

Registers decide. So calls are plain; busy, with one thing that takes registers (a mask, dropout, a softcap, ALiBi);
full, with two of them, or a mask behind a diagonal; most, with a mask and two of the others, a diagonal counting
beside an additive one. Each takes the tile of the kind before it, as far as busy, where the table has none of its
own: where that does not spill.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from bigkernels.ops import triton_table


class Tile(NamedTuple):
    """Queries and keys of a tile of scores, warps, stages of loads."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# Bits of FLAGS, the one switch of all kernels.
FLAGS = {
    "ranged": 1,  # keys are seen from the diagonal: causal or a window
    "softcap": 2,
    "dropout": 4,
    "added": 8,  # an additive mask or ALiBi
    "summed": 16,  # delta is summed from the weights
    "negative": 32,  # the scale is below 0
    "pinned": 64,  # products read registers while the next instructions run: wgmma
}
# Rows of q, k, v and of what is like them lie multiples of so many elements apart.
UNIT = 8
# All that a thread can have. Said aloud, because ptxas otherwise spills two or three to fit a warp more.
REGISTERS = 255
KERNELS = ("forward", "rows", "query", "key", "mask")
LOADS = PLAIN, BUSY, FULL, MOST = "plain", "busy", "full", "most"

# Of the kernel of short sequences, which reads the keys of a tile into registers once and sums dk and dv there: the
# longest sequences it is for, by head dim up to. Longer ones keep the multiprocessors busy without it.
SHORT = {64: 512, 128: 256}
SHORT_ROWS = 32  # queries at a time of which it computes the numbers
ROUND_ROWS, ROUND_WARPS = 64, 4  # of the kernel that rounds its dq
# On AMD, where nothing has run yet, the smallest: all larger ones spill somewhere.
_AMD = Tile(16, 16, 4, 1)
_AMD_WIDE_MASK = Tile(16, 16, 8, 1)  # of float32 heads over 128


def padded(dim: int) -> int:
    """Columns of a tile of a head dim."""
    return max(16, triton_table.padded(dim))


def products(precision: str, dim: int) -> str:
    """The products of float32 heads of which the larger, padded, is `dim`, where `precision` is wanted."""
    return "ieee" if precision == "bf16x3" and dim > 64 else precision


def load_of(mask: str, ranged: bool, others: int) -> str:
    """The kind of a call. mask: "none", "bool" or "float". ranged: there is a diagonal. others: how many of dropout,
    softcap, ALiBi and float32 of a mask beside 16 bits."""
    if mask == "none":
        return (PLAIN, BUSY, FULL)[min(others, 2)]
    if others + (ranged and mask == "float") > 1:
        return MOST
    return FULL if ranged or others > 0 else BUSY


def with_columns(load: str, dim: int, whole: bool, numbered: bool) -> str:
    """The kind by which short and once choose, which hold whole gradients in registers: the next one where the head
    dims do not fill their tile (whole: they do), and where beside 128 columns there are lengths, or rows of dropout
    (numbered)."""
    if whole and not (numbered and dim > 64):
        return load
    return LOADS[min(LOADS.index(load) + 1, len(LOADS) - 1)]


def _tile(
    op: str, architecture: str, bits: int, dim: int, load: str, products: str = ""
) -> Tile | None:
    """The table's, if it has one: not every kernel is for every case."""
    first = LOADS.index(load)
    for kind in LOADS[first : 0 if load != PLAIN else None : -1]:
        bucket = f"{products} {max(64, dim)} {kind}".lstrip()
        if found := triton_table.table().get((op, architecture, f"{bits} bit", bucket)):
            return Tile(**found)
    return None


@functools.cache
def short(architecture: str, bits: int, dim: int, load: str, longest: int) -> Tile | None:
    """The tile with which one kernel does the backward of sequences up to `longest`; None if it does not.

    On AMD its scalars spill, and of float32 too little fits on chip.
    """
    if longest > SHORT.get(max(64, dim), 0):
        return None
    return _tile("attention_short", architecture, bits, dim, load)


@functools.cache
def once(architecture: str, bits: int, dim: int, load: str) -> Tile | None:
    """The tile with which one pass over the scores does the backward; None if two do: on sm_80, of float32 and of wider
    heads one is not predicted to gain a tenth, or does not fit the registers."""
    return _tile("attention_once", architecture, bits, dim, load)


def few(architecture: str, bits: int, dim: int, load: str, longest: int) -> Tile | None:
    """The forward's tile where no sequence is longer than `longest`, if it is not that of longer ones: on sm_90, half
    of the usual tile of queries would be empty. BLOCK_N is the usual one, and so are the bits. (On sm_80, tiles of
    fewer than 64 queries add up a row in another order.)"""
    found = _tile("attention_few", architecture, bits, dim, load)
    return found if found is not None and longest <= found.block_m else None


@functools.cache
def tiles(architecture: str, bits: int, precision: str, dim: int, load: str) -> dict[str, Tile]:
    """By kernel. bits: of the dtype. precision: of float32 products. dim: the larger head dim, padded. load: as
    load_of has it."""
    if architecture.startswith("gfx"):
        wide = {"mask": _AMD_WIDE_MASK} if bits == 32 and dim > 128 else {}
        return dict.fromkeys(KERNELS, _AMD) | wide
    if bits == 32:  # one for all, but that what goes over a row's exponents keeps its BLOCK_N
        tile, first = (
            _tile("attention", architecture, bits, dim, x, precision) for x in (load, BUSY)
        )
        assert tile is not None and first is not None, (precision, dim, load)
        kept = tile if load == PLAIN else first
        rows = kept._replace(block_m=16)  # a loop that few calls enter takes its registers always
        forward = kept._replace(num_stages=2)  # loads that are under way lie in shared memory
        return dict.fromkeys(KERNELS, tile) | {"forward": forward, "rows": rows}
    found = {name: _tile(f"attention_{name}", architecture, bits, dim, load) for name in KERNELS}
    return {name: tile for name, tile in found.items() if tile is not None}
