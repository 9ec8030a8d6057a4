"""Dropout inside Triton kernels: Philox4x32-10 as ops/dropout.py defines it. Imports triton.

Words of four neighbouring columns share one counter, so a mask costs one Philox for four elements.
"""

import triton
import triton.language as tl


@triton.jit
def keep_mask(
    c0,  # (1, COLUMNS // 4): number of each column block
    c1,  # (ROWS, 1): counter words, integers of any width, of which the low 32 bits count
    c2,  # (ROWS, 1) or a scalar
    seed_ptr,  # () int64 or None
    offset_ptr,  # () int64 or None
    threshold,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(ROWS, COLUMNS) dropout mask: words that are >= threshold stay."""
    seed = tl.load(seed_ptr) if seed_ptr is not None else tl.full((), 0, tl.int64)
    offset = tl.load(offset_ptr) if offset_ptr is not None else tl.full((), 0, tl.int64)
    word0, word1, word2, word3 = tl.philox(
        seed,
        c0.to(tl.uint32),
        (c1 & 0xFFFFFFFF).to(tl.uint32),
        (c2 & 0xFFFFFFFF).to(tl.uint32),
        (offset & 0xFFFFFFFF).to(tl.uint32),
    )
    # The threshold goes up to 2**32 (p == 1 drops everything), hence the comparison in 64 bits.
    # Joining decisions instead of words leaves fewer bytes to move between threads.
    even = tl.join(word0.to(tl.int64) >= threshold, word2.to(tl.int64) >= threshold)
    odd = tl.join(word1.to(tl.int64) >= threshold, word3.to(tl.int64) >= threshold)
    # The last two axes, read in order, are words 0, 1, 2, 3 of each column block.
    return tl.reshape(tl.join(even, odd), (ROWS, COLUMNS))


@triton.jit
def keep_rows(
    rows,  # (ROWS,) int64: rows of the operation's (M, N)
    in_rows,  # (ROWS,) bool
    first_column,  # of the tile, a multiple of 4
    row_ids_ptr,  # (M,) int64, sample << 32 | position, or None
    row_length,  # rows of a sample, where row_ids_ptr is None
    seed_ptr,
    offset_ptr,
    threshold,
    COLUMNS: tl.constexpr,
):
    """(ROWS, COLUMNS) dropout mask of a row operation."""
    if row_ids_ptr is not None:
        ids = tl.load(row_ids_ptr + rows, mask=in_rows, other=0)
        position = ids & 0xFFFFFFFF
        sample = ids >> 32
    else:
        position = rows % row_length
        sample = rows // row_length
    column_block = first_column // 4 + tl.arange(0, COLUMNS // 4)[None, :]
    return keep_mask(
        column_block,
        position[:, None],
        sample[:, None],
        seed_ptr,
        offset_ptr,
        threshold,
        rows.shape[0],
        COLUMNS,
    )
