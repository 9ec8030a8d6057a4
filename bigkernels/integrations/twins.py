"""Twin classes: a stock module's class with another ``forward``, put in place by ``module.__class__ = twin``.

A twin has the stock class's name and printed form, so that configurations, checkpoints and libraries that look
classes up by name see no difference; it pickles by reference to this module.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn


class Role(NamedTuple):
    """How one stock class is replaced.

    Attributes:
        forward: ``forward(stock_forward, self, *args, **kwargs)``.
        refuse: why a given module cannot be replaced, or None.
        absorbs: names of the child modules whose work the new forward does itself.
        layer: whether it is a whole layer, hidden states in and out, which ``verify`` checks on its own.
    """

    forward: Callable[..., Any]
    refuse: Callable[[nn.Module], str | None]
    absorbs: tuple[str, ...]
    layer: bool = False


class _TwinType(type):
    """Prints like the stock class: transformers finds a class's settings by its printed form."""

    stock: type[nn.Module]

    def __repr__(cls) -> str:
        return repr(cls.stock)


_PREFIX = "twin_of"


_twins: dict[type[nn.Module], type[nn.Module]] = {}


def twin(stock: type[nn.Module], role: Role) -> type[nn.Module]:
    """The twin of ``stock`` whose forward is the role's."""
    if stock in _twins:
        return _twins[stock]
    stock_forward = stock.forward

    @functools.wraps(stock_forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return role.forward(stock_forward, self, *args, **kwargs)

    name = f"{_PREFIX}:{stock.__module__}:{stock.__qualname__}".replace(".", "|")
    body = {
        "forward": forward,
        "stock": stock,
        "role": role,
        "__module__": __name__,
        "__qualname__": name,
    }
    made: type[nn.Module] = _TwinType(stock.__name__, (stock,), body)  # type: ignore[assignment]
    _twins[stock] = made
    return made


def is_twin(module: nn.Module) -> bool:
    """Whether the module's class is a twin."""
    return isinstance(type(module), _TwinType)


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The class a twin stands for, or the module's own class."""
    cls: type = type(module)
    return cls.stock if isinstance(cls, _TwinType) else cls


def qualified_name(cls: type) -> str:
    """Module and name of a class: the key of the families table."""
    return f"{cls.__module__}.{cls.__qualname__}"


def __getattr__(name: str) -> Any:  # unpickling asks for a twin by its qualified name
    if not name.startswith(_PREFIX + ":"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bigkernels.integrations import families

    _, module, qualname = name.replace("|", ".").split(":")
    stock = getattr(importlib.import_module(module), qualname)
    return twin(stock, families.ROLES[f"{module}.{qualname}"])
