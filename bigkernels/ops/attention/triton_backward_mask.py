"""Triton kernel of the gradient of an additive mask: a program sums a tile of it over all samples, heads,
queries and keys that share its elements, in a fixed order."""

import triton
import triton.language as tl

from bigkernels.ops.attention.triton_places import (
    SIZES,
    UNIT,
    first_row,
    head_of,
    load_rows,
    statistics_of,
)
from bigkernels.ops.attention.triton_ranges import rule_of, seen
from bigkernels.ops.attention.triton_tiles import (
    Extra,
    dscores_tile,
    keep_tile,
    mask_of,
    mask_tile,
    number_of,
    product,
    signed,
    statistics,
    weights_tile,
    words_of,
)


@triton.jit(do_not_specialize=(*SIZES, "mask_batch", "mask_heads", "mask_queries", "mask_keys"))
def attention_backward_mask_kernel(
    q_ptr,  # (B, H, Lq, D) or packed (T, H, D)
    k_ptr,  # (B, Hkv, Lk, D) or (Tk, Hkv, D)
    v_ptr,  # (B, Hkv, Lk, DV) or (Tk, Hkv, DV)
    mask_ptr,  # (B, H, Lq, Lk), int8 (not 0: on) or additive, or None
    lengths_ptr,  # (B,) or None
    cu_q_ptr,  # (B + 1,) or, of the dense form, None
    cu_k_ptr,
    slopes_ptr,  # (H,) or None
    sinks_ptr,  # (H,) or None
    seed_ptr,
    offset_ptr,
    rows_ptr,  # (B * Lq,) or (T,) int64, sample << 32 | position, or None
    dout_ptr,  # as out
    delta_ptr,  # (B, H, Lq) or (H, T) float32, likewise below
    most_ptr,
    weight_ptr,
    dmask_ptr,  # as the mask, contiguous
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gm,
    mask_batch, mask_heads, mask_queries, mask_keys,
    stride_mb, stride_mh, stride_mq, stride_mk,
    stride_lb, stride_lh,
    tiles, batch, heads, group, Lq, Lk, left, right, bottom_right,
    scale, softcap, threshold: tl.int64, keep_scale,
    FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row_tiles, column_tiles = tl.cdiv(mask_queries, BLOCK_M), tl.cdiv(mask_keys, BLOCK_N)
    own_j = program % column_tiles
    own_i = program // column_tiles % row_tiles
    own_h = program // (column_tiles * row_tiles) % mask_heads
    own_b = program // (column_tiles * row_tiles * mask_heads)
    # How often the mask repeats along each dimension; tiles of a broadcast one are summed into the first.
    along_b, along_h = batch // mask_batch, heads // mask_heads
    along_i = tl.cdiv(Lq, BLOCK_M) if mask_queries == 1 else 1
    along_j = tl.cdiv(Lk, BLOCK_N) if mask_keys == 1 else 1
    seeds = (seed_ptr, offset_ptr, threshold)
    dmask = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for turn in range(0, along_b * along_h * along_i * along_j):
        first_j = (own_j + turn % along_j) * BLOCK_N
        first_i = (own_i + turn // along_j % along_i) * BLOCK_M
        head = own_h + turn // (along_j * along_i) % along_h
        sample = own_b + turn // (along_j * along_i * along_h)
        rule = rule_of(sample, Lq, Lk, lengths_ptr, left, right, bottom_right, scale, softcap)
        i = first_i + tl.arange(0, BLOCK_M)
        j = first_j + tl.arange(0, BLOCK_N)
        last_i = tl.minimum(first_i + BLOCK_M, Lq) - 1
        last_j = tl.minimum(first_j + BLOCK_N, rule.keys) - 1
        some = (first_j <= last_i + rule.shift + right) & (last_j >= first_i + rule.shift - left)
        if some & (first_j < rule.keys):
            head_kv = head // group
            q = load_rows(
                head_of(q_ptr, sample, head, 0, stride_qb, stride_qh, stride_qm),
                first_i, stride_qm * UNIT, Lq, False, D, BLOCK_D, BLOCK_M,
            )  # fmt: skip
            k = load_rows(
                head_of(k_ptr, sample, head_kv, 0, stride_kb, stride_kh, stride_kn),
                first_j, stride_kn * UNIT, rule.keys, False, D, BLOCK_D, BLOCK_N,
            )  # fmt: skip
            products = product(signed(q, FLAGS), k, PRECISION)
            dout = load_rows(
                head_of(dout_ptr, sample, head, 0, stride_gb, stride_gh, stride_gm),
                first_i, stride_gm * UNIT, Lq, False, DV, BLOCK_DV, BLOCK_M,
            )  # fmt: skip
            v = load_rows(
                head_of(v_ptr, sample, head_kv, 0, stride_vb, stride_vh, stride_vn),
                first_j, stride_vn * UNIT, rule.keys, False, DV, BLOCK_DV, BLOCK_N,
            )  # fmt: skip
            dweights = product(dout, v, PRECISION)
            at = statistics_of(0, sample, head, 0, stride_lb, stride_lh)
            delta, most, weight = statistics(delta_ptr, most_ptr, weight_ptr, at, i, Lq)
            of_mask = mask_of(mask_ptr, sample, head, stride_mb, stride_mh)
            extra = Extra(of_mask, stride_mq, stride_mk, slopes_ptr, number_of(slopes_ptr, head))
            on = seen(i[:, None], j[None, :], rule, FLAGS)
            row = first_row(sample, 0, Lq, cu_q_ptr)
            words = words_of(rows_ptr, sample, head, heads, row, i, Lq, FLAGS)
            keep = keep_tile(first_j, words, seeds, FLAGS, BLOCK_M, BLOCK_N)
            mask = mask_tile(i[:, None], j[None, :], first_i, first_j, on, extra)
            weights, _ = weights_tile(
                products, mask, i[:, None], j[None, :], on, most[:, None], weight[:, None],
                rule, extra, mask is not None, FLAGS,
            )  # fmt: skip
            # The mask is added behind the softcap, whose slope is none of its gradient.
            _, dscores = dscores_tile(
                weights, 1.0, dweights, delta[:, None], keep, keep_scale, FLAGS
            )
            dmask += dscores
    if mask_queries == 1:
        dmask = tl.zeros_like(dmask) + tl.sum(dmask, 0)[None, :]
    if mask_keys == 1:
        dmask = tl.zeros_like(dmask) + tl.sum(dmask, 1)[:, None]
    i = own_i * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    j = own_j * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    at = (tl.cast(own_b, tl.int64) * mask_heads + own_h) * mask_queries
    at = dmask_ptr + ((at + i) * mask_keys + j)
    inside = (i < mask_queries) & (j < mask_keys)
    tl.store(at, dmask.to(dmask_ptr.dtype.element_ty), mask=inside)
