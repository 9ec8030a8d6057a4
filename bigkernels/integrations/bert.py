"""BERT, RoBERTa, XLM-RoBERTa and ELECTRA: one layer, one embedding block, one backbone for all four."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigkernels.integrations import eligible
from bigkernels.integrations.twins import Role
from bigkernels.integrations.whole import Layer
from bigkernels.ops.attention.api import scaled_dot_product_attention, varlen_attn
from bigkernels.ops.embedding.api import embedding
from bigkernels.ops.ffn.api import feed_forward
from bigkernels.ops.layer_norm.api import add_layer_norm
from bigkernels.ops.packing.contract import Plan

_LAYER = {
    "attention.self.query": eligible.LINEAR,
    "attention.self.key": eligible.LINEAR,
    "attention.self.value": eligible.LINEAR,
    "attention.self.dropout": eligible.DROPOUT,
    "attention.output.dense": eligible.LINEAR,
    "attention.output.dropout": eligible.DROPOUT,
    "attention.output.LayerNorm": eligible.NORM,
    "intermediate.dense": eligible.LINEAR,
    "output.dense": eligible.LINEAR,
    "output.dropout": eligible.DROPOUT,
    "output.LayerNorm": eligible.NORM,
}
_LAYER_SHELLS = ("attention", "attention.self", "attention.output", "intermediate", "output")
_EMBEDDINGS = {
    "word_embeddings": eligible.EMBEDDING,
    "token_type_embeddings": eligible.EMBEDDING,
    "position_embeddings": eligible.EMBEDDING,
    "LayerNorm": eligible.NORM,
    "dropout": eligible.DROPOUT,
}


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
    return float(getattr(dropout, "p", 0.0)) if training else 0.0


def recording() -> frozenset[str]:
    """What transformers is collecting by its own hooks inside the layers, as configurations and calls may ask."""
    module = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(module, "_active_collector", None)
    if collector is None:
        return frozenset()
    # A context variable cannot be read while compiling; there transformers uses its global twin.
    found = collector.global_var if torch.compiler.is_compiling() else collector.get()
    return frozenset(found or ())


def why_recorded(config: Any, given: Mapping[str, Any]) -> str | None:
    """Why a call must go through stock's layers: their outputs are wanted; or None. given: its arguments by name."""
    for name in ("output_hidden_states", "output_attentions"):
        asked = given.get(name)
        if asked or (asked is None and getattr(config, name, False)):
            return f"{name} was asked for"
    return "an outer model records outputs" if recording() else None


def records_attentions() -> bool:
    """Whether the modules that a fused layer does not call are being recorded."""
    return any("attentions" in key for key in recording())


def _layer_refuse(layer: nn.Module) -> str | None:
    if getattr(layer, "is_decoder", False) or getattr(layer, "add_cross_attention", False):
        return "it is a decoder layer"
    return eligible.refuse_block(
        layer, _LAYER, _LAYER_SHELLS, "attention.self", "intermediate.intermediate_act_fn"
    )


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
    refused = bigkernels_plan is None and (records_attentions() or _layer_refuse(layer) is not None)
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
    return eligible.refuse_parts(embeddings, _EMBEDDINGS)


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
    types = embeddings.token_type_embeddings
    if token_type_ids is None:
        token_type_ids = _default_types(embeddings, position_ids)
    if inputs_embeds is None and one_dtype(embeddings):
        return embed(embeddings, input_ids, position_ids, types, token_type_ids, bigkernels_plan)
    words = embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    # One row, broadcast, where every token is of type 0.
    words = words + (types.weight[0] if token_type_ids is None else types(token_type_ids))
    norm, rows = embeddings.LayerNorm, bigkernels_plan.rows
    out = add_layer_norm(
        words, embeddings.position_embeddings(position_ids), norm.weight, norm.bias, norm.eps
    )
    return drop(out, rate(embeddings.dropout), rows)


