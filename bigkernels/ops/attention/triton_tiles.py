"""What the Triton kernels of attention share: scores, their gradients, and what these add to keys.

Scores are in units of log 2, because the hardware's exponential is exp2.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from bigkernels.ops.attention.triton_places import (
    ADDED,
    DROPPED,
    NEGATIVE,
    PINNED,
    SOFTCAPPED,
    statistics_of,
)
from bigkernels.ops.triton_philox import keep_mask

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(3.4028234663852886e38)
# An addend this large leaves of a score a multiple of 16. What is rounded off below it may be an exponent in float16.
LARGE_ADDEND = tl.constexpr(2.0**27)


class Extra(NamedTuple):
    """What a head's scores get from a mask and from ALiBi."""

    mask_ptr: Any
    stride_mq: Any
    stride_mk: Any
    slopes_ptr: Any
    slope: Any


@triton.jit
def mask_of(mask_ptr, sample, head, stride_mb, stride_mh):
    """Where a head's mask begins; None if there is none."""
    found = None
    if mask_ptr is not None:
        found = statistics_of(mask_ptr, sample, head, 0, stride_mb, stride_mh)
    return found


@triton.jit
def number_of(ptr, head):
    """A head's number; 0 where there are none."""
    number = 0.0
    if ptr is not None:
        number = tl.load(ptr + head).to(tl.float32)
    return number


@triton.jit
def sink_of(ptr, head):
    """A head's sink in units of log 2, where it is finite kept so; 0 where there are none."""
    sink = number_of(ptr, head)
    scaled = tl.minimum(tl.maximum(sink * LOG2E, -LARGEST), LARGEST)
    return tl.where(tl.abs(sink) <= LARGEST, scaled, sink)


@triton.jit
def before_keys(sinks_ptr, head, BLOCK: tl.constexpr):
    """(largest exponent, sum of weights) of rows that met no key yet: the sink counts as one."""
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if sinks_ptr is not None:
        sink = sink_of(sinks_ptr, head)
        most = tl.zeros((BLOCK,), tl.float32) + sink
        total += tl.where(sink == float("-inf"), 0.0, 1.0)
    return most, total


