"""The backbone of an encoder: builds one plan a batch, runs the blocks on packed tokens, pads the result again."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigkernels.integrations import bert, calls, eligible, heads, slower, stacks, whole
from bigkernels.integrations.twins import Role
from bigkernels.nn import masks
from bigkernels.ops import checks
from bigkernels.ops.packing import api as packing
from bigkernels.ops.packing.contract import Plan

_TENSORS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_FLAGS = ("output_hidden_states", "output_attentions", "return_dict", "use_cache")

_padded: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def note(backbone: nn.Module, given: dict[str, Any], reason: str | None) -> None:
    """Remembers why a call runs padded, or that it does not."""
    if reason is None:
        _padded.pop(backbone, None)
        return
    _padded[backbone] = reason
    calls.record(calls.Call(backbone, keep(given), None))


def keep(given: dict[str, Any]) -> Tensor | None:
    """The tokens of a call by its padding mask, (B, L) bool, if it has such."""
    mask = given.get("attention_mask")
    return mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None


def why_padded(backbone: nn.Module) -> str | None:
    """Why a backbone ran its last batch padded; None if it ran packed or has not run."""
    return _padded.get(backbone)


def _stack(backbone: Any) -> Any:
    return backbone.encoder if hasattr(backbone, "encoder") else backbone.transformer


def _why_padded(backbone: Any, given: dict[str, Any]) -> str | None:
    """Why this call cannot run packed, or None."""
    config = backbone.config
    if getattr(config, "is_decoder", False):
        return "it is a decoder"
    return (
        eligible.why_passed(given, _TENSORS, _FLAGS)
        or bert.why_recorded(config, given)
        or _why_not_these_tensors(backbone, given)
        or stacks.why_not(backbone, lambda: _layers_of(backbone), lambda: _examine(backbone))
    )


def _layers_of(backbone: Any) -> list[nn.Module]:
    return list(_stack(backbone).layer)


def _examine(backbone: Any) -> str | None:
    stack = "encoder" if hasattr(backbone, "encoder") else "transformer"
    parts = backbone._modules
    for name in ("embeddings", stack, "pooler"):
        if parts.get(name) is not None and (
            reason := eligible.refuse_shell(name, parts[name], backbone)
        ):
            return reason
    outside = {"embeddings_project": parts.get("embeddings_project")}
    if stacks.why_unfused(parts["embeddings"]) is not None:
        outside.update(parts["embeddings"].named_modules())
    for name, module in outside.items():
        if module is not None and eligible.hooked(module):
            return f"{name} has hooks"
    return stacks.why_layers_unfused(parts[stack].layer)


def _why_not_these_tensors(backbone: Any, given: dict[str, Any]) -> str | None:
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens = embeds if ids is None else ids
    if tokens is None or (ids is not None and embeds is not None):
        return "exactly one of input_ids and inputs_embeds is expected"
    if tokens.dim() != (3 if ids is None else 2) or 0 in tokens.shape[:2]:
        return "the batch is empty or has other dimensions"
    if (given.get("position_ids") is None or given.get("token_type_ids") is None) and (
        reason := bert.why_not_buffers(backbone.embeddings, tokens.shape[1])
    ):
        return reason
    return why_not_mask(given.get("attention_mask"), tokens)


def why_not_mask(mask: Any, tokens: Tensor) -> str | None:
    """Why tokens (B, L, ...) with this mask cannot be packed, or None."""
    if mask is None:
        return None
    if not masks.concrete(mask) or mask.dim() != 2 or mask.shape != tokens.shape[:2]:
        return "the mask is not a padding mask (B, L)"
    if mask.device != tokens.device:
        return "the mask is on another device"
    if mask.is_cpu and bool(mask.all()):
        return None
    if not bool(mask[:, 0].all()):  # heads read column 0 of the result
        return "a sample is padded on the left or empty"
    reason = heads.reader()
    return None if reason is None or bool(mask.all()) else reason


def _why_stock(backbone: Any, given: dict[str, Any]) -> str | None:
    """Why this call is left to stock, although it could be ours."""
    mask = given.get("attention_mask")
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    if not slower.table() or not tokens.is_cpu or not (mask is None or bool(mask.all())):
        return None
    config = backbone.config
    return slower.keeps_stock(backbone.dtype, config.hidden_size, *tokens.shape[:2])


def plan_of(given: dict[str, Any]) -> Plan:
    """The plan of a batch that may be packed."""
    mask = given.get("attention_mask")
    if mask is not None and not (mask.is_cpu and bool(mask.all())):
        return packing.plan(mask)  # nonzero = token, as in transformers
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    if tokens.is_cpu:
        return packing.full_plan_cpu(tokens.shape[0], tokens.shape[1])
    return packing.full_plan(tokens.shape[0], tokens.shape[1], tokens.device)


def _packed_ids(backbone: Any, given: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The embeddings' arguments on packed tokens, each (1, T, ...)."""
    ids = given.get("position_ids")
    if ids is None:
        ids = bert.position_ids(backbone, given.get("input_ids"), plan)
    ids = ids.expand(plan.batch, plan.length)

    def pack(x: Tensor | None) -> Tensor | None:
        return None if x is None else packing.unpad(x, plan)[None]

    types = given.get("token_type_ids")
    found: dict[str, Any] = {
        "input_ids": pack(given.get("input_ids")),
        "inputs_embeds": pack(given.get("inputs_embeds")),
        "position_ids": pack(ids),
    }
    if types is not None:
        found["token_type_ids"] = pack(types.expand(plan.batch, plan.length))
    return found


