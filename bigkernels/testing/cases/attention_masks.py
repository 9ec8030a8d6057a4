"""Of the hand-picked dense cases of attention those with a mask: (reason, fields that differ from the defaults)."""

from __future__ import annotations

from typing import Any

import torch

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64

Row = tuple[str, dict[str, Any]]

MASKS: list[Row] = [
    *(
        (
            f"bool mask, not broadcast along '{dims}'",
            {"shape": (2, 3, 20, 37, 16), "mask": "bool", "mask_dims": dims},
        )
        for dims in ("bhqk", "bqk", "qk", "bk", "hk", "k", "bq")
    ),
    *(
        (
            f"bias with gradient, not broadcast along '{dims}'",
            {"shape": (2, 3, 50, 37, 16), "mask": "float", "mask_dims": dims},
        )
        for dims in ("bhqk", "bqk", "hqk", "qk", "bhk", "bk", "hk", "k")
    ),
    ("bias alone is trained", {"shape": (2, 2, 9, 70, 16), "mask": "float", "grads": "m"}),
    ("bias is frozen", {"shape": (2, 2, 9, 70, 16), "mask": "float", "grads": "qkv"}),
    (
        "relative position bias over several blocks",
        {"shape": (2, 2, 100, 300, 16), "mask": "float", "mask_dims": "hqk"},
    ),
    (
        "float32 bias beside bfloat16",
        {"shape": (2, 2, 20, 37, 32), "mask": "float32", "mask_dims": "hqk", "dtype": BF16},
    ),
    (
        "bfloat16 bias",
        {"shape": (2, 2, 20, 37, 32), "mask": "float", "mask_dims": "hqk", "dtype": BF16},
    ),
    (
        "float16 bias",
        {"shape": (2, 2, 20, 37, 32), "mask": "float", "mask_dims": "bqk", "dtype": F16},
    ),
    (
        "float64 bias",
        {"shape": (2, 2, 20, 37, 32), "mask": "float", "mask_dims": "bqk", "dtype": F64},
    ),
    (
        "padding mask of a batch",
        {"shape": (4, 2, 20, 20, 32), "mask": "bool", "mask_dims": "bk", "mask_values": "padding"},
    ),
    (
        "padding mask, full shape",
        {"shape": (4, 2, 20, 20, 32), "mask": "bool", "mask_values": "padding"},
    ),
    (
        "a sample of padding alone: zeros, finite gradients",
        {"shape": (3, 2, 9, 20, 32), "mask": "bool", "mask_dims": "bk", "mask_values": "dead"},
    ),
    (
        "queries without keys among others",
        {"shape": (3, 2, 9, 20, 32), "mask": "bool", "mask_values": "rows", "lse": True},
    ),
    (
        "-inf in an additive mask",
        {"shape": (3, 2, 9, 20, 32), "mask": "float", "mask_values": "infinite"},
    ),
    (
        "-inf alone in an additive mask: dead rows",
        {"shape": (3, 2, 9, 20, 32), "mask": "float", "mask_values": "dead", "mask_dims": "bk"},
    ),
    (
        "-1e4 for off, as old BERT code has it",
        {"shape": (3, 2, 9, 20, 32), "mask": "float", "mask_values": "huge", "mask_dims": "bk"},
    ),
    *(
        (
            f"the least {name} for off, a sample of padding alone: plain averages",
            {
                "shape": (3, 2, 20, 37, 32),
                "mask": mask,
                "mask_values": "least",
                "mask_dims": "bqk",
                "dtype": dtype,
            },
        )
        for name, mask, dtype in (
            ("float32", "float", F32),
            ("float32 beside bfloat16", "float32", BF16),
            ("bfloat16", "float", BF16),
            ("float16", "float", F16),
            ("float64", "float", F64),
        )
    ),
    (
        "the least number under a diagonal: what that turns off stays off",
        {"shape": (2, 2, 20, 37, 32), "mask": "float", "mask_values": "least", "causal": True},
    ),
    (
        "the least number, and keys that a length turns off",
        {"shape": (2, 2, 9, 37, 32), "mask": "float", "mask_values": "least", "lengths": (30, 5)},
    ),
    ("one number for all keys", {"shape": (2, 3, 1, 30, 16), "mask": "bool", "mask_dims": "h"}),
]
