"""Attention weights of the fused path on demand, for chosen heads and queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bigkernels.ops import checks
from bigkernels.ops.attention import arguments, contract, reference

# Above this, the room's README on precision says, weights do not come from lse alone.
_LARGEST_LSE = 32.0
_OPTIONS = {"key_lengths", "window", "causal_alignment", "softcap", "alibi_slopes", "sinks"}


def attention_weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    queries: Tensor | Sequence[int] | None = None,
    heads: Tensor | Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """The softmax weights behind a fused call, recomputed from its log-sum-exp, without dropout.

    Args:
        query, key, attn_mask, is_causal, scale, enable_gqa: as passed to ``scaled_dot_product_attention``, 4-D.
        lse: (B, H, Lq), from ``return_lse=True``.
        queries: positions to return, default all: memory is O(len(queries) * Lk).
        heads: heads to return, default all.
        options: key_lengths, window, causal_alignment, softcap, alibi_slopes, sinks as passed to the fused call.

    Returns:
        (B, len(heads), len(queries), Lk) in the dtype of lse; rows without keys are zero. Differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device; an index out of range.
    """
    if unknown := options.keys() - _OPTIONS:
        raise TypeError(f"attention_weights() got an unexpected keyword argument {min(unknown)!r}")
    call, leading = arguments.dense_call(
        query, key, key, attn_mask, 0.0, is_causal, scale, enable_gqa, **options
    )
    q, k, mask, slopes, sinks = call.q, call.k, call.mask, call.alibi_slopes, call.sinks
    batch, count, length, _ = q.shape
    if leading is not None:
        raise ValueError(f"query: shape {tuple(query.shape)}, expected 4 dimensions")
    if not isinstance(lse, Tensor) or tuple(lse.shape) != (batch, count, length):
        raise ValueError(f"lse: expected a tensor of shape {(batch, count, length)}")
    checks.check_like("lse", lse, "query", q, contract.stat_dtype(q.dtype))
    i = _index("queries", queries, length, q)
    h = _index("heads", heads, count, q)
    group = count // k.shape[1]
    q, k = q.index_select(1, h).index_select(2, i), k.index_select(1, h // group)
    if mask is not None:
        mask = mask if mask.shape[1] == 1 else mask.index_select(1, h)
        mask = mask if mask.shape[2] == 1 else mask.index_select(2, i)
    shift = k.shape[2] - length if call.causal >= contract.BOTTOM_RIGHT else 0
    scores = reference.scores(
        q.to(lse.dtype), k.to(lse.dtype), mask, call.key_lengths, call.scale, call.causal, call.window_left,
        call.window_right, call.softcap, None if slopes is None else slopes.index_select(0, h), i, shift,
    )  # fmt: skip
    top = lse.index_select(1, h).index_select(2, i)[..., None]
    # Beside large numbers, of a mask that covers the row for one, the logarithm in lse is rounded away.
    covered = top.abs() > _LARGEST_LSE
    weights = torch.exp((scores - top).masked_fill(covered, -torch.inf))
    chosen = reference.softmax(scores, None if sinks is None else sinks.index_select(0, h))[0]
    return torch.where(covered, chosen, weights)


def _index(name: str, index: Tensor | Sequence[int] | None, size: int, like: Tensor) -> Tensor:
    if index is None:
        return torch.arange(size, device=like.device)
    if isinstance(index, Tensor):
        checks.check_dense(name, index)
        if index.device != like.device:
            raise ValueError(f"{name}: device {index.device}, but query is on {like.device}")
        if index.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: expected integers, got {index.dtype}")
        if index.dim() != 1:
            raise ValueError(f"{name}: shape {tuple(index.shape)}, expected (positions,)")
        if checks.recorded() or checks.transformed():
            return index.long()  # only index_select sees the positions themselves
        places = index.tolist()
    else:
        listed = isinstance(index, (list, tuple, range))
        if not listed or any(isinstance(i, bool) or not isinstance(i, int) for i in index):
            raise TypeError(f"{name}: expected integers, got {index!r}")
        places = list(index)
    if not all(0 <= i < size for i in places):
        raise ValueError(f"{name}: got {places}, expected positions from 0 to below {size}")
    if isinstance(index, Tensor):
        return index.long()
    return torch.tensor(places, dtype=torch.int64, device=like.device)
