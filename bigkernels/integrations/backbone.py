"""The backbone of an encoder: builds one plan a batch, runs the blocks on packed tokens, pads the result again."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigkernels.integrations import bert, eligible, heads, packing, slower, whole
from bigkernels.integrations.packing import Plan
from bigkernels.integrations.snapshot import Snapshot
from bigkernels.integrations.twins import Role, role_of
from bigkernels.nn import absorb, masks
from bigkernels.ops import checks

_TENSORS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_FLAGS = ("output_hidden_states", "output_attentions", "return_dict", "use_cache")

_padded: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


class Call(NamedTuple):
    """One call of a backbone: its padding mask (B, L) as bool, if it has such, its plan, if it ran packed, and the
    precision of its products, if all layers were one native call."""

    backbone: nn.Module
    keep: Tensor | None
    plan: Plan | None
    precision: str | None


_calls: contextvars.ContextVar[list[Call] | None] = contextvars.ContextVar("calls", default=None)


@contextlib.contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Collects the calls of backbones within it, in order."""
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def _record(
    backbone: nn.Module, given: dict[str, Any], plan: Plan | None, precision: str | None = None
) -> None:
    calls = _calls.get()
    if calls is None:
        return
    mask = given.get("attention_mask")
    keep = mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None
    calls.append(Call(backbone, keep, plan, precision))


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
    for name, value in given.items():
        if value is not None and name not in _TENSORS and name not in _FLAGS:
            return f"{name} was passed"
    for name in ("output_hidden_states", "output_attentions"):
        asked = given.get(name)
        if asked or (asked is None and getattr(config, name, False)):
            return f"{name} was asked for"
    if bert.recording():
        return "an outer model records outputs"
    return _why_not_these_tensors(backbone, given) or _why_not_these_modules(backbone)


def _fused(module: nn.Module) -> bool:
    return _why_unfused(module) is None


def _why_unfused(module: nn.Module) -> str | None:
    role = role_of(module)
    if role is None:
        return "is not fused"
    if eligible.hooked(module):
        return "has hooks"
    return "has a forward of its own" if "forward" in module.__dict__ else role.refuse(module)


class Seen(NamedTuple):
    """Modules of a backbone that were examined and found to be fused throughout."""

    snapshot: Snapshot
    attentions: tuple[nn.Module, ...]  # one for each configuration: its content may change
    recipe: whole.Recipe

    def holds(self) -> bool:
        """Whether all of that is so still."""
        return (
            not absorb.global_hooks()
            and self.snapshot.holds()
            and all(eligible.refuse_attention(a) is None for a in self.attentions)
        )


_seen: weakref.WeakKeyDictionary[nn.Module, Seen] = weakref.WeakKeyDictionary()


def _see(backbone: Any) -> Seen:
    layers = list(_stack(backbone).layer)
    attentions = [m for layer in layers for m in layer.modules() if hasattr(m, "is_causal")]
    configs = {id(m.config): m for m in attentions}
    recipe = whole.recipe([_parts(layer) for layer in layers])
    return Seen(Snapshot(backbone), tuple(configs.values()), recipe)


def _parts(layer: nn.Module) -> whole.Layer | None:
    role = role_of(layer)
    return None if role is None or role.parts is None else role.parts(layer)


def one_layer(layer: nn.Module, hidden: Tensor, plan: Plan, precision: str) -> Tensor:
    """One layer on packed hidden states (T, E) as the native call of all layers computes it."""
    out = whole.Encoder(precision).run(whole.recipe([_parts(layer)]), hidden, plan)
    assert out is not None
    return out


def forget(backbone: nn.Module) -> None:
    """Drops what is known of a backbone and packed of its weights."""
    _seen.pop(backbone, None)
    whole.drop(backbone)


def _why_not_these_modules(backbone: Any) -> str | None:
    """Modules that need to see the padded batch: strangers, and those with hooks."""
    seen = _seen.get(backbone)
    if seen is not None and seen.holds():
        return None
    reason = _examine(backbone)
    if reason is None:
        _seen[backbone] = _see(backbone)
    else:
        _seen.pop(backbone, None)
    return reason


def _examine(backbone: Any) -> str | None:
    stack = "encoder" if hasattr(backbone, "encoder") else "transformer"
    parts = backbone._modules
    for name in ("embeddings", stack, "pooler"):
        if parts.get(name) is not None and (
            reason := eligible.refuse_shell(name, parts[name], backbone)
        ):
            return reason
    outside = {"embeddings_project": parts.get("embeddings_project")}
    if not _fused(parts["embeddings"]):
        outside.update(parts["embeddings"].named_modules())
    for name, module in outside.items():
        if module is not None and eligible.hooked(module):
            return f"{name} has hooks"
    for index, layer in enumerate(parts[stack].layer):
        if reason := _why_unfused(layer):
            return f"layer {index}: {reason}"
    return None


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
    mask = given.get("attention_mask")
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


def _plan(given: dict[str, Any]) -> Plan:
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
    return pooler(hidden.index_select(0, plan.cu_seq[:-1])[:, None])  # type: ignore[no-any-return]


def _layers(backbone: Any, hidden: Tensor, plan: Plan) -> tuple[Tensor, str | None]:
    """All layers on packed hidden states (1, T, E): one native call, whose precision is returned too, or one layer
    after the other."""
    seen = _seen.get(backbone)
    if seen is not None:
        call = whole.encoder_of(backbone)
        out = call.run(seen.recipe, hidden[0], plan)
        if out is not None:
            return out[None], call.precision
    for layer in _stack(backbone).layer:
        hidden = layer(hidden, bigkernels_plan=plan)
    return hidden, None


def forward(stock: Callable[..., Any], backbone: Any, *args: Any, **kwargs: Any) -> Any:
    """Forward of a swapped backbone; results are stock's, with zeros at padded positions."""
    # Where values cannot be read, T tokens would be a data-dependent size.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or checks.through_reference():
        return stock(backbone, *args, **kwargs)
    from transformers import modeling_outputs as outputs

    given = _by_name(stock, args, kwargs)
    reason = _why_padded(backbone, given)
    if reason is not None:
        _padded[backbone] = reason
        _record(backbone, given, None)
        return stock(backbone, *args, **kwargs)
    if (reason := _why_stock(backbone, given)) is not None:
        _padded[backbone] = reason
        _record(backbone, given, None)
        with slower.as_stock():
            return stock(backbone, *args, **kwargs)
    _padded.pop(backbone, None)
    plan = _plan(given)
    arguments = _packed_ids(backbone, given, plan)
    if _fused(backbone.embeddings):
        arguments["bigkernels_plan"] = plan
    hidden = backbone.embeddings(**arguments)
    if hasattr(backbone, "embeddings_project"):
        hidden = backbone.embeddings_project(hidden)
    hidden, precision = _layers(backbone, hidden, plan)
    _record(backbone, given, plan, precision)
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


def _by_name(
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


BACKBONE = Role(forward, _refuse, forget=forget)
