"""Triton kernels of the cross_entropy room. N rows of V logits, contiguous; everything is summed in float32.

Written for Triton 3.6 and newer, and for its interpreter.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("ignore_index",))
def cross_entropy_forward_kernel(
    logits_ptr,  # (N, V)
    target_ptr,  # (N,) int64
    loss_ptr,  # (N,)
    lse_ptr,  # (N,) float32
    V,
    ignore_index: tl.int64,
    label_smoothing,
    SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    at = row * V
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    plain = tl.zeros((BLOCK,), tl.float32)
    # Of an ignored row nothing is read.
    end = tl.where(target == ignore_index, 0, V)
    for first in range(0, end, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < V
        logits = tl.load(logits_ptr + at + columns, mask=inside, other=float("-inf")).to(tl.float32)
        found = tl.maximum(largest, tl.max(logits, 0))
        # Of classes that are all -inf so far the sum is 0, not exp(-inf + inf).
        base = tl.where(found == float("-inf"), 0.0, found)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(logits - base), 0)
        largest = found
        if SMOOTHING:
            plain += tl.where(inside, logits, 0.0)
    lse = largest + tl.log(total)
    known = (target >= 0) & (target < V)
    chosen = tl.load(logits_ptr + at + target, mask=known & (end > 0), other=0.0).to(tl.float32)
    loss = lse - chosen
    if SMOOTHING:
        loss = lse - (1.0 - label_smoothing) * chosen - label_smoothing * (tl.sum(plain, 0) / V)
    loss = tl.where(end > 0, loss, 0.0)
    tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty))
    tl.store(lse_ptr + row, tl.where(end > 0, lse, 0.0))


@triton.jit(do_not_specialize=("N", "V", "ignore_index"))
def cross_entropy_reduce_kernel(
    loss_ptr,  # (N,) float32, or None: nothing is summed
    target_ptr,  # (N,) int64
    out_ptr,  # () or None
    rows_ptr,  # () float32: how many are not ignored; None: out is the sum, not the mean
    good_ptr,  # () bool: whether every target is a class, or ignored
    N,
    V,
    ignore_index: tl.int64,
    BLOCK: tl.constexpr,
):
    # One program: the order of the sum is that of the rows.
    total = tl.zeros((BLOCK,), tl.float32)
    counted = tl.zeros((BLOCK,), tl.int32)
    bad = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        inside = rows < N
        target = tl.load(target_ptr + rows, mask=inside, other=0)
        counts = inside & (target != ignore_index)
        counted += counts.to(tl.int32)
        bad += (counts & ((target < 0) | (target >= V))).to(tl.int32)
        if loss_ptr is not None:
            total += tl.load(loss_ptr + rows, mask=inside, other=0.0)
    tl.store(good_ptr, tl.sum(bad, 0) == 0)
    if loss_ptr is not None:
        out = tl.sum(total, 0)
        if rows_ptr is not None:
            number = tl.sum(counted, 0).to(tl.float32)
            tl.store(rows_ptr, number)
            out = out / number
        tl.store(out_ptr, out.to(out_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=("step", "ignore_index"))
def cross_entropy_backward_kernel(
    dout_ptr,  # (N,), or () with step 0
    logits_ptr,  # (N, V)
    lse_ptr,  # (N,) float32
    target_ptr,  # (N,) int64
    rows_ptr,  # () float32, by which the gradient is divided, or None
    dlogits_ptr,  # (N, V)
    V,
    step,
    ignore_index: tl.int64,
    label_smoothing,
    SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < V
    target = tl.load(target_ptr + row)
    at = row * V + columns
    counts = target != ignore_index
    logits = tl.load(logits_ptr + at, mask=inside & counts, other=0.0).to(tl.float32)
    dlogits = tl.exp(logits - tl.load(lse_ptr + row))
    if SMOOTHING:
        share = tl.where(columns == target, 1.0 - label_smoothing, 0.0)
        dlogits -= share + label_smoothing / V
    else:
        dlogits -= tl.where(columns == target, 1.0, 0.0)
    dloss = tl.load(dout_ptr + row * step).to(tl.float32)
    if rows_ptr is not None:
        dloss = dloss / tl.load(rows_ptr)
    dlogits = tl.where(counts, dlogits * dloss, 0.0)
    tl.store(dlogits_ptr + at, dlogits.to(dlogits_ptr.dtype.element_ty), mask=inside)
