"""All layers of a TransformerEncoder as one native call: at inference, where nothing needs the batch but padding."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigkernels.integrations import calls, whole
from bigkernels.integrations.snapshot import Snapshot
from bigkernels.nn import absorb, masks
from bigkernels.nn.feed_forward import activation_name
from bigkernels.nn.layer_norm import LayerNorm
from bigkernels.nn.transformer import packable, probability
from bigkernels.ops.packing import api as packing
from bigkernels.ops.packing.contract import Plan


class Seen(NamedTuple):
    """An encoder as it was examined, why its layers cannot be one call, and the call's arguments."""

    snapshot: Snapshot
    reason: str | None
    recipe: whole.Recipe


_seen: weakref.WeakKeyDictionary[nn.Module, Seen] = weakref.WeakKeyDictionary()


def forget(encoder: nn.Module) -> None:
    """Drops what is known of an encoder and packed of its weights."""
    _seen.pop(encoder, None)
    whole.drop(encoder)


def parts(layer: Any) -> whole.Layer:
    """What the native call needs of a TransformerEncoderLayer whose parts are all fused."""
    attention = layer.self_attn
    activation = activation_name(layer.activation)
    assert activation is not None
    modules = attention.out_proj, layer.norm1, layer.linear1, layer.linear2, layer.norm2
    weights = (attention.in_proj_weight, attention.in_proj_bias)
    rates = [probability(m) for m in (layer.dropout, layer.dropout1, layer.dropout2)]
    rates.append(attention.dropout if attention.training else 0.0)
    return whole.Layer(
        weights + tuple(tensor for m in modules for tensor in (m.weight, m.bias)),
        attention.num_heads, attention.head_dim**-0.5, (layer.norm1.eps, layer.norm2.eps),
        activation, max(rates), layer.norm_first, form="joined",
    )  # fmt: skip


def _why_not_fused(layer: Any) -> str:
    if not packable(layer):
        return "is not one of bigkernels.nn, or has hooks or keys of its own"
    if layer.self_attn.in_proj_weight is None:
        return "has keys or values of another width"
    return next(iter(layer.unfused_reasons()), "")


def _examined(encoder: Any) -> Seen:
    seen = _seen.get(encoder)
    if seen is not None and seen.snapshot.holds():
        return seen
    norm = encoder.norm
    reason = norm is not None and absorb.why_not("norm", norm, LayerNorm, nn.LayerNorm)
    for index, layer in enumerate(encoder.layers):
        if why := _why_not_fused(layer):
            reason = reason or f"layer {index}: {why}"
    how = whole.recipe([] if reason else [parts(layer) for layer in encoder.layers])
    seen = _seen[encoder] = Seen(Snapshot(encoder), reason or how.reason, how)
    return seen


def _plan(
    encoder: Any, src: Tensor, mask: Tensor | None, ignore: Tensor | None, causal: bool
) -> Plan | str:
    """How to pack the batch, or why not."""
    across = src.dim() == 3 and not encoder.layers[0].self_attn.batch_first
    batch, length = (
        (1, src.shape[0]) if src.dim() == 2 else src.shape[1::-1] if across else src.shape[:2]
    )
    if mask is not None and not (causal and mask.shape == (length, length)):
        return "it has a mask that is not the causal one"
    if ignore is None:
        return packing.full_plan_cpu(batch, length)
    if ignore.dtype != torch.bool or ignore.shape != (batch, length) or not masks.concrete(ignore):
        return "its padding mask is not bool (B, L)"
    keep = ~ignore
    if bool(keep.all()):
        return packing.full_plan_cpu(batch, length)
    if not encoder.enable_nested_tensor:
        return "results at padding are wanted (enable_nested_tensor=False)"
    if not bool(packing.plain_padding(keep)):
        return "its padding is on both sides or in between"
    return packing.plan(keep)


def _why_not(encoder: Any, src: Tensor) -> str | None:
    weight = getattr(encoder.layers[0].linear1, "weight", None)
    if torch.is_grad_enabled() and (src.requires_grad or getattr(weight, "requires_grad", True)):
        whole.drop(encoder)
        return "gradients are wanted"
    return "hooks are registered for every module" if absorb.global_hooks() else None


def run(
    encoder: Any, src: Tensor, mask: Tensor | None, ignore: Tensor | None, causal: bool
) -> Tensor | None:
    """The encoder's result in one native call, laid out like src, zeros at padding; None if that cannot be.

    Args:
        src, mask, ignore, causal: as in ``TransformerEncoder.forward``; what it refuses is left to it.
    """
    first = encoder.layers[0].self_attn if len(encoder.layers) else None
    width = getattr(first, "embed_dim", 0)
    if (
        not masks.concrete(src)
        or src.dim() not in (2, 3)
        or 0 in src.shape
        or src.shape[-1] != width
        or (mask is None and causal)
    ):
        return None
    call = whole.encoder_of(encoder)
    call.reason = _why_not(encoder, src)
    if call.reason is not None:
        return None
    seen = _examined(encoder)
    plan = seen.reason or _plan(encoder, src, mask, ignore, causal)
    if isinstance(plan, str):
        call.reason = plan
        return None
    across = src.dim() == 3 and not encoder.layers[0].self_attn.batch_first
    x = src if src.dim() == 2 else packing.unpad(src.transpose(0, 1) if across else src, plan)
    out = call.run(seen.recipe.seeing(causal), x, plan)
    if out is None:
        return None
    keep = None if ignore is None or ignore.dim() != 2 else ~ignore
    calls.record(calls.Call(encoder, keep, plan, call.precision, causal))
    out = out if encoder.norm is None else encoder.norm(out)
    if src.dim() == 2:
        return out
    padded = packing.pad(out, plan)
    return padded.transpose(0, 1).contiguous() if across else padded
