"""What the Triton kernels of attention share: where a program works, which keys its rows see, scores.

Scores are in units of log 2, because the hardware's exponential is exp2. Strides of
rows count UNIT elements: where that is 8, the compiler knows that rows begin at 16 bytes.
"""

import triton
import triton.language as tl

from bigkernels.ops.triton_philox import keep_mask

# Arguments of the kernels that change from batch to batch: no value of them may cost a build.
SIZES = (
    *("stride_qb", "stride_qh", "stride_qm", "stride_kb", "stride_kh", "stride_kn"),
    *("stride_vb", "stride_vh", "stride_vn", "stride_ob", "stride_oh", "stride_om"),
    *("stride_gb", "stride_gh", "stride_gm", "stride_pb", "stride_ph", "stride_pm"),
    *("stride_mb", "stride_mh", "stride_mq", "stride_lb", "stride_lh"),
    *("tiles", "batch", "heads", "group", "Lq", "Lk", "left", "right", "bottom_right"),
    "threshold",
)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(3.4028234663852886e38)
# Bits of FLAGS, the one switch of all kernels.
RANGED = tl.constexpr(1)  # keys are seen from the diagonal: causal or a window
SOFTCAPPED = tl.constexpr(2)
DROPPED = tl.constexpr(4)
ADDED = tl.constexpr(8)  # an additive mask or ALiBi
SUMMED = tl.constexpr(16)  # delta is summed from the weights


@triton.jit
def find_sequence(slot, cu_ptr, batch, BLOCK: tl.constexpr):
    """(sequence, its tile) of a slot: sequence b owns the slots from cu[b] // BLOCK + b on, which
    are at least as many as it has tiles. No host has to know the lengths."""
    count = 0
    for start in range(0, batch, 256):
        b = start + tl.arange(0, 256)
        first = tl.load(cu_ptr + b, mask=b < batch, other=0).to(tl.int32) // BLOCK + b
        count += tl.sum(((first <= slot) & (b < batch)).to(tl.int32), 0)
    found = count - 1
    return found, slot - found - tl.load(cu_ptr + found).to(tl.int32) // BLOCK


@triton.jit
def locate(tiles, heads, batch, Lq, Lk, cu_q_ptr, cu_k_ptr, cu_tile_ptr, BLOCK: tl.constexpr):
    """(sample, head, tile, first query, first key, queries, keys) of this program.

    tiles: programs a head, of the dense form ceil(L / BLOCK). cu_tile_ptr: cu_q or cu_k, after
    whose sequences the tiles go. The last tiles come first: under a causal mask they are the
    longest. Programs of one head are neighbours, to share its rows in the cache.
    """
    program = tl.program_id(0)
    tile = tiles - 1 - program % tiles
    unit = program // tiles
    if cu_tile_ptr is not None:
        head = unit
        sample, tile = find_sequence(tile, cu_tile_ptr, batch, BLOCK)
        first_q = tl.load(cu_q_ptr + sample).to(tl.int32)
        first_k = tl.load(cu_k_ptr + sample).to(tl.int32)
        queries = tl.load(cu_q_ptr + sample + 1).to(tl.int32) - first_q
        keys = tl.load(cu_k_ptr + sample + 1).to(tl.int32) - first_k
    else:
        head = unit % heads
        sample = unit // heads
        first_q = 0
        first_k = 0
        queries = Lq
        keys = Lk
    return sample, head, tile, first_q, first_k, queries, keys


@triton.jit
def head_of(ptr, sample, head, first, stride_b, stride_h, stride_row, UNIT: tl.constexpr):
    """Where the rows of a head of a sample begin, in 64 bits."""
    at = tl.cast(sample, tl.int64) * stride_b + tl.cast(head, tl.int64) * stride_h
    return ptr + (at + tl.cast(first, tl.int64) * stride_row) * UNIT


