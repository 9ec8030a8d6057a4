"""The hand-picked cases of the layer_norm room: (reason, fields that differ from the defaults)."""

from __future__ import annotations

from typing import Any

import torch

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64

Row = tuple[str, dict[str, Any]]

_WIDTHS: list[Row] = [
    ("one feature: out is the bias, no gradient reaches x", {"shape": (3, 1)}),
    ("two features", {"shape": (3, 2)}),
    ("less than the narrowest vector", {"shape": (5, 3)}),
    ("one short of 8 lanes", {"shape": (5, 7)}),
    ("exactly 8 lanes", {"shape": (5, 8)}),
    ("one short of 16 lanes", {"shape": (5, 15)}),
    ("exactly 16 lanes", {"shape": (5, 16)}),
    ("one over 16 lanes", {"shape": (5, 17)}),
    ("one short of two vectors", {"shape": (4, 31)}),
    ("one over two vectors", {"shape": (4, 33)}),
    ("a warp's two loads", {"shape": (4, 64)}),
    ("unrolled loop with a one-element tail", {"shape": (4, 65)}),
    ("attention head width", {"shape": (2, 12, 7, 96)}),
    ("one short of a power of two", {"shape": (4, 127)}),
    ("prime", {"shape": (7, 251)}),
    ("power of two plus one", {"shape": (4, 257)}),
    ("MiniLM", {"shape": (2, 16, 384)}),
    ("BERT base", {"shape": (2, 16, 768)}),
    ("BERT base in one odd piece", {"shape": (3, 769)}),
    ("BERT large", {"shape": (17, 1024)}),
    ("block boundary of a 1024-wide tile plus one", {"shape": (3, 1025)}),
    ("FFN width", {"shape": (2, 3072)}),
    ("wide", {"shape": (2, 4096)}),
    ("wider than what fits in registers", {"shape": (2, 8195)}),
    ("wider than any single tile", {"shape": (1, 65537)}),
]

_ROWS: list[Row] = [
    ("one row", {"shape": (1, 384)}),
    ("no leading dimension", {"shape": (384,)}),
    ("rows that two threads cannot halve", {"shape": (3, 768)}),
    ("one row more than a block of 32", {"shape": (33, 64)}),
    ("parameter gradients over many rows", {"shape": (1031, 48)}),
    ("long sums in bfloat16 parameter gradients", {"shape": (2051, 40), "dtype": BF16}),
    ("long sums in float16 parameter gradients", {"shape": (2051, 40), "dtype": F16}),
    ("many more rows than blocks of partial sums", {"shape": (4099, 5)}),
    ("no rows", {"shape": (0, 64)}),
    ("no rows in the middle of the shape", {"shape": (2, 0, 64), "dtype": BF16}),
    ("five dimensions", {"shape": (2, 1, 3, 2, 20)}),
]

_SHAPES: list[Row] = [
    ("two normalized dimensions", {"shape": (3, 4, 24), "dims": 2}),
    ("an image: channels, height, width", {"shape": (2, 3, 7, 5), "dims": 3}),
    ("everything normalized", {"shape": (3, 5, 4), "dims": 3}),
    ("normalized dimensions of size 1", {"shape": (4, 1, 1), "dims": 2}),
    (
        "two normalized dimensions, transposed",
        {"shape": (3, 4, 24), "dims": 2, "layout": "transposed"},
    ),
    ("two normalized dimensions with gaps", {"shape": (3, 4, 24), "dims": 2, "layout": "row_gap"}),
]

_DTYPES: list[Row] = [
    ("bfloat16, BERT base", {"shape": (2, 9, 768), "dtype": BF16}),
    ("float16, BERT base", {"shape": (2, 9, 768), "dtype": F16}),
    ("float64, BERT base", {"shape": (2, 9, 768), "dtype": F64}),
    ("bfloat16 tail", {"shape": (5, 35), "dtype": BF16}),
    ("float16 tail", {"shape": (5, 35), "dtype": F16}),
    ("float64 tail", {"shape": (5, 35), "dtype": F64}),
    ("float32 parameters beside bfloat16", {"shape": (6, 100), "dtype": BF16, "wide": True}),
    ("float32 parameters beside float16", {"shape": (6, 100), "dtype": F16, "wide": True}),
]

