"""TransformerEncoderLayer on the fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bigkernels.nn import absorb
from bigkernels.nn.attention import MultiheadAttention
from bigkernels.nn.feed_forward import activation_name
from bigkernels.nn.layer_norm import LayerNorm
from bigkernels.nn.masks import Masks
from bigkernels.ops.ffn.api import feed_forward
from bigkernels.ops.ffn.contract import ACTIVATIONS
from bigkernels.ops.layer_norm.api import add_layer_norm
from bigkernels.ops.packing.contract import Plan


class Batch(NamedTuple):
    """What the layers of one call share."""

    attn_mask: Tensor | None  # the user's masks, for a self_attn that must be called itself
    key_padding_mask: Tensor | None
    is_causal: bool
    call: Masks  # the same in the kernels' terms
    plan: Plan | None  # of packed tokens (T, E)
    rows: Tensor | None  # sample and position of each row, where its place in x does not say them


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """``torch.nn.TransformerEncoderLayer`` as fused calls: attention between two products, bias + dropout +
    residual + LayerNorm, feed-forward, and the same addition again.

    The constructor, the state_dict and the results are torch's. A child that is not the plain module the
    constructor makes, or has hooks, a forward of its own or wrapped parameters, is called itself; so is an
    activation other than ReLU, GELU (exact or tanh) and SiLU, and an overridden ``_sa_block`` or ``_ff_block``.
    ``unfused_reasons()`` names them. A query without any key gets zeros from the attention.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first,
            bias, device, dtype,
        )  # fmt: skip
        adopt(self)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """One layer.

        Args:
            src: (B, L, E) if batch_first else (L, B, E), or (L, E), or a nested tensor of (L, E) sequences.
            src_mask: (L, L) or (B * H, L, L): bool (True = ignore) or additive.
            src_key_padding_mask: (B, L) or (L,): bool (True = ignore) or additive.
            is_causal: src_mask is the causal mask, which is then not read.

        Raises:
            TypeError, ValueError: an argument of the wrong type, dtype or shape.
        """
        check_tensors(src, src_mask=src_mask, src_key_padding_mask=src_key_padding_mask)
        if src.is_nested:
            return on_nested(self, self.self_attn.batch_first, src, src_mask, src_key_padding_mask)
        return self.run(src, self.batch(src, src_mask, src_key_padding_mask, is_causal))

    def batch(
        self,
        src: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool,
    ) -> Batch:
        """What ``run`` needs to know of a padded batch."""
        call, attention = Masks(), self.self_attn
        if isinstance(attention, MultiheadAttention):
            call = attention.call_masks(src, src, key_padding_mask, attn_mask, is_causal)
        rows = None
        if self.training and src.dim() == 3 and not attention.batch_first:
            sample = torch.arange(src.shape[1], device=src.device) << 32
            rows = (torch.arange(src.shape[0], device=src.device)[:, None] | sample).flatten()
        return Batch(attn_mask, key_padding_mask, is_causal, call, None, rows)

    def run(self, x: Tensor, batch: Batch) -> Tensor:
        """The layer on x, laid out as in ``forward``, or on the packed tokens (T, E) of ``batch.plan``."""
        if overridden(self):
            return self._from_blocks(x, batch)
        if self.norm_first:
            branch = self._attend(self.norm1(x), batch)
            normed, x = self._add_norm(*branch, x, self.dropout1, self.norm2, batch, True)
            return self._add(normed, x, batch)
        x, _ = self._add_norm(*self._attend(x, batch), x, self.dropout1, self.norm1, batch)
        return self._add_norm(*self._feed_forward(x, batch), x, self.dropout2, self.norm2, batch)[0]

    def _from_blocks(self, x: Tensor, batch: Batch) -> Tensor:
        """torch's own order of blocks, for a block that is no longer torch's; the masks as torch hands them on."""
        attn_mask, padding = batch.attn_mask, batch.key_padding_mask
        names = ("src_key_padding_mask", "src_mask")
        padding = F._canonical_mask(
            padding, names[0], F._none_or_dtype(attn_mask), names[1], x.dtype
        )
        attn_mask = F._canonical_mask(attn_mask, names[1], None, "", x.dtype, False)
        causal = batch.is_causal
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), attn_mask, padding, is_causal=causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(x + self._sa_block(x, attn_mask, padding, is_causal=causal))
        return self.norm2(x + self._ff_block(x))  # type: ignore[no-any-return]

    def unfused_reasons(self) -> tuple[str, ...]:
        """Why parts of the layer run as separate modules; empty if all of it is fused."""
        found = [overridden(self), self._why_not_attention(), *self._why_not_feed_forward()]
        for at in ("1", "2"):
            norm, dropout = getattr(self, f"norm{at}"), getattr(self, f"dropout{at}")
            found.append(absorb.why_not(f"norm{at}", norm, LayerNorm, nn.LayerNorm))
            found.append(absorb.why_not(f"dropout{at}", dropout, nn.Dropout))
        return tuple(reason for reason in found if reason)

    def _why_not_attention(self) -> str:
        return absorb.why_not("self_attn", self.self_attn, MultiheadAttention) or absorb.why_not(
            "self_attn.out_proj", self.self_attn.out_proj, NonDynamicallyQuantizableLinear
        )

    def _why_not_feed_forward(self) -> tuple[str, ...]:
        unknown = activation_name(self.activation) is None
        return (
            absorb.why_not("linear1", self.linear1, nn.Linear),
            absorb.why_not("dropout", self.dropout, nn.Dropout),
            absorb.why_not("linear2", self.linear2, nn.Linear),
            f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}"
            if unknown
            else "",
        )

    def _attend(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The attention branch, and a bias still to be added to it."""
        attention = self.self_attn
        if absorb.global_hooks() or self._why_not_attention():
            out = attention(
                x, x, x, attn_mask=batch.attn_mask, key_padding_mask=batch.key_padding_mask,
                need_weights=False, is_causal=batch.is_causal,
            )[0]  # fmt: skip
            return out, None
        assert isinstance(attention, MultiheadAttention)
        if batch.plan is None:
            out = attention.attend(x, batch.call)
        else:
            out = attention.attend_packed(x, batch.plan, batch.is_causal)
        return F.linear(out, attention.out_proj.weight), attention.out_proj.bias

    def _feed_forward(
        self, x: Tensor, batch: Batch, defer_bias: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """The feed-forward branch, and a bias still to be added to it."""
        if absorb.global_hooks() or any(self._why_not_feed_forward()):
            return self.linear2(self.dropout(self.activation(self.linear1(x)))), None
        name, bias = activation_name(self.activation), self.linear2.bias
        assert name is not None
        out = feed_forward(
            x, self.linear1.weight, self.linear1.bias, self.linear2.weight, None if defer_bias else bias,
            name, probability(self.dropout), rows=batch.rows,
        )  # fmt: skip
        return out, bias if defer_bias else None

    def _add_norm(
        self,
        branch: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        dropout: nn.Module,
        norm: nn.Module,
        batch: Batch,
        return_sum: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(norm(sum), sum = residual + dropout(branch + bias)); sum only where asked for."""
        if (
            absorb.global_hooks()
            or absorb.why_not("norm", norm, LayerNorm, nn.LayerNorm)
            or absorb.why_not("dropout", dropout, nn.Dropout)
        ):
            total = residual + dropout(branch if bias is None else branch + bias)
            return norm(total), total
        assert isinstance(norm, nn.LayerNorm) and isinstance(dropout, nn.Dropout)
        found = add_layer_norm(
            branch, residual, norm.weight, norm.bias, norm.eps, x_bias=bias,
            dropout_p=probability(dropout), return_sum=return_sum, rows=batch.rows,
        )  # fmt: skip
        return found if isinstance(found, tuple) else (found, found)

    def _add(self, normed: Tensor, residual: Tensor, batch: Batch) -> Tensor:
        """residual + dropout(feed-forward(normed)): the end of a layer whose norms come first."""
        dropout = self.dropout2
        plain = not absorb.global_hooks() and not absorb.why_not("dropout2", dropout, nn.Dropout)
        p = probability(dropout) if plain else 0.0
        branch, bias = self._feed_forward(normed, batch, defer_bias=p > 0.0)
        if p == 0.0:
            return residual + (branch if plain else dropout(branch))
        # Its normalized result is not used: what counts is that the sum drops the elements that
        # (seed, sample, position) say, packed or padded.
        total: Tensor = add_layer_norm(
            branch, residual, None, None, x_bias=bias, dropout_p=p, return_sum=True, rows=batch.rows
        )[1]
        return total


def check_tensors(src: object, **masks: object) -> None:
    """Raises TypeError unless src is a tensor and each mask a tensor or None."""
    for name, value in (("src", src), *masks.items()):
        if not isinstance(value, Tensor) and (value is not None or name == "src"):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def probability(dropout: nn.Dropout) -> float:
    """What it drops with now."""
    return dropout.p if dropout.training else 0.0


_BLOCKS = {name: getattr(nn.TransformerEncoderLayer, name) for name in ("_sa_block", "_ff_block")}


def overridden(layer: nn.TransformerEncoderLayer) -> str:
    """Which of torch's two blocks the layer or its class replaces, or ""."""
    for name, stock in _BLOCKS.items():
        if name in layer.__dict__ or getattr(type(layer), name) is not stock:
            return f"{name} is overridden"
    return ""


_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: LayerNorm,
    nn.MultiheadAttention: MultiheadAttention,
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
}


