"""Triton feed-forward of one block of hidden features a program, whose parts meet in float32 atomics."""

import triton
import triton.language as tl


@triton.jit
def ffn_kernel(
    x_ptr,  # (M, E)
    weight1_ptr,  # (F, E)
    bias1_ptr,  # (F,)
    weight2_ptr,  # (E, F)
    out_ptr,  # (M, E) float32, zeros
    hidden_ptr,  # (M, F)
    M,
    F,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_rows, in_features = rows[:, None] < M, features[None, :] < F
    pre = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
    for start in range(0, E, BLOCK_E):
        depth = start + tl.arange(0, BLOCK_E)
        x = tl.load(x_ptr + rows[:, None] * E + depth[None, :], mask=in_rows, other=0.0)
        weight = tl.load(
            weight1_ptr + features[None, :] * E + depth[:, None], mask=in_features, other=0.0
        )
        pre = tl.dot(x, weight, pre)
    pre += tl.load(bias1_ptr + features, mask=features < F, other=0.0).to(tl.float32)[None, :]
    hidden = pre * 0.5 * (1.0 + tl.erf(pre * 0.7071067811865476))
    hidden = tl.where(in_features, hidden, 0.0).to(x_ptr.dtype.element_ty)
    at = rows[:, None] * F + features[None, :]
    tl.store(hidden_ptr + at, hidden, mask=in_rows & in_features)
    for start in range(0, E, BLOCK_E):
        depth = start + tl.arange(0, BLOCK_E)
        weight = tl.load(
            weight2_ptr + depth[None, :] * F + features[:, None],
            mask=features[:, None] < F,
            other=0.0,
        )
        part = tl.dot(hidden, weight)
        tl.atomic_add(out_ptr + rows[:, None] * E + depth[None, :], part, mask=in_rows)
