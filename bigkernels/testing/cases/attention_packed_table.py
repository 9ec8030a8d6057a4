"""The hand-picked packed cases of attention: (reason, fields that differ from the defaults)."""

from __future__ import annotations

from bigkernels.testing.cases.attention_masks import BF16, F16, F64, Row

PACKED: list[Row] = [
    ("two sequences", {"lengths": (5, 9)}),
    ("a ragged batch", {"lengths": (31, 2, 70, 16, 128, 7)}),
    ("one sequence", {"lengths": (40,)}),
    ("no sequence", {"lengths": ()}),
    ("empty sequences between others", {"lengths": (0, 7, 0, 0, 5, 0)}),
    ("a query without any key", {"lengths": (3, 4), "lengths_k": (6, 0), "lse": True}),
    ("keys without any query", {"lengths": (3, 0), "lengths_k": (6, 4)}),
    ("rows behind the last sequence", {"lengths": (20, 7), "behind": (13, 9), "lse": True}),
    ("rows behind none", {"lengths": (), "behind": (5, 5)}),
    (
        "rows behind, bfloat16, dropout",
        {"lengths": (20, 70), "behind": (99, 150), "dim": 32, "dtype": BF16, "dropout_p": 0.2},
    ),
    (
        "many rows behind, grouped heads, sinks",
        {
            **{
                "lengths": (20, 0, 70),
                "behind": (300, 340),
                "heads": 2,
                "heads_kv": 1,
                "lse": True,
            },
            **{"sinks": True, "dtype": BF16},
        },
    ),
    ("rows behind, float64", {"lengths": (5,), "behind": (2, 3), "dtype": F64, "lse": True}),
    ("softcap", {"lengths": (20, 7, 33), "softcap": 2.0}),
    ("ALiBi, longer keys", {"lengths": (9, 40), "lengths_k": (20, 70), "alibi": True}),
    (
        "ALiBi, causal, dropout, bfloat16",
        {
            **{"lengths": (70, 3, 200), "heads": 4, "heads_kv": 2, "dim": 64, "causal": True},
            **{"alibi": True, "dropout_p": 0.1, "dtype": BF16},
        },
    ),
    ("sinks", {"lengths": (20, 7), "lengths_k": (30, 0), "sinks": True, "lse": True}),
    ("cross-attention", {"lengths": (5, 20), "lengths_k": (33, 8)}),
    ("longer than a block", {"lengths": (300, 20), "lse": True}),
    ("causal", {"lengths": (5, 70, 20), "causal": True}),
    ("causal, more keys: bottom-right", {"lengths": (5, 7), "lengths_k": (20, 9), "causal": True}),
    ("window", {"lengths": (50, 9), "window": (4, 2)}),
    ("window and causal", {"lengths": (50, 9), "window": (4, -1), "causal": True}),
    ("grouped heads", {"lengths": (20, 31), "heads": 4, "heads_kv": 2, "dim": 32}),
    ("grouped, one panel a sequence", {"lengths": (9, 3), "heads": 4, "heads_kv": 1}),
    ("values of another width", {"lengths": (9, 30), "dim": 24, "dim_v": 40}),
    ("BERT", {"lengths": (20, 7, 33), "heads": 12, "dim": 64}),
    (
        "BERT, bfloat16, causal",
        {"lengths": (300, 0, 33), "heads": 2, "dim": 64, "causal": True, "dtype": BF16},
    ),
    ("MiniLM, bfloat16", {"lengths": (20, 7, 33), "heads": 12, "dim": 32, "dtype": BF16}),
    ("float16", {"lengths": (20, 7, 33), "dim": 32, "dtype": F16}),
    ("float64", {"lengths": (20, 7, 33), "dim": 19, "dtype": F64, "lse": True}),
    ("int64 lengths, maxima unknown", {"lengths": (20, 7, 33), "wide": True, "maxima": False}),
    ("dropout", {"lengths": (20, 7, 33), "dropout_p": 0.2}),
    ("dropout at given positions", {"lengths": (20, 7, 33), "dropout_p": 0.2, "rows": True}),
    ("dropout, cross", {"lengths": (9, 14), "lengths_k": (30, 11), "dropout_p": 0.5}),
    ("odd offsets", {"lengths": (20, 7), "layout": "odd_offset"}),
    ("rows of one projection: gaps", {"lengths": (20, 7), "layout": "row_gap"}),
    ("transposed memory", {"lengths": (20, 7), "layout": "transposed"}),
    ("inference", {"lengths": (20, 7, 33), "grads": ""}),
]
