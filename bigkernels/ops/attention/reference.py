"""The definition of attention in differentiable torch; any dtype, any device. It builds the whole score matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from bigkernels.ops import checks, dropout
from bigkernels.ops.attention import contract
from bigkernels.ops.attention.contract import stat_dtype


def visible(
    i: Tensor, keys: int, shift: int, causal: int, window_left: int, window_right: int
) -> Tensor | None:
    """Which keys each query position i (...,) may see, bool (..., keys); None if all.

    ``shift`` is Lk - Lq where the diagonal is aligned bottom-right, else 0.
    """
    if (
        causal in (contract.OPEN, contract.OPEN_BOTTOM_RIGHT)
        and window_left < 0
        and window_right < 0
    ):
        return None
    distance = torch.arange(keys, device=i.device) - (i[..., None] + shift)  # j - diagonal
    keep = torch.ones_like(distance, dtype=torch.bool)
    if causal in (contract.TOP_LEFT, contract.BOTTOM_RIGHT):
        keep = keep & (distance <= 0)
    if window_left >= 0:
        keep = keep & (distance >= -window_left)
    if window_right >= 0:
        keep = keep & (distance <= window_right)
    return keep


def scores(
    q: Tensor,  # (B, H, Lq, D), already in the statistics' dtype
    k: Tensor,  # (B, H, Lk, D)
    mask: Tensor | None,  # broadcastable to (B, H, Lq, Lk)
    key_lengths: Tensor | None,  # (B,)
    scale: float,
    causal: int,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,  # (H,)
    i: Tensor | None = None,  # (Lq,) positions of the queries, default 0 .. Lq - 1
    shift: int | None = None,
) -> Tensor:
    """Masked scores (B, H, Lq, Lk); -inf where a key is off."""
    keys = k.shape[-2]
    if i is None:
        i = torch.arange(q.shape[-2], device=q.device)
    if shift is None:
        shift = keys - q.shape[-2] if causal >= contract.BOTTOM_RIGHT else 0
    with checks.own_dtypes(q):
        s = (q @ k.transpose(-1, -2)) * scale
    if softcap > 0.0:
        s = softcap * torch.tanh(s / softcap)
    if alibi_slopes is not None:
        distance = (torch.arange(keys, device=q.device) - (i[:, None] + shift)).abs()
        s = s - alibi_slopes.to(s.dtype)[:, None, None] * distance
    off = torch.zeros((), dtype=torch.bool, device=q.device)
    keep = visible(i, keys, shift, causal, window_left, window_right)
    if keep is not None:
        off = off | ~keep
    if mask is not None:
        if mask.dtype == torch.bool:
            off = off | ~mask
        else:
            s = s + mask.to(s.dtype)
    if key_lengths is not None:
        off = off | (torch.arange(keys, device=q.device) >= key_lengths[:, None, None, None])
    return s.masked_fill(off, -torch.inf)


def softmax(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and natural log-sum-exp of the last dim; a row without keys has weights 0, lse -inf, no gradient."""
    top = (
        s.detach().amax(-1, keepdim=True)
        if s.shape[-1]
        else s.new_full((*s.shape[:-1], 1), -torch.inf)
    )
    if sinks is not None:
        top = torch.maximum(top, sinks.detach().to(s.dtype)[:, None, None])
    top = top.masked_fill(top == -torch.inf, 0.0)
    p = torch.exp(s - top)
    total = p.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.to(s.dtype)[:, None, None] - top)
    dead = total == 0.0
    safe = total.masked_fill(dead, 1.0)
    lse = (top + torch.log(safe)).masked_fill(dead, -torch.inf)
    return p / safe, lse.squeeze(-1)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Key or value (B, Hkv, Lk, D) with a head for every query head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def weigh(
    s: Tensor,  # (B, H, Lq, Lk), masked scores
    v: Tensor,  # (B, H, Lk, Dv)
    sinks: Tensor | None,  # (H,)
    keep: Tensor | None,  # (B, H, Lq, Lk), what dropout keeps
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """(out (B, H, Lq, Dv), lse (B, H, Lq)) of masked scores, in their dtype."""
    p, lse = softmax(s, sinks)
    if keep is not None:
        p = dropout.drop(p, keep, dropout_p)
    with checks.own_dtypes(p):
        return p @ v.to(s.dtype), lse


def dense(
    q: Tensor,  # (B, H, Lq, D)
    k: Tensor,  # (B, Hkv, Lk, D)
    v: Tensor,  # (B, Hkv, Lk, Dv)
    mask: Tensor | None,
    key_lengths: Tensor | None,
    scale: float,
    causal: int,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None = None,  # (B * Lq,)
) -> tuple[Tensor, Tensor]:
    """(out (B, H, Lq, Dv), lse (B, H, Lq)) of dense attention."""
    batch, heads, queries, _ = q.shape
    stat = stat_dtype(q.dtype)
    k, v = repeat_heads(k, heads), repeat_heads(v, heads)
    s = scores(
        q.to(stat),
        k.to(stat),
        mask,
        key_lengths,
        scale,
        causal,
        window_left,
        window_right,
        softcap,
        alibi_slopes,
    )
    keep = None
    if dropout_p > 0.0:
        if rows is None:
            b = torch.arange(batch, device=q.device)[:, None]
            i = torch.arange(queries, device=q.device)[None, :]
        else:
            b, i = (rows >> 32).reshape(batch, queries), (rows & 0xFFFFFFFF).reshape(batch, queries)
        head = torch.arange(heads, device=q.device)[None, :, None]
        bh, i = torch.broadcast_tensors(b[:, None] * heads + head, i[:, None])
        keep = dropout.keep_scores(bh, i, k.shape[-2], dropout_p, seed, offset)
    out, lse = weigh(s, v, sinks, keep, dropout_p)
    return out.to(q.dtype), lse


def packed(
    q: Tensor,  # (T, H, D)
    k: Tensor,  # (Tk, Hkv, D)
    v: Tensor,  # (Tk, Hkv, Dv)
    cu_seq_q: Tensor,  # (B + 1,)
    cu_seq_k: Tensor,  # (B + 1,)
    scale: float,
    causal: int,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,  # (T,)
) -> tuple[Tensor, Tensor]:
    """(out (T, H, Dv), lse (H, T)): each sequence attends within itself; rows behind the last are dead."""
    ends_q, ends_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    outs, lses = [], []
    for b in range(len(ends_q) - 1):
        a, z = ends_q[b], ends_q[b + 1]
        q1, k1, v1 = (
            x[None].transpose(1, 2)
            for x in (q[a:z], k[ends_k[b] : ends_k[b + 1]], v[ends_k[b] : ends_k[b + 1]])
        )
        place = rows[a:z] if rows is not None else (b << 32) + torch.arange(z - a, device=q.device)
        out, lse = dense(
            q1, k1, v1, None, None, scale, causal, window_left, window_right, softcap, alibi_slopes, sinks,
            dropout_p, seed, offset, place,
        )  # fmt: skip
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    behind, heads = q.shape[0] - ends_q[-1], q.shape[1]
    if behind or not outs:
        outs.append(q.new_zeros((behind, heads, v.shape[2])))
        lses.append(q.new_full((heads, behind), -torch.inf, dtype=stat_dtype(q.dtype)))
    return torch.cat(outs), torch.cat(lses, dim=1)