_PARTS: list[Row] = [
    ("no parameters", {"shape": (6, 100), "weight": False, "bias": False}),
    ("weight alone", {"shape": (6, 100), "bias": False}),
    ("bias alone", {"shape": (6, 100), "weight": False}),
    ("no parameters, bfloat16", {"shape": (6, 100), "weight": False, "bias": False, "dtype": BF16}),
    ("inference: no gradient", {"shape": (6, 100), "grads": ""}),
    ("frozen parameters", {"shape": (6, 100), "grads": "x"}),
    ("first layer: x needs none", {"shape": (6, 100), "grads": "wb"}),
    ("bias-only fine-tuning", {"shape": (6, 100), "grads": "b"}),
    ("weight alone trained", {"shape": (6, 100), "grads": "w"}),
]

_NUMERICS: list[Row] = [
    ("eps of BERT", {"shape": (4, 96), "eps": 1e-12}),
    ("variance near eps: a wrong eps shows", {"shape": (4, 96), "values": "near_eps"}),
    ("variance near eps, bfloat16", {"shape": (4, 96), "values": "near_eps", "dtype": BF16}),
    ("eps above the variance", {"shape": (4, 96), "eps": 3.0}),
    ("eps 0", {"shape": (4, 96), "eps": 0.0}),
    ("rows of zeros: zero variance", {"shape": (4, 96), "values": "zeros"}),
    ("constant rows: zero variance", {"shape": (4, 96), "values": "constant"}),
    ("constant rows, bfloat16", {"shape": (4, 96), "values": "constant", "dtype": BF16}),
    (
        "mean far from zero: E[x^2] - mean^2 would cancel",
        {"shape": (4, 96), "values": "very_far_mean"},
    ),
    ("mean far from zero, wide row", {"shape": (2, 5000), "values": "very_far_mean"}),
    ("mean of 30 spreads, bfloat16", {"shape": (4, 96), "values": "far_mean", "dtype": BF16}),
    ("mean of 30 spreads, float16", {"shape": (4, 96), "values": "far_mean", "dtype": F16}),
    ("one outlier a row", {"shape": (4, 384), "values": "outlier"}),
    ("one outlier a row, float16", {"shape": (4, 384), "values": "outlier", "dtype": F16}),
    ("squares near the end of float32's range", {"shape": (4, 96), "values": "huge"}),
    ("squares underflow", {"shape": (4, 96), "values": "tiny"}),
    ("float16 squares overflow", {"shape": (4, 96), "values": "large", "dtype": F16}),
    ("float16 sums overflow", {"shape": (4, 4096), "values": "positive", "dtype": F16}),
    ("float16 subnormals", {"shape": (4, 96), "values": "subnormal", "dtype": F16}),
    ("exact sums: small integers", {"shape": (4, 64), "values": "integers"}),
]

_LAYOUTS: list[Row] = [
    *(
        (f"{layout} memory, {name}", {"shape": (2, 5, 83), "layout": layout, "dtype": dtype})
        for layout in ("odd_offset", "row_gap", "doubled", "transposed")
        for name, dtype in (("float32", F32), ("bfloat16", BF16), ("float16", F16))
    ),
    ("transposed float64", {"shape": (5, 20), "layout": "transposed", "dtype": F64}),
    ("one row repeated", {"shape": (7, 50), "repeated": ("x",)}),
    ("gradient of a sum: dout repeated", {"shape": (7, 50), "repeated": ("dout",)}),
    (
        "repeated between gaps",
        {"shape": (3, 4, 50), "repeated": ("x", "dout"), "layout": "row_gap"},
    ),
]

