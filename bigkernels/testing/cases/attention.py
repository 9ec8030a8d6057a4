"""Cases of the attention room: scaled_dot_product_attention and varlen_attn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigkernels.ops import dropout
from bigkernels.ops.attention import api, contract, reference
from bigkernels.ops.attention.contract import Facts, stat_dtype
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Problem, Tensors

SEED, OFFSET = 0x0FED_CBA9_8765_4321, 11

# What q and k are multiplied by: the spread of the scores.
SPREADS = {"normal": 1.0, "flat": 0.0, "sharp": 6.0, "sharpest": 40.0}


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """A call of scaled_dot_product_attention.

    shape: (B, H, Lq, Lk, D). heads_kv, dim_v: where not H and D. mask: "", "bool", "float" (of the
    case's dtype) or "float32"; mask_dims: the letters of "bhqk" along which it is not broadcast;
    mask_values: "random", or "padding" (the ends of samples off), "dead" (also a whole sample),
    "rows" (also single queries), "infinite" (additive, with -inf), "huge" (additive, -1e4 for off),
    "least" (additive, the dtype's least number for off, also a whole sample).
    causal, bottom_right, window, lengths, softcap: as the function's arguments. alibi, sinks:
    given. rows: dropout positions are those of another batch. by_position: memory order
    (B, L, H, D). values: a key of SPREADS. repeated: names of inputs with stride 0 along the batch.
    lse: returned, with a gradient. grads: inputs whose gradient is wanted, by letter (m: mask).
    """

    room: ClassVar[str] = "attention"
    operation: ClassVar[str] = "attention"

    shape: tuple[int, int, int, int, int]
    heads_kv: int | None = None
    dim_v: int | None = None
    mask: str = ""
    mask_dims: str = "bhqk"
    mask_values: str = "random"
    causal: bool = False
    bottom_right: bool = False
    window: tuple[int, int] | None = None
    lengths: tuple[int, ...] | None = None
    dropout_p: float = 0.0
    rows: bool = False
    scale: float | None = None
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    by_position: bool = False
    values: str = "normal"
    repeated: tuple[str, ...] = ()
    lse: bool = False
    grads: str = "qkvm"

    def problem(self) -> Problem:
        batch, heads, queries, keys, dim = self.shape
        draw = _drawer(self.seed)
        spread = SPREADS[self.values]
        heads_kv, dim_v = self.heads_kv or heads, self.dim_v or dim
        q, k, v = (
            self._placed(name, (draw(size) * factor).to(self.dtype))
            for name, size, factor in (
                ("q", (batch, heads, queries, dim), spread),
                ("k", (batch, heads_kv, keys, dim), 1.0),
                ("v", (batch, heads_kv, keys, dim_v), 1.0),
            )
        )
        inputs: dict[str, Tensor | None] = {"q": q, "k": k, "v": v, "mask": self._mask(draw)}
        inputs |= {"slopes": draw((heads,)).abs().to(self.dtype)} if self.alibi else {}
        inputs |= {"sinks": draw((heads,)).to(self.dtype)} if self.sinks else {}
        if self.lengths is not None:
            inputs["lengths"] = torch.tensor(self.lengths)
        if self.rows:
            inputs["rows"] = _shuffled_rows(batch, queries)
        inputs["visible"], inputs["distance"] = self._visible(), self._distance()
        inputs["keep"] = self._keep(inputs.get("rows")) if self.dropout_p else None
        douts = {"out": draw((batch, heads, queries, dim_v)).to(self.dtype)}
        if self.lse:
            douts["lse"] = draw((batch, heads, queries)).to(stat_dtype(self.dtype))
        letters = "b{}.{}" if self.by_position else "b.{}{}"
        axes = {"q": letters.format("q", "d"), "k": letters.format("k", "d")}
        axes |= {"v": letters.format("k", "e"), "out": "b.qe", "lse": "b.q"}
        axes |= dict.fromkeys(("mask", "visible", "keep", "distance"), "b.qk")
        axes |= {"slopes": ".", "sinks": ".", "lengths": "b", "rows": "."}
        names = {"q": "q", "k": "k", "v": "v", "m": "mask"}
        wrt = [name for letter, name in names.items() if letter in self.grads]
        if not self.mask.startswith("float"):
            wrt = [name for name in wrt if name != "mask"]
        return Problem(inputs, douts if wrt else {}, tuple(wrt), self._reference, axes)

    def _placed(self, name: str, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).contiguous() if self.by_position else x
        return x[:1].expand(x.shape) if name in self.repeated else x

    def _mask(self, draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor | None:
        if not self.mask:
            return None
        full = (self.shape[0], self.shape[1], self.shape[2], self.shape[3])
        size = tuple(
            n if letter in self.mask_dims else 1 for letter, n in zip("bhqk", full, strict=True)
        )
        noise = draw(size)
        on = noise > -0.5
        if self.mask_values != "random":
            on = torch.arange(size[3]) < size[3] - torch.arange(size[0])[:, None, None, None] * 2
            on = on.expand(size).clone()
        if self.mask_values in ("dead", "least"):
            on[-1] = False
        if self.mask_values == "rows":
            on[:, :, 1::3] = False
        if self.mask == "bool":
            return on
        dtype = torch.float32 if self.mask == "float32" else self.dtype
        if self.mask_values == "random":
            return noise.to(dtype)
        off = {"huge": -1e4, "least": torch.finfo(dtype).min}.get(self.mask_values, -math.inf)
        return noise.to(dtype).masked_fill(~on, off)

    def _visible(self) -> Tensor | None:
        _, _, queries, keys, _ = self.shape
        code = {(False, False): contract.OPEN, (True, False): contract.TOP_LEFT}
        code |= {(True, True): contract.BOTTOM_RIGHT, (False, True): contract.OPEN_BOTTOM_RIGHT}
        shift = keys - queries if self.bottom_right else 0
        left, right = self.window or (-1, -1)
        causal = code[self.causal, self.bottom_right]
        seen = reference.visible(torch.arange(queries), keys, shift, causal, left, right)
        if self.lengths is not None:
            on = torch.arange(keys) < torch.tensor(self.lengths)[:, None, None, None]
            seen = on if seen is None else seen & on
        if seen is None:
            return None
        return seen.expand(seen.shape[0] if seen.dim() == 4 else 1, 1, queries, keys)

    def _distance(self) -> Tensor | None:
        if not self.alibi:
            return None
        _, _, queries, keys, _ = self.shape
        shift = keys - queries if self.bottom_right else 0
        i = torch.arange(queries)[:, None] + shift
        return (torch.arange(keys) - i).abs().float()[None, None]

    def _keep(self, rows: Tensor | None) -> Tensor:
        batch, heads, queries, keys, _ = self.shape
        place = _own_rows(batch, queries) if rows is None else rows
        b, i = (place >> 32).view(batch, 1, queries), (place & 0xFFFFFFFF).view(batch, 1, queries)
        bh = b * heads + torch.arange(heads)[:, None]
        return _keep_scores(bh, i.expand(bh.shape), keys, self.dropout_p)

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        q, k, v = (_present(inputs[name]) for name in "qkv")
        if self.by_position:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        stat = stat_dtype(q.dtype)
        heads = q.shape[1]
        k, v = reference.repeat_heads(k.to(stat), heads), reference.repeat_heads(v.to(stat), heads)
        s = reference.scores(
            q.to(stat), k, inputs["mask"], None, self._scale, 0, -1, -1, self.softcap, None
        )
        slopes, visible = inputs.get("slopes"), inputs["visible"]
        if slopes is not None:
            s = s - slopes.to(stat)[:, None, None] * _present(inputs["distance"]).to(stat)
        if visible is not None:
            s = s.masked_fill(~visible, -math.inf)
        out, lse = reference.weigh(s, v, inputs.get("sinks"), inputs["keep"], self.dropout_p)
        return self._named(out.to(q.dtype), lse)

    def _named(self, out: Tensor, lse: Tensor) -> Mapping[str, Tensor]:
        return {"out": out, "lse": lse} if self.lse else {"out": out}

    @property
    def _scale(self) -> float:
        return self.shape[-1] ** -0.5 if self.scale is None else self.scale

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        q, k, v = (_present(inputs[name]) for name in "qkv")
        if self.by_position:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = api.scaled_dot_product_attention(
            q, k, v, inputs["mask"], **self._options(inputs), return_lse=True, backend=backend
        )  # fmt: skip
        return self._named(out, lse)

    def _options(self, inputs: Tensors) -> dict[str, Any]:
        drops = self.dropout_p > 0
        return {
            "dropout_p": self.dropout_p,
            "is_causal": self.causal,
            "scale": self.scale,
            "enable_gqa": self.heads_kv is not None,
            "key_lengths": inputs.get("lengths"),
            "window": self.window,
            "causal_alignment": "bottom_right" if self.bottom_right else "top_left",
            "softcap": self.softcap,
            "alibi_slopes": inputs.get("slopes"),
            "sinks": inputs.get("sinks"),
            "seed": SEED if drops else None,
            "offset": OFFSET if drops else None,
            "rows": inputs.get("rows"),
        }

    @property
    def elements(self) -> int:
        batch, heads, queries, keys, dim = self.shape
        rows = batch * heads * max(queries, keys)
        mask = [
            n for n, letter in zip(self.shape[:4], "bhqk", strict=True) if letter in self.mask_dims
        ]
        return max(rows * max(dim, self.dim_v or dim), math.prod(mask) if self.mask else 0)

    def facts(self, device: str) -> Facts:
        return Facts(
            device=device,
            dtype=self.dtype,
            head_dim=self.shape[-1],
            head_dim_v=self.dim_v or self.shape[-1],
            packed=False,
            grouped=self.heads_kv not in (None, self.shape[1]),
            mask="none" if not self.mask else "bool" if self.mask == "bool" else "float",
            mask_grad=self.mask.startswith("float") and "m" in self.grads,
            causal=_causal(self.causal, self.bottom_right, self.window, self.alibi),
            window=self.window is not None and max(self.window) >= 0,
            lengths=self.lengths is not None,
            dropout=self.dropout_p > 0,
            softcap=self.softcap > 0,
            alibi=self.alibi,
            sinks=self.sinks,
            needs_grad=bool(self.grads),
        )


def _causal(causal: bool, bottom_right: bool, window: tuple[int, int] | None, alibi: bool) -> int:
    if causal:
        return contract.BOTTOM_RIGHT if bottom_right else contract.TOP_LEFT
    open_ended = (window is None or max(window) < 0) and not alibi
    return contract.OPEN_BOTTOM_RIGHT if bottom_right and not open_ended else contract.OPEN


def random_cases(count: int) -> list[Case]:
    """Seeded random calls: what no one thought of."""
    from bigkernels.testing.cases import attention_packed

    makers = (_random_dense, attention_packed.random_case)
    return [makers[seed % 4 == 3](random.Random(seed), seed) for seed in range(count)]


def _random_dense(r: random.Random, seed: int) -> Case:
    heads_kv = r.choice((1, 1, 2, 3))
    heads = heads_kv * r.choice((1, 1, 2, 4))
    # A query with a single key has no gradient but noise, which nothing can be judged by: of few queries, not causal.
    queries, keys = round(2 ** r.uniform(1, 8)), round(2 ** r.uniform(2, 8))
    batch = r.randint(1, 3)
    mask = r.choice(("", "", "bool", "float", "float32"))
    dims = "".join(letter for letter in "bhq" if r.random() < 0.6) + "k"
    return AttentionCase(
        reason="random",
        seed=seed,
        dtype=r.choice((torch.float32,) * 3 + (torch.bfloat16, torch.float16, torch.float64)),
        layout=r.choice(("contiguous", "odd_offset", "row_gap", "doubled", "transposed")),
        shape=(batch, heads, queries, keys, round(2 ** r.uniform(2, 7))),
        heads_kv=heads_kv if heads_kv != heads else None,
        dim_v=r.choice((None, None, round(2 ** r.uniform(2, 6)))),
        mask=mask,
        mask_dims=dims if mask else "bhqk",
        causal=queries <= keys and r.random() < 0.3 and queries >= 16,
        bottom_right=r.random() < 0.3,
        window=r.choice((None, None, None, (r.randint(2, 40), r.randint(2, 40)))),
        lengths=tuple(r.randint(2, keys) for _ in range(batch)) if r.random() < 0.2 else None,
        dropout_p=r.choice((0.0, 0.0, 0.1, 0.5)),
        by_position=r.random() < 0.5,
        lse=r.random() < 0.3,
        softcap=r.choice((0.0,) * 6 + (2.0, 30.0)),
        alibi=r.random() < 0.15,
        sinks=r.random() < 0.15,
    )


def hand_picked() -> list[Case]:
    """About 120 cases, each with its reason; see attention_table.py and attention_packed_table.py."""
    from bigkernels.testing.cases import attention_packed, attention_packed_table, attention_table

    packed = attention_packed.PackedAttentionCase
    return [
        *(AttentionCase(reason=reason, **what) for reason, what in attention_table.DENSE),
        *(packed(reason=reason, **what) for reason, what in attention_packed_table.PACKED),
    ]


def want_lse() -> Any:
    """What stands for torch's AuxRequest(lse=True)."""
    return SimpleNamespace(lse=True)


def _drawer(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def _own_rows(batch: int, queries: int) -> Tensor:
    return ((torch.arange(batch) << 32)[:, None] + torch.arange(queries)).reshape(-1)


def _shuffled_rows(batch: int, queries: int) -> Tensor:
    # Other samples of a larger batch, other positions.
    return (
        ((torch.arange(batch).flip(0) * 3 + 5) << 32)[:, None]
        .add(torch.arange(queries) * 2)
        .reshape(-1)
    )


def _keep_scores(bh: Tensor, i: Tensor, keys: int, dropout_p: float) -> Tensor:
    return dropout.keep_scores(bh, i, keys, dropout_p, torch.tensor(SEED), torch.tensor(OFFSET))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
