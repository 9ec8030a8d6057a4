"""The definition of embedding in differentiable torch; any dtype, any device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bigkernels.ops import dropout
from bigkernels.ops.embedding.contract import places, stat_dtype


def embedding(
    ids: Tensor,  # (...)
    word: Tensor,  # (V, N)
    position_ids: Tensor | None,  # (...); None: places
    position: Tensor | None,  # (P, N)
    type_ids: Tensor | None,  # (...)
    types: Tensor | None,  # (K, N)
    weight: Tensor | None,  # (N,)
    bias: Tensor | None,  # (N,)
    eps: float,
    padding_idx: int | None,
    position_padding_idx: int | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
) -> Tensor:
    """dropout(LayerNorm(word[ids] + position[position_ids] + types[type_ids])), (..., N)."""
    if position is not None and position_ids is None:
        position_ids = places(ids, rows)
    total = table_sum(
        ids, word, position_ids, position, type_ids, types, padding_idx, position_padding_idx
    )
    keep = dropout.keep_rows(total, dropout_p, seed, offset, rows) if dropout_p > 0.0 else None
    return normalize(total, weight, bias, eps, dropout_p, keep).to(word.dtype)


def table_sum(
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    types: Tensor | None,
    padding_idx: int | None,
    position_padding_idx: int | None,
) -> Tensor:
    """The sum of the tables' rows in the statistics' dtype, (..., N)."""
    stat = stat_dtype(word.dtype)
    total = F.embedding(ids, word, padding_idx).to(stat)
    if position is not None:
        assert position_ids is not None
        total = total + F.embedding(position_ids, position, position_padding_idx).to(stat)
    if types is not None:
        total = total + (types[0] if type_ids is None else F.embedding(type_ids, types)).to(stat)
    return total


def normalize(
    total: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dropout_p: float,
    keep: Tensor | None,
) -> Tensor:
    """LayerNorm of the sum, then the dropout whose mask is given."""
    centred = total - total.mean(-1, keepdim=True)
    out = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        out = out * weight.to(total.dtype)
    if bias is not None:
        out = out + bias.to(total.dtype)
    return out if keep is None else dropout.drop(out, keep, dropout_p)
