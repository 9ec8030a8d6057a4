"""What may be fused: only children that are exactly what they seem, without hooks or clever weights."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torch import nn

from bigkernels.integrations.twins import stock_class
from bigkernels.nn import absorb
from bigkernels.nn.layer_norm import LayerNorm

# What may stand where; an Identity in a dropout's place drops nothing.
LINEAR = frozenset((nn.Linear,))
NORM = frozenset((nn.LayerNorm, LayerNorm))
DROPOUT = frozenset((nn.Dropout, nn.Identity))
EMBEDDING = frozenset((nn.Embedding,))
Children = Mapping[str, frozenset[type[nn.Module]]]

ACTIVATIONS = {
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.PytorchGELUTanh": "gelu_tanh",
    "transformers.activations.SiLUActivation": "silu",
}


# transformers' own hooks: they record outputs when asked to, or make the embeddings' output need gradients.
_HARMLESS = ("transformers.utils.output_capturing", "transformers.modeling_utils")


def hooked(module: nn.Module) -> bool:
    """Whether a user put hooks on the module."""
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    hooks = module._forward_hooks
    return bool(hooks) and any(
        getattr(hook, "__module__", "") not in _HARMLESS for hook in hooks.values()
    )


def refuse_child(name: str, child: nn.Module, classes: frozenset[type[nn.Module]]) -> str | None:
    """Why a child's work cannot be done outside it, or None; classes: what may stand in its place."""
    cls = type(child)
    if cls not in classes:
        homes = {
            c: c.__module__ if c.__module__.startswith("transformers") else "torch.nn"
            for c in classes
        }
        expected = " or ".join(sorted({f"{home}.{c.__name__}" for c, home in homes.items()}))
        return f"{name} is {cls.__module__}.{cls.__qualname__}, not a plain {expected}"
    if hooked(child):
        return f"{name} has hooks"
    if "forward" in child.__dict__:
        return f"{name} has a forward of its own"
    if isinstance(child, nn.LayerNorm) and len(child.normalized_shape) != 1:
        return f"{name} is over {len(child.normalized_shape)} dimensions"
    if isinstance(child, nn.Embedding) and (
        child.max_norm is not None or child.scale_grad_by_freq or child.sparse
    ):
        return f"{name} renormalizes, scales its gradient or has a sparse one"
    for key, parameter in child._parameters.items():
        if parameter is not None and type(parameter) is not nn.Parameter:
            return f"{name}.{key} is a {type(parameter).__name__}, not a plain Parameter"
    return None


def refuse_shell(name: str, shell: nn.Module | None, owner: nn.Module) -> str | None:
    """Why a container inside a block cannot be looked through, or None.

    Its forward must be the one that came with the block: a class from elsewhere may compute anything.
    """
    if shell is None:
        return f"there is no {name}"
    cls = stock_class(shell)
    if cls.__module__ != stock_class(owner).__module__:
        return f"{name} is {cls.__module__}.{cls.__qualname__}, not the library's own"
    if hooked(shell):
        return f"{name} has hooks"
    own = "forward" if "forward" in shell.__dict__ else own_method(shell)
    return own and f"{name} has a {own} of its own"


def own_method(module: nn.Module) -> str | None:
    """A method of the model's class, other than forward, that was replaced on this instance, or None."""
    for name in _methods(stock_class(module)):
        if name in module.__dict__:
            return name
    return None


_methods_of: dict[type, tuple[str, ...]] = {}  # as many as the families' tables name


def _methods(cls: type) -> tuple[str, ...]:
    found = _methods_of.get(cls)  # not functools.cache, past which torch.compile looks
    if found is None:
        home = [c for c in cls.__mro__ if c.__module__ == cls.__module__]
        names = {n for c in home for n, value in vars(c).items() if isinstance(value, FunctionType)}
        found = _methods_of[cls] = tuple(sorted(names - {"forward"}))
    return found


# The implementations that compute softmax(q k^T * scale + mask) v and nothing else.
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention")


def why_passed(given: Mapping[str, Any], *known: tuple[str, ...]) -> str | None:
    """Which of a call's arguments, by name, is none of those known; or None."""
    for name, value in given.items():
        if value is not None and not any(name in names for names in known):
            return f"{name} was passed"
    return None


def refuse_attention(attention: Any, causal: bool = False) -> str | None:
    """Why the attention that a model is set to is not the formula of the kernels, or None.

    Args:
        attention: the module that holds the configuration and calls the implementation.
        causal: whether tokens shall see those before them alone.
    """
    name = getattr(attention.config, "_attn_implementation", None) or "eager"
    if name not in _ATTENTIONS:
        return f"attention implementation {name} is not one of {', '.join(_ATTENTIONS)}"
    # A registry may hold the user's function under a known name.
    for home, registry in (
        ("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS"),
        ("transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS"),
    ):
        found = getattr(sys.modules.get(home), registry, {}).get(name)
        if found is not None and not found.__module__.startswith("transformers."):
            return f"attention implementation {name} was registered anew"
    if bool(attention.is_causal) != causal:
        return "its attention is not causal" if causal else "its attention is causal"
    return None


def refuse_block(
    block: nn.Module,
    children: Children,
    shells: tuple[str, ...],
    attention: str,
    activation: str,
    causal: bool = False,
) -> str | None:
    """Why a layer cannot be computed from its parts, or None.

    Args:
        children: dotted paths of the modules whose work is absorbed, and the classes they may have.
        shells: dotted paths of the containers between them and the block.
        attention: dotted path of the module that calls the attention implementation.
        activation: dotted path of the activation, a module or a function.
        causal: whether tokens shall see those before them alone.
    """
    if absorb.global_hooks():
        return "hooks are registered for every module"
    if own := own_method(block):
        return f"it has a {own} of its own"
    for path in shells:
        if reason := refuse_shell(path, descend(block, path), block):
            return reason
    if reason := refuse_children(block, children):
        return reason
    if reason := refuse_attention(descend(block, attention), causal):
        return reason
    path, _, name = activation.rpartition(".")
    found = getattr(descend(block, path), name, None)
    if activation_name(found) is None:
        return f"activation {type(found).__name__} is not fused"
    if isinstance(found, nn.Module) and hooked(found):
        return f"{activation} has hooks"
    if "forward" in getattr(found, "__dict__", ()):
        return f"{activation} has a forward of its own"
    return None


def activation_name(activation: object) -> str | None:
    """The contract's name of an activation module, or None if it is not one of ours."""
    cls = type(activation)
    name = ACTIVATIONS.get(f"{cls.__module__}.{cls.__qualname__}")
    if name == "gelu" and getattr(activation, "approximate", "none") == "tanh":
        return "gelu_tanh"
    # transformers' GELUActivation can hold a slow Python erf; its value is the same function.
    return name


def descend(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path, or None; nn.Module's own look-up is too slow for every forward."""
    found: nn.Module | None = module
    for name in _steps(path):
        if found is None:
            return None
        found = found._modules.get(name)
    return found


@functools.cache  # as many as the families' tables name
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def refuse_parts(module: nn.Module, children: Children) -> str | None:
    """Why a block without containers cannot be computed from its children, or None."""
    own = own_method(module)
    return f"it has a {own} of its own" if own else refuse_children(module, children)


def refuse_children(module: nn.Module, children: Children) -> str | None:
    """The first reason why one of the named submodules cannot be absorbed, or None."""
    for path, classes in children.items():
        found = descend(module, path)
        if found is None:
            return f"there is no {path}"
        if reason := refuse_child(path, found, classes):
            return reason
    return None
