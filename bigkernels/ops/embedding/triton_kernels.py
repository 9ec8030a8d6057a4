"""Triton kernels of the embedding room. M tokens, N columns; tables are contiguous.

A token's row is whole in one tile, so that every statistic is taken from registers, in float32. What a caller has not
is passed as None, which Triton folds away at compile time. Written for Triton 3.6 and newer, and for its interpreter.
"""

import triton
import triton.language as tl

from bigkernels.ops.triton_philox import keep_rows

# For none of these a form of a kernel is built.
SIZES = ("row_length", "M", "word_count", "position_count", "type_count", "threshold")


@triton.jit
def _place(rows, in_rows, row_ids_ptr, row_length):
    """The place of a token in its sequence."""
    if row_ids_ptr is not None:
        place = tl.load(row_ids_ptr + rows, mask=in_rows, other=0) & 0xFFFFFFFF
    else:
        place = rows % row_length
    return place


@triton.jit
def _add_rows(total, good, table_ptr, ids_ptr, ids, count, rows, in_rows, columns, in_columns, N):
    """total + table[ids], and which tokens still have all their ids inside their tables; ids: those without a
    pointer."""
    if table_ptr is not None:
        if ids_ptr is not None:
            ids = tl.load(ids_ptr + rows, mask=in_rows, other=0)
        good = good & (ids >= 0) & (ids < count)
        inside = (in_rows & good)[:, None] & in_columns[None, :]
        at = ids[:, None] * N + columns[None, :]
        total += tl.load(table_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return total, good


@triton.jit
def _table_sum(
    word_ptr, ids_ptr, position_ptr, position_ids_ptr, types_ptr, type_ids_ptr, row_ids_ptr, row_length,
    word_count, position_count, type_count, rows, in_rows, columns, in_columns, N,
):  # fmt: skip
    """(rows, columns) float32: the tables' rows added up; zeros where an id is outside its table."""
    total = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    good, first = in_rows, rows * 0
    total, good = _add_rows(
        total, good, word_ptr, ids_ptr, first, word_count, rows, in_rows, columns, in_columns, N
    )
    places = first
    if position_ptr is not None and position_ids_ptr is None:
        places = _place(rows, in_rows, row_ids_ptr, row_length)
    total, good = _add_rows(
        total, good, position_ptr, position_ids_ptr, places, position_count, rows, in_rows, columns,
        in_columns, N,
    )  # fmt: skip
    return _add_rows(
        total, good, types_ptr, type_ids_ptr, first, type_count, rows, in_rows, columns, in_columns, N,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def embedding_forward_kernel(
    ids_ptr,  # (M,) int64, likewise below
    word_ptr,  # (word_count, N)
    position_ids_ptr,  # or None: each token's own place
    position_ptr,  # (position_count, N) or None
    type_ids_ptr,  # or None: row 0 for every token
    types_ptr,  # (type_count, N) or None
    weight_ptr,  # (N,) or None
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N)
    mean_ptr,  # (M,) float32
    rstd_ptr,  # (M,) float32
    good_ptr,  # (M,) bool: all ids of the token are inside their tables
    seed_ptr,
    offset_ptr,
    row_ids_ptr,
    row_length,
    M,
    N,
    word_count,
    position_count,
    type_count,
    eps,
    threshold: tl.int64,
    scale,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    in_rows = rows < M
    in_columns = columns < N
    inside = in_rows[:, None] & in_columns[None, :]
    value, good = _table_sum(
        word_ptr, ids_ptr, position_ptr, position_ids_ptr, types_ptr, type_ids_ptr, row_ids_ptr, row_length,
        word_count, position_count, type_count, rows, in_rows, columns, in_columns, N,
    )  # fmt: skip

    # Two passes over the registers: the variance of centred values keeps its digits at any mean.
    mean = tl.sum(value, 1) / N
    centred = tl.where(inside, value - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / N + eps)
    tl.store(mean_ptr + rows, mean, mask=in_rows)
    tl.store(rstd_ptr + rows, rstd, mask=in_rows)
    tl.store(good_ptr + rows, good, mask=in_rows)

    out = centred * rstd[:, None]
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
        out *= weight[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
        out += bias[None, :]
    if DROPOUT:
        keep = keep_rows(
            rows, in_rows, 0, row_ids_ptr, row_length, seed_ptr, offset_ptr, threshold, BLOCK_N
        )
        out = tl.where(keep, out * scale, 0.0)
    at = rows[:, None] * N + columns[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def embedding_backward_kernel(
    dout_ptr,  # (M, N)
    mean_ptr,  # (M,) float32
    rstd_ptr,  # (M,) float32
    ids_ptr,
    word_ptr,
    position_ids_ptr,
    position_ptr,
    type_ids_ptr,
    types_ptr,
    weight_ptr,
    dsum_ptr,  # (M, N) float32 or None: gradient of the tables' sum
    dweight_ptr,  # (programs, N) float32 or None: one partial sum a program, likewise below
    dbias_ptr,
    seed_ptr,
    offset_ptr,
    row_ids_ptr,
    row_length,
    M,
    N,
    word_count,
    position_count,
    type_count,
    threshold: tl.int64,
    scale,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_N)
    in_columns = columns < N
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    # A program's rows and their order depend on M and the number of programs alone: no atomics.
    for first in range(program * BLOCK_M, M, tl.num_programs(0) * BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M).to(tl.int64)
        in_rows = rows < M
        inside = in_rows[:, None] & in_columns[None, :]
        at = rows[:, None] * N + columns[None, :]
        dout = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if DROPOUT:
            keep = keep_rows(
                rows, in_rows, 0, row_ids_ptr, row_length, seed_ptr, offset_ptr, threshold, BLOCK_N
            )
            dout = tl.where(keep, dout * scale, 0.0)
        if dbias_ptr is not None:
            dbias += dout
        value, _ = _table_sum(
            word_ptr, ids_ptr, position_ptr, position_ids_ptr, types_ptr, type_ids_ptr, row_ids_ptr, row_length,
            word_count, position_count, type_count, rows, in_rows, columns, in_columns, N,
        )  # fmt: skip
        mean = tl.load(mean_ptr + rows, mask=in_rows, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)
        normed = tl.where(inside, (value - mean[:, None]) * rstd[:, None], 0.0)
        if dweight_ptr is not None:
            dweight += dout * normed
        if dsum_ptr is not None:
            dnormed = dout
            if weight_ptr is not None:
                dnormed = dout * weight[None, :]
            along_normed = tl.sum(dnormed * normed, 1) / N
            along_ones = tl.sum(dnormed, 1) / N
            dsum = dnormed - normed * along_normed[:, None] - along_ones[:, None]
            tl.store(dsum_ptr + at, dsum * rstd[:, None], mask=inside)

    partial = program.to(tl.int64) * N + columns
    if dweight_ptr is not None:
        tl.store(dweight_ptr + partial, tl.sum(dweight, 0), mask=in_columns)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + partial, tl.sum(dbias, 0), mask=in_columns)


@triton.jit(do_not_specialize=("M", "period", "count", "padding_row"))
def embedding_scatter_kernel(
    dsum_ptr,  # (M, N) float32
    order_ptr,  # (M,) int64: tokens by their id, those of one id in their own order; None: ids repeat, see period
    starts_ptr,  # (count + 1,) int64: where each id's tokens begin in `order`, or None
    dtable_ptr,  # (SPLITS, count, N)
    M,
    period,  # without `order` a token's id is its number modulo this, which M is a multiple of
    count,
    N,
    padding_row,  # its gradient is 0; -1: none
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One writer for each element: a row of the table, or one share of its tokens.
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = columns < N
    if order_ptr is not None:
        begin = tl.load(starts_ptr + row)
        end = tl.load(starts_ptr + row + 1)
    else:
        begin = row * 0
        end = tl.where(row < period, M // period, begin)
    if SPLITS > 1:
        share = tl.cdiv(end - begin, SPLITS)
        begin += split * share
        end = tl.minimum(begin + share, end)
    if row == padding_row:
        end = begin
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(begin, end, BLOCK_M):
        places = first + tl.arange(0, BLOCK_M)
        in_places = places < end
        if order_ptr is not None:
            tokens = tl.load(order_ptr + places, mask=in_places, other=0)
        else:
            tokens = places * period + row
        inside = in_places[:, None] & in_columns[None, :]
        at = tokens[:, None] * N + columns[None, :]
        total += tl.load(dsum_ptr + at, mask=inside, other=0.0)
    at = (split.to(tl.int64) * count + row) * N + columns
    value = tl.sum(total, 0).to(dtable_ptr.dtype.element_ty)
    tl.store(dtable_ptr + at, value, mask=in_columns)
