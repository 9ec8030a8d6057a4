"""The backbone of an encoder: builds one plan a batch, runs the blocks on packed tokens, pads the result again."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigkernels.integrations import bert, eligible, packing
from bigkernels.integrations.packing import Plan
from bigkernels.integrations.twins import Role, role_of

_TENSORS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_FOREIGN = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")

_padded: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def why_padded(backbone: nn.Module) -> str | None:
    """Why a backbone ran its last batch padded; None if it ran packed or has not run."""
    return _padded.get(backbone)


def _why_padded(backbone: Any, given: dict[str, Any]) -> str | None:
    """Why this call cannot run packed, or None."""
    config = backbone.config
    if getattr(config, "is_decoder", False):
        return "it is a decoder"
    for name in _FOREIGN:
        if given.get(name) is not None:
            return f"{name} was passed"
    for name in ("output_hidden_states", "output_attentions"):
        asked = given.get(name)
        if asked or (asked is None and getattr(config, name, False)):
            return f"{name} was asked for"
    if given.get("head_mask") is not None:
        return "head_mask was passed"
    for module in backbone.modules():
        if module is not backbone and eligible.hooked(module):
            return f"{type(module).__name__} has hooks"
    stack = backbone.encoder if hasattr(backbone, "encoder") else backbone.transformer
    if not all(_fused(layer) for layer in stack.layer):
        return "not every layer is fused"
    return _why_not_this_mask(given)


def _fused(module: nn.Module) -> bool:
    role = role_of(module)
    return role is not None and role.refuse(module) is None


def _why_not_this_mask(given: dict[str, Any]) -> str | None:
    tokens = (
        given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    )
    if tokens is None or (
        given.get("input_ids") is not None and given.get("inputs_embeds") is not None
    ):
        return "exactly one of input_ids and inputs_embeds is expected"
    if tokens.dim() < 2 or tokens.shape[0] == 0 or tokens.shape[1] == 0:
        return "the batch is empty"
    mask = given.get("attention_mask")
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape != tokens.shape[:2]:
        return "the mask is not a padding mask (B, L)"
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        return "the mask holds values other than 0 and 1"
    if not bool(mask[:, 0].all()):  # heads read column 0 of the result
        return "a sample is padded on the left or empty"
    return None


def _plan(given: dict[str, Any]) -> Plan:
    mask = given.get("attention_mask")
    if mask is not None:
        return packing.plan(mask)
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
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
    return pooler(hidden.index_select(0, plan.cu_seq[:-1])[:, None])  # type: ignore[no-any-return]


def forward(stock: Callable[..., Any], backbone: Any, *args: Any, **kwargs: Any) -> Any:
    """Forward of a swapped backbone; results are stock's, with zeros at padded positions."""
    if torch.compiler.is_compiling():  # T tokens would be a data-dependent size
        return stock(backbone, *args, **kwargs)
    from transformers import modeling_outputs as outputs

    given = inspect_arguments(stock, backbone, args, kwargs)
    reason = _why_padded(backbone, given)
    if reason is not None:
        _padded[backbone] = reason
        return stock(backbone, *args, **kwargs)
    _padded.pop(backbone, None)
    plan = _plan(given)
    arguments = _packed_ids(backbone, given, plan)
    if _fused(backbone.embeddings):
        arguments["bigkernels_plan"] = plan
    hidden = backbone.embeddings(**arguments)
    if hasattr(backbone, "embeddings_project"):
        hidden = backbone.embeddings_project(hidden)
    stack = backbone.encoder if hasattr(backbone, "encoder") else backbone.transformer
    for layer in stack.layer:
        hidden = layer(hidden, bigkernels_plan=plan)
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
    wants_dict = given.get("return_dict")
    wants_dict = getattr(backbone.config, "return_dict", True) if wants_dict is None else wants_dict
    return result if wants_dict else result.to_tuple()


_names: dict[Callable[..., Any], tuple[str, ...]] = {}


def inspect_arguments(
    stock: Callable[..., Any], backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The call's arguments by name."""
    names = _names.get(stock)
    if names is None:
        parameters = list(inspect.signature(stock).parameters.values())[1:]
        names = _names[stock] = tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _refuse(backbone: nn.Module) -> str | None:
    if getattr(backbone.config, "is_decoder", False):
        return "it is a decoder"
    kind = getattr(backbone.config, "position_embedding_type", "absolute")
    return None if kind in (None, "absolute") else f"position_embedding_type {kind} is not served"


BACKBONE = Role(forward, _refuse)
