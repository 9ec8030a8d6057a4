"""Whether a child module may be absorbed into a fused call instead of being called itself."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def has_hooks(module: Module) -> bool:
    """Whether a call of the module runs more than its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def global_hooks() -> bool:
    """Whether hooks are registered for every module of the process."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def plain_tensor(value: Tensor | None) -> bool:
    """Whether kernels may read the tensor as it is: not a DTensor, quantised or other wrapper."""
    return value is None or not is_traceable_wrapper_subclass(value)


def why_not(name: str, child: Module, *classes: type[Module]) -> str:
    """Why ``child`` must be called itself, or "": its class is none of these, it has hooks, a forward of its own
    or a weight that is not a plain tensor."""
    if type(child) not in classes:
        return f"{name} is a {type(child).__name__}"
    if has_hooks(child):
        return f"{name} has hooks"
    if "forward" in child.__dict__:
        return f"{name} has a forward of its own"
    if not all(plain_tensor(p) for p in child._parameters.values()):
        return f"{name} has a parameter that is not a plain tensor"
    return ""