@triton.jit
def statistics_of(ptr, sample, head, first, stride_b, stride_h):
    """The same of a mask, and of numbers of which there is one a query."""
    at = tl.cast(sample, tl.int64) * stride_b + tl.cast(head, tl.int64) * stride_h
    return ptr + (at + first)


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
def load_rows(
    ptr,
    start,
    stride,
    count,
    WHOLE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(BLOCK, BLOCK_D): rows from start on, zeros from count on. WHOLE: they end before count."""
    row = tl.arange(0, BLOCK)[:, None]
    depth = tl.arange(0, BLOCK_D)[None, :]
    at = ptr + tl.cast(start, tl.int64) * stride + (row * stride + depth)
    if WHOLE and D == BLOCK_D:
        tile = tl.load(at)
    elif WHOLE:
        tile = tl.load(at, mask=depth < D, other=0.0)
    elif D == BLOCK_D:
        tile = tl.load(at, mask=start + row < count, other=0.0)
    else:
        tile = tl.load(at, mask=(start + row < count) & (depth < D), other=0.0)
    return tile


@triton.jit
def store_rows(ptr, tile, start, stride, count, D: tl.constexpr):
    """The first count - start rows and D columns of a tile."""
    row = tl.arange(0, tile.shape[0])[:, None]
    depth = tl.arange(0, tile.shape[1])[None, :]
    at = ptr + tl.cast(start, tl.int64) * stride + (row * stride + depth)
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=(start + row < count) & (depth < D))


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b^T."""
    return tl.dot(a, tl.trans(b), input_precision=PRECISION)


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
def signed(x, scale):
    """One operand of the scores, with the sign of the scale: the factor itself is positive."""
    return tl.where(scale < 0.0, -x, x)


@triton.jit
def adjusted(scores, i, j, first_i, first_j, inside, extra, FLAGS: tl.constexpr):
    """(scores, addend): -inf where a mask turns a key off, and in units of log 2 what is added.

    i, j: from first_i and first_j on. inside: what of the tile exists. extra: (mask_ptr, stride_mq, stride_mk,
    slopes_ptr, slope, shift). The addend means nothing without FLAGS & ADDED.
    """
    mask_ptr, stride_mq, stride_mk, slopes_ptr, slope, shift = extra
    addend = scores
    if ADDED & FLAGS:
        addend = tl.zeros_like(scores)
    if slopes_ptr is not None:
        addend = tl.abs(j - i - shift).to(tl.float32) * -slope
    if mask_ptr is not None:
        # 64 bits for the corner, 32 without a sign inside the tile: addresses take fewer registers.
        corner = tl.cast(first_i, tl.int64) * stride_mq + tl.cast(first_j, tl.int64) * stride_mk
        local = (i - first_i) * stride_mq + (j - first_j) * stride_mk
        at = mask_ptr + corner + local.to(tl.uint32)
        if mask_ptr.dtype.element_ty == tl.int8:
            on = tl.load(at, mask=inside, other=0) != 0
            scores = tl.where(on, scores, float("-inf"))
        else:
            mask = tl.load(at, mask=inside, other=0.0).to(tl.float32)
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
def first_row(sample, first_q, Lq, cu_q_ptr):
    """Where a sample's queries begin among all queries."""
    row = tl.cast(first_q, tl.int64)
    if cu_q_ptr is None:
        row = tl.cast(sample, tl.int64) * Lq
    return row


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
    scale, softcap = rule
    scores = capped(products, scale, softcap, FLAGS)
    slope = 1.0
    if SOFTCAPPED & FLAGS:
        slope = 1.0 - (scores / softcap) * (scores / softcap)
    if not WHOLE:
        scores = tl.where(on, scores, float("-inf"))
    scores, addend = adjusted(scores, i, j, first_i, first_j, inside, extra, FLAGS)
    weights = weigh(scores, addend, factor(scale, FLAGS), most, FLAGS) * weight
    kept = weights
    if DROPPED & FLAGS:
        kept = tl.where(keep, weights * keep_scale, 0.0)
        dweights = tl.where(keep, dweights * keep_scale, 0.0)
    dscores = weights * (dweights - delta)
    if SOFTCAPPED & FLAGS:
        dscores *= slope
    return kept, dscores