@triton.jit
def trimmed(begin, end, extra, BLOCK: tl.constexpr):
    """`end` without the keys behind the last one that the mask leaves on, if it is one for all queries."""
    mask_ptr = extra.mask_ptr
    if mask_ptr is not None:  # noqa: SIM102  the one is known when compiling, the other is not
        if extra.stride_mq == 0:
            last = begin
            for start in range(begin, end, BLOCK):
                j = start + tl.arange(0, BLOCK)
                at = mask_ptr + tl.cast(j, tl.int64) * extra.stride_mk
                if mask_ptr.dtype.element_ty == tl.int8:
                    on = tl.load(at, mask=j < end, other=0) != 0
                else:
                    on = tl.load(at, mask=j < end, other=float("-inf")) != float("-inf")
                last = tl.maximum(last, tl.max(tl.where(on, j + 1, begin), 0))
            end = last
    return end


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b^T. A chain of 128 true float32 sums loses more than a plain formula does: such go in four."""
    if PRECISION == "ieee" and a.shape[1] > 64:
        COLUMNS: tl.constexpr = a.shape[1] // 4
        parts_a = tl.permute(tl.reshape(a, (a.shape[0], 4, COLUMNS)), (1, 0, 2))
        parts_b = tl.permute(tl.reshape(b, (b.shape[0], 4, COLUMNS)), (1, 2, 0))
        found = tl.sum(tl.dot(parts_a, parts_b, input_precision=PRECISION), 0)
    else:
        found = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return found


@triton.jit
def pinned(x, FLAGS: tl.constexpr):
    """x of 16 bits, in registers written here: the compiler may move what writes an operand behind the fence in
    front of the product that reads it. The instruction goes away in the end, its place stays."""
    if PINNED & FLAGS:
        x = tl.inline_asm_elementwise("or.b32 $0, $1, $1;", "=r,r", [x], x.dtype, False, 2)
    return x


@triton.jit
def tanh(x):
    """As accurate near 0 as elsewhere; the coefficients are those of Cephes' tanhf."""
    z = x * x
    near = -5.70498872745e-3 * z + 2.06390887954e-2
    near = (near * z - 5.37397155531e-2) * z + 1.33314422036e-1
    near = (near * z - 3.33332819422e-1) * z * x + x
    far = 1.0 - 2.0 / (tl.exp2(tl.abs(x) * (2.0 * LOG2E)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def capped(products, scale, softcap, FLAGS: tl.constexpr):
    """Scores by softcap, of q k^T with its sign; without a softcap the products themselves."""
    if SOFTCAPPED & FLAGS:
        products = softcap * tanh(products * (tl.abs(scale) / softcap))
    return products


@triton.jit
def factor(scale, FLAGS: tl.constexpr):
    """What scores are multiplied by. Above 0, so that -inf stays what it is."""
    by = tl.maximum(tl.abs(scale) * LOG2E, 1e-37)
    if SOFTCAPPED & FLAGS:
        by = by * 0.0 + LOG2E
    return by


@triton.jit
def signed(x, FLAGS: tl.constexpr):
    """One operand of the scores, with the sign of the scale: the factor itself is positive."""
    if NEGATIVE & FLAGS:
        x = -x
    return x


@triton.jit
def mask_tile(i, j, first_i, first_j, on, extra):
    """The mask of queries i, from first_i on, and keys j, from first_j on, off where these are; None if there is none.

    Where it is read, in front of the products or behind them, is a matter of registers.
    """
    mask_ptr, stride_mq, stride_mk, _, _ = extra
    mask = mask_ptr
    if mask_ptr is not None:
        # 64 bits for the corner, 32 without a sign inside the tile: addresses take fewer registers.
        corner = tl.cast(first_i, tl.int64) * stride_mq + tl.cast(first_j, tl.int64) * stride_mk
        local = (i - first_i) * stride_mq + (j - first_j) * stride_mk
        at = mask_ptr + corner + local.to(tl.uint32)
        if mask_ptr.dtype.element_ty == tl.int8:
            # Behind a branch, always taken: where the compiler sees that bytes go into an operand of 16
            # bits, it lays that out otherwise, and sm_80 adds its products up in another order.
            mask = tl.zeros(on.shape, tl.int8)
            if first_i >= 0:
                mask = tl.load(at, mask=on, other=0)
        else:
            mask = tl.load(at, mask=on, other=float("-inf"))
    return mask


@triton.jit
def adjusted(scores, i, j, mask, rule, extra, FLAGS: tl.constexpr):
    """(scores, addend): -inf where a mask turns a key off, and in units of log 2 what is added.

    mask: as mask_tile gives it. The addend means nothing without FLAGS & ADDED. Which keys are off by their place
    is in the mask, or for afterwards.
    """
    addend = scores
    if ADDED & FLAGS:
        addend = tl.zeros_like(scores)
    if extra.slopes_ptr is not None:
        addend = tl.abs(j - i - rule.shift).to(tl.float32) * -extra.slope
    if mask is not None:
        if mask.dtype == tl.int8:
            scores = tl.where(mask != 0, scores, float("-inf"))
        else:
            mask = mask.to(tl.float32)
            scores = tl.where(mask == float("-inf"), mask, scores)
            addend += mask
    if ADDED & FLAGS:
        # Once, of the sum: rounded each by itself, ALiBi and a mask that cancel leave what the mask's gradient shows.
        addend *= LOG2E
    if mask is not None:  # noqa: SIM102  known when compiling
        if mask.dtype != tl.int8:
            # -inf turns a key off, the least number does not: it may be all that a row has. NaN stays NaN.
            addend = tl.maximum(addend, -LARGEST, propagate_nan=tl.PropagateNan.ALL)
            # What is left of a score beside a large number is what is left of it in their sum, as everywhere.
            total = tl.fma(scores, factor(rule.scale, FLAGS), addend)
            large = tl.abs(addend) > LARGE_ADDEND
            scores, addend = tl.where(large, 0.0, scores), tl.where(large, total, addend)
    return scores, addend


@triton.jit
def weigh(scores, addend, by, most, FLAGS: tl.constexpr):
    """exp2(scores * by + addend - most), whose bits do not show whether an addend is 0 or not there."""
    if ADDED & FLAGS:
        return tl.exp2(tl.fma(scores, by, addend - most))
    else:
        return tl.exp2(tl.fma(scores, by, -most))


@triton.jit
def rescaled(scores, addend, by, most, FLAGS: tl.constexpr):
    """(largest exponent so far, the same or 0 where there is none) of each row."""
    if ADDED & FLAGS:
        now = tl.max(tl.fma(scores, by, addend), 1)
    else:
        now = tl.max(scores, 1) * by
    most = tl.maximum(most, now)
    return most, tl.where(most == float("-inf"), 0.0, most)


@triton.jit
def words_of(rows_ptr, sample, head, heads, first_row, i, queries, FLAGS: tl.constexpr):
    """Dropout's counter words (b * H + h, i) of queries i: their places as the user passed the batch."""
    unit = tl.zeros_like(i).to(tl.int64) + (sample * heads + head)
    place = i.to(tl.int64)
    if (DROPPED & FLAGS) and rows_ptr is not None:
        ids = tl.load(rows_ptr + first_row + i, mask=i < queries, other=0)
        unit = (ids >> 32) * heads + head
        place = ids
    return unit, place


@triton.jit
def keep_tile(
    start, words, seeds, FLAGS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """(BLOCK_M, BLOCK_N): what dropout keeps, of keys from start on, a multiple of 4."""
    unit, place = words
    seed_ptr, offset_ptr, threshold = seeds
    keep = tl.full((BLOCK_M, BLOCK_N), True, tl.int1)
    if DROPPED & FLAGS:
        block = start // 4 + tl.arange(0, BLOCK_N // 4)[None, :]
        keep = keep_mask(
            block, place[:, None], unit[:, None], seed_ptr, offset_ptr, threshold, BLOCK_M, BLOCK_N
        )
    return keep


@triton.jit
def statistics(delta_ptr, most_ptr, weight_ptr, at, i, queries):
    """(delta, what exponents are taken from, weight) of queries i of the head at `at`; zeros where there are none."""
    delta_ptr, most_ptr, weight_ptr = delta_ptr + at, most_ptr + at, weight_ptr + at
    delta = tl.load(delta_ptr + i, mask=i < queries, other=0.0)
    most = tl.load(most_ptr + i, mask=i < queries, other=0.0)
    return delta, most, tl.load(weight_ptr + i, mask=i < queries, other=0.0)


@triton.jit
def scores_tile(products, mask, i, j, on, rule, extra, WHOLE: tl.constexpr, FLAGS: tl.constexpr):
    """(scores, addend, slope of the softcap) of a tile. WHOLE: keys are on, or off in the mask as read."""
    scores = capped(products, rule.scale, rule.softcap, FLAGS)
    slope = 1.0
    if SOFTCAPPED & FLAGS:
        slope = 1.0 - (scores / rule.softcap) * (scores / rule.softcap)
    scores, addend = adjusted(scores, i, j, mask, rule, extra, FLAGS)
    if not WHOLE:
        scores = tl.where(on, scores, float("-inf"))
    return scores, addend, slope


@triton.jit
def weights_tile(
    products,  # q k^T
    mask,
    i,
    j,
    on,
    most,  # of the queries, as weight
    weight,
    rule,
    extra,
    WHOLE: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """(weights before dropout, slope of the softcap) of a tile."""
    scores, addend, slope = scores_tile(products, mask, i, j, on, rule, extra, WHOLE, FLAGS)
    return weigh(scores, addend, factor(rule.scale, FLAGS), most, FLAGS) * weight, slope


@triton.jit
def dscores_tile(weights, slope, dweights, delta, keep, keep_scale, FLAGS: tl.constexpr):
    """(weights after dropout, gradient of the scores) of a tile. keep: what dropout keeps of it."""
    kept = weights
    if DROPPED & FLAGS:
        kept = tl.where(keep, weights * keep_scale, 0.0)
        dweights = tl.where(keep, dweights * keep_scale, 0.0)
    dscores = weights * (dweights - delta)
    if SOFTCAPPED & FLAGS:
        dscores *= slope
    return kept, dscores


@triton.jit
def statistics_tile(delta_ptr, most_ptr, weight_ptr, at, i, queries):
    """As statistics, in a loop: read as one tile of as many elements as 8 warps have threads. Of less each thread would
    read what it needs itself, again and again."""
    PLANES: tl.constexpr = max(4, 256 // i.shape[0])
    plane = tl.arange(0, PLANES)[:, None] % 4
    ptr = tl.where(plane == 0, delta_ptr, tl.where(plane == 1, most_ptr, weight_ptr))
    found = tl.load(ptr + at + i[None, :], mask=(i < queries)[None, :], other=0.0)
    found = tl.reshape(tl.trans(found), (i.shape[0], PLANES // 2, 2))
    even, odd = tl.split(found)
    if PLANES == 8:
        even, _ = tl.split(tl.trans(tl.reshape(even, (i.shape[0], 2, 2)), (0, 2, 1)))
        odd, _ = tl.split(tl.trans(tl.reshape(odd, (i.shape[0], 2, 2)), (0, 2, 1)))
    delta, weight = tl.split(even)
    most, _ = tl.split(odd)
    return delta, most, weight
