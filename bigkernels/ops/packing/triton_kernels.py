"""Triton kernels of the packing room. B samples of L positions, T packed rows; everything contiguous.

Written for Triton 3.6 and newer, and for its interpreter.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("L",))
def packing_count_kernel(
    keep_ptr,  # (B, L), nonzero = token
    counts_ptr,  # (B,) int32
    L,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    count = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, L, BLOCK):
        place = first + tl.arange(0, BLOCK)
        keep = tl.load(keep_ptr + sample * L + place, mask=place < L, other=0)
        count += (keep != 0).to(tl.int32)
    tl.store(counts_ptr + sample, tl.sum(count, 0))


@triton.jit(do_not_specialize=("B", "L", "T"))
def packing_plan_kernel(
    keep_ptr,  # (B, L), nonzero = token
    counts_ptr,  # (B,) int32, tokens of each sample
    indices_ptr,  # (T,) int64
    places_ptr,  # (B * L,) int64
    cu_seq_ptr,  # (B + 1,) int32
    rows_ptr,  # (T,) int64
    fits_ptr,  # () int32: not 0 if there are at most T tokens
    B,
    L,
    T,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    before = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, B, BLOCK):
        other = first + tl.arange(0, BLOCK)
        count = tl.load(counts_ptr + other, mask=other < B, other=0)
        before += tl.where(other < sample, count, 0)
        total += count
    # Tokens and padding of a sample each keep their order: those behind all of these.
    token = tl.sum(before, 0).to(tl.int64)
    tokens = tl.sum(total, 0)
    padding = tokens + sample * L - token
    if sample == 0:
        tl.store(fits_ptr, (tokens <= T).to(tl.int32))
        tl.store(cu_seq_ptr, 0)
    for first in range(0, L, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < L
        flat = sample * L + place
        keep = (tl.load(keep_ptr + flat, mask=inside, other=0) != 0).to(tl.int32)
        rank = tl.cumsum(keep, 0) - keep
        is_token = keep != 0
        at = tl.where(is_token, token + rank, padding + (place - first) - rank)
        fits = inside & (at < T)
        tl.store(indices_ptr + at, tl.where(is_token, flat, -1), mask=fits)
        tl.store(rows_ptr + at, tl.where(is_token, (sample << 32) | place, 0), mask=fits)
        tl.store(places_ptr + flat, tl.where(is_token & (at < T), at, -1), mask=inside)
        count = tl.sum(keep, 0)
        token += count
        padding += BLOCK - count
    tl.store(cu_seq_ptr + sample + 1, token.to(tl.int32))


@triton.jit(do_not_specialize=("S",))
def packing_forward_kernel(
    x_ptr,  # (R, N)
    source_ptr,  # (S,) int64, row of x, or -1
    out_ptr,  # (S, N)
    S,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < S)[:, None] & (columns < N)[None, :]
    source = tl.load(source_ptr + rows, mask=rows < S, other=-1)[:, None]
    value = tl.load(x_ptr + source * N + columns[None, :], mask=inside & (source >= 0), other=0)
    tl.store(out_ptr + rows[:, None] * N + columns[None, :], value, mask=inside)
