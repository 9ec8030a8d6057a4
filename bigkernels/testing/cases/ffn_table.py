"""The hand-picked cases of the ffn room: (reason, fields that differ from the defaults)."""

from __future__ import annotations

from typing import Any

import torch

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64

Row = tuple[str, dict[str, Any]]

_WIDTHS: list[Row] = [
    ("one hidden element", {"shape": (3, 4), "hidden": 1}),
    ("two hidden elements", {"shape": (3, 4), "hidden": 2}),
    ("less than the narrowest vector", {"shape": (5, 6), "hidden": 3}),
    ("one short of 8 lanes", {"shape": (5, 6), "hidden": 7}),
    ("exactly 8 lanes", {"shape": (5, 6), "hidden": 8}),
    ("one over 8 lanes", {"shape": (5, 6), "hidden": 9}),
    ("one short of 16 lanes", {"shape": (5, 6), "hidden": 15}),
    ("exactly 16 lanes", {"shape": (5, 6), "hidden": 16}),
    ("one over 16 lanes", {"shape": (5, 6), "hidden": 17}),
    ("two vectors in step and a tail", {"shape": (4, 6), "hidden": 33}),
    ("one short of four vectors in step", {"shape": (4, 6), "hidden": 63}),
    ("exactly four vectors in step", {"shape": (4, 6), "hidden": 64}),
    ("four vectors in step, one whole and a tail", {"shape": (4, 6), "hidden": 83}),
    ("one more than a column tile", {"shape": (2, 20), "hidden": 513}),
    ("two column tiles and a bit", {"shape": (3, 12), "hidden": 1100}),
    ("more columns than any tile", {"shape": (2, 5), "hidden": 8200}),
    ("one input feature: the product has one term", {"shape": (5, 1), "hidden": 20}),
    ("one output feature", {"shape": (5, 12), "hidden": 20, "out": 1}),
    ("wider out than in", {"shape": (5, 12), "hidden": 20, "out": 50}),
    ("narrower inside than outside: a bottleneck", {"shape": (6, 64), "hidden": 8}),
    ("prime everywhere", {"shape": (7, 23), "hidden": 101, "out": 31}),
    ("MiniLM", {"shape": (2, 9, 384), "hidden": 1536}),
    ("BERT base", {"shape": (1, 9, 768), "hidden": 3072}),
]

_ROWS: list[Row] = [
    ("one row", {"shape": (1, 32), "hidden": 128}),
    ("no leading dimension", {"shape": (32,), "hidden": 128}),
    ("rows that two threads cannot halve", {"shape": (3, 48), "hidden": 96}),
    ("one short of a block of rows", {"shape": (31, 20), "hidden": 40}),
    ("exactly a block of rows", {"shape": (32, 20), "hidden": 40}),
    ("one row more than a block", {"shape": (33, 20), "hidden": 40}),
    ("bias gradients over many blocks of rows", {"shape": (1031, 8), "hidden": 24}),
    ("long sums in bfloat16", {"shape": (1031, 8), "hidden": 24, "dtype": BF16}),
    ("long sums in float16", {"shape": (1031, 8), "hidden": 24, "dtype": F16}),
    ("no rows", {"shape": (0, 16), "hidden": 24}),
    ("no rows in the middle of the shape", {"shape": (2, 0, 16), "hidden": 24, "dtype": BF16}),
    ("no rows, gated, with dropout", {"shape": (0, 16), "hidden": 24, "gated": True, "dropout_p": 0.5}),
    ("four dimensions", {"shape": (2, 3, 2, 12), "hidden": 20}),
    ("dimensions of size 1", {"shape": (1, 5, 1, 12), "hidden": 20}),
]  # fmt: skip

_DTYPES: list[Row] = [
    ("bfloat16, MiniLM", {"shape": (2, 9, 384), "hidden": 1536, "dtype": BF16}),
    ("float16, MiniLM", {"shape": (2, 9, 384), "hidden": 1536, "dtype": F16}),
    ("float64, MiniLM", {"shape": (2, 5, 384), "hidden": 1536, "dtype": F64}),
    ("bfloat16 tail", {"shape": (5, 14), "hidden": 35, "dtype": BF16}),
    ("float16 tail", {"shape": (5, 14), "hidden": 35, "dtype": F16}),
    ("float64 tail", {"shape": (5, 14), "hidden": 35, "dtype": F64}),
    ("tiles of bfloat16, the last of rows alone", {"shape": (48, 64), "hidden": 96, "dtype": BF16}),
    (
        "tiles of bfloat16, rows that fill none, gated",
        {
            "shape": (37, 32),
            "hidden": 64,
            "dtype": BF16,
            "gated": True,
        },
    ),
    ("tiles of bfloat16, long sums in pieces", {"shape": (130, 32), "hidden": 1056, "dtype": BF16}),
    ("bfloat16 in step", {"shape": (5, 14), "hidden": 128, "dtype": BF16}),
    ("float16 in step", {"shape": (5, 14), "hidden": 128, "dtype": F16}),
]

