"""Triton kernel of attention's forward, dense and packed: an online softmax over blocks of keys.

Blocks of keys begin at multiples of BLOCK_N, and a key that is off adds exact zeros: a row's bits
depend on its query and the keys that are on. See triton_tiles.py for what the kernels share.
"""

import triton
import triton.language as tl

from bigkernels.ops.attention.triton_places import (
    DROPPED,
    SIZES,
    UNIT,
    first_row,
    head_of,
    load_rows,
    locate,
    statistics_of,
    store_rows,
)
from bigkernels.ops.attention.triton_ranges import keys_seen, rule_of, seen
from bigkernels.ops.attention.triton_tiles import (
    LARGEST,
    LN2,
    Extra,
    before_keys,
    factor,
    keep_tile,
    mask_of,
    mask_tile,
    number_of,
    product,
    rescaled,
    scores_tile,
    signed,
    trimmed,
    weigh,
    words_of,
)
from bigkernels.ops.triton_sums import add_product


@triton.jit
def _attend(
    out,  # (BLOCK_M, BLOCK_DV) float32
    total,  # (BLOCK_M,)
    most,  # (BLOCK_M,)
    q,  # (BLOCK_M, BLOCK_D)
    begin,
    end,
    first,
    i,  # (BLOCK_M,): queries from first on
    memory,
    rule,
    extra,
    words,
    seeds,
    WHOLE: tl.constexpr,  # all of these keys are on for all queries, and there is no mask
    FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    k_ptr, stride_kn, v_ptr, stride_vn = memory
    by = factor(rule.scale, FLAGS)
    for start in tl.range(begin, end, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        on = seen(i[:, None], j[None, :], rule, FLAGS)
        # Behind the product, the order in which a row's weights are added up would be the mask's.
        mask = mask_tile(i[:, None], j[None, :], first, start, on, extra)
        k = load_rows(k_ptr, start, stride_kn, rule.keys, WHOLE, D, BLOCK_D, BLOCK_N)
        products = product(q, k, PRECISION)
        scores, addend, _ = scores_tile(
            products,
            mask,
            i[:, None],
            j[None, :],
            on,
            rule,
            extra,
            WHOLE or mask is not None,
            FLAGS,
        )
        now, safe = rescaled(scores, addend, by, most, FLAGS)
        weights = weigh(scores, addend, by, safe[:, None], FLAGS)
        carry = tl.exp2(most - safe)
        total = total * carry + tl.sum(weights, 1)
        if DROPPED & FLAGS:
            keep = keep_tile(start, words, seeds, FLAGS, i.shape[0], BLOCK_N)
            weights = tl.where(keep, weights, 0.0)
        v = load_rows(v_ptr, start, stride_vn, rule.keys, WHOLE, DV, BLOCK_DV, BLOCK_N)
        out = add_product(out * carry[:, None], weights.to(v.dtype), v, PRECISION)
        most = now
    return out, total, most


@triton.jit(do_not_specialize=SIZES)
def attention_forward_kernel(
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
    out_ptr,  # as q, with DV
    lse_ptr,  # (B, H, Lq) or (H, T) float32
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om,
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
    sample, head, tile, first_q, first_k, queries, keys = locate(
        tiles, heads, batch, Lq, Lk, cu_q_ptr, cu_k_ptr, False, BLOCK_M
    )
    first = tile * BLOCK_M
    if first >= queries:
        return
    rule = rule_of(sample, queries, keys, lengths_ptr, left, right, bottom_right, scale, softcap)
    q_ptr = head_of(q_ptr, sample, head, first_q, stride_qb, stride_qh, stride_qm)
    k_ptr = head_of(k_ptr, sample, head // group, first_k, stride_kb, stride_kh, stride_kn)
    v_ptr = head_of(v_ptr, sample, head // group, first_k, stride_vb, stride_vh, stride_vn)
    out_ptr = head_of(out_ptr, sample, head, first_q, stride_ob, stride_oh, stride_om)
    memory = (k_ptr, stride_kn * UNIT, v_ptr, stride_vn * UNIT)
    of_mask = mask_of(mask_ptr, sample, head, stride_mb, stride_mh)
    extra = Extra(of_mask, stride_mq, stride_mk, slopes_ptr, number_of(slopes_ptr, head))
    i = first + tl.arange(0, BLOCK_M)
    row = first_row(sample, first_q, Lq, cu_q_ptr)
    words = words_of(rows_ptr, sample, head, heads, row, i, queries, FLAGS)
    seeds = (seed_ptr, offset_ptr, threshold)
    q = load_rows(q_ptr, first, stride_qm * UNIT, queries, False, D, BLOCK_D, BLOCK_M)
    q = signed(q, FLAGS)

    out = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    most, total = before_keys(sinks_ptr, head, BLOCK_M)
    begin, all_end, end = keys_seen(first, rule, BLOCK_M, BLOCK_N)
    if mask_ptr is not None:
        all_end, end = begin, trimmed(begin, end, extra, BLOCK_N)
    if mask_ptr is None:
        out, total, most = _attend(
            out, total, most, q, begin, all_end, first, i, memory, rule, extra, words, seeds,
            True, FLAGS, PRECISION, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N,
        )  # fmt: skip
    out, total, most = _attend(
        out, total, most, q, all_end, end, first, i, memory, rule, extra, words, seeds,
        False, FLAGS, PRECISION, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N,
    )  # fmt: skip
    dead = total == 0.0
    if sinks_ptr is not None:  # which rows behind the last sequence do not have either
        dead |= sample == batch
    safe = tl.where(dead, 1.0, total)
    out = out / safe[:, None]
    if DROPPED & FLAGS:
        out *= keep_scale
    store_rows(out_ptr, out, first, stride_om * UNIT, queries, DV)
    # In units of log 2 the ends of the range, a mask's least number for one, are not to be had: they were cut off.
    lse = (most + tl.log2(safe)) * tl.where(tl.abs(most) == LARGEST, 1.0, LN2)
    lse = tl.where(dead, float("-inf"), lse)
    lse_ptr = statistics_of(lse_ptr, sample, head, first_q, stride_lb, stride_lh)
    tl.store(lse_ptr + i, lse, mask=i < queries)
