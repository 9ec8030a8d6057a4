"""Cases of the encoder room."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bigkernels.ops.encoder import api, reference
from bigkernels.ops.encoder.contract import PARTS, Facts
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Problem, Tensors

# What an axis may be permuted by: e the width, f the hidden width. Heads keep their order.
_AXES = {
    "query.weight": ".e", "key.weight": ".e", "value.weight": ".e", "query.bias": ".", "key.bias": ".",
    "value.bias": ".", "out.weight": "e.", "out.bias": "e", "norm1.weight": "e", "norm1.bias": "e",
    "up.weight": "fe", "up.bias": "f", "down.weight": "ef", "down.bias": "e", "norm2.weight": "e",
    "norm2.bias": "e",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderCase(Case):
    """A call of encoder.

    lengths: of the sequences. width, hidden, heads, layers: E, F and their numbers. activation, norm_first, causal,
    eps, precision: as the function's. bias: whether the linears have one. affine: whether the norms have weights.
    scale: of x.
    """

    room: ClassVar[str] = "encoder"
    operation: ClassVar[str] = "encoder"

    lengths: tuple[int, ...]
    width: int
    hidden: int
    heads: int
    layers: int = 1
    activation: str = "gelu"
    norm_first: bool = False
    causal: bool = False
    eps: float = 1e-5
    precision: str = "float32"
    bias: bool = True
    affine: bool = True
    scale: float = 1.0
    int64: bool = False

    def problem(self) -> Problem:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        width, hidden = self.width, self.hidden
        shapes = {
            "up.weight": (hidden, width),
            "up.bias": (hidden,),
            "down.weight": (width, hidden),
        }
        inputs: dict[str, Tensor | None] = {
            "x": (draw(sum(self.lengths), width) * self.scale).to(self.dtype)
        }
        axes = {"x": ".e", "out": ".e"}
        for layer in range(self.layers):
            for name in PARTS:
                norm = name.startswith("norm")
                matrix = name.endswith("weight") and not norm
                shape = shapes.get(name, (width, width) if matrix else (width,))
                values = draw(*shape) / math.sqrt(shape[-1]) if matrix else draw(*shape) / 5
                if norm and name.endswith("weight"):
                    values = values + 1
                absent = not (matrix or (self.affine if norm else self.bias))
                inputs[f"{layer}.{name}"] = None if absent else values.to(self.dtype)
                axes[f"{layer}.{name}"] = _AXES[name]
        return Problem(inputs, {}, (), self._reference, axes)

    def _weights(self, inputs: Tensors) -> list[Tensor]:
        x = inputs["x"]
        assert x is not None
        found = [inputs[f"{layer}.{name}"] for layer in range(self.layers) for name in PARTS]
        return [x.new_empty((0,)) if t is None else t for t in found]

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        x = inputs["x"]
        assert x is not None
        out = reference.encoder(
            x, self.lengths, self._weights(inputs), self.heads, self.eps, self.activation, self.norm_first,
            self.causal,
        )  # fmt: skip
        return {"out": out}

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        x = inputs["x"]
        assert x is not None
        ends = torch.tensor((0, *self.lengths)).cumsum(0)
        out = api.encoder(
            x, ends if self.int64 else ends.int(), self._weights(inputs), heads=self.heads, eps=self.eps,
            activation=self.activation, norm_first=self.norm_first, causal=self.causal,
            precision=self.precision, backend=backend,
        )  # fmt: skip
        return {"out": out}

    @property
    def elements(self) -> int:
        return sum(self.lengths) * self.hidden

    def facts(self, device: str) -> Facts:
        return Facts(
            device, self.dtype, self.precision, self.activation, self.norm_first, self.causal, self.width,
            self.hidden, self.width // self.heads, False,
        )  # fmt: skip


def random_cases(count: int) -> list[Case]:
    """Seeded random calls: what no one thought of."""
    found: list[Case] = []
    for seed in range(count):
        r = random.Random(seed)
        heads = r.randint(1, 4)
        found.append(
            EncoderCase(
                reason="random",
                seed=seed,
                lengths=tuple(r.choice((0, 1, r.randint(1, 40))) for _ in range(r.randint(1, 5))),
                width=heads * r.randint(1, 40),
                hidden=r.randint(1, 200),
                heads=heads,
                layers=r.choice((1, 1, 2)),
                activation=r.choice(("gelu", "gelu_tanh", "relu", "silu")),
                norm_first=r.random() < 0.4,
                causal=r.random() < 0.3,
                eps=r.choice((1e-12, 1e-5)),
                bias=r.random() < 0.8,
                affine=r.random() < 0.8,
                int64=r.random() < 0.5,
                layout=r.choice(("contiguous", "odd_offset", "row_gap", "transposed")),
            )
        )
    return found


def hand_picked() -> list[Case]:
    """Each with its reason; see encoder_table.py."""
    from bigkernels.testing.cases import encoder_table as table

    return [EncoderCase(reason=reason, **what) for reason, what in table.ENCODER]