_ACTIVATIONS: list[Row] = [
    (f"{name}{', gated' if gated else ''}, in every dtype", {
        "shape": (6, 24), "hidden": 90, "activation": name, "gated": gated, "dtype": dtype,
    })
    for name in ("gelu", "gelu_tanh", "relu", "silu")
    for gated in (False, True)
    for dtype in (F32, BF16, F16, F64)
]  # fmt: skip

_VALUES: list[Row] = [
    ("zeros: act(bias)", {"shape": (5, 24), "hidden": 50, "values": "zeros"}),
    ("zeros without a bias: relu's corner", {
        "shape": (5, 24), "hidden": 50, "values": "zeros", "bias": False, "activation": "relu",
    }),
    ("both tails of GELU", {"shape": (9, 24), "hidden": 80, "values": "large"}),
    ("both tails of tanh GELU", {
        "shape": (9, 24), "hidden": 80, "values": "large", "activation": "gelu_tanh",
    }),
    ("both tails of SiLU", {"shape": (9, 24), "hidden": 80, "values": "large", "activation": "silu"}),
    ("far beyond GELU's tails", {"shape": (9, 24), "hidden": 80, "values": "huge"}),
    ("far beyond tanh GELU's tails", {
        "shape": (9, 24), "hidden": 80, "values": "huge", "activation": "gelu_tanh",
    }),
    ("far beyond SiLU's tails", {
        "shape": (9, 24), "hidden": 80, "values": "huge", "activation": "silu",
    }),
    ("large numbers in bfloat16", {"shape": (9, 24), "hidden": 80, "values": "huge", "dtype": BF16}),
    ("numbers at float16's upper end", {
        "shape": (9, 24), "hidden": 80, "values": "large", "dtype": F16,
    }),
    ("hardly anything beside the bias", {"shape": (5, 24), "hidden": 50, "values": "tiny"}),
    ("subnormal gradients of the weights", {
        "shape": (5, 24), "hidden": 50, "values": "tiny", "bias": False,
    }),
    ("inputs of one sign", {"shape": (5, 24), "hidden": 50, "values": "negative"}),
    ("one outlier feature, as trained encoders have", {
        "shape": (5, 96), "hidden": 200, "values": "outlier",
    }),
    ("the outlier in bfloat16", {
        "shape": (5, 96), "hidden": 200, "values": "outlier", "dtype": BF16,
    }),
    ("small integers: products are exact", {"shape": (5, 24), "hidden": 50, "values": "integers"}),
]  # fmt: skip

_PARTS: list[Row] = [
    ("no biases", {"shape": (6, 24), "hidden": 70, "bias": False}),
    ("no biases, bfloat16", {"shape": (6, 24), "hidden": 70, "bias": False, "dtype": BF16}),
    ("no biases, gated: as LLaMA", {
        "shape": (6, 24), "hidden": 70, "bias": False, "gated": True, "activation": "silu",
    }),
    ("no gradient at all", {"shape": (6, 24), "hidden": 70, "grads": ""}),
    ("no gradient at all, gated, with dropout", {
        "shape": (6, 24), "hidden": 70, "grads": "", "gated": True, "dropout_p": 0.2,
    }),
    ("frozen weights: x alone", {"shape": (6, 24), "hidden": 70, "grads": "x"}),
    ("first layer: x needs none", {"shape": (6, 24), "hidden": 70, "grads": "wbvc"}),
    ("weight1 alone", {"shape": (6, 24), "hidden": 70, "grads": "w"}),
    ("biases alone", {"shape": (6, 24), "hidden": 70, "grads": "bc"}),
    ("bias1 alone", {"shape": (6, 24), "hidden": 70, "grads": "b"}),
    ("bias2 alone: nothing else is touched", {"shape": (6, 24), "hidden": 70, "grads": "c"}),
    ("weight2 alone, hidden saved", {"shape": (6, 24), "hidden": 70, "grads": "v"}),
    ("weight2 alone, hidden computed again", {
        "shape": (6, 24), "hidden": 70, "grads": "v", "recompute": 1,
    }),
    ("weight2 alone, everything computed again", {
        "shape": (6, 24), "hidden": 70, "grads": "v", "recompute": 2, "gated": True,
    }),
    ("the gate alone", {"shape": (6, 24), "hidden": 70, "grads": "gh", "gated": True}),
    ("the gate's bias alone", {"shape": (6, 24), "hidden": 70, "grads": "h", "gated": True}),
    ("up alone beside a frozen gate", {
        "shape": (6, 24), "hidden": 70, "grads": "wb", "gated": True,
    }),
    ("gated, x alone", {"shape": (6, 24), "hidden": 70, "grads": "x", "gated": True}),
]  # fmt: skip

