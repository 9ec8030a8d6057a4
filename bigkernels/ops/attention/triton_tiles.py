"""What the Triton kernels of attention share: which keys its rows see, scores and their gradients.

Scores are in units of log 2, because the hardware's exponential is exp2.
"""

import triton
import triton.language as tl

from bigkernels.ops.triton_philox import keep_mask

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(3.4028234663852886e38)
# Bits of FLAGS, the one switch of all kernels.
RANGED = tl.constexpr(1)  # keys are seen from the diagonal: causal or a window
SOFTCAPPED = tl.constexpr(2)
DROPPED = tl.constexpr(4)
ADDED = tl.constexpr(8)  # an additive mask or ALiBi
SUMMED = tl.constexpr(16)  # delta is summed from the weights
NEGATIVE = tl.constexpr(32)  # the scale is below 0
PINNED = tl.constexpr(64)  # products read registers while the next instructions run: wgmma


@triton.jit
def number_of(ptr, head):
    """A head's number in units of log 2; 0 where there are none."""
    number = 0.0
    if ptr is not None:
        number = tl.load(ptr + head).to(tl.float32) * LOG2E
    return number


@triton.jit
def before_keys(sinks_ptr, head, BLOCK: tl.constexpr):
    """(largest exponent, sum of weights) of rows that met no key yet: the sink counts as one."""
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if sinks_ptr is not None:
        sink = number_of(sinks_ptr, head)
        most = tl.zeros((BLOCK,), tl.float32) + sink
        total += tl.where(sink == float("-inf"), 0.0, 1.0)
    return most, total


@triton.jit
def keys_on(lengths_ptr, sample, keys):
    if lengths_ptr is not None:
        keys = tl.minimum(keys, tl.maximum(tl.load(lengths_ptr + sample), 0).to(tl.int32))
    return keys


@triton.jit
def blocks(first, last, before, after, count, BLOCK: tl.constexpr):
    """(begin, all_end, end) of the blocks along the other axis: what any of the places first .. last
    sees lies in begin .. end, and all of them see all of begin .. all_end.

    A place x sees x - before .. x + after, within 0 .. count - 1. The first two are multiples of BLOCK.
    """
    begin = tl.maximum(first - before, 0) // BLOCK * BLOCK
    end = tl.maximum(tl.minimum(last + after + 1, count), begin)
    all_end = tl.maximum(tl.minimum(first + after + 1, count), 0) // BLOCK * BLOCK
    # Beside a window's left edge blocks that all see are few: a third loop over them costs registers.
    if last - before > 0:
        all_end = begin
    return begin, tl.maximum(all_end, begin), end


@triton.jit
def trimmed(begin, end, extra, BLOCK: tl.constexpr):
    """`end` without the keys behind the last one that the mask leaves on, if it is one for all queries."""
    mask_ptr, stride_mq, stride_mk, _, _, _ = extra
    if mask_ptr is not None:  # noqa: SIM102  the one is known when compiling, the other is not
        if stride_mq == 0:
            last = begin
            for start in range(begin, end, BLOCK):
                j = start + tl.arange(0, BLOCK)
                at = mask_ptr + tl.cast(j, tl.int64) * stride_mk
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
def mask_tile(i, j, first_i, first_j, inside, extra):
    """The mask of queries i, from first_i on, and keys j, from first_j on; None if there is none.

    inside: what is read of it, what exists or less; the rest is off. extra: (mask_ptr, stride_mq, stride_mk,
    slopes_ptr, slope, shift).
    """
    mask_ptr, stride_mq, stride_mk, _, _, _ = extra
    mask = mask_ptr
    if mask_ptr is not None:
        # 64 bits for the corner, 32 without a sign inside the tile: addresses take fewer registers.
        corner = tl.cast(first_i, tl.int64) * stride_mq + tl.cast(first_j, tl.int64) * stride_mk
        local = (i - first_i) * stride_mq + (j - first_j) * stride_mk
        at = mask_ptr + corner + local.to(tl.uint32)
        if mask_ptr.dtype.element_ty == tl.int8:
            # Behind a branch, always taken: where the compiler sees that bytes go into an operand of 16
            # bits, it lays that out otherwise, and sm_80 adds its products up in another order.
            mask = tl.zeros(inside.shape, tl.int8)
            if first_i >= 0:
                mask = tl.load(at, mask=inside, other=0)
        else:
            mask = tl.load(at, mask=inside, other=float("-inf"))
    return mask


