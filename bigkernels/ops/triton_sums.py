"""Sums in Triton kernels: over rows, in two steps and without atomics, and of products. Imports triton."""

import triton
import triton.language as tl


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """total + a b. Of true float32 a tile's products have a chain of their own, not one with those of all tiles."""
    if PRECISION == "ieee":
        # The last argument means nothing for float32, but keeps the sum out of the product's own chain.
        total += tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=1)
        return total
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _column_sum(partial_ptr, total_ptr, P, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """total (N,) = the sum of partial (P, N) over its rows, BLOCK_N columns of it."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, P, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        inside = (rows < P)[:, None] & (columns < N)[None, :]
        at = rows[:, None].to(tl.int64) * N + columns[None, :]
        total += tl.sum(tl.load(partial_ptr + at, mask=inside, other=0.0), 0)
    tl.store(total_ptr + columns, total.to(total_ptr.dtype.element_ty), mask=columns < N)


@triton.jit(do_not_specialize=("P",))
def column_sum_kernel(
    partial0_ptr,  # (P, N) float32 or None, likewise below
    partial1_ptr,
    partial2_ptr,
    total0_ptr,  # (N,) or None, likewise below
    total1_ptr,
    total2_ptr,
    P,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One launch for the three sums: on small inputs its cost is that of the launch.
    which = tl.program_id(1)
    if which == 0:
        if partial0_ptr is not None:
            _column_sum(partial0_ptr, total0_ptr, P, N, BLOCK_M, BLOCK_N)
    elif which == 1:
        if partial1_ptr is not None:
            _column_sum(partial1_ptr, total1_ptr, P, N, BLOCK_M, BLOCK_N)
    elif partial2_ptr is not None:
        _column_sum(partial2_ptr, total2_ptr, P, N, BLOCK_M, BLOCK_N)
