"""What takes a stock class's place by ``module.__class__ = ...``: a twin with another forward, or a drop-in module.

A twin has the stock class's name and printed form, so that configurations, checkpoints and libraries that look
classes up by name see no difference; it pickles by reference to this module.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from bigkernels.integrations import slower


class Role(NamedTuple):
    """How one stock class is replaced.

    Attributes:
        forward: ``forward(stock_forward, self, *args, **kwargs)`` of a twin, or the class of ``bigkernels.nn`` that
            stands in.
        refuse: why a given module cannot be replaced, or None.
        layer: whether it is a whole layer, hidden states in and out, which ``verify`` checks on its own.
        head: whether it only tells the backbone inside it that padded positions are read.
        parts: what the native call of all layers needs of one, or None if it cannot serve that one.
        forget: told, before they change, that the weights in the module may change.
        stack: whether all layers in the module may be one native call.
    """

    forward: Callable[..., Any] | type[nn.Module]
    refuse: Callable[[nn.Module], str | None]
    layer: bool = False
    head: bool = False
    parts: Callable[[Any], Any] | None = None
    forget: Callable[[nn.Module], None] | None = None
    stack: bool = False


class _TwinType(type):
    """Prints like the stock class: transformers finds a class's settings by its printed form."""

    stock: type[nn.Module]

    def __repr__(cls) -> str:
        return repr(cls.stock)


_PREFIX = "twin_of"
_fused: dict[type[nn.Module], type[nn.Module]] = {}
_stock: dict[type[nn.Module], type[nn.Module]] = {}
_roles: dict[type[nn.Module], Role] = {}


def fused_class(stock: type[nn.Module], role: Role) -> type[nn.Module]:
    """The class that takes the place of ``stock``."""
    if stock not in _fused:
        made = (
            role.forward
            if isinstance(role.forward, type)
            else _twin(stock, role.forward, role.forget)
        )
        _fused[stock], _stock[made], _roles[made] = made, stock, role
    return _fused[stock]


def _twin(
    stock: type[nn.Module],
    new_forward: Callable[..., Any],
    forget: Callable[[nn.Module], None] | None,
) -> type[nn.Module]:
    stock_forward = stock.forward

    @functools.wraps(stock_forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if slower.runs_stock():
            return stock_forward(self, *args, **kwargs)
        return new_forward(stock_forward, self, *args, **kwargs)

    name = f"{_PREFIX}:{stock.__module__}:{stock.__qualname__}".replace(".", "|")
    body: dict[str, Any] = {
        "forward": forward,
        "stock": stock,
        "__module__": __name__,
        "__qualname__": name,
    }
    if forget is not None:
        body |= {name: _told(getattr(stock, name), forget) for name in _REPLACING}
    return _TwinType(stock.__name__, (stock,), body)  # type: ignore[return-value]


_REPLACING = ("train", "_apply", "_load_from_state_dict")  # reach every module of a tree


def _told(method: Callable[..., Any], forget: Callable[[nn.Module], None]) -> Callable[..., Any]:
    """The method, once the module's weights are forgotten; evaluation mode changes none."""

    @functools.wraps(method)
    def told(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if method.__name__ != "train" or (args or tuple(kwargs.values()) or (True,))[0]:
            forget(self)
        return method(self, *args, **kwargs)

    return told


def role_of(module: nn.Module) -> Role | None:
    """The role the module's class plays in place of a stock class, or None if it is not one of ours."""
    return _roles.get(type(module))


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The stock class in whose place the module's class is, or the module's own class."""
    return _stock.get(type(module), type(module))


def qualified_name(cls: type) -> str:
    """Module and name of a class: the key of the families table."""
    return f"{cls.__module__}.{cls.__qualname__}"


def __getattr__(name: str) -> Any:  # unpickling asks for a twin by its qualified name
    if not name.startswith(_PREFIX + ":"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bigkernels.integrations import families

    _, module, qualname = name.replace("|", ".").split(":")
    stock = getattr(importlib.import_module(module), qualname)
    role = families.role_for(stock)
    if role is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return fused_class(stock, role)
