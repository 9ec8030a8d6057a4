"""The hand-picked cases of the embedding room: (reason, fields that differ from the defaults)."""

from __future__ import annotations

from typing import Any

import torch

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64

Row = tuple[str, dict[str, Any]]

_WIDTHS: list[Row] = [
    ("one column: out is the bias", {"shape": (3,), "n": 1, "grads": "b"}),
    *(
        (f"{n} columns", {"shape": (2, 5), "n": n})
        for n in (5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65)
    ),
    ("MiniLM", {"shape": (2, 16), "n": 384}),
    ("BERT base", {"shape": (2, 16), "n": 768}),
    ("BERT base in one odd piece", {"shape": (2, 9), "n": 769}),
    ("BERT large", {"shape": (3, 7), "n": 1024}),
    ("one column more than a tile of the scatter", {"shape": (4, 9), "n": 257}),
    ("wider than one run of float32 sums", {"shape": (2, 3), "n": 4100}),
]

_TOKENS: list[Row] = [
    ("one token", {"shape": (1, 1), "n": 64}),
    ("no dimension but the tokens'", {"shape": (9,), "n": 64}),
    ("three dimensions", {"shape": (2, 3, 4), "n": 40}),
    ("no tokens", {"shape": (0,), "n": 32}),
    ("no samples", {"shape": (0, 8), "n": 32, "dtype": BF16}),
    ("as many positions as there are", {"shape": (2, 40), "n": 24}),
    ("a batch that two threads share", {"shape": (16, 32), "n": 96}),
    ("many tokens of one word", {"shape": (30, 40), "n": 24, "ids": "same"}),
    (
        "many tokens of one word in bfloat16",
        {"shape": (30, 40), "n": 24, "ids": "same", "dtype": BF16},
    ),
    (
        "many tokens of one word in float16",
        {"shape": (30, 40), "n": 24, "ids": "same", "dtype": F16},
    ),
    ("one token more than a chain of 64", {"shape": (5, 13), "n": 24, "ids": "same"}),
    ("every word once", {"shape": (5, 10), "n": 24, "ids": "rising"}),
    ("int32 ids", {"shape": (2, 10), "n": 24, "ids": "int32"}),
    ("one word", {"shape": (2, 10), "n": 24, "words": 1}),
    ("a large vocabulary hardly touched", {"shape": (2, 10), "n": 16, "words": 5000}),
    ("one id more than a tile of the scatter", {"shape": (2, 10), "n": 16, "words": 65}),
]

_PARTS: list[Row] = [
    ("words alone", {"shape": (2, 10), "n": 48, "positions": 0, "kinds": 0}),
    ("DistilBERT: no types", {"shape": (2, 10), "n": 48, "kinds": 0}),
    ("types without positions", {"shape": (2, 10), "n": 48, "positions": 0}),
    ("types all 0 by default", {"shape": (2, 10), "n": 48, "type_ids": False}),
    (
        "RoBERTa: one type",
        {"shape": (2, 10), "n": 48, "kinds": 1, "explicit": True, "padding": True},
    ),
    ("position ids in any order", {"shape": (2, 10), "n": 48, "explicit": True}),
    ("padding rows get no gradient", {"shape": (4, 10), "n": 48, "words": 4, "padding": True}),
    ("padding alone", {"shape": (2, 3), "n": 48, "words": 2, "ids": "same", "padding": True}),
    ("no weight", {"shape": (2, 10), "n": 48, "weight": False}),
    ("no bias", {"shape": (2, 10), "n": 48, "bias": False}),
    ("neither", {"shape": (2, 10), "n": 48, "weight": False, "bias": False}),
    ("a larger eps", {"shape": (2, 10), "n": 48, "eps": 0.1}),
    ("packed", {"shape": (12,), "n": 48, "packed": (5, 4, 3)}),
    (
        "packed under a leading 1, as the integrations do",
        {"shape": (1, 12), "n": 48, "packed": (5, 7)},
    ),
]

_DTYPES: list[Row] = [
    ("bfloat16, BERT base", {"shape": (2, 9), "n": 768, "dtype": BF16}),
    ("float16, BERT base", {"shape": (2, 9), "n": 768, "dtype": F16}),
    ("float64, BERT base", {"shape": (2, 9), "n": 768, "dtype": F64}),
    ("bfloat16 tail", {"shape": (5, 3), "n": 35, "dtype": BF16}),
    ("float16 tail", {"shape": (5, 3), "n": 35, "dtype": F16}),
    ("float64 tail", {"shape": (5, 3), "n": 35, "dtype": F64}),
    ("float32 parameters beside bfloat16", {"shape": (6, 4), "n": 40, "dtype": BF16, "wide": True}),
    ("float32 parameters beside float16", {"shape": (6, 4), "n": 40, "dtype": F16, "wide": True}),
]

_DROPOUT: list[Row] = [
    ("dropout", {"shape": (3, 9), "n": 70, "dropout_p": 0.1}),
    ("dropout, bfloat16", {"shape": (3, 9), "n": 70, "dropout_p": 0.5, "dtype": BF16}),
    ("dropout, float16", {"shape": (3, 9), "n": 70, "dropout_p": 0.5, "dtype": F16}),
    ("dropout, float64", {"shape": (3, 9), "n": 70, "dropout_p": 0.5, "dtype": F64}),
    ("dropout of packed tokens", {"shape": (12,), "n": 70, "dropout_p": 0.3, "packed": (5, 4, 3)}),
    ("dropout of one sequence", {"shape": (12,), "n": 70, "dropout_p": 0.3}),
    ("everything dropped", {"shape": (3, 4), "n": 32, "dropout_p": 1.0}),
]

_GRADIENTS: list[Row] = [
    ("no gradient at all", {"shape": (2, 10), "n": 48, "grads": ""}),
    ("words' gradient alone", {"shape": (2, 10), "n": 48, "grads": "w"}),
    ("positions' gradient alone", {"shape": (2, 10), "n": 48, "grads": "p"}),
    ("types' gradient alone", {"shape": (2, 10), "n": 48, "grads": "t"}),
    ("weight's gradient alone", {"shape": (2, 10), "n": 48, "grads": "s"}),
    ("bias's gradient alone", {"shape": (2, 10), "n": 48, "grads": "b"}),
    ("frozen tables", {"shape": (2, 10), "n": 48, "grads": "sb"}),
]

_LAYOUTS: list[Row] = [
    (f"inputs {layout}", {"shape": (4, 6), "n": 45, "layout": layout, "explicit": True})
    for layout in ("odd_offset", "row_gap", "doubled", "transposed")
]

EMBEDDING = [*_WIDTHS, *_TOKENS, *_PARTS, *_DTYPES, *_DROPOUT, *_GRADIENTS, *_LAYOUTS]
