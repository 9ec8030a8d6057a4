"""The hand-picked cases of the encoder room: (reason, what differs from the defaults)."""

from __future__ import annotations

from typing import Any

import torch

Row = tuple[str, dict[str, Any]]

BF16 = torch.bfloat16
_SMALL: dict[str, Any] = {"lengths": (7, 3), "width": 64, "hidden": 96, "heads": 2}

_SIZES: list[Row] = [
    ("one token", {**_SMALL, "lengths": (1,)}),
    ("no token", {**_SMALL, "lengths": (0,)}),
    ("empty sequences between others", {**_SMALL, "lengths": (0, 5, 0, 0, 9, 0)}),
    ("32 tokens: whole tiles", {**_SMALL, "lengths": (32,)}),
    ("33 tokens: a row more", {**_SMALL, "lengths": (16, 17)}),
    ("a lone last tile of rows", {**_SMALL, "lengths": (40, 5)}),
    ("many short sequences", {**_SMALL, "lengths": tuple(range(1, 30))}),
    ("longer than a block of keys", {**_SMALL, "lengths": (300, 2)}),
    ("longer than a unit of attention", {**_SMALL, "lengths": (530,)}),
    ("MiniLM's layer", {"lengths": (20, 9), "width": 384, "hidden": 1536, "heads": 12}),
    ("BERT-base's layer", {"lengths": (17,), "width": 768, "hidden": 3072, "heads": 12}),
    ("several blocks of rows", {"lengths": (200, 180), "width": 64, "hidden": 2048, "heads": 1}),
    ("three layers", {**_SMALL, "layers": 3}),
    ("heads of 128", {"lengths": (9, 30), "width": 256, "hidden": 64, "heads": 2}),
    ("one head of 32", {"lengths": (9,), "width": 32, "hidden": 32, "heads": 1}),
]  # fmt: skip

_KINDS: list[Row] = [
    ("pre-LayerNorm", {**_SMALL, "norm_first": True, "layers": 2}),
    ("causal", {**_SMALL, "causal": True, "lengths": (40, 1, 33)}),
    ("GPT-2's", {**_SMALL, "causal": True, "norm_first": True, "activation": "gelu_tanh", "layers": 2}),
    ("tanh GELU", {**_SMALL, "activation": "gelu_tanh"}),
    ("ReLU", {**_SMALL, "activation": "relu"}),
    ("SiLU", {**_SMALL, "activation": "silu"}),
    ("without biases", {**_SMALL, "bias": False}),
    ("norms without weights", {**_SMALL, "affine": False}),
    ("pre-LayerNorm without anything", {**_SMALL, "affine": False, "bias": False, "norm_first": True}),
    ("large eps", {**_SMALL, "eps": 0.5}),
    ("int64 starts", {**_SMALL, "int64": True}),
    ("large x", {**_SMALL, "scale": 1e3, "layers": 2}),
    ("small x", {**_SMALL, "scale": 1e-3, "eps": 1e-12}),
]  # fmt: skip

# Widths that fill no tile, rows that lie apart.
_ODD: list[Row] = [
    ("width 5", {"lengths": (7, 3), "width": 5, "hidden": 3, "heads": 1}),
    ("width 33", {"lengths": (7, 31), "width": 33, "hidden": 65, "heads": 3}),
    ("width 100", {"lengths": (50,), "width": 100, "hidden": 77, "heads": 4}),
    ("x between walls, one element off", {**_SMALL, "layout": "odd_offset"}),
    ("x with gaps between rows", {**_SMALL, "layout": "row_gap"}),
    ("x transposed", {**_SMALL, "layout": "transposed"}),
]  # fmt: skip


def _in(precision: str, rows: list[Row], **more: Any) -> list[Row]:
    return [
        (f"{precision}: {reason}", {**what, "precision": precision, **more})
        for reason, what in rows
    ]


ENCODER: list[Row] = [
    *_SIZES,
    *_KINDS,
    *_ODD,
    ("bfloat16 x, float32 products", {**_SMALL, "dtype": BF16, "layers": 2}),
    *_in("bfloat16", [*_SIZES, *_KINDS], dtype=BF16),
    *_in("bfloat16", _ODD[1:3], dtype=BF16),
    *_in("high", _SIZES),
    *_in("high", [_KINDS[0], _KINDS[1], _KINDS[3]]),
]
