"""The layers of a backbone, examined once: whether one native call may stand for them, and its arguments."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from bigkernels.integrations import eligible, whole
from bigkernels.integrations.snapshot import Snapshot
from bigkernels.integrations.twins import role_of
from bigkernels.nn import absorb
from bigkernels.ops.packing.contract import Plan


class Seen(NamedTuple):
    """Modules of a backbone that were examined and found to be fused throughout."""

    snapshot: Snapshot
    attentions: tuple[nn.Module, ...]  # one for each configuration: its content may change
    recipe: whole.Recipe
    fused: frozenset[str]  # the backbone's children that are what their roles say

    def holds(self) -> bool:
        """Whether all of that is so still."""
        layer = self.recipe.layer
        causal = layer is not None and layer.causal
        return (
            not absorb.global_hooks()
            and self.snapshot.holds()
            and all(eligible.refuse_attention(a, causal) is None for a in self.attentions)
        )


_seen: weakref.WeakKeyDictionary[nn.Module, Seen] = weakref.WeakKeyDictionary()


def why_not(
    backbone: nn.Module,
    layers: Callable[[], Sequence[nn.Module]],
    examine: Callable[[], str | None],
) -> str | None:
    """Why the layers cannot run on packed tokens, or None; asked anew only if something has changed.

    Args:
        layers: the backbone's layers. examine: the reason, looked for in all modules.
    """
    seen = _seen.get(backbone)
    if seen is not None and seen.holds():
        return None
    reason = examine()
    if reason is not None:
        _seen.pop(backbone, None)
        return reason
    found = layers()
    attentions = [m for layer in found for m in layer.modules() if hasattr(m, "is_causal")]
    configs = {id(m.config): m for m in attentions}
    how = whole.recipe([_parts(layer) for layer in found])
    fused = {
        name for name, m in backbone._modules.items() if m is not None and why_unfused(m) is None
    }
    _seen[backbone] = Seen(Snapshot(backbone), tuple(configs.values()), how, frozenset(fused))
    return None


def fused(backbone: nn.Module, child: str) -> bool:
    """Whether a child was what its role says when ``why_not`` last found no reason against fusing."""
    return child in _seen[backbone].fused


def recipe(backbone: nn.Module) -> whole.Recipe | None:
    """The arguments of the native call; None before ``why_not`` has found no reason against it."""
    seen = _seen.get(backbone)
    return None if seen is None else seen.recipe


def native(
    backbone: nn.Module,
    layers: Callable[[], Sequence[nn.Module]],
    examine: Callable[[], str | None],
    reason: str | None,
) -> whole.Recipe | None:
    """The arguments of the native call, or None; the reason against it is kept for the report.

    Args:
        layers, examine: as in ``why_not``. reason: what is known against it before the modules are looked at.
    """
    call = whole.encoder_of(backbone)
    how = recipe(backbone)
    if reason is None and how is not None and how.reason is None:
        # Stock is right whatever has changed since: no need to look.
        reason = call.why_slower(how)
        if reason is not None:
            call.drop()
    reason = reason or why_not(backbone, layers, examine)
    how = recipe(backbone)
    if reason is None and how is not None:
        reason = how.reason or whole.why_gradients(how.weights) or call.why_slower(how)
        if reason is not None:
            call.drop()
    call.reason = reason
    return how if reason is None else None


def as_stock(stock: Callable[..., Any], layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Forward of a layer that only the native call of all layers replaces."""
    return stock(layer, *args, **kwargs)


def _parts(layer: nn.Module) -> whole.Layer | None:
    role = role_of(layer)
    return None if role is None or role.parts is None else role.parts(layer)


def one_layer(
    layer: nn.Module, hidden: Tensor, plan: Plan, precision: str, causal: bool = False
) -> Tensor:
    """One layer on packed hidden states (T, E) as the native call of all layers computes it."""
    how = whole.recipe([_parts(layer)])
    how = how.seeing(True) if causal else how
    out = whole.Encoder(precision).run(how, hidden, plan)
    assert out is not None
    return out


def forget(backbone: nn.Module) -> None:
    """Drops what is known of a backbone and packed of its weights."""
    _seen.pop(backbone, None)
    whole.drop(backbone)


def why_unfused(module: nn.Module) -> str | None:
    """Why a module is not surely what its role says, or None."""
    role = role_of(module)
    if role is None:
        return "is not fused"
    if eligible.hooked(module):
        return "has hooks"
    return "has a forward of its own" if "forward" in module.__dict__ else role.refuse(module)


def why_layers_unfused(layers: Iterable[nn.Module]) -> str | None:
    """The first layer that is not surely what its role says, and why; or None."""
    for index, layer in enumerate(layers):
        if reason := why_unfused(layer):
            return f"layer {index}: {reason}"
    return None
