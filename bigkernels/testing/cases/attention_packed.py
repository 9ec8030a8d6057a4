"""Cases of varlen_attn: sequences of any lengths, one after another."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from bigkernels.ops.attention import api, contract, reference
from bigkernels.ops.attention.contract import Facts, stat_dtype
from bigkernels.testing.cases import Case
from bigkernels.testing.cases.attention import (
    OFFSET,
    SEED,
    SPREADS,
    _causal,
    _drawer,
    _keep_scores,
    _present,
    want_lse,
)
from bigkernels.testing.problem import Problem, Tensors


@dataclass(frozen=True, kw_only=True)
class PackedAttentionCase(Case):
    """A call of varlen_attn.

    lengths: of the sequences; lengths_k: of their keys, where not the same. behind: queries and keys that
    follow the last sequence and belong to none. heads, heads_kv, dim,
    dim_v: sizes, the second and last where not H and D. causal, window, dropout_p, softcap: as the
    function's arguments. alibi, sinks: given. wide: cu_seq is int64, not int32. maxima: max_q and max_k are
    given. rows: dropout positions are given. values: a key of SPREADS. lse: returned, with a gradient. grads:
    inputs whose gradient is wanted, by letter.
    """

    room: ClassVar[str] = "attention"
    operation: ClassVar[str] = "varlen"

    lengths: tuple[int, ...]
    lengths_k: tuple[int, ...] | None = None
    behind: tuple[int, int] = (0, 0)
    heads: int = 2
    heads_kv: int | None = None
    dim: int = 16
    dim_v: int | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    dropout_p: float = 0.0
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    rows: bool = False
    wide: bool = False
    maxima: bool = True
    values: str = "normal"
    lse: bool = False
    grads: str = "qkv"

    @property
    def keys(self) -> tuple[int, ...]:
        return self.lengths if self.lengths_k is None else self.lengths_k

    @property
    def blocks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of queries and keys: the sequences, queries without a key, keys without a query."""
        return (*self.lengths, self.behind[0], 0), (*self.keys, 0, self.behind[1])

    def problem(self) -> Problem:
        draw = _drawer(self.seed)
        queries, keys = map(sum, self.blocks)
        heads_kv, dim_v = self.heads_kv or self.heads, self.dim_v or self.dim
        shapes = (
            (queries, self.heads, self.dim),
            (keys, heads_kv, self.dim),
            (keys, heads_kv, dim_v),
        )
        inputs: dict[str, Tensor | None] = {
            name: (draw(shape) * (SPREADS[self.values] if name == "q" else 1.0)).to(self.dtype)
            for name, shape in zip("qkv", shapes, strict=True)
        }
        kind = torch.int64 if self.wide else torch.int32
        inputs["cu_q"] = torch.tensor([0, *accumulate(self.lengths)], dtype=kind)
        inputs["cu_k"] = torch.tensor([0, *accumulate(self.keys)], dtype=kind)
        places = [(b * 2 + 1, i + 3) if self.rows else (b, i) for b, i in _places(self.blocks[0])]
        rows = torch.tensor([b << 32 | i for b, i in places], dtype=torch.int64)
        inputs["rows"] = rows if self.rows else None
        inputs |= {"slopes": draw((self.heads,)).abs().to(self.dtype)} if self.alibi else {}
        inputs |= {"sinks": draw((self.heads,)).to(self.dtype)} if self.sinks else {}
        inputs["visible"], inputs["distance"] = self._visible(), self._distance()
        inputs["behind"] = torch.arange(queries) >= sum(self.lengths)
        inputs["keep"] = self._keep(rows) if self.dropout_p else None
        douts = {"out": draw((queries, self.heads, dim_v)).to(self.dtype)}
        if self.lse:
            douts["lse"] = draw((self.heads, queries)).to(stat_dtype(self.dtype))
        axes = {"q": "q.d", "k": "k.d", "v": "k.e", "out": "q.e", "lse": ".q"}
        axes |= {"visible": "qk", "distance": "qk", "keep": ".qk", "behind": "q"}
        axes |= dict.fromkeys(("rows", "cu_q", "cu_k", "slopes", "sinks"), ".")
        wrt = tuple(name for name in "qkv" if name in self.grads)
        return Problem(inputs, douts if wrt else {}, wrt, self._reference, axes)

    def _visible(self) -> Tensor:
        left, right = self.window
        causal = contract.BOTTOM_RIGHT if self.causal else contract.OPEN_BOTTOM_RIGHT
        blocks = []
        for queries, keys in zip(*self.blocks, strict=True):
            place = torch.arange(queries)
            seen = reference.visible(place, keys, keys - queries, causal, left, right)
            blocks.append(torch.ones((queries, keys), dtype=torch.bool) if seen is None else seen)
        diagonal: Tensor = torch.block_diag(*blocks)
        return diagonal.bool()

    def _distance(self) -> Tensor | None:
        if not self.alibi:
            return None
        blocks = []
        for queries, keys in zip(*self.blocks, strict=True):
            i = torch.arange(queries)[:, None] + keys - queries
            blocks.append((torch.arange(keys) - i).abs().float())
        distance: Tensor = torch.block_diag(*blocks)
        return distance

    def _keep(self, rows: Tensor) -> Tensor:
        bh = (rows >> 32) * self.heads + torch.arange(self.heads)[:, None]
        i = (rows & 0xFFFFFFFF).expand(bh.shape)
        own = _keep_scores(bh, i, max((*self.blocks[1], 1)), self.dropout_p)
        # Key t of the pack is key j of its sequence.
        j = torch.tensor([j for _, j in _places(self.blocks[1])], dtype=torch.int64)
        return own.index_select(-1, j)

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        q, k, v = (_present(inputs[name]) for name in "qkv")
        stat = stat_dtype(q.dtype)
        q4, k4, v4 = (x.to(stat).transpose(0, 1)[None] for x in (q, k, v))
        k4, v4 = (reference.repeat_heads(x, self.heads) for x in (k4, v4))
        s = reference.scores(q4, k4, None, None, self.dim**-0.5, 0, -1, -1, self.softcap, None)
        if (slopes := inputs.get("slopes")) is not None:
            s = s - slopes.to(stat)[:, None, None] * _present(inputs["distance"]).to(stat)
        s = s.masked_fill(~_present(inputs["visible"]), -math.inf)
        keep = inputs["keep"]
        keep = None if keep is None else keep[None]
        out, lse = reference.weigh(s, v4, inputs.get("sinks"), keep, self.dropout_p)
        lse = lse[0].masked_fill(_present(inputs["behind"]), -math.inf)
        return self._named(out[0].transpose(0, 1).to(q.dtype), lse)

    def _named(self, out: Tensor, lse: Tensor) -> Mapping[str, Tensor]:
        return {"out": out, "lse": lse} if self.lse else {"out": out}

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        drops = self.dropout_p > 0
        q, k, v, cu_q, cu_k = (_present(inputs[name]) for name in ("q", "k", "v", "cu_q", "cu_k"))
        out, lse = api.varlen_attn(
            q,
            k,
            v,
            cu_q,
            cu_k,
            max(self.lengths, default=0) if self.maxima else None,
            max(self.keys, default=0) if self.maxima else None,
            return_aux=want_lse(),
            window_size=self.window,
            enable_gqa=self.heads_kv is not None,
            is_causal=self.causal,
            dropout_p=self.dropout_p,
            softcap=self.softcap,
            alibi_slopes=inputs.get("slopes"),
            sinks=inputs.get("sinks"),
            seed=SEED if drops else None,
            offset=OFFSET if drops else None,
            rows=inputs["rows"],
            backend=backend,
        )
        return self._named(out, lse)

    @property
    def elements(self) -> int:
        return max(map(sum, self.blocks)) * self.heads * max(self.dim, self.dim_v or 0)

    def facts(self, device: str) -> Facts:
        left, right = self.window
        causal = self.causal or right == 0
        return Facts(
            device=device,
            dtype=self.dtype,
            head_dim=self.dim,
            head_dim_v=self.dim_v or self.dim,
            packed=True,
            grouped=self.heads_kv not in (None, self.heads),
            mask="none",
            mask_grad=False,
            causal=_causal(causal, True, self.window, self.alibi),
            window=left >= 0 or (right > 0 and not causal),
            lengths=False,
            dropout=self.dropout_p > 0,
            softcap=self.softcap > 0,
            alibi=self.alibi,
            sinks=self.sinks,
            needs_grad=bool(self.grads),
        )