_RMS: list[Row] = [
    *((f"RMSNorm of {n}", {"shape": (3, n)}) for n in (3, 17, 96, 769, 4096, 5000)),
    ("RMSNorm of one feature: its gradients are noise", {"shape": (3, 1), "grads": ""}),
    *((f"RMSNorm, {dtype}", {"shape": (5, 96), "dtype": dtype}) for dtype in (BF16, F16, F64)),
    ("RMSNorm, float32 weight beside bfloat16", {"shape": (6, 100), "dtype": BF16, "wide": True}),
    ("RMSNorm without weight", {"shape": (6, 100), "weight": False}),
    ("RMSNorm, no gradient", {"shape": (6, 100), "grads": ""}),
    ("RMSNorm, no rows", {"shape": (0, 64)}),
    ("RMSNorm over two dimensions", {"shape": (3, 4, 24), "dims": 2, "layout": "transposed"}),
    ("RMSNorm, many rows", {"shape": (1031, 48)}),
    ("RMSNorm: the mean is not taken out", {"shape": (4, 96), "values": "very_far_mean"}),
    ("RMSNorm, squares near eps", {"shape": (4, 96), "values": "near_eps"}),
    ("RMSNorm, zeros", {"shape": (4, 96), "values": "zeros"}),
]

LAYER_NORM: list[Row] = [
    *(*_WIDTHS, *_ROWS, *_SHAPES, *_DTYPES, *_PARTS, *_NUMERICS, *_LAYOUTS),
    *((reason, {**what, "centred": False}) for reason, what in _RMS),
]

_ADD_PLAIN: list[Row] = [
    ("BERT base, post-norm", {"shape": (2, 9, 768)}),
    ("MiniLM, with the Linear's bias", {"shape": (2, 9, 384), "x_bias": True}),
    ("pre-norm: the sum goes on", {"shape": (2, 9, 96), "return_sum": True}),
    (
        "everything at once",
        {"shape": (2, 9, 96), "x_bias": True, "return_sum": True, "dropout_p": 0.1},
    ),
    ("bare", {"shape": (6, 50), "weight": False, "bias": False}),
    ("one feature", {"shape": (4, 1), "x_bias": True}),
    ("one row without leading dimensions", {"shape": (96,), "x_bias": True}),
    ("no rows", {"shape": (0, 40), "x_bias": True, "return_sum": True}),
    ("no rows to drop from", {"shape": (0, 40), "dropout_p": 0.1}),
    ("bias gradient over many rows", {"shape": (1031, 24), "x_bias": True}),
    ("wider than what fits in registers", {"shape": (2, 8195), "x_bias": True}),
    ("inference", {"shape": (5, 96), "x_bias": True, "grads": ""}),
    ("inference, the sum goes on", {"shape": (5, 96), "return_sum": True, "grads": ""}),
    ("only the residual is trained", {"shape": (5, 96), "x_bias": True, "grads": "r"}),
    ("only the Linear's bias is trained", {"shape": (5, 96), "x_bias": True, "grads": "a"}),
    ("only the parameters are trained", {"shape": (5, 96), "grads": "wb"}),
    ("eps of a wide variance", {"shape": (5, 96), "eps": 0.5}),
    ("variance near eps", {"shape": (5, 96), "eps": 1e-5, "values": "near_eps"}),
    ("mean far from zero", {"shape": (5, 96), "values": "very_far_mean", "eps": 1e-5}),
    ("zero variance", {"shape": (5, 96), "values": "zeros", "eps": 1e-5}),
]

