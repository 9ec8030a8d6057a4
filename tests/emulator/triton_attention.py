"""Triton attention with an online softmax, masks and pipelined loads: what a drawer's kernel will look like."""

import triton
import triton.language as tl


@triton.jit
def attention_kernel(
    q_ptr,  # (B * H, Lq, D)
    k_ptr,  # (B * H, Lk, D)
    v_ptr,  # (B * H, Lk, D)
    lengths_ptr,  # (B * H,) keys from here on are off
    out_ptr,  # (B * H, Lq, D)
    lse_ptr,  # (B * H, Lq) float32
    scale,
    Lq,
    Lk,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, D)
    length = tl.minimum(tl.load(lengths_ptr + head), Lk)
    inside = rows[:, None] < Lq
    q_at = (head * Lq + rows[:, None]) * D + depth[None, :]
    q = tl.load(q_ptr + q_at, mask=inside, other=0.0)
    most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, D), tl.float32)
    end = length
    if CAUSAL:
        end = tl.minimum(length, (tl.program_id(0) + 1) * BLOCK_M)
    for start in range(0, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        at = (head * Lk + columns[:, None]) * D + depth[None, :]
        k = tl.load(k_ptr + at, mask=columns[:, None] < length, other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        keep = columns[None, :] < length
        if CAUSAL:
            keep &= columns[None, :] <= rows[:, None]
        scores = tl.where(keep, scores, float("-inf"))
        now = tl.maximum(most, tl.max(scores, 1))
        shift = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp(scores - shift[:, None])
        before = tl.exp(most - shift)
        total = total * before + tl.sum(weights, 1)
        v = tl.load(v_ptr + at, mask=columns[:, None] < length, other=0.0)
        sums = tl.dot(weights.to(v.dtype), v, sums * before[:, None])
        most = now
    dead = total == 0.0
    out = sums / tl.where(dead, 1.0, total)[:, None]
    tl.store(out_ptr + q_at, out.to(out_ptr.dtype.element_ty), mask=inside)
    lse = tl.where(dead, float("-inf"), most + tl.log(tl.where(dead, 1.0, total)))
    tl.store(lse_ptr + head * Lq + rows, lse, mask=rows < Lq)
