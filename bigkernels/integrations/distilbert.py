"""DistilBERT: its block and its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bigkernels.integrations import eligible
from bigkernels.integrations.bert import (
    attend,
    drop,
    embed,
    one_dtype,
    rate,
    readable_mask,
    records_attentions,
)
from bigkernels.integrations.twins import Role
from bigkernels.integrations.whole import Layer
from bigkernels.ops.ffn.api import feed_forward
from bigkernels.ops.layer_norm.api import add_layer_norm
from bigkernels.ops.packing.contract import Plan

_BLOCK = {
    "attention.q_lin": eligible.LINEAR,
    "attention.k_lin": eligible.LINEAR,
    "attention.v_lin": eligible.LINEAR,
    "attention.out_lin": eligible.LINEAR,
    "attention.dropout": eligible.DROPOUT,
    "sa_layer_norm": eligible.NORM,
    "ffn.lin1": eligible.LINEAR,
    "ffn.lin2": eligible.LINEAR,
    "ffn.dropout": eligible.DROPOUT,
    "output_layer_norm": eligible.NORM,
}
_EMBEDDINGS = {
    "word_embeddings": eligible.EMBEDDING,
    "position_embeddings": eligible.EMBEDDING,
    "LayerNorm": eligible.NORM,
    "dropout": eligible.DROPOUT,
}


def _block_refuse(block: nn.Module) -> str | None:
    return eligible.refuse_block(block, _BLOCK, ("attention", "ffn"), "attention", "ffn.activation")


def _block_forward(
    stock: Callable[..., Any],
    block: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *,
    bigkernels_plan: Plan | None = None,
    **kwargs: Any,
) -> Any:
    masked = not readable_mask(attention_mask)
    # With a plan the backbone has just asked.
    refused = bigkernels_plan is None and (records_attentions() or _block_refuse(block) is not None)
    if masked or kwargs.get("output_attentions") or refused:
        return stock(block, hidden_states, attention_mask, **kwargs)
    plan = bigkernels_plan
    rows = None if plan is None else plan.rows
    x = hidden_states if plan is None else hidden_states[0]
    attention, ffn = block.attention, block.ffn
    context = attend(
        attention.q_lin(x),
        attention.k_lin(x),
        attention.v_lin(x),
        attention.n_heads,
        attention_mask,
        plan,
        rate(attention.dropout, attention),
        attention.scaling,
    )
    norm = block.sa_layer_norm
    x = add_layer_norm(
        F.linear(context, attention.out_lin.weight),
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        x_bias=attention.out_lin.bias,
    )
    activation = eligible.activation_name(ffn.activation)
    assert activation is not None
    y = feed_forward(x, ffn.lin1.weight, ffn.lin1.bias, ffn.lin2.weight, None, activation)
    norm = block.output_layer_norm
    out = add_layer_norm(
        y,
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        x_bias=ffn.lin2.bias,
        dropout_p=rate(ffn.dropout),
        rows=rows,
    )
    return out if plan is None else out[None]


def _embeddings_refuse(embeddings: nn.Module) -> str | None:
    return eligible.refuse_parts(embeddings, _EMBEDDINGS)


def _embeddings_forward(
    stock: Callable[..., Any],
    embeddings: Any,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    bigkernels_plan: Plan | None = None,
) -> Tensor:
    if bigkernels_plan is None:
        return stock(embeddings, input_ids, inputs_embeds, position_ids)  # type: ignore[no-any-return]
    if inputs_embeds is None and one_dtype(embeddings):
        return embed(embeddings, input_ids, position_ids, None, None, bigkernels_plan)
    words = embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    norm = embeddings.LayerNorm
    out = add_layer_norm(
        words, embeddings.position_embeddings(position_ids), norm.weight, norm.bias, norm.eps
    )
    return drop(out, rate(embeddings.dropout), bigkernels_plan.rows)


def _parts(block: Any) -> Layer:
    attention, ffn = block.attention, block.ffn
    modules = (
        attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, block.sa_layer_norm,
        ffn.lin1, ffn.lin2, block.output_layer_norm,
    )  # fmt: skip
    activation = eligible.activation_name(ffn.activation)
    assert activation is not None
    dropout = max(rate(attention.dropout, attention), rate(ffn.dropout))
    return Layer.of(modules, attention.n_heads, attention.scaling, activation, dropout)


BLOCK = Role(_block_forward, _block_refuse, layer=True, parts=_parts)
EMBEDDINGS = Role(_embeddings_forward, _embeddings_refuse)
