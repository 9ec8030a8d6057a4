"""DistilBERT: its block and its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bigkernels.integrations import eligible
from bigkernels.integrations.bert import attend, drop, rate
from bigkernels.integrations.packing import Plan
from bigkernels.integrations.twins import Role
from bigkernels.ops.ffn.api import feed_forward
from bigkernels.ops.layer_norm.api import add_layer_norm

_BLOCK = (
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "attention.dropout",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "ffn.dropout",
    "output_layer_norm",
)
_EMBEDDINGS = ("word_embeddings", "position_embeddings", "LayerNorm", "dropout")


def _block_refuse(block: nn.Module) -> str | None:
    if reason := eligible.refuse_children(block, _BLOCK):
        return reason
    for path in ("attention", "ffn"):
        shell = eligible.descend(block, path)
        if shell is not None and eligible.hooked(shell):
            return f"{path} has hooks"
    activation = block.ffn.activation  # type: ignore[union-attr]
    if eligible.activation_name(activation) is None:
        return f"activation {type(activation).__name__} is not fused"
    return None


def _block_forward(
    stock: Callable[..., Any],
    block: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *,
    bigkernels_plan: Plan | None = None,
    **kwargs: Any,
) -> Any:
    masked = attention_mask is not None and attention_mask.dim() != 4
    # With a plan the backbone has just asked.
    refused = bigkernels_plan is None and _block_refuse(block) is not None
    if masked or kwargs.get("output_attentions") or refused:
        return stock(block, hidden_states, attention_mask, **kwargs)
    plan, training = bigkernels_plan, block.training
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
        rate(attention.dropout, training),
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
        dropout_p=rate(ffn.dropout, training),
        rows=rows,
    )
    return out if plan is None else out[None]


def _embeddings_refuse(embeddings: nn.Module) -> str | None:
    return eligible.refuse_children(embeddings, _EMBEDDINGS)


def _embeddings_forward(
    stock: Callable[..., Any],
    embeddings: Any,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    bigkernels_plan: Plan | None = None,
) -> Tensor:
    if _embeddings_refuse(embeddings) is not None or bigkernels_plan is None:
        return stock(embeddings, input_ids, inputs_embeds, position_ids)  # type: ignore[no-any-return]
    words = embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
    norm = embeddings.LayerNorm
    out = add_layer_norm(
        words, embeddings.position_embeddings(position_ids), norm.weight, norm.bias, norm.eps
    )
    return drop(out, rate(embeddings.dropout, embeddings.training), bigkernels_plan.rows)


BLOCK = Role(_block_forward, _block_refuse, layer=True)
EMBEDDINGS = Role(_embeddings_forward, _embeddings_refuse)
