"""Triton kernel of attention's backward for short sequences: a program has all queries of a sequence and of the
heads that share its keys, and does what the kernels for rows, queries and keys do, with five products instead of
seven and each input read from memory once.

Triton knows no shared memory that a loop could index. So keys are held, as many as registers have room for the
sums of, and queries go past them: dq of a tile is whole at once where one block holds all keys, and else goes
through float32 that this program alone reads and writes, block after block: no atomics, one order.
"""

import triton
import triton.language as tl

from bigkernels.ops.attention.triton_backward_rows import row_statistics
from bigkernels.ops.attention.triton_places import (
    SIZES,
    UNIT,
    clear_rows,
    extent,
    first_row,
    head_of,
    load_rows,
    share_behind,
    statistics_of,
    store_rows,
)
from bigkernels.ops.attention.triton_ranges import (
    keys_seen,
    queries_seeing,
    rule_of,
    seen_by,
    seers,
)
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
    weights_tile,
    words_of,
)

# Keys at a time where the numbers of a query are computed from scores.
ROWS_N = tl.constexpr(32)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_short_kernel(
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
    out_ptr,  # as q, with DV
    lse_ptr,  # (B, H, Lq) or (H, T) float32, likewise below
    dlse_ptr,  # or None
    delta_ptr,
    most_ptr,
    weight_ptr,
    part_ptr,  # (B, H, Lq, BLOCK_D) or (H, T, BLOCK_D) float32; not used if BLOCK_N holds all keys of a sequence
    dq_ptr,  # as q
    dk_ptr,  # as k
    dv_ptr,  # as v
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gm,
    stride_ob, stride_oh, stride_om,
    stride_dqb, stride_dqh, stride_dqm,
    stride_dkb, stride_dkh, stride_dkn,
    stride_dvb, stride_dvh, stride_dvn,
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
    ROWS_M: tl.constexpr,
):  # fmt: skip
    heads_kv = heads // group
    sample = tl.program_id(0) // heads_kv
    head_kv = tl.program_id(0) % heads_kv
    if cu_q_ptr is not None:
        share_q = share_behind(cu_q_ptr, sample, batch, Lq)
        share_k = share_behind(cu_k_ptr, sample, batch, Lk)
        for head in range(head_kv * group, head_kv * group + group):
            clear_rows(dq_ptr, head, share_q, stride_dqh, stride_dqm, D, BLOCK_D, ROWS_M)
        clear_rows(dk_ptr, head_kv, share_k, stride_dkh, stride_dkn, D, BLOCK_D, ROWS_M)
        clear_rows(dv_ptr, head_kv, share_k, stride_dvh, stride_dvn, DV, BLOCK_DV, ROWS_M)
    first_q, first_k, queries, all_keys = extent(sample, batch, Lq, Lk, cu_q_ptr, cu_k_ptr, True)
    rule = rule_of(
        sample, queries, all_keys, lengths_ptr, left, right, bottom_right, scale, softcap
    )
    k_ptr = head_of(k_ptr, sample, head_kv, first_k, stride_kb, stride_kh, stride_kn)
    v_ptr = head_of(v_ptr, sample, head_kv, first_k, stride_vb, stride_vh, stride_vn)
    memory = (k_ptr, stride_kn * UNIT, v_ptr, stride_vn * UNIT)
    row = first_row(sample, first_q, Lq, cu_q_ptr)
    seeds = (seed_ptr, offset_ptr, threshold)
    steps = tl.cdiv(queries, ROWS_M)
    for turn in range(0, group * steps):
        head = head_kv * group + turn // steps
        first = turn % steps * ROWS_M
        i = first + tl.arange(0, ROWS_M)
        of_q = head_of(q_ptr, sample, head, first_q, stride_qb, stride_qh, stride_qm)
        of_dout = head_of(dout_ptr, sample, head, first_q, stride_gb, stride_gh, stride_gm)
        of_out = head_of(out_ptr, sample, head, first_q, stride_ob, stride_oh, stride_om)
        at = statistics_of(0, sample, head, first_q, stride_lb, stride_lh)
        of_mask = mask_of(mask_ptr, sample, head, stride_mb, stride_mh)
        extra = Extra(of_mask, stride_mq, stride_mk, slopes_ptr, number_of(slopes_ptr, head))
        begin, _, end = keys_seen(first, rule, ROWS_M, ROWS_N)
        row_statistics(
            (of_q, stride_qm * UNIT, of_dout, stride_gm * UNIT, of_out, stride_om * UNIT),
            at, (lse_ptr, dlse_ptr), (delta_ptr, most_ptr, weight_ptr), sinks_ptr,
            head, begin, end, first, i, memory, rule, extra,
            words_of(rows_ptr, sample, head, heads, row, i, queries, FLAGS), seeds, keep_scale,
            FLAGS, PRECISION, D, DV, BLOCK_D, BLOCK_DV, ROWS_M, ROWS_N,
        )  # fmt: skip
    for first in range(0, tl.maximum(all_keys, 1), BLOCK_N):
        tl.debug_barrier()  # what other threads have written, the numbers above or dq, is read below
        k = load_rows(k_ptr, first, stride_kn * UNIT, rule.keys, False, D, BLOCK_D, BLOCK_N)
        v = load_rows(v_ptr, first, stride_vn * UNIT, rule.keys, False, DV, BLOCK_DV, BLOCK_N)
        k = signed(k, FLAGS)
        begin, end = 0, queries  # the first keys meet all, so that each has a dq
        if first > 0:
            begin, end = queries_seeing(first, rule, BLOCK_M, BLOCK_N)
        steps = tl.cdiv(end - begin, BLOCK_M)
        j = first + tl.arange(0, BLOCK_N)
        first_i, last_i = seers(j, rule, FLAGS)
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        for turn in tl.range(0, group * steps):
            head = head_kv * group + turn // steps
            start = begin + turn % steps * BLOCK_M
            i = start + tl.arange(0, BLOCK_M)
            of_q = head_of(q_ptr, sample, head, first_q, stride_qb, stride_qh, stride_qm)
            of_dout = head_of(dout_ptr, sample, head, first_q, stride_gb, stride_gh, stride_gm)
            of_dq = head_of(dq_ptr, sample, head, first_q, stride_dqb, stride_dqh, stride_dqm)
            at = statistics_of(0, sample, head, first_q, stride_lb, stride_lh)
            q = load_rows(of_q, start, stride_qm * UNIT, queries, False, D, BLOCK_D, BLOCK_M)
            dout = load_rows(
                of_dout, start, stride_gm * UNIT, queries, False, DV, BLOCK_DV, BLOCK_M
            )
            of_mask = mask_of(mask_ptr, sample, head, stride_mb, stride_mh)
            extra = Extra(of_mask, stride_mq, stride_mk, slopes_ptr, number_of(slopes_ptr, head))
            on = seen_by(i[None, :], first_i[:, None], last_i[:, None], FLAGS)
            mask = mask_tile(i[None, :], j[:, None], start, first, on, extra)
            products = product(k, q, PRECISION)
            # Read in front of the products, the numbers of the queries take registers that there are not.
            most = tl.load(most_ptr + at + i, mask=i < queries, other=0.0)
            weight = tl.load(weight_ptr + at + i, mask=i < queries, other=0.0)
            weights, slope = weights_tile(
                products, mask, i[None, :], j[:, None], on, most[None, :], weight[None, :],
                rule, extra, mask is not None, FLAGS,
            )  # fmt: skip
            dweights = product(v, dout, PRECISION)
            delta = tl.load(delta_ptr + at + i, mask=i < queries, other=0.0)
            words = words_of(rows_ptr, sample, head, heads, row, i, queries, FLAGS)
            keep = tl.trans(keep_tile(first, words, seeds, FLAGS, BLOCK_M, BLOCK_N))
            kept, dscores = dscores_tile(
                weights, slope, dweights, delta[None, :], keep, keep_scale, FLAGS
            )
            dv = tl.dot(pinned(kept.to(dout.dtype), FLAGS), dout, dv, input_precision=PRECISION)
            dscores = pinned(dscores.to(q.dtype), FLAGS)
            dk = tl.dot(dscores, q, dk, input_precision=PRECISION)
            part = part_ptr + at * BLOCK_D
            known = tl.where(first > 0, queries, 0)
            dq = load_rows(part, start, BLOCK_D, known, False, D, BLOCK_D, BLOCK_M)
            dq = tl.dot(tl.trans(dscores), k, dq, input_precision=PRECISION)
            wanted = tl.where(first + BLOCK_N < all_keys, queries, 0)
            store_rows(part, dq, start, BLOCK_D, wanted, D)
            store_rows(of_dq, dq * tl.abs(scale), start, stride_dqm * UNIT, queries, D)
        of_dk = head_of(dk_ptr, sample, head_kv, first_k, stride_dkb, stride_dkh, stride_dkn)
        of_dv = head_of(dv_ptr, sample, head_kv, first_k, stride_dvb, stride_dvh, stride_dvn)
        store_rows(of_dk, dk * scale, first, stride_dkn * UNIT, all_keys, D)
        store_rows(of_dv, dv, first, stride_dvn * UNIT, all_keys, DV)