def one_dtype(embeddings: Any) -> bool:
    """Whether all tables have the words' dtype, which the sum then has too."""
    tables = [m.weight.dtype for m in embeddings._modules.values() if isinstance(m, nn.Embedding)]
    return tables.count(tables[0]) == len(tables)


def embed(
    embeddings: Any,
    ids: Tensor | None,  # (1, T)
    position_ids: Tensor | None,  # (1, T)
    types: Any,
    type_ids: Tensor | None,  # (1, T); None: 0
    plan: Plan,
) -> Tensor:
    """The sum of the embeddings' tables, LayerNorm and dropout for packed tokens, (1, T, E)."""
    assert ids is not None
    words, places, norm = (
        embeddings.word_embeddings,
        embeddings.position_embeddings,
        embeddings.LayerNorm,
    )
    return embedding(
        ids,
        words.weight,
        places.weight,
        None if types is None else types.weight,
        norm.weight,
        norm.bias,
        norm.eps,
        position_ids=position_ids,
        type_ids=type_ids,
        padding_idx=words.padding_idx,
        position_padding_idx=places.padding_idx,
        dropout_p=rate(embeddings.dropout),
        rows=plan.rows,
    )


def _default_types(embeddings: Any, position_ids: Tensor | None) -> Tensor | None:
    """Types stock gives the tokens at these positions (1, T) if none were passed; None if all are 0."""
    buffer = getattr(embeddings, "token_type_ids", None)
    if buffer is None or (buffer.is_cpu and not buffer.any()):
        return None
    assert position_ids is not None
    found: Tensor = buffer.gather(1, position_ids)
    return found


def _counts(embeddings: Any) -> bool:
    """Whether positions are counted from behind the padding index, as RoBERTa does."""
    return hasattr(embeddings, "create_position_ids_from_input_ids")


def why_not_buffers(embeddings: Any, length: int) -> str | None:
    """Why the default positions and types of a batch of that length cannot be read, or None."""
    first = int(embeddings.padding_idx) + 1 if _counts(embeddings) else 0
    if first + length > embeddings.position_embeddings.num_embeddings:
        return "the batch is longer than the position table"
    for name in ("position_ids", "token_type_ids"):
        buffer = getattr(embeddings, name, None)
        if buffer is not None and (buffer.dim() != 2 or buffer.shape[0] != 1):
            return f"embeddings.{name} is not (1, positions)"
        if buffer is not None and first + length > buffer.shape[1]:
            return f"the batch is longer than embeddings.{name}"
    return None


def position_ids(backbone: Any, input_ids: Tensor | None, plan: Plan) -> Tensor:
    """Position ids (B, L), (1, L) or (L,) stock would use for this batch, before packing."""
    embeddings = backbone.embeddings
    if not _counts(embeddings):
        buffer = getattr(embeddings, "position_ids", None)
        found = torch.arange(plan.length, device=plan.rows.device) if buffer is None else buffer
        return found[..., : plan.length]
    if input_ids is None:
        first = int(embeddings.padding_idx) + 1
        return torch.arange(first, first + plan.length, device=plan.rows.device)
    return embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx, 0)  # type: ignore[no-any-return]


def _parts(layer: Any) -> Layer:
    inner, after = layer.attention.self, layer.attention.output
    up, down = layer.intermediate.dense, layer.output
    modules = (
        inner.query, inner.key, inner.value, after.dense, after.LayerNorm,
        up, down.dense, down.LayerNorm,
    )  # fmt: skip
    activation = eligible.activation_name(layer.intermediate.intermediate_act_fn)
    assert activation is not None
    dropout = max(rate(inner.dropout, inner), rate(after.dropout), rate(down.dropout))
    return Layer.of(modules, inner.num_attention_heads, inner.scaling, activation, dropout)


LAYER = Role(_layer_forward, _layer_refuse, layer=True, parts=_parts)
EMBEDDINGS = Role(_embeddings_forward, _embeddings_refuse)
