"""Where the programs of attention's Triton kernels work, and how they read and write rows.

Strides of rows count UNIT elements, so that the compiler knows that rows begin at 16 bytes.
"""

import triton
import triton.language as tl

from bigkernels.ops.attention import triton_config

UNIT = tl.constexpr(triton_config.UNIT)
# Arguments of the kernels that change from batch to batch: no value of them may cost a build.
SIZES = (
    *("stride_qb", "stride_qh", "stride_qm", "stride_kb", "stride_kh", "stride_kn"),
    *("stride_vb", "stride_vh", "stride_vn", "stride_ob", "stride_oh", "stride_om"),
    *("stride_gb", "stride_gh", "stride_gm", "stride_pb", "stride_ph", "stride_pm"),
    *("stride_dqb", "stride_dqh", "stride_dqm", "stride_dkb", "stride_dkh", "stride_dkn"),
    *("stride_dvb", "stride_dvh", "stride_dvn"),
    *("stride_mb", "stride_mh", "stride_mq", "stride_lb", "stride_lh"),
    *("tiles", "batch", "heads", "group", "Lq", "Lk", "left", "right", "bottom_right"),
    "threshold",
)
RANGED = tl.constexpr(triton_config.FLAGS["ranged"])
SOFTCAPPED = tl.constexpr(triton_config.FLAGS["softcap"])
DROPPED = tl.constexpr(triton_config.FLAGS["dropout"])
ADDED = tl.constexpr(triton_config.FLAGS["added"])
SUMMED = tl.constexpr(triton_config.FLAGS["summed"])
NEGATIVE = tl.constexpr(triton_config.FLAGS["negative"])
PINNED = tl.constexpr(triton_config.FLAGS["pinned"])


@triton.jit
def find_sequence(slot, cu_ptr, batch, BLOCK: tl.constexpr):
    """(sequence, its tile) of a slot: sequence b owns the slots from cu[b] // BLOCK + b on, which
    are at least as many as it has tiles. What is behind the last one counts as one more. No host has to
    know the lengths."""
    count = 0
    for start in range(0, batch + 1, 256):
        b = start + tl.arange(0, 256)
        first = tl.load(cu_ptr + b, mask=b <= batch, other=0).to(tl.int32) // BLOCK + b
        count += tl.sum(((first <= slot) & (b <= batch)).to(tl.int32), 0)
    found = count - 1
    return found, slot - found - tl.load(cu_ptr + found).to(tl.int32) // BLOCK


@triton.jit
def sequence(cu_ptr, sample, batch, total):
    """(first, number) of a sequence's rows; of the number `batch`, those behind the last one, or none without total."""
    first = tl.load(cu_ptr + sample).to(tl.int32)
    if total is None:
        last = tl.load(cu_ptr + tl.minimum(sample + 1, batch))
    else:
        last = tl.load(cu_ptr + sample + 1, mask=sample < batch, other=total)
    return first, last.to(tl.int32) - first


@triton.jit
def extent(sample, batch, Lq, Lk, cu_q_ptr, cu_k_ptr, OF_KEYS: tl.constexpr):
    """(first query, first key, queries, keys) of a sample, counted from the start of its tensor or sequence."""
    if cu_q_ptr is not None:
        first_q, queries = sequence(cu_q_ptr, sample, batch, None if OF_KEYS else Lq)
        first_k, keys = sequence(cu_k_ptr, sample, batch, Lk if OF_KEYS else None)
    else:
        first_q = 0
        first_k = 0
        queries = Lq
        keys = Lk
    return first_q, first_k, queries, keys


@triton.jit
def locate(
    tiles, heads, batch, Lq, Lk, cu_q_ptr, cu_k_ptr, OF_KEYS: tl.constexpr, BLOCK: tl.constexpr
):
    """(sample, head, tile, first query, first key, queries, keys) of this program.

    tiles: programs a head, of the dense form ceil(L / BLOCK). OF_KEYS: they are of keys, not of queries. The last tiles
    come first: under a causal mask they are the longest. Programs of one head are neighbours, to share its rows in the
    cache. Rows behind the last sequence meet nothing, and so their results are zeros.
    """
    program = tl.program_id(0)
    tile = tiles - 1 - program % tiles
    unit = program // tiles
    if cu_q_ptr is not None:
        head = unit
        sample, tile = find_sequence(tile, cu_k_ptr if OF_KEYS else cu_q_ptr, batch, BLOCK)
    else:
        head = unit % heads
        sample = unit // heads
    first_q, first_k, queries, keys = extent(sample, batch, Lq, Lk, cu_q_ptr, cu_k_ptr, OF_KEYS)
    return sample, head, tile, first_q, first_k, queries, keys


@triton.jit
def head_of(ptr, sample, head, first, stride_b, stride_h, stride_row):
    """Where the rows of a head of a sample begin, in 64 bits."""
    at = tl.cast(sample, tl.int64) * stride_b + tl.cast(head, tl.int64) * stride_h
    return ptr + (at + tl.cast(first, tl.int64) * stride_row) * UNIT


@triton.jit
def statistics_of(ptr, sample, head, first, stride_b, stride_h):
    """The same of a mask, and of numbers of which there is one a query."""
    at = tl.cast(sample, tl.int64) * stride_b + tl.cast(head, tl.int64) * stride_h
    return ptr + (at + first)


@triton.jit
def first_row(sample, first_q, Lq, cu_q_ptr):
    """Where a sample's queries begin among all queries."""
    row = tl.cast(first_q, tl.int64)
    if cu_q_ptr is None:
        row = tl.cast(sample, tl.int64) * Lq
    return row


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
def share_behind(cu_ptr, sample, batch, total):
    """(first, number) of a sequence's share of the rows behind the last one."""
    last = tl.load(cu_ptr + batch).to(tl.int32)
    share = tl.cdiv(total - last, batch)
    first = last + sample * share
    return first, tl.minimum(share, total - first)


@triton.jit
def clear_rows(
    ptr,
    head,
    share,
    stride_h,
    stride_row,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Zeros in a share of a head's packed rows."""
    first, count = share
    rows = head_of(ptr, 0, head, first, 0, stride_h, stride_row)
    zeros = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, count, BLOCK):
        store_rows(rows, zeros, start, stride_row * UNIT, count, D)


@triton.jit
def add_rows(ptr, tile, start, stride, count, D: tl.constexpr):
    """Adds as store_rows stores: what many programs add to one place, in no order."""
    row = tl.arange(0, tile.shape[0])[:, None]
    depth = tl.arange(0, tile.shape[1])[None, :]
    at = ptr + tl.cast(start, tl.int64) * stride + (row * stride + depth)
    tl.atomic_add(at, tile, mask=(start + row < count) & (depth < D), sem="relaxed")
