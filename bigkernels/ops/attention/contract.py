"""What the attention room promises: the facts a drawer is chosen by, the schemas, the shapes of results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("triton", "cpu")

# Values of ``causal``: which keys j a query i may see, and where the diagonal of a window and of ALiBi lies.
OPEN = 0  # every key; diagonal j == i
TOP_LEFT = 1  # j <= i; diagonal j == i
BOTTOM_RIGHT = 2  # j <= i + Lk - Lq; diagonal j == i + Lk - Lq
OPEN_BOTTOM_RIGHT = 3  # every key; diagonal j == i + Lk - Lq


class Facts(NamedTuple):
    """What the choice of a drawer depends on; never lengths, batch or strides."""

    device: str
    dtype: torch.dtype
    head_dim: int
    head_dim_v: int
    packed: bool
    grouped: bool  # fewer key heads than query heads
    mask: str  # "none", "bool" or "float"
    mask_grad: bool
    causal: int
    window: bool
    lengths: bool
    dropout: bool
    softcap: bool
    alibi: bool
    sinks: bool
    needs_grad: bool
    learned: bool = False  # alibi_slopes or sinks want a gradient
    chip: str = ""  # as checks.chip has it


_FLAGS = (
    "Tensor? mask, Tensor? key_lengths, Tensor? cu_seq_q, Tensor? cu_seq_k, SymInt max_q, SymInt max_k,"
    " float scale, int causal, SymInt window_left, SymInt window_right, float softcap, Tensor? alibi_slopes,"
    " Tensor? sinks, float dropout_p, Tensor? seed, Tensor? offset, Tensor? rows"
)

SCHEMAS = {
    "attention_forward": f"(Tensor q, Tensor k, Tensor v, {_FLAGS}) -> (Tensor out, Tensor lse)",
    # Nothing beside q, k, v; dense, as many heads in each; no scale: 1 / sqrt(D). For calls so small that
    # passing twenty arguments would take longer than the rest of them.
    "attention_forward_plain": "(Tensor q, Tensor k, Tensor v, float? scale, int causal) -> Tensor out",
    "attention_backward": "(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
    f" {_FLAGS}, bool need_dmask) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dmask)",
}


def like_layout(x: Tensor, last: int | torch.SymInt) -> Tensor:
    """An empty tensor of x's shape but for its last dimension, laid out in x's dimension order.

    The one stride rule of the room. 4-D (B, H, L, D): stored (B, L, H, D) if x's heads lie closer together than
    its positions (the usual transposed view), else contiguous. 3-D (T, H, D): contiguous.
    """
    *leading, _ = x.shape
    if len(leading) == 3:
        batch, heads, length = leading
        _, between_heads, between_rows, _ = x.stride()
        if between_heads < between_rows:
            return x.new_empty(batch, length, heads, last).transpose(1, 2)
    return x.new_empty(*leading, last)


def stat_dtype(dtype: torch.dtype) -> torch.dtype:
    """Log-sum-exp and accumulation: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    key_lengths: Tensor | None,
    cu_seq_q: Tensor | None,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
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
    rows: Tensor | None,
) -> tuple[Tensor, Tensor]:
    shape = q.shape[:-1] if q.dim() == 4 else (q.shape[1], q.shape[0])
    return like_layout(q, v.shape[-1]), q.new_empty(shape, dtype=stat_dtype(q.dtype))


def _attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    *flags: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_dmask = flags[-1]
    dmask = mask.new_empty(mask.shape) if need_dmask and mask is not None else q.new_empty((0,))
    return (
        like_layout(q, q.shape[-1]),
        like_layout(k, k.shape[-1]),
        like_layout(v, v.shape[-1]),
        dmask,
    )


def _attention_forward_plain(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: int
) -> Tensor:
    return like_layout(q, v.shape[-1])


FAKES = {
    "attention_forward": _attention_forward,
    "attention_forward_plain": _attention_forward_plain,
    "attention_backward": _attention_backward,
}
