"""The definition of the encoder in plain torch; any dtype, any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bigkernels.ops.encoder.contract import PARTS
from bigkernels.ops.ffn.reference import activate
from bigkernels.ops.layer_norm import reference as layer_norm


def _given(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() else None


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    """One sequence, (L, E) each."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    if causal:
        off = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(off, -torch.inf)
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed.transpose(0, 1).flatten(1)


def encoder(
    x: Tensor,  # (T, E)
    lengths: Sequence[int],  # of the sequences, T in all
    weights: Sequence[Tensor],  # as contract.PARTS says, layer by layer
    heads: int,
    eps: float,
    activation: str,
    norm_first: bool,
    causal: bool,
) -> Tensor:
    """Layers of self-attention and feed-forward network, each with a residual and a LayerNorm after (or before) it."""
    for first in range(0, len(weights), len(PARTS)):
        part = dict(zip(PARTS, weights[first : first + len(PARTS)], strict=True))

        def linear(x: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
            return F.linear(x, part[f"{name}.weight"], _given(part[f"{name}.bias"]))

        def norm(x: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
            weight, bias = _given(part[f"{name}.weight"]), _given(part[f"{name}.bias"])
            return layer_norm.layer_norm(x, weight, bias, x.shape[-1], eps)

        inner = norm(x, "norm1") if norm_first else x
        q, k, v = (linear(inner, name).split(list(lengths)) for name in ("query", "key", "value"))
        pieces = [_attention(*rows, heads, causal) for rows in zip(q, k, v, strict=True)]
        mixed = torch.cat(pieces) if pieces else q[0]
        x = x + linear(mixed, "out")
        if not norm_first:
            x = norm(x, "norm1")
        inner = norm(x, "norm2") if norm_first else x
        x = x + linear(activate(linear(inner, "up"), activation), "down")
        if not norm_first:
            x = norm(x, "norm2")
    return x