_ADD_DROPOUT: list[Row] = [
    ("dropout of BERT", {"shape": (2, 9, 768), "dropout_p": 0.1}),
    ("half dropped, with bias", {"shape": (2, 9, 96), "dropout_p": 0.5, "x_bias": True}),
    ("nearly all dropped", {"shape": (2, 9, 96), "dropout_p": 0.97}),
    ("all dropped", {"shape": (2, 9, 96), "dropout_p": 1.0, "x_bias": True}),
    ("hardly any dropped", {"shape": (4, 9, 96), "dropout_p": 1e-3}),
    ("the last counter block is cut", {"shape": (3, 7, 45), "dropout_p": 0.3}),
    ("batches of batches", {"shape": (2, 3, 4, 20), "dropout_p": 0.3}),
    ("no batch", {"shape": (11, 20), "dropout_p": 0.3}),
    ("no rows of its own", {"shape": (77,), "dropout_p": 0.3}),
    ("packed rows", {"shape": (12, 40), "dropout_p": 0.3, "packed": (3, 1, 6, 2)}),
    (
        "packed rows as one batch",
        {"shape": (1, 9, 40), "dropout_p": 0.3, "packed": (4, 5), "x_bias": True},
    ),
    (
        "packed rows, gaps between",
        {"shape": (9, 40), "dropout_p": 0.3, "packed": (4, 5), "layout": "doubled"},
    ),
    ("inference that drops", {"shape": (5, 96), "dropout_p": 0.2, "grads": ""}),
    ("dropped sum goes on", {"shape": (3, 5, 33), "dropout_p": 0.2, "return_sum": True}),
    ("bfloat16 dropout", {"shape": (3, 5, 100), "dropout_p": 0.1, "dtype": BF16, "x_bias": True}),
    ("float16 dropout", {"shape": (3, 5, 100), "dropout_p": 0.1, "dtype": F16, "x_bias": True}),
    ("float64 dropout", {"shape": (3, 5, 100), "dropout_p": 0.1, "dtype": F64, "x_bias": True}),
]

_ADD_DTYPES: list[Row] = [
    (
        "bfloat16, BERT base",
        {"shape": (2, 9, 768), "dtype": BF16, "x_bias": True, "return_sum": True},
    ),
    (
        "float16, BERT base",
        {"shape": (2, 9, 768), "dtype": F16, "x_bias": True, "return_sum": True},
    ),
    ("float64", {"shape": (2, 9, 70), "dtype": F64, "x_bias": True, "return_sum": True}),
    (
        "float32 parameters beside bfloat16",
        {"shape": (4, 50), "dtype": BF16, "wide": True, "x_bias": True},
    ),
    (
        "float32 parameters beside float16",
        {"shape": (4, 50), "dtype": F16, "wide": True, "x_bias": True},
    ),
    (
        "autocast: bfloat16 branch, float32 residual",
        {"shape": (4, 50), "dtype": BF16, "residual_dtype": F32},
    ),
    (
        "autocast: float16 branch, float32 residual",
        {"shape": (4, 50), "dtype": F16, "residual_dtype": F32},
    ),
    *(
        (
            f"{layout} memory, {name}",
            {"shape": (2, 5, 37), "layout": layout, "dtype": dtype, "x_bias": True},
        )
        for layout in ("odd_offset", "row_gap", "doubled", "transposed")
        for name, dtype in (("float32", F32), ("bfloat16", BF16))
    ),
    (
        "repeated inputs and gradients",
        {"shape": (7, 50), "repeated": ("x", "dout"), "return_sum": True},
    ),
]

_ADD_RMS: list[Row] = [
    ("LLaMA's: the sum goes on", {"shape": (2, 9, 96), "return_sum": True}),
    *(
        (f"RMSNorm of everything at once, {dtype}", {
            "shape": (2, 9, 96), "x_bias": True, "return_sum": True, "dropout_p": 0.1, "dtype": dtype,
        })
        for dtype in (F32, BF16, F16, F64)
    ),
    ("RMSNorm of a sum, wide", {"shape": (2, 6000), "x_bias": True, "dropout_p": 0.1}),
    ("RMSNorm of a sum, no rows", {"shape": (0, 40), "x_bias": True, "return_sum": True}),
    ("RMSNorm of a sum, inference", {"shape": (5, 96), "x_bias": True, "grads": ""}),
    ("RMSNorm of a packed sum", {"shape": (9, 40), "packed": (4, 5), "dropout_p": 0.5}),
]  # fmt: skip

ADD_LAYER_NORM: list[Row] = [
    *(*_ADD_PLAIN, *_ADD_DROPOUT, *_ADD_DTYPES),
    *((reason, {**what, "centred": False}) for reason, what in _ADD_RMS),
]