_RECOMPUTE: list[Row] = [
    (f"recompute {level}{', gated' if gated else ''}{', dropout' if p else ''}", {
        "shape": (9, 24), "hidden": 70, "recompute": level, "gated": gated, "dropout_p": p,
        "dtype": BF16 if level == 1 and gated else F32,
    })
    for level in (1, 2)
    for gated in (False, True)
    for p in (0.0, 0.3)
]  # fmt: skip

_DROPOUT: list[Row] = [
    ("dropout", {"shape": (2, 7, 24), "hidden": 70, "dropout_p": 0.1}),
    ("rare dropout", {"shape": (2, 7, 24), "hidden": 70, "dropout_p": 0.001}),
    ("nearly everything dropped", {"shape": (2, 7, 24), "hidden": 70, "dropout_p": 0.95}),
    ("everything dropped: the second bias alone", {
        "shape": (2, 7, 24), "hidden": 70, "dropout_p": 1.0,
    }),
    ("dropout on one row without leading dimension", {
        "shape": (24,), "hidden": 70, "dropout_p": 0.3,
    }),
    ("dropout, four dimensions", {"shape": (2, 3, 4, 12), "hidden": 30, "dropout_p": 0.3}),
    ("dropout over column tiles", {"shape": (2, 8), "hidden": 1100, "dropout_p": 0.3}),
    ("dropout, float64: half a vector of words", {
        "shape": (5, 24), "hidden": 70, "dropout_p": 0.3, "dtype": F64,
    }),
    ("dropout, bfloat16", {"shape": (5, 24), "hidden": 70, "dropout_p": 0.3, "dtype": BF16}),
    ("dropout, float16, gated", {
        "shape": (5, 24), "hidden": 70, "dropout_p": 0.3, "dtype": F16, "gated": True,
    }),
    ("packed samples", {"shape": (14, 24), "hidden": 70, "dropout_p": 0.3, "packed": (9, 1, 4)}),
    ("packed samples, everything computed again", {
        "shape": (1, 14, 24), "hidden": 70, "dropout_p": 0.3, "packed": (9, 1, 4), "recompute": 2,
    }),
]  # fmt: skip

_LAYOUTS: list[Row] = [
    (f"{layout}{', ' + str(dtype)[6:] if dtype != F32 else ''}{', gated' if gated else ''}", {
        "shape": (3, 5, 24), "hidden": 44, "layout": layout, "dtype": dtype, "gated": gated,
    })
    for layout in ("odd_offset", "row_gap", "doubled", "transposed")
    for dtype, gated in ((F32, False), (BF16, True))
] + [
    ("a transposed matrix", {"shape": (15, 24), "hidden": 44, "layout": "transposed"}),
    ("a matrix with gaps", {"shape": (15, 24), "hidden": 44, "layout": "row_gap"}),
    (
        "gaps that torch's own products read",
        {"shape": (100, 10), "hidden": 2, "out": 35, "layout": "row_gap", "dtype": BF16},
    ),
    ("one row broadcast over the batch", {"shape": (4, 3, 24), "hidden": 44, "repeated": ("x",)}),
    ("a broadcast gradient, as of a sum", {"shape": (4, 24), "hidden": 44, "repeated": ("dout",)}),
    ("both broadcast", {"shape": (4, 24), "hidden": 44, "repeated": ("x", "dout"), "dtype": BF16}),
]  # fmt: skip

FEED_FORWARD: list[Row] = [
    *_WIDTHS, *_ROWS, *_DTYPES, *_ACTIVATIONS, *_VALUES, *_PARTS, *_RECOMPUTE, *_DROPOUT, *_LAYOUTS
]  # fmt: skip
