"""What a tree of modules looked like when it was examined: whether anything in it has changed is cheap to ask."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FORM = operator.attrgetter("shape", "dtype")


class Snapshot:
    """Classes, attributes, children, parameters and hooks of every module below a root, and the root's own attributes.

    Sees everything but changes inside an attribute's value, such as a configuration, and in tensors' elements: shapes
    and dtypes of parameters, which ``.data`` changes, are seen. Keeps what it saw alive, except the root.
    """

    def __init__(self, root: nn.Module) -> None:
        self._modules = list(root.modules())[1:]
        self._classes = list(map(type, self._modules))
        self._attributes = [root.__dict__, *(m.__dict__ for m in self._modules)]
        self._hooks = [d[name] for d in self._attributes for name in _HOOKS]
        self._children = [d["_modules"] for d in self._attributes if d["_modules"]]
        self._parameters = [d["_parameters"] for d in self._attributes if d["_parameters"]]
        self._values = list(_values(self._attributes))
        self._hook_ids = list(chain.from_iterable(self._hooks))
        self._child_values = list(_values(self._children))
        self._parameter_values = list(_values(self._parameters))
        self._tensors = [p for p in self._parameter_values if p is not None]
        self._forms = list(map(_FORM, self._tensors))

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        if list(map(type, self._modules)) != self._classes:
            return False
        try:  # equal lists of identical objects: comparing others may raise
            if list(_values(self._attributes)) != self._values:
                return False
        except (RuntimeError, TypeError, ValueError):
            return False
        return (
            list(chain.from_iterable(self._hooks)) == self._hook_ids
            and _same(_values(self._children), self._child_values)
            and _same(_values(self._parameters), self._parameter_values)
            and list(map(_FORM, self._tensors)) == self._forms
        )


def _values(dicts: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dicts))


def _same(now: Iterator[Any], before: list[Any]) -> bool:
    found = list(now)
    return len(found) == len(before) and all(map(operator.is_, found, before))
