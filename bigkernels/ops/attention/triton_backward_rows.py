"""Triton kernel in front of attention's backward: the numbers of a query that the other kernels need.

delta is what the gradient of a weight is compared with. Weights are exp2(score - most) * weight: most
is the lse, and where that is so large that its rounding would show, what the scores say once more.
"""

import triton
import triton.language as tl

from bigkernels.ops.attention.triton_places import (
    DROPPED,
    SIZES,
    SUMMED,
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
    LOG2E,
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
    sink_of,
    trimmed,
    weigh,
    weights_tile,
    words_of,
)

# Above this size of lse its rounding shows beside that of the dtype: of float32, always.
LARGE_LSE_FLOAT32 = tl.constexpr(0.0)
LARGE_LSE = tl.constexpr(32.0)


@triton.jit
def _row_sums(x):
    """(N,) sums of the rows of x (N, at most 256), by pairs: an order that no layout of x changes."""
    for _ in tl.static_range(8):
        if x.shape[1] > 1:
            left, right = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
            x = left + right
    return tl.reshape(x, (x.shape[0],))


@triton.jit
def _largest(
    most, total, q, begin, end, first, i, memory, rule, extra,
    FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(largest exponent, sum of weights) of each row, as the forward finds them."""
    k_ptr, stride_kn = memory[0], memory[1]
    by = factor(rule.scale, FLAGS)
    totals = tl.zeros((i.shape[0], BLOCK_N), tl.float32)
    for start in tl.range(begin, end, BLOCK_N):
        k = load_rows(k_ptr, start, stride_kn, rule.keys, False, D, BLOCK_D, BLOCK_N)
        products = product(q, k, PRECISION)
        j = start + tl.arange(0, BLOCK_N)
        on = seen(i[:, None], j[None, :], rule, FLAGS)
        mask = mask_tile(i[:, None], j[None, :], first, start, on, extra)
        scores, addend, _ = scores_tile(
            products, mask, i[:, None], j[None, :], on, rule, extra, mask is not None, FLAGS
        )
        now, safe = rescaled(scores, addend, by, most, FLAGS)
        weights = weigh(scores, addend, by, safe[:, None], FLAGS)
        carry = tl.exp2(most - safe)
        total *= carry
        totals = totals * carry[:, None] + weights
        most = now
    return most, total + _row_sums(totals)


@triton.jit
def _summed(
    q, dout, most, weight, begin, end, first, i, memory, rule, extra, words, seeds, keep_scale,
    FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(delta, sum of weights) of each row: its weights times their gradients, without the rounding of out."""
    k_ptr, stride_kn, v_ptr, stride_vn = memory
    deltas = tl.zeros((i.shape[0], BLOCK_N), tl.float32)
    totals = tl.zeros((i.shape[0], BLOCK_N), tl.float32)
    for start in tl.range(begin, end, BLOCK_N):
        k = load_rows(k_ptr, start, stride_kn, rule.keys, False, D, BLOCK_D, BLOCK_N)
        v = load_rows(v_ptr, start, stride_vn, rule.keys, False, DV, BLOCK_DV, BLOCK_N)
        products = product(q, k, PRECISION)
        dweights = product(dout, v, PRECISION)
        j = start + tl.arange(0, BLOCK_N)
        on = seen(i[:, None], j[None, :], rule, FLAGS)
        mask = mask_tile(i[:, None], j[None, :], first, start, on, extra)
        weights, _ = weights_tile(
            products, mask, i[:, None], j[None, :], on, most[:, None], weight[:, None],
            rule, extra, mask is not None, FLAGS,
        )  # fmt: skip
        totals += weights
        if DROPPED & FLAGS:
            keep = keep_tile(start, words, seeds, FLAGS, i.shape[0], BLOCK_N)
            weights = tl.where(keep, weights * keep_scale, 0.0)
        deltas += weights * dweights
    return _row_sums(deltas), _row_sums(totals)


@triton.jit
def row_statistics(
    rows,  # pointers to the head's q, dout and out, each followed by its stride of rows
    at,  # of the head's queries in
    given,  # lse, and dlse or None
    results,  # delta, most, weight
    sinks_ptr,
    head,
    begin,
    end,
    first,
    i,  # (BLOCK_M,): queries from first on
    memory,
    rule,
    extra,
    words,
    seeds,
    keep_scale,
    FLAGS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Writes the three numbers of each query, whose keys lie in begin .. end."""
    q_ptr, stride_qm, dout_ptr, stride_gm, out_ptr, stride_om = rows
    lse_ptr, dlse_ptr = given
    delta_ptr, most_ptr, weight_ptr = results
    queries = rule.queries
    at += i
    dout = load_rows(dout_ptr, first, stride_gm, queries, False, DV, BLOCK_DV, BLOCK_M)
    lse = tl.load(lse_ptr + at, mask=i < queries, other=0.0)
    most = tl.where(lse == float("-inf"), 0.0, lse * LOG2E)
    weight = tl.full((BLOCK_M,), 1.0, tl.float32)
    limit = LARGE_LSE_FLOAT32 if q_ptr.dtype.element_ty == tl.float32 else LARGE_LSE
    large = (tl.abs(lse) > limit) & (tl.abs(lse) < float("inf"))
    some = tl.max(large.to(tl.int32), 0)
    if some > 0:
        q = load_rows(q_ptr, first, stride_qm, queries, False, D, BLOCK_D, BLOCK_M)
        largest, total = before_keys(sinks_ptr, head, BLOCK_M)
        largest, total = _largest(
            largest, total, signed(q, FLAGS), begin, end, first, i, memory, rule, extra,
            FLAGS, PRECISION, D, BLOCK_D, BLOCK_N,
        )  # fmt: skip
        most = tl.where(large, largest, most)
        weight = tl.where(large, 1.0 / total, weight)
    if SUMMED & FLAGS:
        q = load_rows(q_ptr, first, stride_qm, queries, False, D, BLOCK_D, BLOCK_M)
        delta, total = _summed(
            signed(q, FLAGS), dout, most, weight, begin, end, first, i, memory, rule, extra, words, seeds,
            keep_scale, FLAGS, PRECISION, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N,
        )  # fmt: skip
        # The gradient of a float32 bias shows the rounding of lse, whatever its size.
        if sinks_ptr is not None:
            total += tl.exp2(sink_of(sinks_ptr, head) - most) * weight
        total = tl.where(total == 0.0, 1.0, total)
        delta, weight = delta / total, weight / total
    else:
        out = load_rows(out_ptr, first, stride_om, queries, False, DV, BLOCK_DV, BLOCK_M)
        delta = _row_sums(out.to(tl.float32) * dout.to(tl.float32))
    if dlse_ptr is not None:
        delta -= tl.load(dlse_ptr + at, mask=i < queries, other=0.0)
    tl.store(delta_ptr + at, delta, mask=i < queries)
    tl.store(most_ptr + at, most, mask=i < queries)
    tl.store(weight_ptr + at, weight, mask=i < queries)


@triton.jit(do_not_specialize=SIZES)
def attention_backward_rows_kernel(
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
    part_ptr,  # (B, H, Lq, BLOCK_D) or (H, T, BLOCK_D) float32, which others add dq to, or None
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
    begin, _, end = keys_seen(first, rule, BLOCK_M, BLOCK_N)
    if mask_ptr is not None:
        end = trimmed(begin, end, extra, BLOCK_N)
    memory = (k_ptr, stride_kn * UNIT, v_ptr, stride_vn * UNIT)
    out_ptr = head_of(out_ptr, sample, head, first_q, stride_ob, stride_oh, stride_om)
    rows = (q_ptr, stride_qm * UNIT, dout_ptr, stride_gm * UNIT, out_ptr, stride_om * UNIT)
    at = statistics_of(0, sample, head, first_q, stride_lb, stride_lh)
    if part_ptr is not None:
        nothing = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        store_rows(part_ptr + at * BLOCK_D, nothing, first, BLOCK_D, queries, D)
    row_statistics(
        rows, at, (lse_ptr, dlse_ptr), (delta_ptr, most_ptr, weight_ptr), sinks_ptr,
        head, begin, end, first, i, memory, rule, extra, words, seeds, keep_scale,
        FLAGS, PRECISION, D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
    )  # fmt: skip
