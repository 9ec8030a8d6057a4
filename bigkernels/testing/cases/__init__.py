"""The cases every backend is tested and measured on: facts of a call, its sizes, and the reason it
is there."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigkernels.library import ROOMS
from bigkernels.testing.problem import Problem, Tensors

_SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One call of one public function. Each room has its own subclass with its facts and shapes as
    fields.

    reason: why the case is there, one line. dtype: of the inputs. layout: how inputs lie in memory,
    one of canary.LAYOUTS. seed: of the random inputs.
    """

    room: ClassVar[str]
    operation: ClassVar[str]

    reason: str
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    seed: int = 0

    def __str__(self) -> str:
        return self.id

    @property
    def id(self) -> str:
        """Readable and unique among the cases of a room: the operation and every field that is not
        at its default."""
        words = [self.operation]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "dtype":
                words.append(_SHORT[value])
            elif field.name != "reason" and value != field.default:
                words.append(_word(field.name, value))
        return "-".join(words)

    @abstractmethod
    def problem(self) -> Problem:
        """Inputs drawn from the seed in the case's dtype, on the CPU, with the reference and the
        gradients to start from."""

    @abstractmethod
    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        """The public function on the problem's inputs, outputs named as the reference names
        them."""

    @property
    @abstractmethod
    def elements(self) -> int:
        """Elements of the largest input: what a slow backend decides by whether to take the case."""

    @abstractmethod
    def facts(self, device: str) -> Any:
        """The room's Facts for this call with its tensors on `device` ("cpu" or "cuda")."""


def cases(room: str, full: bool = False) -> list[Case]:
    """Hand-picked cases of a room and seeded random ones; `full` gives ten times as many of the
    latter.

    Raises ValueError for an unknown room, AssertionError if two cases share an id.
    """
    if room not in ROOMS:
        raise ValueError(f"room: {room!r} not in {ROOMS}")
    module = importlib.import_module(f"bigkernels.testing.cases.{room}")
    found: list[Case] = [*module.hand_picked(), *module.random_cases(200 if full else 20)]
    ids = [case.id for case in found]
    doubles = {name for name in ids if ids.count(name) > 1}
    assert not doubles, f"{room}: cases with the same id: {sorted(doubles)}"
    return found


def _word(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return f"{name}_{'x'.join(map(str, value)) or 'scalar'}"
    if isinstance(value, torch.dtype):
        return f"{name}_{_SHORT[value]}"
    if value is True:
        return name
    if value is False:
        return f"no_{name}"
    return f"{name}_{value}"