def _pooled(backbone: Any, hidden: Tensor, plan: Plan) -> Tensor | None:
    """The pooler on the first token of each sample; it sees (B, 1, E) and takes position 0 as ever."""
    pooler = getattr(backbone, "pooler", None)
    if pooler is None:
        return None
    if plan.batch == 1 and _plain_pooler(pooler, hidden):
        # One row: torch's product of a matrix and a vector needs a fraction of the time of a Linear in bfloat16.
        dense = pooler.dense
        return torch.addmv(dense.bias, dense.weight, hidden[0]).tanh_()[None]
    return pooler(hidden.index_select(0, plan.cu_seq[:-1])[:, None])  # type: ignore[no-any-return]


def _plain_pooler(pooler: Any, hidden: Tensor) -> bool:
    """Whether a pooler is tanh of a product on the CPU, of which nobody wants gradients; its own forward and hooks
    have been looked at."""
    dense, activation = pooler._modules.get("dense"), pooler._modules.get("activation")
    return (
        dense is not None
        and type(activation) is nn.Tanh
        and eligible.refuse_child("dense", dense, eligible.LINEAR) is None
        and not (eligible.hooked(activation) or "forward" in activation.__dict__)
        and dense.bias is not None
        and hidden.is_cpu
        and hidden.dtype == dense.weight.dtype
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _layers(backbone: Any, hidden: Tensor, plan: Plan) -> tuple[Tensor, str | None]:
    """All layers on packed hidden states (1, T, E): one native call, whose precision is returned too, or one layer
    after the other."""
    how = stacks.recipe(backbone)
    if how is not None:
        call = whole.encoder_of(backbone)
        out = call.run(how, hidden[0], plan)
        if out is not None:
            return out[None], call.precision
    for layer in _stack(backbone).layer:
        hidden = layer(hidden, bigkernels_plan=plan)
    return hidden, None


def forward(stock: Callable[..., Any], backbone: Any, *args: Any, **kwargs: Any) -> Any:
    """Forward of a swapped backbone; results are stock's, with zeros at padded positions."""
    # Where values cannot be read, T tokens would be a data-dependent size.
    if checks.recorded() or checks.through_reference():
        return stock(backbone, *args, **kwargs)
    from transformers import modeling_outputs as outputs

    given = by_name(stock, args, kwargs)
    reason = _why_padded(backbone, given)
    if reason is not None:
        note(backbone, given, reason)
        return stock(backbone, *args, **kwargs)
    if (reason := _why_stock(backbone, given)) is not None:
        note(backbone, given, reason)
        with slower.as_stock():
            return stock(backbone, *args, **kwargs)
    note(backbone, given, None)
    plan = plan_of(given)
    arguments = _packed_ids(backbone, given, plan)
    if stacks.fused(backbone, "embeddings"):
        arguments["bigkernels_plan"] = plan
    hidden = backbone.embeddings(**arguments)
    if hasattr(backbone, "embeddings_project"):
        hidden = backbone.embeddings_project(hidden)
    hidden, precision = _layers(backbone, hidden, plan)
    if calls.wanted():
        calls.record(calls.Call(backbone, keep(given), plan, precision))
    last = packing.pad(hidden[0], plan)
    result: Any
    if hasattr(backbone, "pooler"):
        result = outputs.BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last, pooler_output=_pooled(backbone, hidden[0], plan)
        )
    elif hasattr(backbone, "encoder"):
        result = outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last)
    else:
        result = outputs.BaseModelOutput(last_hidden_state=last)
    return returned(backbone, given, result)


def returned(backbone: Any, given: dict[str, Any], result: Any) -> Any:
    """A model's output as the call wants it, by name or as a tuple."""
    wants_dict = given.get("return_dict")
    wants_dict = getattr(backbone.config, "return_dict", True) if wants_dict is None else wants_dict
    return result if wants_dict else result.to_tuple()


_names: dict[Callable[..., Any], tuple[str, ...]] = {}


def by_name(
    stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The call's arguments by name; stock is left to refuse more of them than it has."""
    names = _names.get(stock)
    if names is None:
        parameters = list(inspect.signature(stock).parameters.values())[1:]
        names = _names[stock] = tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
    given = dict(zip(names, args, strict=False))
    if len(args) > len(names) or given.keys() & kwargs.keys():
        given["a superfluous argument"] = args[-1]
    return {**given, **kwargs}


def _refuse(backbone: nn.Module) -> str | None:
    if getattr(backbone.config, "is_decoder", False):
        return "it is a decoder"
    if own := eligible.own_method(backbone):
        return f"it has a {own} of its own"
    kind = getattr(backbone.config, "position_embedding_type", "absolute")
    return None if kind in (None, "absolute") else f"position_embedding_type {kind} is not served"


BACKBONE = Role(forward, _refuse, forget=stacks.forget, stack=True)