@triton.jit
def adjusted(scores, i, j, mask, extra, FLAGS: tl.constexpr):
    """(scores, addend): -inf where a mask turns a key off, and in units of log 2 what is added.

    mask, extra: as in mask_tile. The addend means nothing without FLAGS & ADDED. Which keys are off by their place
    is for afterwards: a mask of huge numbers would turn them on again.
    """
    _, _, _, slopes_ptr, slope, shift = extra
    addend = scores
    if ADDED & FLAGS:
        addend = tl.zeros_like(scores)
    if slopes_ptr is not None:
        addend = tl.abs(j - i - shift).to(tl.float32) * -slope
    if mask is not None:
        if mask.dtype == tl.int8:
            scores = tl.where(mask != 0, scores, float("-inf"))
        else:
            mask = mask.to(tl.float32)
            addend += mask * LOG2E
            # -inf turns a key off, the least number does not: it may be all that a row has. Beside
            # such numbers a score is nothing.
            nothing = tl.where(mask == float("-inf"), mask, 0.0)
            scores = tl.where(addend < -(2.0**30), nothing, scores)
            addend = tl.maximum(addend, -LARGEST)
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
def seen(i, j, queries, keys, shift, left, right, FLAGS: tl.constexpr):
    """Which keys are on by their number, and by the diagonal."""
    on = (i < queries) & (j < keys)
    if RANGED & FLAGS:
        distance = j - i - shift
        on = on & (distance >= -left) & (distance <= right)
    return on


@triton.jit
def seers(j, queries, keys, shift, left, right, FLAGS: tl.constexpr):
    """(first, last) of the queries that see keys j, for seen_by."""
    last = tl.zeros_like(j) + (queries - 1)
    if RANGED & FLAGS:
        last = tl.minimum(last, j - shift + left)
    return j - shift - right, tl.where(j < keys, last, -1)


@triton.jit
def seen_by(i, first, last, FLAGS: tl.constexpr):
    """Where queries i see keys whose seers are first .. last."""
    on = i <= last
    if RANGED & FLAGS:
        on = on & (i >= first)
    return on


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
def keep_tile(start, words, seeds, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(BLOCK_M, BLOCK_N): what dropout keeps, of keys from start on, a multiple of 4."""
    unit, place = words
    seed_ptr, offset_ptr, threshold = seeds
    block = start // 4 + tl.arange(0, BLOCK_N // 4)[None, :]
    return keep_mask(
        block, place[:, None], unit[:, None], seed_ptr, offset_ptr, threshold, BLOCK_M, BLOCK_N
    )


@triton.jit
def statistics(delta_ptr, most_ptr, weight_ptr, i, queries):
    """(delta, what exponents are taken from, weight) of queries i; zeros where there are none."""
    delta = tl.load(delta_ptr + i, mask=i < queries, other=0.0)
    most = tl.load(most_ptr + i, mask=i < queries, other=0.0)
    return delta, most, tl.load(weight_ptr + i, mask=i < queries, other=0.0)


@triton.jit
def weights_tile(
    products,  # q k^T
    i,
    j,
    first_i,
    first_j,
    on,
    inside,
    most,  # of the queries, as weight
    weight,
    rule,
    extra,
    WHOLE: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """(weights before dropout, slope of the softcap) of a tile."""
    scale, softcap = rule
    scores = capped(products, scale, softcap, FLAGS)
    slope = 1.0
    if SOFTCAPPED & FLAGS:
        slope = 1.0 - (scores / softcap) * (scores / softcap)
    mask = mask_tile(i, j, first_i, first_j, inside, extra)
    scores, addend = adjusted(scores, i, j, mask, extra, FLAGS)
    if not WHOLE:
        scores = tl.where(on, scores, float("-inf"))
    return weigh(scores, addend, factor(scale, FLAGS), most, FLAGS) * weight, slope


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
def gradient_tile(
    products,  # q k^T
    dweights,  # dout v^T
    i,
    j,
    first_i,
    first_j,
    on,
    inside,
    keep,
    numbers,  # (delta, most, weight) of the queries
    rule,
    extra,
    keep_scale,
    WHOLE: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """(weights after dropout, gradient of the scores) of a tile. keep: what dropout keeps of it."""
    delta, most, weight = numbers
    weights, slope = weights_tile(
        products, i, j, first_i, first_j, on, inside, most, weight, rule, extra, WHOLE, FLAGS
    )
    return dscores_tile(weights, slope, dweights, delta, keep, keep_scale, FLAGS)


@triton.jit
def statistics_tile(delta_ptr, most_ptr, weight_ptr, i, queries):
    """As statistics, in a loop: read as one tile of as many elements as 8 warps have threads. Of less each thread would
    read what it needs itself, again and again."""
    PLANES: tl.constexpr = max(4, 256 // i.shape[0])
    plane = tl.arange(0, PLANES)[:, None] % 4
    ptr = tl.where(plane == 0, delta_ptr, tl.where(plane == 1, most_ptr, weight_ptr))
    found = tl.load(ptr + i[None, :], mask=(i < queries)[None, :], other=0.0)
    found = tl.reshape(tl.trans(found), (i.shape[0], PLANES // 2, 2))
    even, odd = tl.split(found)
    if PLANES == 8:
        even, _ = tl.split(tl.trans(tl.reshape(even, (i.shape[0], 2, 2)), (0, 2, 1)))
        odd, _ = tl.split(tl.trans(tl.reshape(odd, (i.shape[0], 2, 2)), (0, 2, 1)))
    delta, weight = tl.split(even)
    most, _ = tl.split(odd)
    return delta, most, weight
