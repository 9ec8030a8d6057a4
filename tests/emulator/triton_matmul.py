"""A Triton product of two matrices: cp.async and mma on sm_80, cp.async and wgmma on sm_90."""

import triton
import triton.language as tl


@triton.jit
def matmul_kernel(
    a_ptr,  # (M, K)
    b_ptr,  # (K, N), or (N, K) if TRANSPOSED
    out_ptr,  # (M, N) float32
    M,
    N,
    K,
    BLOCK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        depth = start + tl.arange(0, BLOCK)
        in_a = (rows[:, None] < M) & (depth[None, :] < K)
        in_b = (depth[:, None] < K) & (columns[None, :] < N)
        if TRANSPOSED:
            b_at = columns[None, :] * K + depth[:, None]
        else:
            b_at = depth[:, None] * N + columns[None, :]
        a = tl.load(a_ptr + rows[:, None] * K + depth[None, :], mask=in_a, other=0.0)
        b = tl.load(b_ptr + b_at, mask=in_b, other=0.0)
        total = tl.dot(a, b, total)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(out_ptr + rows[:, None] * N + columns[None, :], total, mask=inside)
