"""Cases of the cross_entropy room."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigkernels.ops.cross_entropy import api, reference
from bigkernels.ops.cross_entropy.contract import Facts, stat_dtype
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Problem, Tensors

BF16, F16, F64 = torch.bfloat16, torch.float16, torch.float64
SCALES = {"normal": 1.0, "large": 30.0, "flat": 1e-3, "zeros": 0.0}


@dataclass(frozen=True, kw_only=True)
class CrossEntropyCase(Case):
    """A call of cross_entropy.

    rows, classes: of the logits. ignored: of ten rows how many are ignored, the first always is not. reduction,
    label_smoothing, ignore_index: as the function's. values: how large the logits are, a key of SCALES. masked: every
    third class has logits of -inf, and is no target. grad: whether the gradient is wanted.
    """

    room: ClassVar[str] = "cross_entropy"
    operation: ClassVar[str] = "cross_entropy"

    rows: int
    classes: int
    ignored: int = 3
    reduction: str = "mean"
    label_smoothing: float = 0.0
    ignore_index: int = -100
    values: str = "normal"
    masked: bool = False
    grad: bool = True

    def problem(self) -> Problem:
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(self.rows, self.classes, generator=generator) * SCALES[self.values]
        target = torch.randint(self.classes, (self.rows,), generator=generator)
        if self.masked:
            logits[:, 2::3] = -torch.inf
            target -= (target % 3 == 2).long()
        hot = torch.nn.functional.one_hot(target, self.classes).bool()
        counts = torch.arange(self.rows) % 10 < 10 - self.ignored
        target = torch.where(counts, target, self.ignore_index)
        inputs: dict[str, Tensor | None] = {
            "input": logits.to(self.dtype),
            "target": target,
            "hot": hot,
            "counts": counts,
        }
        shape = (self.rows,) if self.reduction == "none" else ()
        douts = {"out": torch.randn(shape, generator=generator).to(self.dtype)}
        axes = {"input": "nv", "hot": "nv", "target": "n", "counts": "n"}
        axes["out"] = "n" if self.reduction == "none" else ""
        return Problem(inputs, douts, ("input",) if self.grad else (), self._reference, axes)

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        logits, hot, counts = (_present(inputs[name]) for name in ("input", "hot", "counts"))
        z = logits.to(stat_dtype(logits.dtype))
        chosen = torch.where(hot, z, 0.0).sum(1)
        loss = z.logsumexp(1) - (1.0 - self.label_smoothing) * chosen
        if self.label_smoothing:
            loss = loss - self.label_smoothing * z.mean(1)
        loss = torch.where(counts, loss, 0.0)
        total = reference.reduce(loss, counts.long(), 0, self.reduction)
        return {"out": total.to(logits.dtype)}

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        out = api.cross_entropy(
            _present(inputs["input"]),
            _present(inputs["target"]),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            backend=backend,
        )
        return {"out": out}

    @property
    def shape(self) -> tuple[int, int]:
        """Of the logits."""
        return self.rows, self.classes

    @property
    def elements(self) -> int:
        return self.rows * self.classes

    def facts(self, device: str) -> Facts:
        return Facts(device, self.dtype, self.label_smoothing > 0.0, self.grad)


_TABLE: list[tuple[str, dict[str, Any]]] = [
    ("one row", {"rows": 1, "classes": 10}),
    ("one class: the loss is 0", {"rows": 5, "classes": 1, "ignored": 0, "grad": False}),
    ("two classes", {"rows": 7, "classes": 2}),
    ("no row", {"rows": 0, "classes": 10, "reduction": "sum"}),
    ("no row, one by one", {"rows": 0, "classes": 10, "reduction": "none", "dtype": BF16}),
    *((f"{v} classes", {"rows": 4, "classes": v}) for v in (127, 128, 129, 511, 1000)),
    ("one step and one class", {"rows": 3, "classes": 2049}),
    ("four steps and a bit, odd rows", {"rows": 1, "classes": 8201}),
    ("many rows", {"rows": 300, "classes": 12}),
    ("BERT's vocabulary, as far as the emulator goes", {"rows": 2, "classes": 30522}),
    ("nothing is ignored", {"rows": 6, "classes": 40, "ignored": 0}),
    ("most rows are ignored: masked language models", {"rows": 40, "classes": 100, "ignored": 8}),
    ("a class that is ignored", {"rows": 8, "classes": 40, "ignore_index": 5}),
    *(
        (f"{reduction}, smoothing {s}", {
            "rows": 9, "classes": 70, "reduction": reduction, "label_smoothing": s,
        })
        for reduction in ("mean", "sum", "none")
        for s in (0.0, 0.1, 1.0)
        if (reduction, s) != ("mean", 0.0)
    ),
    *(
        (f"{values} logits", {"rows": 6, "classes": 130, "values": values})
        for values in ("large", "flat", "zeros")
    ),
    ("classes that cannot be", {"rows": 5, "classes": 90, "masked": True}),
    ("a whole step of classes that cannot be", {"rows": 2, "classes": 5, "masked": True}),
    ("no gradient", {"rows": 6, "classes": 40, "grad": False}),
    *(
        (f"every dtype, smoothing {s}", {
            "rows": 9, "classes": 200, "dtype": dtype, "label_smoothing": s, "reduction": "sum",
        })
        for dtype in (BF16, F16, F64)
        for s in (0.0, 0.1)
    ),
    *(
        (f"{layout} logits", {"rows": 5, "classes": 33, "layout": layout, "reduction": "none"})
        for layout in ("odd_offset", "row_gap", "doubled", "transposed")
    ),
]  # fmt: skip


def random_cases(count: int) -> list[Case]:
    """Seeded random calls: what no one thought of."""
    found: list[Case] = []
    for seed in range(count):
        r = random.Random(seed)
        found.append(
            CrossEntropyCase(
                reason="random",
                seed=seed,
                rows=r.randint(1, 20),
                classes=round(2 ** r.uniform(1, 9)),
                dtype=r.choice((torch.float32, torch.float32, BF16, F16, F64)),
                layout=r.choice(("contiguous", "odd_offset", "row_gap", "doubled", "transposed")),
                ignored=r.randint(0, 9),
                reduction=r.choice(("mean", "sum", "none")),
                label_smoothing=r.choice((0.0, 0.0, 0.1)),
                values=r.choice(("normal", "large", "flat")),
                masked=False,
            )
        )
    return found


def hand_picked() -> list[Case]:
    """Each with its reason."""
    return [CrossEntropyCase(reason=reason, **what) for reason, what in _TABLE]


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
