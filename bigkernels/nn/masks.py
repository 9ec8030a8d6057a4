"""What the masks of ``torch.nn`` mean, in the terms of ``bigkernels.scaled_dot_product_attention``.

There a boolean True means "attend"; in ``torch.nn`` it means "ignore".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bigkernels.ops import checks
from bigkernels.ops.attention.arguments import readable


class Masks(NamedTuple):
    """The mask arguments of one attention call."""

    mask: Tensor | None = (
        None  # 4-D, broadcastable to (B, H, Lq, Lk): bool (True = attend) or additive
    )
    key_lengths: Tensor | None = None  # (B,)
    is_causal: bool = False


def check(name: str, mask: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Raises unless mask is None or boolean or floating point and of one of the shapes."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name}: dtype {mask.dtype}, expected bool or floating point")
    if tuple(mask.shape) not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name}: shape {tuple(mask.shape)}, expected {wanted}")


def concrete(mask: Tensor) -> bool:
    """Whether the mask's values may be read: no compiler, tracer, transform or fake tensor stands between."""
    return type(mask) is Tensor and not checks.recorded() and not checks.through_reference()


def is_causal(mask: Tensor | None) -> bool:
    """Whether mask is readably the causal mask (L, L), bool or additive."""
    if mask is None or mask.dim() != 2 or mask.shape[0] != mask.shape[1] or not concrete(mask):
        return False
    ones = torch.ones_like(mask, dtype=torch.bool).triu(1)
    if mask.dtype == torch.bool:
        return bool((mask == ones).all())
    return bool((mask == torch.zeros_like(mask).masked_fill(ones, -torch.inf)).all())


def right_padding_lengths(ignore: Tensor) -> Tensor | None:
    """Lengths (B,) if ignore (B, L) bool is padding at the end of every row and its values are at hand."""
    if not readable(ignore):
        return None
    if not bool((ignore[:, 1:] >= ignore[:, :-1]).all()):
        return None
    return ignore.shape[1] - ignore.sum(1)


def _both(attn: Tensor, padding: Tensor) -> Tensor:
    """One mask of an attn (1|B, 1|H, Lq, Lk) and a padding (B, 1, 1, Lk) mask, True = ignore or additive."""
    if attn.dtype == torch.bool and padding.dtype == torch.bool:
        return attn | padding
    if attn.dtype == torch.bool:
        attn, padding = padding, attn
    return attn.masked_fill(padding, -torch.inf) if padding.dtype == torch.bool else attn + padding


def merge(
    attn_mask: Tensor | None,  # (Lq, Lk) or (B * H, Lq, Lk)
    key_padding_mask: Tensor | None,  # (B, Lk)
    is_causal: bool,
    batch: int,
    heads: int,
    extra_keys: int = 0,
) -> Masks:
    """Both masks of ``torch.nn.MultiheadAttention``, already checked, as one call's arguments.

    ``is_causal`` says that attn_mask is the causal mask: then attn_mask itself is not read. ``extra_keys`` are
    appended behind the keys, visible to every query.
    """
    if is_causal and not extra_keys:
        attn_mask = None
    lengths = None
    if key_padding_mask is not None and key_padding_mask.dtype == torch.bool and not extra_keys:
        lengths = right_padding_lengths(key_padding_mask)
        key_padding_mask = key_padding_mask if lengths is None else None
    merged = None
    if attn_mask is not None:
        lead = (1, 1) if attn_mask.dim() == 2 else (batch, heads)
        merged = attn_mask.reshape(*lead, *attn_mask.shape[-2:])
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, None, :]
        merged = padding if merged is None else _both(merged, padding)
    if merged is not None:
        merged = F.pad(merged, (0, extra_keys)) if extra_keys else merged
        merged = ~merged if merged.dtype == torch.bool else merged
    return Masks(merged, lengths, is_causal and not extra_keys)
