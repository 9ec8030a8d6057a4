"""Triton kernel of attention's backward for queries: a program sums dq of its queries over the keys."""

import triton
import triton.language as tl

from bigkernels.ops.attention.triton_places import (
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
    Extra,
    dscores_tile,
    keep_tile,
    mask_of,
    mask_tile,
    number_of,
    product,
    signed,
    statistics,
    trimmed,
    weights_tile,
    words_of,
)
from bigkernels.ops.triton_sums import add_product


@triton.jit
def _gather(
    dq,  # (BLOCK_M, BLOCK_D) float32
    q,  # (BLOCK_M, BLOCK_D)
    dout,  # (BLOCK_M, BLOCK_DV)
    begin, end, first, i, memory, rule, extra, words, seeds, numbers, keep_scale,
    WHOLE: tl.constexpr,  # all of these keys are on for all queries, and there is no mask
    FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    k_ptr, stride_kn, v_ptr, stride_vn = memory
    delta, most, weight = numbers
    for start in tl.range(begin, end, BLOCK_N):
        k = load_rows(k_ptr, start, stride_kn, rule.keys, WHOLE, D, BLOCK_D, BLOCK_N)
        v = load_rows(v_ptr, start, stride_vn, rule.keys, WHOLE, DV, BLOCK_DV, BLOCK_N)
        products = product(q, k, PRECISION)
        dweights = product(dout, v, PRECISION)
        j = start + tl.arange(0, BLOCK_N)
        on = seen(i[:, None], j[None, :], rule, FLAGS)
        mask = mask_tile(i[:, None], j[None, :], first, start, on, extra)
        weights, slope = weights_tile(
            products, mask, i[:, None], j[None, :], on, most[:, None], weight[:, None],
            rule, extra, WHOLE or mask is not None, FLAGS,
        )  # fmt: skip
        keep = keep_tile(start, words, seeds, FLAGS, i.shape[0], BLOCK_N)
        _, dscores = dscores_tile(weights, slope, dweights, delta[:, None], keep, keep_scale, FLAGS)
        dq = add_product(dq, dscores.to(k.dtype), k, PRECISION)
    return dq


@triton.jit(do_not_specialize=SIZES)
def attention_backward_query_kernel(
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
    dq_ptr,  # as q
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gm,
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
    head_kv = head // group
    q_ptr = head_of(q_ptr, sample, head, first_q, stride_qb, stride_qh, stride_qm)
    k_ptr = head_of(k_ptr, sample, head_kv, first_k, stride_kb, stride_kh, stride_kn)
    v_ptr = head_of(v_ptr, sample, head_kv, first_k, stride_vb, stride_vh, stride_vn)
    dout_ptr = head_of(dout_ptr, sample, head, first_q, stride_gb, stride_gh, stride_gm)
    of_mask = mask_of(mask_ptr, sample, head, stride_mb, stride_mh)
    extra = Extra(of_mask, stride_mq, stride_mk, slopes_ptr, number_of(slopes_ptr, head))
    i = first + tl.arange(0, BLOCK_M)
    row = first_row(sample, first_q, Lq, cu_q_ptr)
    words = words_of(rows_ptr, sample, head, heads, row, i, queries, FLAGS)
    seeds = (seed_ptr, offset_ptr, threshold)
    begin, all_end, end = keys_seen(first, rule, BLOCK_M, BLOCK_N)
    if mask_ptr is not None:
        all_end, end = begin, trimmed(begin, end, extra, BLOCK_N)
    memory = (k_ptr, stride_kn * UNIT, v_ptr, stride_vn * UNIT)
    at = statistics_of(0, sample, head, first_q, stride_lb, stride_lh)
    numbers = statistics(delta_ptr, most_ptr, weight_ptr, at, i, queries)
    q = load_rows(q_ptr, first, stride_qm * UNIT, queries, False, D, BLOCK_D, BLOCK_M)
    q = signed(q, FLAGS)
    dout = load_rows(dout_ptr, first, stride_gm * UNIT, queries, False, DV, BLOCK_DV, BLOCK_M)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if mask_ptr is None:
        dq = _gather(
            dq, q, dout, begin, all_end, first, i, memory, rule, extra, words, seeds, numbers, keep_scale,
            True, FLAGS, PRECISION, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N,
        )  # fmt: skip
    dq = _gather(
        dq, q, dout, all_end, end, first, i, memory, rule, extra, words, seeds, numbers, keep_scale,
        False, FLAGS, PRECISION, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N,
    )  # fmt: skip
    dq_ptr = head_of(dq_ptr, sample, head, first_q, stride_ob, stride_oh, stride_om)
    store_rows(dq_ptr, dq * scale, first, stride_om * UNIT, queries, D)
