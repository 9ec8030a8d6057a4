"""Cases of the packing room."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigkernels.ops.packing import api
from bigkernels.ops.packing.contract import Facts
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Problem, Tensors

BF16, F16, F64 = torch.bfloat16, torch.float16, torch.float64
SIDES = ("right", "left", "holes")


@dataclass(frozen=True, kw_only=True)
class PackingCase(Case):
    """A batch packed and padded again by one plan, from its mask.

    lengths: tokens of each sample; all of them come `repeat` times. length: positions of each. rest: the other
    dimensions. side: where the padding is, one of SIDES ("holes": anywhere). spare: rows of the packed form behind the
    tokens, None = the plan counts them.
    """

    room: ClassVar[str] = "packing"
    operation: ClassVar[str] = "packing"

    lengths: tuple[int, ...]
    length: int
    repeat: int = 1
    rest: tuple[int, ...] = (8,)
    side: str = "right"
    spare: int | None = None
    grad: bool = True

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of all samples."""
        return self.lengths * self.repeat

    @property
    def tokens(self) -> int | None:
        """What the plan is told."""
        return None if self.spare is None else sum(self.counts) + self.spare

    def keep(self) -> Tensor:
        """(B, L) bool."""
        place, count = torch.arange(self.length), torch.tensor(self.counts).reshape(-1, 1)
        if self.side == "left":
            return place >= self.length - count
        keep = place < count
        if self.side == "holes":
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed))
            keep = keep[:, order]
        return keep

    def problem(self) -> Problem:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        batch, rows = len(self.counts), sum(self.counts) + (self.spare or 0)
        inputs: dict[str, Tensor | None] = {
            "x": draw(batch, self.length, *self.rest),
            "keep": self.keep(),
        }
        douts = {"packed": draw(rows, *self.rest), "out": draw(batch, self.length, *self.rest)}
        rest = "nmk"[: len(self.rest)]
        axes = {"x": f"..{rest}", "keep": "..", "packed": f".{rest}", "out": f"..{rest}"}
        return Problem(inputs, douts, ("x",) if self.grad else (), self._reference, axes)

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        x, keep = inputs["x"], inputs["keep"]
        assert x is not None and keep is not None
        spare = x.new_zeros(self.spare or 0, *self.rest)
        wide = keep.reshape(*keep.shape, *[1] * len(self.rest))
        return {"packed": torch.cat([x[keep], spare]), "out": torch.where(wide, x, 0.0)}

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        x, keep = inputs["x"], inputs["keep"]
        assert x is not None and keep is not None
        plan = api.plan(keep, self.tokens, backend=backend)
        packed = api.unpad(x, plan, backend=backend)
        return {"packed": packed, "out": api.pad(packed, plan, backend=backend)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the padded batch."""
        return (len(self.counts), self.length, *self.rest)

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()

    def facts(self, device: str) -> Facts:
        return Facts(device, self.dtype, self.grad)


_TABLE: list[tuple[str, dict[str, Any]]] = [
    ("one token", {"lengths": (1,), "length": 1}),
    ("a sample without tokens", {"lengths": (5, 0, 3, 1), "length": 5}),
    ("no tokens at all", {"lengths": (0, 0), "length": 3}),
    ("no sample", {"lengths": (), "length": 4}),
    ("no position", {"lengths": (0, 0), "length": 0}),
    ("no padding", {"lengths": (4, 4), "length": 4}),
    *((f"padding: {side}", {"lengths": (3, 7, 1), "length": 9, "side": side}) for side in SIDES),
    *(
        (f"{spare} rows to spare, {side}", {
            "lengths": (3, 7, 1), "length": 9, "side": side, "spare": spare,
        })
        for spare in (0, 5, 16)
        for side in SIDES
    ),
    ("no tokens, rows to spare", {"lengths": (0, 0), "length": 3, "spare": 4}),
    ("no padding, rows counted", {"lengths": (4, 4), "length": 4, "spare": 0}),
    ("more positions than a block has", {
        "lengths": (1500, 3), "length": 2100, "rest": (), "side": "holes", "spare": 9,
    }),
    ("more samples than a block has", {
        "lengths": (0, 1, 2), "repeat": 367, "length": 2, "rest": (2,),
    }),
    ("rows wider than a tile", {"lengths": (2, 1), "length": 2, "rest": (2050,)}),
    ("many short rows", {"lengths": (90, 200), "length": 300, "rest": (3,)}),
    ("heads", {"lengths": (2, 4), "length": 5, "rest": (3, 8)}),
    ("single numbers", {"lengths": (2, 4), "length": 5, "rest": ()}),
    ("no gradient", {"lengths": (2, 4), "length": 5, "grad": False}),
    ("no column", {"lengths": (2, 4), "length": 5, "rest": (0,)}),
    *(("every dtype", {"lengths": (2, 6), "length": 6, "rest": (20,), "dtype": dtype})
      for dtype in (BF16, F16, F64)),
    *((f"{layout} rows", {"lengths": (2, 6), "length": 6, "rest": (33,), "layout": layout})
      for layout in ("odd_offset", "row_gap", "doubled", "transposed")),
]  # fmt: skip


def random_cases(count: int) -> list[Case]:
    """Seeded random calls: what no one thought of."""
    found: list[Case] = []
    for seed in range(count):
        r = random.Random(seed)
        length = r.randint(1, 40)
        lengths = tuple(r.randint(0, length) for _ in range(r.randint(1, 6)))
        padding = len(lengths) * length - sum(lengths)
        found.append(
            PackingCase(
                reason="random",
                seed=seed,
                lengths=lengths,
                length=length,
                rest=(r.choice((1, 8, 16, 20)),),
                side=r.choice(SIDES),
                spare=r.choice((None, padding, padding // 2)),
                dtype=r.choice((torch.float32, BF16, F16)),
            )
        )
    return found


def hand_picked() -> list[Case]:
    """Each with its reason."""
    return [PackingCase(reason=reason, **what) for reason, what in _TABLE]
