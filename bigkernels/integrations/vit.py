"""ViT: all its layers in one native call; everything else is stock's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bigkernels.integrations import backbone, bert, calls, eligible, stacks, whole
from bigkernels.integrations.twins import Role
from bigkernels.ops import checks
from bigkernels.ops.packing import api as packing

_LAYER = {
    "attention.q_proj": eligible.LINEAR,
    "attention.k_proj": eligible.LINEAR,
    "attention.v_proj": eligible.LINEAR,
    "attention.o_proj": eligible.LINEAR,
    "layernorm_before": eligible.NORM,
    "layernorm_after": eligible.NORM,
    "mlp.fc1": eligible.LINEAR,
    "mlp.fc2": eligible.LINEAR,
    "dropout": eligible.DROPOUT,
}
_INPUTS = ("pixel_values", "bool_masked_pos", "interpolate_pos_encoding")
_FLAGS = ("output_hidden_states", "output_attentions", "return_dict")


def _layer_refuse(layer: nn.Module) -> str | None:
    return eligible.refuse_block(
        layer, _LAYER, ("attention", "mlp"), "attention", "mlp.activation_fn"
    )


def _parts(layer: Any) -> whole.Layer:
    attention, mlp = layer.attention, layer.mlp
    modules = (
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        layer.layernorm_before, mlp.fc1, mlp.fc2, layer.layernorm_after,
    )  # fmt: skip
    activation = eligible.activation_name(mlp.activation_fn)
    assert activation is not None
    inner = float(attention.attention_dropout) if attention.training else 0.0
    rate = max(inner, bert.rate(layer.dropout))
    heads, scaling = attention.num_attention_heads, attention.scaling
    return whole.Layer.of(modules, heads, scaling, activation, rate)._replace(norm_first=True)


def _why_not(model: Any, given: dict[str, Any]) -> str | None:
    if reason := eligible.why_passed(given, _INPUTS, _FLAGS):
        return reason
    if given.get("pixel_values") is None:
        return "there are no pixel_values"
    return bert.why_recorded(model.config, given)


def _forward(stock: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    if checks.recorded() or checks.through_reference():
        return stock(model, *args, **kwargs)
    given = backbone.by_name(stock, args, kwargs)
    how = stacks.native(
        model,
        lambda: list(model.layers),
        lambda: stacks.why_layers_unfused(model.layers),
        _why_not(model, given),
    )
    if how is None:
        return stock(model, *args, **kwargs)
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    pixels = given["pixel_values"].to(model.embeddings.patch_embeddings.projection.weight.dtype)
    hidden = model.embeddings(
        pixels,
        bool_masked_pos=given.get("bool_masked_pos"),
        interpolate_pos_encoding=given.get("interpolate_pos_encoding"),
    )
    plan = packing.full_plan_cpu(*hidden.shape[:2])
    call = whole.encoder_of(model)
    out = call.run(how, hidden.flatten(0, 1), plan)
    if out is None:
        return stock(model, *args, **kwargs)
    calls.record(calls.Call(model, None, plan, call.precision))
    last = model.layernorm(out.view(hidden.shape))
    pooled = None if model.pooler is None else model.pooler(last)
    result = BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled)
    return backbone.returned(model, given, result)


def _refuse(model: Any) -> str | None:
    if not hasattr(model, "layers") or not hasattr(model, "layernorm"):
        return "this version of transformers has its layers elsewhere"
    own = eligible.own_method(model)
    return own and f"it has a {own} of its own"


MODEL = Role(_forward, _refuse, forget=stacks.forget, stack=True)
LAYER = Role(stacks.as_stock, _layer_refuse, layer=True, parts=_parts)
