"""Which keys the queries of a sample see by their number: the rule, the blocks that programs walk, tiles of it."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from bigkernels.ops.attention.triton_places import RANGED


class Rule(NamedTuple):
    """How a sample's scores are made of products, and which keys are on by their number."""

    scale: Any
    softcap: Any
    queries: Any
    keys: Any
    shift: Any  # a query's diagonal is as many keys behind its own number
    left: Any
    right: Any


@triton.jit
def rule_of(sample, queries, keys, lengths_ptr, left, right, bottom_right, scale, softcap):
    """Of a sample of so many queries and keys; those behind its length are off."""
    shift = (keys - queries) * bottom_right
    if lengths_ptr is not None:
        keys = tl.minimum(keys, tl.maximum(tl.load(lengths_ptr + sample), 0).to(tl.int32))
    return Rule(scale, softcap, queries, keys, shift, left, right)


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
def keys_seen(first, rule, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The blocks of keys of the queries from first on."""
    last = tl.minimum(first + BLOCK_M, rule.queries) - 1
    return blocks(first + rule.shift, last + rule.shift, rule.left, rule.right, rule.keys, BLOCK_N)


@triton.jit
def queries_seeing(first, rule, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(begin, end) of the blocks of queries of the keys from first on."""
    last = tl.minimum(first + BLOCK_N, rule.keys) - 1
    begin, _, end = blocks(
        first - rule.shift, last - rule.shift, rule.right, rule.left, rule.queries, BLOCK_M
    )
    return begin, tl.where(first >= rule.keys, begin, end)


@triton.jit
def seen(i, j, rule, FLAGS: tl.constexpr):
    """Which keys are on by their number, and by the diagonal."""
    on = (i < rule.queries) & (j < rule.keys)
    if RANGED & FLAGS:
        distance = j - i - rule.shift
        on = on & (distance >= -rule.left) & (distance <= rule.right)
    return on


@triton.jit
def seers(j, rule, FLAGS: tl.constexpr):
    """(first, last) of the queries that see keys j, for seen_by."""
    last = tl.zeros_like(j) + (rule.queries - 1)
    if RANGED & FLAGS:
        last = tl.minimum(last, j - rule.shift + rule.left)
    return j - rule.shift - rule.right, tl.where(j < rule.keys, last, -1)


@triton.jit
def seen_by(i, first, last, FLAGS: tl.constexpr):
    """Where queries i see keys whose seers are first .. last."""
    on = i <= last
    if RANGED & FLAGS:
        on = on & (i >= first)
    return on
