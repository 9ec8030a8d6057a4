"""Triton kernel of attention's backward for keys: a program sums dk and dv of its keys over the
queries of all heads that share them,
on transposed tiles of scores."""

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
from bigkernels.ops.attention.triton_ranges import queries_seeing, rule_of, seen, seen_by, seers
from bigkernels.ops.attention.triton_tiles import (
    Extra,
    dscores_tile,
    keep_tile,
    mask_of,
    mask_tile,
    number_of,
    pinned,
    product,
    signed,
    statistics,
    weights_tile,
    words_of,
)
from bigkernels.ops.triton_sums import add_product


@triton.jit(do_not_specialize=SIZES)
def attention_backward_key_kernel(
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
    dk_ptr,  # as k
    dv_ptr,  # as v
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gm,
    stride_ob, stride_oh, stride_om,
    stride_pb, stride_ph, stride_pm,
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
    sample, head_kv, tile, first_q, first_k, queries, all_keys = locate(
        tiles, heads // group, batch, Lq, Lk, cu_q_ptr, cu_k_ptr, True, BLOCK_N
    )
    first = tile * BLOCK_N
    if first >= all_keys:
        return
    rule = rule_of(
        sample, queries, all_keys, lengths_ptr, left, right, bottom_right, scale, softcap
    )
    k_ptr = head_of(k_ptr, sample, head_kv, first_k, stride_kb, stride_kh, stride_kn)
    v_ptr = head_of(v_ptr, sample, head_kv, first_k, stride_vb, stride_vh, stride_vn)
    k = load_rows(k_ptr, first, stride_kn * UNIT, rule.keys, False, D, BLOCK_D, BLOCK_N)
    v = load_rows(v_ptr, first, stride_vn * UNIT, rule.keys, False, DV, BLOCK_DV, BLOCK_N)
    k = signed(k, FLAGS)
    j = first + tl.arange(0, BLOCK_N)
    first_i, last_i = seers(j, rule, FLAGS)
    row = first_row(sample, first_q, Lq, cu_q_ptr)
    seeds = (seed_ptr, offset_ptr, threshold)
    begin, end = queries_seeing(first, rule, BLOCK_M, BLOCK_N)
    steps = tl.cdiv(end - begin, BLOCK_M)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    # One loop over heads and queries, masked throughout: nested or split, its code spills registers.
    for turn in tl.range(0, group * steps):
        head = head_kv * group + turn // steps
        start = begin + turn % steps * BLOCK_M
        i = start + tl.arange(0, BLOCK_M)
        of_q = head_of(q_ptr, sample, head, first_q, stride_qb, stride_qh, stride_qm)
        of_dout = head_of(dout_ptr, sample, head, first_q, stride_gb, stride_gh, stride_gm)
        at = statistics_of(0, sample, head, first_q, stride_lb, stride_lh)
        q = load_rows(of_q, start, stride_qm * UNIT, queries, False, D, BLOCK_D, BLOCK_M)
        dout = load_rows(of_dout, start, stride_gm * UNIT, queries, False, DV, BLOCK_DV, BLOCK_M)
        delta, most, weight = statistics(delta_ptr, most_ptr, weight_ptr, at, i, queries)
        of_mask = mask_of(mask_ptr, sample, head, stride_mb, stride_mh)
        extra = Extra(of_mask, stride_mq, stride_mk, slopes_ptr, number_of(slopes_ptr, head))
        products = product(k, q, PRECISION)
        dweights = product(v, dout, PRECISION)
        if mask_ptr is None:
            on = seen_by(i[None, :], first_i[:, None], last_i[:, None], FLAGS)
        else:  # a mask leaves no registers for their bounds
            on = seen(i[None, :], j[:, None], rule, FLAGS)
        mask = mask_tile(i[None, :], j[:, None], start, first, on, extra)
        weights, slope = weights_tile(
            products, mask, i[None, :], j[:, None], on, most[None, :], weight[None, :],
            rule, extra, False, FLAGS,
        )  # fmt: skip
        words = words_of(rows_ptr, sample, head, heads, row, i, queries, FLAGS)
        keep = tl.trans(keep_tile(first, words, seeds, FLAGS, BLOCK_M, BLOCK_N))
        kept, dscores = dscores_tile(
            weights, slope, dweights, delta[None, :], keep, keep_scale, FLAGS
        )
        dv = add_product(dv, pinned(kept.to(dout.dtype), FLAGS), dout, PRECISION)
        dk = add_product(dk, pinned(dscores.to(q.dtype), FLAGS), q, PRECISION)
    dk_ptr = head_of(dk_ptr, sample, head_kv, first_k, stride_ob, stride_oh, stride_om)
    dv_ptr = head_of(dv_ptr, sample, head_kv, first_k, stride_pb, stride_ph, stride_pm)
    store_rows(dk_ptr, dk * scale, first, stride_om * UNIT, all_keys, D)
    store_rows(dv_ptr, dv, first, stride_pm * UNIT, all_keys, DV)