def random_case(r: random.Random, seed: int) -> Case:
    """A call no one thought of."""
    heads_kv = r.choice((1, 2, 3))
    heads = heads_kv * r.choice((1, 1, 2))
    # A query with a single key has no gradient but noise, which nothing can be judged by.
    lengths = tuple(r.choice((r.randint(2, 9), r.randint(10, 140))) for _ in range(r.randint(1, 5)))
    return PackedAttentionCase(
        reason="random",
        seed=seed,
        dtype=r.choice((torch.float32,) * 3 + (torch.bfloat16, torch.float16, torch.float64)),
        layout=r.choice(("contiguous", "odd_offset", "row_gap", "doubled", "transposed")),
        lengths=lengths,
        lengths_k=r.choice((None, tuple(n + r.randint(0, 30) for n in lengths))),
        heads=heads,
        heads_kv=heads_kv if heads_kv != heads else None,
        dim=round(2 ** r.uniform(2, 7)),
        dim_v=r.choice((None, None, round(2 ** r.uniform(2, 6)))),
        causal=r.random() < 0.3,
        window=r.choice(((-1, -1), (-1, -1), (r.randint(2, 20), r.randint(1, 20)))),
        dropout_p=r.choice((0.0, 0.0, 0.1, 0.5)),
        rows=r.random() < 0.5,
        wide=r.random() < 0.5,
        maxima=r.random() < 0.5,
        lse=r.random() < 0.3,
        softcap=r.choice((0.0,) * 6 + (2.0, 30.0)),
        alibi=r.random() < 0.15,
        sinks=r.random() < 0.15,
    )


def _places(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(b, i) for b, length in enumerate(lengths) for i in range(length)]
