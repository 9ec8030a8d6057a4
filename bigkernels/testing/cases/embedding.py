"""Cases of the embedding room."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigkernels.ops import dropout
from bigkernels.ops.embedding import api, reference
from bigkernels.ops.embedding.contract import Facts
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Problem, Tensors

SEED, OFFSET = 0x1234_5678_9ABC_DEF, 7
_GRADS = {"w": "word", "p": "position", "t": "types", "s": "weight", "b": "bias"}


@dataclass(frozen=True, kw_only=True)
class EmbeddingCase(Case):
    """A call of embedding.

    shape: of ids. n: columns. words, positions, kinds: rows of the tables, 0 = no such table. ids: "random", "same"
    (one word for all tokens), "rising" or "int32". explicit: position ids are passed, shuffled, else they are the
    column, or what `packed`, the lengths of the samples, says. type_ids: passed, or 0 for all. padding: word 1 and
    position 1 get no gradient. weight, bias: there or not; wide: float32 beside 16-bit tables. grads: inputs whose
    gradient is wanted: w(ord) p(osition) t(ypes) s(cale) b(ias).
    """

    room: ClassVar[str] = "embedding"
    operation: ClassVar[str] = "embedding"

    shape: tuple[int, ...]
    n: int
    words: int = 50
    positions: int = 40
    kinds: int = 2
    ids: str = "random"
    explicit: bool = False
    type_ids: bool = True
    padding: bool = False
    weight: bool = True
    bias: bool = True
    wide: bool = False
    eps: float = 1e-12
    dropout_p: float = 0.0
    packed: tuple[int, ...] = ()
    grads: str = "wptsb"

    def problem(self) -> Problem:
        generator = torch.Generator().manual_seed(self.seed)

        def table(count: int) -> Tensor | None:
            return (
                torch.randn((count, self.n), generator=generator).to(self.dtype) if count else None
            )

        def parameter(there: bool, centre: float) -> Tensor | None:
            dtype = torch.float32 if self._wide else self.dtype
            drawn = centre + torch.randn(self.n, generator=generator) / 2
            return drawn.to(dtype) if there else None

        rows = _rows_of(self.packed) if self.packed else None
        ids = self._ids(generator)
        inputs: dict[str, Tensor | None] = {
            "ids": ids,
            "word": table(self.words),
            "position": table(self.positions),
            "types": table(self.kinds),
            "weight": parameter(self.weight, 1.0),
            "bias": parameter(self.bias, 0.0),
            "rows": rows,
            "places": self._places(rows, generator) if self.positions else None,
            "type_ids": None,
            "keep": None,
        }
        if self.kinds and self.type_ids:
            inputs["type_ids"] = torch.randint(self.kinds, self.shape, generator=generator)
        if self.dropout_p:
            like = torch.empty(*self.shape, self.n)
            seeds = torch.tensor(SEED), torch.tensor(OFFSET)
            inputs["keep"] = dropout.keep_rows(like, self.dropout_p, *seeds, rows)
        letters = "abcdgh"[: len(self.shape)]
        axes = dict.fromkeys(("ids", "places", "type_ids"), letters)
        axes |= dict.fromkeys(("keep", "out"), letters + "n") | {"rows": "."}
        axes |= dict.fromkeys(("word", "position", "types"), ".n")
        axes |= dict.fromkeys(("weight", "bias"), "n")
        wanted = tuple(
            name
            for letter, name in _GRADS.items()
            if letter in self.grads and inputs[name] is not None
        )
        dout = torch.randn((*self.shape, self.n), generator=generator).to(self.dtype)
        return Problem(inputs, {"out": dout}, wanted, self._reference, axes)

    @property
    def _wide(self) -> bool:
        return self.wide and self.dtype in (torch.bfloat16, torch.float16)

    @property
    def _padding(self) -> tuple[int | None, int | None]:
        if not self.padding:
            return None, None
        return 1, 1 if self.positions else None

    def _ids(self, generator: torch.Generator) -> Tensor:
        if self.ids == "same":
            return torch.full(self.shape, self.words - 1)
        if self.ids == "rising":
            return torch.arange(math.prod(self.shape)).reshape(self.shape) % self.words
        drawn = torch.randint(self.words, self.shape, generator=generator)
        return drawn.to(torch.int32) if self.ids == "int32" else drawn

    def _places(self, rows: Tensor | None, generator: torch.Generator) -> Tensor:
        if self.explicit:
            return torch.randint(self.positions, self.shape, generator=generator)
        if rows is not None:
            return (rows & 0xFFFFFFFF).reshape(self.shape)
        return torch.arange(self.shape[-1]).expand(self.shape).clone()

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        word = _present(inputs["word"])
        total = reference.table_sum(
            _present(inputs["ids"]),
            word,
            inputs["places"],
            inputs["position"],
            inputs["type_ids"],
            inputs["types"],
            *self._padding,
        )
        out = reference.normalize(
            total, inputs["weight"], inputs["bias"], self.eps, self.dropout_p, inputs["keep"]
        )
        return {"out": out.to(word.dtype)}

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        padding_idx, position_padding_idx = self._padding
        out = api.embedding(
            _present(inputs["ids"]),
            _present(inputs["word"]),
            inputs["position"],
            inputs["types"],
            inputs["weight"],
            inputs["bias"],
            self.eps,
            position_ids=inputs["places"] if self.explicit else None,
            type_ids=inputs["type_ids"],
            padding_idx=padding_idx,
            position_padding_idx=position_padding_idx,
            dropout_p=self.dropout_p,
            seed=SEED if self.dropout_p else None,
            offset=OFFSET if self.dropout_p else None,
            rows=inputs["rows"],
            backend=backend,
        )
        return {"out": out}

    @property
    def elements(self) -> int:
        return math.prod(self.shape) * self.n

    def facts(self, device: str) -> Facts:
        weight_dtype = (torch.float32 if self._wide else self.dtype) if self.weight else None
        return Facts(
            device,
            self.dtype,
            weight_dtype,
            self.n,
            self.positions > 0,
            self.kinds > 0,
            self.dropout_p > 0.0,
            bool(self.grads),
        )


def random_cases(count: int) -> list[Case]:
    """Seeded random calls: what no one thought of."""
    found: list[Case] = []
    for seed in range(count):
        r = random.Random(seed)
        shape = tuple(r.randint(1, 12) for _ in range(r.randint(1, 3)))
        dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
        common: dict[str, Any] = {
            "dtype": r.choice(dtypes),
            "layout": r.choice(("contiguous", "odd_offset", "row_gap", "doubled", "transposed")),
            "words": r.choice((2, 7, 300)),
            "positions": r.choice((0, 12, 64)),
            "kinds": r.choice((0, 1, 2, 5)),
            "explicit": r.random() < 0.5,
            "type_ids": r.random() < 0.5,
            "padding": r.random() < 0.5,
            "weight": r.random() < 0.8,
            "bias": r.random() < 0.8,
            "wide": r.random() < 0.2,
            "dropout_p": r.choice((0.0, 0.0, 0.1, 0.5)),
            # Of few columns the gradient cancels down to noise, which nothing can be judged by.
            "n": round(2 ** r.uniform(3, 10)),
        }
        found.append(EmbeddingCase(reason="random", seed=seed, shape=shape, **common))
    return found


def hand_picked() -> list[Case]:
    """The cases of embedding_table.py, each with its reason."""
    from bigkernels.testing.cases import embedding_table as table

    return [EmbeddingCase(reason=reason, **what) for reason, what in table.EMBEDDING]


def _rows_of(lengths: tuple[int, ...]) -> Tensor:
    pairs = [b << 32 | i for b, length in enumerate(lengths) for i in range(length)]
    return torch.tensor(pairs, dtype=torch.int64)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
