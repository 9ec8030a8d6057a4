"""BERT, RoBERTa, XLM-RoBERTa and ELECTRA: one layer, one embedding block, one backbone for all four."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigkernels.integrations import eligible
from bigkernels.integrations.packing import Plan
from bigkernels.integrations.twins import Role
from bigkernels.ops.attention.api import scaled_dot_product_attention, varlen_attn
from bigkernels.ops.ffn.api import feed_forward
from bigkernels.ops.layer_norm.api import add_layer_norm

_LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.self.dropout",
    "attention.output.dense",
    "attention.output.dropout",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.dropout",
    "output.LayerNorm",
)
_LAYER_SHELLS = ("attention", "attention.self", "attention.output", "intermediate", "output")
_EMBEDDINGS = (
    "word_embeddings",
    "token_type_embeddings",
    "position_embeddings",
    "LayerNorm",
    "dropout",
)


def readable_mask(mask: Any) -> bool:
    """Whether a layer's mask is one the kernels read; other attention implementations have their own kinds."""
    return mask is None or (isinstance(mask, Tensor) and mask.dim() == 4)


def attend(
    q: Tensor,  # (..., E)
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None,
    plan: Plan | None,
    dropout_p: float,
    scale: float,
) -> Tensor:
    """Attention of projected tokens: (T, E) with a plan, else (B, L, E) with a mask; returns the same shape."""
    shape = q.shape
    q, k, v = (x.view(*shape[:-1], heads, shape[-1] // heads) for x in (q, k, v))
    if plan is not None:
        out = varlen_attn(
            q, k, v, plan.cu_seq, plan.cu_seq, plan.max_length, plan.max_length,
            dropout_p=dropout_p, scale=scale, rows=plan.rows,
        )  # fmt: skip
        return out.view(shape)  # type: ignore[no-any-return]
    out = scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, dropout_p, scale=scale
    )
    return out.transpose(1, 2).reshape(shape)  # type: ignore[no-any-return]


def rate(dropout: Any, owner: nn.Module | None = None) -> float:
    """Probability a Dropout module drops with now; owner: the module whose mode stock reads instead of its own."""
    training = dropout.training if owner is None else owner.training
    return float(dropout.p) if training else 0.0


def _layer_refuse(layer: nn.Module) -> str | None:
    if getattr(layer, "is_decoder", False) or getattr(layer, "add_cross_attention", False):
        return "it is a decoder layer"
    return eligible.refuse_block(layer, _LAYER, _LAYER_SHELLS, "intermediate.intermediate_act_fn")


def _layer_forward(
    stock: Callable[..., Any],
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    *,
    bigkernels_plan: Plan | None = None,
    **kwargs: Any,
) -> Any:
    plain = encoder_hidden_states is None and past_key_values is None
    masked = not readable_mask(attention_mask)
    # With a plan the backbone has just asked.
    refused = bigkernels_plan is None and _layer_refuse(layer) is not None
    if not plain or masked or kwargs.get("output_attentions") or refused:
        return stock(
            layer,
            hidden_states,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
    return _fused_layer(layer, hidden_states, attention_mask, bigkernels_plan)


def _fused_layer(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None, plan: Plan | None
) -> Tensor:
    rows = None if plan is None else plan.rows
    x = hidden_states if plan is None else hidden_states[0]
    attention, after = layer.attention.self, layer.attention.output
    context = attend(
        attention.query(x),
        attention.key(x),
        attention.value(x),
        attention.num_attention_heads,
        attention_mask,
        plan,
        rate(attention.dropout, attention),
        attention.scaling,
    )
    # The Linear's bias travels with the residual: one pass over the tokens less.
    x = add_layer_norm(
        F.linear(context, after.dense.weight),
        x,
        after.LayerNorm.weight,
        after.LayerNorm.bias,
        after.LayerNorm.eps,
        x_bias=after.dense.bias,
        dropout_p=rate(after.dropout),
        rows=rows,
    )
    up, down = layer.intermediate.dense, layer.output.dense
    activation = eligible.activation_name(layer.intermediate.intermediate_act_fn)
    assert activation is not None
    y = feed_forward(x, up.weight, up.bias, down.weight, None, activation, rows=rows)
    norm = layer.output.LayerNorm
    out: Tensor = add_layer_norm(
        y,
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        x_bias=down.bias,
        dropout_p=rate(layer.output.dropout),
        rows=rows,
    )
    return out if plan is None else out[None]


def _embeddings_refuse(embeddings: nn.Module) -> str | None:
    return eligible.refuse_children(embeddings, _EMBEDDINGS)


def drop(x: Tensor, dropout_p: float, rows: Tensor | None) -> Tensor:
    """Dropout by the row counters; all threads, where torch's own CPU dropout runs in one."""
    if dropout_p == 0.0:
        return x
    zero = torch.zeros_like(x)
    return add_layer_norm(x, zero, None, None, dropout_p=dropout_p, return_sum=True, rows=rows)[1]  # type: ignore[no-any-return]


def _embeddings_forward(
    stock: Callable[..., Any],
    embeddings: Any,
    input_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values_length: int = 0,
    *,
    bigkernels_plan: Plan | None = None,
) -> Tensor:
    if bigkernels_plan is None:
        return stock(  # type: ignore[no-any-return]
            embeddings,
            input_ids,
            token_type_ids,
            position_ids,
            inputs_embeds,
            past_key_values_length,
        )
    words = embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    # Without type ids every token is of type 0: one row, broadcast.
    types = embeddings.token_type_embeddings
    words = words + (types.weight[0] if token_type_ids is None else types(token_type_ids))
    norm, rows = embeddings.LayerNorm, bigkernels_plan.rows
    out = add_layer_norm(
        words, embeddings.position_embeddings(position_ids), norm.weight, norm.bias, norm.eps
    )
    return drop(out, rate(embeddings.dropout), rows)


def _first_position(embeddings: Any) -> int:
    """RoBERTa counts positions from behind the padding index, the others from 0."""
    counts = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counts else 0


def positions_suffice(embeddings: Any, length: int) -> bool:
    """Whether every position of a batch of that length has an embedding."""
    table: int = embeddings.position_embeddings.num_embeddings
    return _first_position(embeddings) + length <= table


def position_ids(backbone: Any, input_ids: Tensor | None, plan: Plan) -> Tensor:
    """Position ids (B, L) or (L,) stock would use for this batch, before packing."""
    embeddings = backbone.embeddings
    first = _first_position(embeddings)
    if first and input_ids is not None:
        found = embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx, 0)
        return found  # type: ignore[no-any-return]
    return torch.arange(first, first + plan.length, device=plan.rows.device)


LAYER = Role(_layer_forward, _layer_refuse, layer=True)
EMBEDDINGS = Role(_embeddings_forward, _embeddings_refuse)