def adopt(module: nn.Module) -> nn.Module:
    """Turns torch's own modules inside (and the module itself) into ours, in place."""
    for child in module.modules():
        child.__class__ = _OURS.get(type(child), type(child))
    return module


def on_nested(module: nn.Module, batch_first: bool, src: Tensor, *others: Tensor | None) -> Tensor:
    """``module`` on a nested tensor of (L, E) sequences, by way of the padded batch."""
    if any(mask is not None for mask in others):
        raise ValueError("src_mask, src_key_padding_mask: expected None beside a nested src")
    lengths = [len(part) for part in src.unbind()]
    padded = torch.nested.to_padded_tensor(src, 0.0)
    ends = torch.tensor(lengths, device=src.device)[:, None]
    ignore = torch.arange(padded.shape[1], device=src.device) >= ends
    out = module(padded if batch_first else padded.transpose(0, 1), src_key_padding_mask=ignore)
    out = out if batch_first else out.transpose(0, 1)
    parts = [rows[:length] for rows, length in zip(out.unbind(), lengths, strict=True)]
    return torch.nested.as_nested_tensor(parts, layout=src.layout)


def packable(layer: nn.Module) -> bool:
    """Whether packed tokens may go through a layer: no module in it needs to see the batch."""
    if absorb.why_not("layer", layer, TransformerEncoderLayer):
        return False
    assert isinstance(layer, TransformerEncoderLayer)
    attention = layer.self_attn
    return not (
        layer._why_not_attention() or attention.bias_k is not None or attention.add_zero_attn
    )
