"""GPT-2 without a cache: all its layers in one native call on packed tokens; everything else is stock's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigkernels.integrations import backbone, bert, calls, eligible, stacks, whole
from bigkernels.integrations.twins import Role
from bigkernels.ops import checks
from bigkernels.ops.packing import api as packing
from bigkernels.ops.packing.contract import Plan

_SHELLS = ("attn", "mlp")
_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")
_FLAGS = ("output_hidden_states", "output_attentions", "return_dict", "use_cache")


def _children() -> eligible.Children:
    conv: frozenset[type[nn.Module]] = frozenset(
        (sys.modules["transformers.pytorch_utils"].Conv1D,)
    )
    return {
        "ln_1": eligible.NORM,
        "attn.c_attn": conv,
        "attn.c_proj": conv,
        "attn.attn_dropout": eligible.DROPOUT,
        "attn.resid_dropout": eligible.DROPOUT,
        "ln_2": eligible.NORM,
        "mlp.c_fc": conv,
        "mlp.c_proj": conv,
        "mlp.dropout": eligible.DROPOUT,
    }


def _layer_refuse(block: Any) -> str | None:
    if hasattr(block, "crossattention"):
        return "it has cross-attention"
    reason = eligible.refuse_block(block, _children(), _SHELLS, "attn", "mlp.act", causal=True)
    if reason is None and block.attn.reorder_and_upcast_attn:
        return "its attention is reordered and upcast"
    return reason


def _parts(block: Any) -> whole.Layer:
    attention, mlp = block.attn, block.mlp
    modules = (attention.c_attn, attention.c_proj, block.ln_1, mlp.c_fc, mlp.c_proj, block.ln_2)
    activation = eligible.activation_name(mlp.act)
    assert activation is not None
    rates = (
        bert.rate(attention.attn_dropout, attention),
        bert.rate(attention.resid_dropout),
        bert.rate(mlp.dropout),
    )
    return whole.Layer(
        tuple(tensor for m in modules for tensor in (m.weight, m.bias)), attention.num_heads,
        attention.scaling, (block.ln_1.eps, block.ln_2.eps), activation, max(rates),
        norm_first=True, causal=True, form="transposed",
    )  # fmt: skip


def _examine(model: Any) -> str | None:
    for name, classes in (
        ("wte", eligible.EMBEDDING), ("wpe", eligible.EMBEDDING), ("drop", eligible.DROPOUT),
        ("ln_f", eligible.NORM),
    ):  # fmt: skip
        if reason := eligible.refuse_child(name, model._modules[name], classes):
            return reason
    return stacks.why_layers_unfused(model.h)


def _why_not(model: Any, given: dict[str, Any]) -> str | None:
    config = model.config
    if reason := eligible.why_passed(given, _INPUTS, _FLAGS):
        return reason
    cached = given.get("use_cache")
    if config.use_cache if cached is None else cached:
        return "a cache was asked for (use_cache=False is without)"
    if reason := bert.why_recorded(config, given):
        return reason
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens = embeds if ids is None else ids
    if tokens is None or (ids is not None and embeds is not None):
        return "exactly one of input_ids and inputs_embeds is expected"
    if tokens.dim() != (3 if ids is None else 2) or 0 in tokens.shape[:2]:
        return "the batch is empty or has other dimensions"
    mask = given.get("attention_mask")
    if reason := backbone.why_not_mask(mask, tokens):
        return reason
    # The loss reads what stands before a label, padding or not.
    holes = mask is not None and bool(((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any())
    return "the mask has holes" if holes else None


def _embedded(model: Any, given: dict[str, Any], plan: Plan) -> Tensor:
    """Word, position and type embeddings of the tokens, (1, T, E)."""

    def packed(x: Tensor) -> Tensor:
        return packing.unpad(x.expand(plan.batch, plan.length, *x.shape[2:]), plan)[None]

    ids, places = given.get("input_ids"), given.get("position_ids")
    if ids is not None:
        model.warn_if_padding_and_no_attention_mask(ids, given.get("attention_mask"))
    words = packed(given["inputs_embeds"]) if ids is None else model.wte(packed(ids))
    if places is None:
        places = torch.arange(plan.length, device=words.device)
    hidden = words + model.wpe(packed(places if places.dim() > 1 else places[None]))
    types = given.get("token_type_ids")
    if types is not None:
        hidden = hidden + model.wte(packed(types))
    return model.drop(hidden)  # type: ignore[no-any-return]


def _forward(stock: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    if checks.recorded() or checks.through_reference():
        return stock(model, *args, **kwargs)
    given = backbone.by_name(stock, args, kwargs)
    how = stacks.native(
        model, lambda: list(model.h), lambda: _examine(model), _why_not(model, given)
    )
    if how is None:
        return stock(model, *args, **kwargs)
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    plan = backbone.plan_of(given)
    call = whole.encoder_of(model)
    out = call.run(how, _embedded(model, given, plan)[0], plan)
    if out is None:
        return stock(model, *args, **kwargs)
    calls.record(calls.Call(model, backbone.keep(given), plan, call.precision))
    last = packing.pad(model.ln_f(out), plan)
    result = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last)
    return backbone.returned(model, given, result)


def _refuse(model: Any) -> str | None:
    if model.config.add_cross_attention:
        return "it has cross-attention"
    if not getattr(model.config, "is_causal", True):
        return "its configuration is not causal"
    own = eligible.own_method(model)
    return own and f"it has a {own} of its own"


MODEL = Role(_forward, _refuse, forget=stacks.forget, stack=True)
LAYER = Role(stacks.as_stock, _layer_refuse, layer=True, parts=_parts)
