"""What may be fused: only children that are exactly what they seem, without hooks or clever weights."""

from __future__ import annotations

from torch import nn

from bigkernels.nn.layer_norm import LayerNorm

_PLAIN = (nn.Linear, nn.LayerNorm, LayerNorm, nn.Dropout, nn.Embedding, nn.Identity)

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


def hooked(module: nn.Module) -> bool:
    """Whether a user put hooks on the module (transformers' own output recorders do not count)."""
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return any(
        getattr(hook, "__module__", "") != "transformers.utils.output_capturing"
        for hook in module._forward_hooks.values()
    )


def refuse_child(name: str, child: nn.Module) -> str | None:
    """Why a child's work cannot be done outside it, or None."""
    cls = type(child)
    if cls not in _PLAIN:
        return f"{name} is {cls.__module__}.{cls.__qualname__}, not a plain torch module"
    if hooked(child):
        return f"{name} has hooks"
    if "forward" in child.__dict__:
        return f"{name} has a forward of its own"
    for key, parameter in child._parameters.items():
        if parameter is not None and type(parameter) is not nn.Parameter:
            return f"{name}.{key} is a {type(parameter).__name__}, not a plain Parameter"
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
    for name in path.split("."):
        found = None if found is None else found._modules.get(name)
    return found


def refuse_children(module: nn.Module, paths: tuple[str, ...]) -> str | None:
    """The first reason why one of the named submodules cannot be absorbed, or None."""
    for path in paths:
        found = descend(module, path)
        if found is None:
            return f"there is no {path}"
        if reason := refuse_child(path, found):
            return reason
    return None
