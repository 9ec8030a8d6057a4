"""Cases of the ffn room: feed_forward."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bigkernels.ops import dropout
from bigkernels.ops.ffn import api, reference
from bigkernels.ops.ffn.contract import ACTIVATIONS, Facts
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Problem, Tensors

SEED, OFFSET = 0x0FED_CBA9_8765_4321, 5

# What lies in x; the other inputs are of ordinary size.
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "zeros": torch.zeros_like,
    "large": lambda x: x * 30,
    "huge": lambda x: x * 1e4,
    "tiny": lambda x: x * 1e-20,
    "negative": lambda x: -x.abs(),
    "outlier": lambda x: torch.where(torch.arange(x.shape[-1]) == x.shape[-1] // 3, x * 100, x),
    "integers": lambda x: (x * 2).round(),
}

_GRADS = {
    "x": "x",
    "w": "weight1",
    "b": "bias1",
    "v": "weight2",
    "c": "bias2",
    "g": "weight_gate",
    "h": "bias_gate",
}


@dataclass(frozen=True, kw_only=True)
class FeedForwardCase(Case):
    """A call of feed_forward.

    shape: of x (..., E). hidden: F. out: E2, E if 0. activation, dropout_p, recompute: as the
    function's. bias: whether the linears have one. gated: with weight_gate (and bias_gate).
    packed: lengths of the samples the rows belong to, given as `rows`. values: what x holds, a key
    of VALUES. repeated: names ("x", "dout") of the tensors whose first dimension has stride 0.
    grads: inputs whose gradient is wanted: x, w b v c (weight1, bias1, weight2, bias2), g h (gate).
    """

    room: ClassVar[str] = "ffn"
    operation: ClassVar[str] = "feed_forward"

    shape: tuple[int, ...]
    hidden: int
    out: int = 0
    activation: str = "gelu"
    bias: bool = True
    gated: bool = False
    dropout_p: float = 0.0
    recompute: int = 0
    packed: tuple[int, ...] = ()
    values: str = "normal"
    repeated: tuple[str, ...] = ()
    grads: str = "xwbvcgh"

    def problem(self) -> Problem:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def linear(rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
            # Sums of about unit size, as a trained network has them.
            weight = (draw(rows, columns) / math.sqrt(columns)).to(self.dtype)
            return weight, (draw(rows) / 2).to(self.dtype) if self.bias else None

        width, out = self.shape[-1], self.out or self.shape[-1]
        x = VALUES[self.values](draw(*self.shape)).to(self.dtype)
        dout = draw(*self.shape[:-1], out).to(self.dtype)
        weight1, bias1 = linear(self.hidden, width)
        weight2, bias2 = linear(out, self.hidden)
        weight_gate, bias_gate = linear(self.hidden, width) if self.gated else (None, None)
        rows = _rows_of(self.packed) if self.packed else None
        inputs: dict[str, Tensor | None] = {
            "x": _repeated(x) if "x" in self.repeated else x,
            "weight1": weight1,
            "bias1": bias1,
            "weight2": weight2,
            "bias2": bias2,
            "weight_gate": weight_gate,
            "bias_gate": bias_gate,
            "rows": rows,
            "keep": self._keep(rows) if self.dropout_p else None,
        }
        letters = "abcdgh"[: len(self.shape) - 1]
        axes = {"x": letters + "e", "keep": letters + "f", "out": letters + "o", "rows": "."}
        axes |= dict.fromkeys(("weight1", "weight_gate"), "fe") | {"weight2": "of", "bias2": "o"}
        axes |= dict.fromkeys(("bias1", "bias_gate"), "f")
        wanted = tuple(
            name
            for letter, name in _GRADS.items()
            if letter in self.grads and inputs[name] is not None
        )
        douts = {"out": _repeated(dout) if "dout" in self.repeated else dout}
        return Problem(inputs, douts, wanted, self._reference, axes)

    def _keep(self, rows: Tensor | None) -> Tensor:
        like = torch.empty(*self.shape[:-1], self.hidden)
        return dropout.keep_rows(
            like, self.dropout_p, torch.tensor(SEED), torch.tensor(OFFSET), rows
        )

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        out = reference.feed_forward_keeping(
            _present(inputs["x"]),
            _present(inputs["weight1"]),
            inputs["bias1"],
            _present(inputs["weight2"]),
            inputs["bias2"],
            inputs["weight_gate"],
            inputs["bias_gate"],
            self.activation,
            self.dropout_p,
            inputs["keep"],
        )
        return {"out": out}

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        out = api.feed_forward(
            _present(inputs["x"]),
            _present(inputs["weight1"]),
            inputs["bias1"],
            _present(inputs["weight2"]),
            inputs["bias2"],
            self.activation,
            self.dropout_p,
            weight_gate=inputs["weight_gate"],
            bias_gate=inputs["bias_gate"],
            recompute=self.recompute,
            seed=SEED if self.dropout_p else None,
            offset=OFFSET if self.dropout_p else None,
            rows=inputs["rows"],
            backend=backend,
        )
        return {"out": out}

    @property
    def elements(self) -> int:
        return math.prod(self.shape[:-1]) * self.hidden

    def facts(self, device: str) -> Facts:
        drops = self.dropout_p > 0.0
        return Facts(device, self.dtype, self.activation, self.gated, drops, bool(self.grads))


def random_cases(count: int) -> list[Case]:
    """Seeded random calls: what no one thought of."""
    found: list[Case] = []
    for seed in range(count):
        r = random.Random(seed)
        outer = tuple(r.randint(1, 9) for _ in range(r.randint(0, 3)))
        found.append(
            FeedForwardCase(
                reason="random",
                seed=seed,
                shape=(*outer, r.randint(1, 70)),
                hidden=round(2 ** r.uniform(0, 9)),
                out=r.choice((0, r.randint(1, 50))),
                dtype=r.choice(
                    (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
                ),
                layout=r.choice(("contiguous", "odd_offset", "row_gap", "doubled", "transposed")),
                activation=r.choice(ACTIVATIONS),
                bias=r.random() < 0.8,
                gated=r.random() < 0.4,
                dropout_p=r.choice((0.0, 0.0, 0.1, 0.5)),
                recompute=r.choice((0, 1, 2)),
                values=r.choice(("normal", "normal", "large", "integers")),
                grads="".join(letter for letter in _GRADS if r.random() < 0.8),
            )
        )
    return found


def hand_picked() -> list[Case]:
    """About 120 cases, each with its reason; see ffn_table.py."""
    from bigkernels.testing.cases import ffn_table as table

    return [FeedForwardCase(reason=reason, **what) for reason, what in table.FEED_FORWARD]


def _repeated(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


def _rows_of(lengths: tuple[int, ...]) -> Tensor:
    pairs = [b << 32 | i for b, length in enumerate(lengths) for i in range(length)]
    return torch.tensor(pairs, dtype=torch.int64)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
