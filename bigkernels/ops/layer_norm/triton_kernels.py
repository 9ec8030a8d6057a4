"""Triton kernels of LayerNorm and RMSNorm, and of bias + dropout + residual before them.

Shapes: M rows of N columns, contiguous. One tile holds BLOCK_M whole rows, so that every statistic
is taken from registers, in float32. What a caller has not (bias, residual, ...) is passed as None,
which Triton folds away at compile time. Written for Triton 3.6 and newer, and for its interpreter.
"""

import triton
import triton.language as tl

from bigkernels.ops.triton_philox import keep_rows


@triton.jit(do_not_specialize=("row_length", "M", "threshold"))
def layer_norm_forward_kernel(
    x_ptr,  # (M, N)
    x_bias_ptr,  # (N,) or None
    residual_ptr,  # (M, N) or None: then there is nothing to add and no dropout
    weight_ptr,  # (N,) or None
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N)
    sum_ptr,  # (M, N) or None
    mean_ptr,  # (M,) float32, or None: RMSNorm
    rstd_ptr,  # (M,) float32
    seed_ptr,
    offset_ptr,
    row_ids_ptr,
    row_length,
    M,
    N,
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
    at = rows[:, None] * N + columns[None, :]

    value = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if x_bias_ptr is not None:
        x_bias = tl.load(x_bias_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
        value += x_bias[None, :]
    if DROPOUT:
        keep = keep_rows(
            rows, in_rows, 0, row_ids_ptr, row_length, seed_ptr, offset_ptr, threshold, BLOCK_N
        )
        value = tl.where(keep, value * scale, 0.0)
    if residual_ptr is not None:
        value += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if sum_ptr is not None:
        tl.store(sum_ptr + at, value.to(sum_ptr.dtype.element_ty), mask=inside)

    # Two passes over the registers: the variance of centred values keeps its digits at any mean.
    value = tl.where(inside, value, 0.0)
    if mean_ptr is not None:
        mean = tl.sum(value, 1) / N
        tl.store(mean_ptr + rows, mean, mask=in_rows)
        value = tl.where(inside, value - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(value * value, 1) / N + eps)
    tl.store(rstd_ptr + rows, rstd, mask=in_rows)

    out = value * rstd[:, None]
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
        out *= weight[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=in_columns, other=0.0).to(tl.float32)
        out += bias[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("row_length", "M", "threshold"))
def layer_norm_backward_kernel(
    dout_ptr,  # (M, N)
    dsum_ptr,  # (M, N) or None: gradient that reached the sum by another way
    sum_ptr,  # (M, N): what was normalised
    mean_ptr,  # (M,) float32, or None: RMSNorm
    rstd_ptr,  # (M,) float32
    weight_ptr,  # (N,) or None
    dresidual_ptr,  # (M, N) or None: gradient of the sum
    dx_ptr,  # (M, N) or None: the same behind dropout
    dweight_ptr,  # (programs, N) float32 or None: one partial sum a program, likewise below
    dbias_ptr,
    dx_bias_ptr,
    seed_ptr,
    offset_ptr,
    row_ids_ptr,
    row_length,
    M,
    N,
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
    dx_bias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    # A program's rows and their order depend on M and the number of programs alone: no atomics.
    for first in range(program * BLOCK_M, M, tl.num_programs(0) * BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M).to(tl.int64)
        in_rows = rows < M
        inside = in_rows[:, None] & in_columns[None, :]
        at = rows[:, None] * N + columns[None, :]
        dout = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(sum_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if mean_ptr is not None:
            value -= tl.load(mean_ptr + rows, mask=in_rows, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)
        normed = tl.where(inside, value * rstd[:, None], 0.0)
        if dweight_ptr is not None:
            dweight += dout * normed
        if dbias_ptr is not None:
            dbias += dout
        dnormed = dout
        if weight_ptr is not None:
            dnormed = dout * weight[None, :]
        along_normed = tl.sum(dnormed * normed, 1) / N
        dsum = dnormed - normed * along_normed[:, None]
        if mean_ptr is not None:
            dsum -= (tl.sum(dnormed, 1) / N)[:, None]
        dsum = tl.where(inside, dsum * rstd[:, None], 0.0)
        if dsum_ptr is not None:
            dsum += tl.load(dsum_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, dsum.to(dresidual_ptr.dtype.element_ty), mask=inside)
        if DROPOUT:
            keep = keep_rows(
                rows, in_rows, 0, row_ids_ptr, row_length, seed_ptr, offset_ptr, threshold, BLOCK_N
            )
            dsum = tl.where(keep, dsum * scale, 0.0)
            if dx_ptr is not None:
                tl.store(dx_ptr + at, dsum.to(dx_ptr.dtype.element_ty), mask=inside)
        if dx_bias_ptr is not None:
            dx_bias += dsum

    partial = program.to(tl.int64) * N + columns
    if dweight_ptr is not None:
        tl.store(dweight_ptr + partial, tl.sum(dweight, 0), mask=in_columns)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + partial, tl.sum(dbias, 0), mask=in_columns)
    if dx_bias_ptr is not None:
        tl.store(dx_bias_ptr + partial, tl.sum(dx_bias, 0), mask=in_columns)
