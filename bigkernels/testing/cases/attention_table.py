"""The hand-picked dense cases of attention: (reason, fields that differ from the defaults)."""

from __future__ import annotations

from bigkernels.testing.cases.attention_masks import BF16, F16, F32, F64, MASKS, Row

_HEAD_DIMS: list[Row] = [
    ("one element a head", {"shape": (2, 2, 5, 6, 1)}),
    ("less than the narrowest vector", {"shape": (2, 2, 5, 6, 3)}),
    ("one vector of 8", {"shape": (2, 2, 9, 11, 8)}),
    ("smallest head of the GPU tiles", {"shape": (2, 3, 17, 19, 16)}),
    ("one over a vector of 16", {"shape": (1, 2, 10, 12, 17)}),
    ("MiniLM", {"shape": (2, 12, 24, 24, 32)}),
    ("40, as diffusion models have", {"shape": (1, 2, 20, 30, 40)}),
    ("BERT", {"shape": (2, 12, 16, 16, 64)}),
    ("80: not a power of two", {"shape": (1, 2, 33, 20, 80)}),
    ("96", {"shape": (1, 2, 20, 33, 96)}),
    ("Llama", {"shape": (1, 2, 20, 20, 128)}),
    ("the widest of the flash kernels", {"shape": (1, 1, 10, 12, 256)}),
    ("wider than any tile", {"shape": (1, 1, 5, 7, 513)}),
    ("values narrower than keys", {"shape": (2, 2, 12, 14, 64), "dim_v": 24}),
    ("values wider than keys", {"shape": (2, 2, 12, 14, 24), "dim_v": 96}),
    ("values of one element", {"shape": (1, 2, 8, 9, 32), "dim_v": 1}),
    ("latent attention: 192 and 128", {"shape": (1, 2, 9, 11, 192), "dim_v": 128}),
]

_LENGTHS: list[Row] = [
    ("one query, one key: the value itself", {"shape": (1, 1, 1, 1, 16), "grads": "v"}),
    ("one query, many keys: decoding", {"shape": (4, 12, 1, 77, 64)}),
    ("many queries, two keys", {"shape": (1, 2, 70, 2, 16)}),
    ("one short of a vector of queries", {"shape": (1, 2, 15, 15, 32)}),
    ("one over a vector of queries", {"shape": (1, 2, 17, 17, 32)}),
    ("one short of a panel of queries", {"shape": (1, 2, 47, 20, 32)}),
    ("exactly a panel of queries", {"shape": (1, 2, 48, 20, 32)}),
    ("one over a panel of queries", {"shape": (1, 2, 49, 20, 32)}),
    ("one short of a block of 64", {"shape": (1, 2, 63, 63, 32)}),
    ("exactly a block of 64", {"shape": (1, 2, 64, 64, 32)}),
    ("one over a block of 64", {"shape": (1, 2, 65, 65, 32)}),
    ("one short of a block of 128", {"shape": (1, 1, 127, 127, 16)}),
    ("exactly a block of 128", {"shape": (1, 1, 128, 128, 16)}),
    ("one over a block of 128", {"shape": (1, 1, 129, 129, 16)}),
    ("several blocks of keys: the softmax is rescaled", {"shape": (1, 1, 33, 700, 16)}),
    ("several panels of queries", {"shape": (1, 1, 700, 5, 16)}),
    ("long sums in dk and dv", {"shape": (1, 1, 1500, 40, 16)}),
    ("long sums that a slow backend has time for", {"shape": (1, 1, 1700, 20, 8)}),
    ("more keys than queries", {"shape": (2, 2, 9, 150, 32)}),
    ("more queries than keys", {"shape": (2, 2, 150, 9, 32)}),
    ("two heads of long sequences: split among threads", {"shape": (1, 2, 300, 600, 16)}),
    ("no batch", {"shape": (0, 2, 5, 6, 16)}),
    ("no queries", {"shape": (2, 2, 0, 6, 16)}),
    ("no keys: everything is zero", {"shape": (2, 2, 5, 0, 16), "lse": True}),
    ("many small heads", {"shape": (3, 33, 3, 4, 8)}),
]

_DTYPES: list[Row] = [
    *(
        (f"{name}, BERT", {"shape": (2, 4, 40, 40, 64), "dtype": dtype})
        for name, dtype in (("bfloat16", BF16), ("float16", F16), ("float64", F64))
    ),
    *(
        (f"{name}, several blocks", {"shape": (1, 1, 60, 300, 48), "dtype": dtype})
        for name, dtype in (("bfloat16", BF16), ("float16", F16), ("float64", F64))
    ),
    *(
        (f"{name} tails everywhere", {"shape": (1, 2, 19, 23, 21), "dim_v": 13, "dtype": dtype})
        for name, dtype in (("bfloat16", BF16), ("float16", F16), ("float64", F64))
    ),
]

_POSITIONS: list[Row] = [
    ("causal", {"shape": (2, 2, 40, 40, 32), "causal": True}),
    ("causal over several blocks", {"shape": (1, 2, 300, 300, 16), "causal": True}),
    ("causal, more keys: top-left", {"shape": (2, 2, 9, 40, 32), "causal": True}),
    ("causal, more queries: top-left", {"shape": (2, 2, 40, 9, 32), "causal": True}),
    (
        "causal, more keys: bottom-right",
        {"shape": (2, 2, 9, 140, 32), "causal": True, "bottom_right": True},
    ),
    (
        "causal, more queries: bottom-right leaves dead rows",
        {"shape": (2, 2, 40, 9, 32), "causal": True, "bottom_right": True, "lse": True},
    ),
    ("causal, bfloat16", {"shape": (2, 2, 70, 70, 64), "causal": True, "dtype": BF16}),
    (
        "causal with a mask: both hold",
        {"shape": (3, 2, 20, 20, 32), "causal": True, "mask": "bool", "mask_dims": "bk"},
    ),
    (
        "causal with a bias and its gradient",
        {"shape": (2, 2, 70, 70, 32), "causal": True, "mask": "float", "mask_dims": "hqk"},
    ),
    ("window of 3 on both sides", {"shape": (2, 2, 40, 40, 32), "window": (3, 3)}),
    ("window to the left", {"shape": (2, 2, 40, 40, 32), "window": (5, 0)}),
    ("window to the right, open to the left", {"shape": (2, 2, 40, 40, 32), "window": (-1, 4)}),
    ("causal window", {"shape": (1, 2, 200, 200, 32), "window": (17, -1), "causal": True}),
    (
        "window that skips whole blocks",
        {"shape": (1, 1, 400, 400, 16), "window": (20, 20)},
    ),
    (
        "window around the bottom-right diagonal",
        {"shape": (1, 2, 30, 90, 16), "window": (7, 2), "bottom_right": True},
    ),
    ("lengths", {"shape": (4, 2, 20, 20, 32), "lengths": (20, 2, 13, 17)}),
    ("lengths with a sample of none", {"shape": (3, 2, 9, 20, 32), "lengths": (0, 20, 5)}),
    ("lengths that end blocks early", {"shape": (2, 1, 9, 300, 16), "lengths": (130, 257)}),
    (
        "lengths, causal and a mask at once",
        {
            "shape": (2, 2, 30, 30, 32),
            "lengths": (30, 11),
            "causal": True,
            "mask": "bool",
            "mask_dims": "bk",
        },
    ),
]

_HEADS: list[Row] = [
    ("grouped: 4 query heads a key head", {"shape": (2, 8, 20, 20, 32), "heads_kv": 2}),
    ("one key head for all", {"shape": (2, 6, 20, 33, 32), "heads_kv": 1}),
    (
        "grouped over several blocks",
        {"shape": (1, 4, 70, 300, 32), "heads_kv": 2, "causal": True},
    ),
    ("grouped decoding", {"shape": (3, 8, 1, 90, 64), "heads_kv": 2, "dtype": BF16}),
    (
        "grouped with a bias a query head",
        {"shape": (2, 4, 20, 20, 32), "heads_kv": 2, "mask": "float", "mask_dims": "hqk"},
    ),
    (
        "grouped, one panel of queries, values of another width",
        {"shape": (2, 4, 9, 20, 32), "heads_kv": 2, "dim_v": 48},
    ),
]

_LONG_SUMS = {
    "shape": (2, 4, 3, 14, 114), "heads_kv": 2, "mask": "bool", "mask_dims": "hqk", "causal": True,
    "bottom_right": True, "dropout_p": 0.5, "seed": 192,
}  # fmt: skip
_LARGE_LSE = {
    "shape": (1, 4, 18, 73, 13), "heads_kv": 1, "mask": "float32", "mask_dims": "hqk", "lengths": (30,),
    "lse": True, "dtype": BF16, "seed": 138,
}  # fmt: skip

_NUMERICS: list[Row] = [
    ("scale of its own", {"shape": (2, 2, 20, 20, 32), "scale": 0.37}),
    ("scale 1, as T5", {"shape": (2, 2, 20, 20, 16), "scale": 1.0}),
    ("negative scale", {"shape": (2, 2, 20, 20, 16), "scale": -0.5}),
    ("scale 0: plain averages", {"shape": (2, 2, 20, 20, 16), "scale": 0.0, "grads": "v"}),
    ("all scores equal", {"shape": (2, 2, 20, 150, 16), "values": "flat", "grads": "v"}),
    ("one key takes nearly all", {"shape": (2, 2, 20, 40, 32), "values": "sharp"}),
    (
        "one key takes nearly all, bfloat16",
        {"shape": (2, 2, 20, 40, 32), "values": "sharp", "dtype": BF16},
    ),
    (
        "one key takes nearly all, float16",
        {"shape": (2, 2, 20, 40, 32), "values": "sharp", "dtype": F16},
    ),
    # That of bfloat16 has gradients of nothing but what rounding took from out: see the README.
    *(
        (
            f"scores of hundreds, {name}",
            {"shape": (1, 2, 20, keys, 64), "values": "sharpest", "dtype": dtype, "grads": grads},
        )
        for name, keys, dtype, grads in (
            ("float32: exp would overflow", 300, F32, "qkv"),
            ("bfloat16", 40, BF16, ""),
            ("float16", 40, F16, "qkv"),
            ("float64", 40, F64, "qkv"),
        )
    ),
    (
        "scores of hundreds with a bias and dropout",
        {
            "shape": (2, 2, 60, 150, 64),
            "values": "sharpest",
            "mask": "float",
            "mask_dims": "hqk",
            "dropout_p": 0.2,
        },
    ),
    ("lse and its gradient", {"shape": (2, 2, 20, 37, 32), "lse": True}),
    ("lse over several blocks", {"shape": (1, 1, 60, 400, 16), "lse": True, "causal": True}),
    ("lse, bfloat16", {"shape": (2, 2, 20, 37, 32), "lse": True, "dtype": BF16}),
    ("softcap", {"shape": (2, 2, 20, 37, 32), "softcap": 5.0, "values": "sharp"}),
    ("ALiBi", {"shape": (2, 2, 20, 37, 32), "alibi": True, "causal": True}),
    ("sinks", {"shape": (2, 2, 20, 37, 32), "sinks": True}),
    ("long sums of true float32 in every score", _LONG_SUMS),
    ("the rounding of lse shows in a float32 bias beside bfloat16", _LARGE_LSE),
    (
        "a bias behind a softcap, whose slope is not its own",
        {
            "shape": (2, 2, 20, 37, 32),
            "softcap": 2.0,
            "values": "sharp",
            "mask": "float",
            "mask_dims": "hqk",
        },
    ),
    (
        "all at once",
        {
            "shape": (2, 4, 20, 37, 32),
            "heads_kv": 2,
            "softcap": 5.0,
            "alibi": True,
            "sinks": True,
            "mask": "float",
            "mask_dims": "bqk",
            "causal": True,
            "bottom_right": True,
            "lengths": (37, 20),
            "dropout_p": 0.2,
            "lse": True,
        },
    ),
    ("inference", {"shape": (2, 2, 20, 37, 32), "grads": ""}),
    ("only the query is trained", {"shape": (2, 2, 20, 37, 32), "grads": "q"}),
    ("only key and value are trained", {"shape": (2, 2, 20, 37, 32), "grads": "kv"}),
]

_DROPOUT: list[Row] = [
    ("dropout of BERT", {"shape": (2, 4, 20, 37, 32), "dropout_p": 0.1}),
    ("half dropped", {"shape": (2, 2, 20, 37, 32), "dropout_p": 0.5}),
    ("nearly all dropped", {"shape": (2, 2, 20, 37, 32), "dropout_p": 0.97}),
    ("all dropped", {"shape": (2, 2, 20, 37, 32), "dropout_p": 1.0}),
    ("dropout over several blocks", {"shape": (1, 2, 60, 300, 32), "dropout_p": 0.1}),
    ("dropout, causal window", {"shape": (1, 2, 90, 90, 32), "dropout_p": 0.2, "window": (9, 0)}),
    (
        "dropout and a bias with gradient",
        {"shape": (2, 2, 20, 37, 32), "dropout_p": 0.2, "mask": "float", "mask_dims": "hqk"},
    ),
    (
        "dropout under padding",
        {"shape": (3, 2, 20, 20, 32), "dropout_p": 0.2, "lengths": (20, 3, 11)},
    ),
    ("dropout at other positions", {"shape": (2, 2, 20, 37, 32), "dropout_p": 0.3, "rows": True}),
    ("dropout, bfloat16", {"shape": (2, 2, 20, 37, 32), "dropout_p": 0.1, "dtype": BF16}),
    ("dropout, float16", {"shape": (2, 2, 20, 37, 32), "dropout_p": 0.1, "dtype": F16}),
    ("dropout, float64", {"shape": (2, 2, 20, 37, 32), "dropout_p": 0.1, "dtype": F64}),
    (
        "grouped heads drop each their own",
        {"shape": (2, 4, 20, 37, 32), "heads_kv": 2, "dropout_p": 0.3, "lse": True},
    ),
]

_LAYOUTS: list[Row] = [
    *(
        (
            f"{layout} memory, {name}",
            {"shape": (2, 2, 20, 21, 19), "layout": layout, "dtype": dtype},
        )
        for layout in ("odd_offset", "row_gap", "doubled", "transposed")
        for name, dtype in (("float32", F32), ("bfloat16", BF16))
    ),
    ("the usual transposed view", {"shape": (2, 4, 20, 37, 32), "by_position": True}),
    (
        "transposed view, bfloat16",
        {"shape": (2, 4, 20, 37, 32), "by_position": True, "dtype": BF16},
    ),
    (
        "transposed view between gaps",
        {"shape": (2, 2, 20, 37, 24), "by_position": True, "layout": "row_gap", "mask": "bool"},
    ),
    (
        "masks in odd layouts",
        {"shape": (2, 2, 20, 37, 16), "layout": "transposed", "mask": "float", "mask_dims": "bqk"},
    ),
    (
        "bool masks in odd layouts",
        {"shape": (2, 2, 20, 37, 16), "layout": "doubled", "mask": "bool", "mask_dims": "qk"},
    ),
    ("one sample's keys for all", {"shape": (3, 2, 9, 20, 16), "repeated": ("k", "v")}),
    ("one sample's query for all", {"shape": (3, 2, 9, 20, 16), "repeated": ("q",)}),
]

# bfloat16 with whole tiles of rows: head dimensions that are multiples of 32.
_TILES: list[Row] = [
    (f"tiles: {reason}", {"dtype": BF16, **what})
    for reason, what in (
        ("one of 16 queries, 31 keys", {"shape": (2, 3, 16, 31, 64)}),
        ("17 queries, 33 keys: the second hardly used", {"shape": (2, 3, 17, 33, 32), "lse": True}),
        ("32 of each, nothing left over", {"shape": (2, 3, 32, 32, 64), "lse": True}),
        ("one over a block of 256 keys", {"shape": (1, 2, 49, 257, 64), "lse": True}),
        ("several blocks, all that share the keys", {"shape": (1, 1, 300, 600, 32), "lse": True}),
        ("three steps of 32", {"shape": (1, 2, 40, 40, 96)}),
        ("values narrower", {"shape": (1, 2, 40, 40, 128), "dim_v": 32}),
        ("values wider, the widest", {"shape": (1, 1, 20, 40, 64), "dim_v": 256}),
        ("causal over blocks", {"shape": (1, 2, 290, 290, 32), "causal": True, "lse": True}),
        ("window over blocks", {"shape": (1, 1, 70, 560, 32), "window": (30, 9), "causal": False}),
        ("bottom-right", {"shape": (1, 2, 40, 300, 32), "causal": True, "bottom_right": True}),
        ("key lengths", {"shape": (3, 2, 20, 70, 64), "lengths": (70, 33, 0), "lse": True}),
        ("padding", {"shape": (3, 2, 20, 70, 64), "mask": "bool", "mask_values": "padding"}),
        ("dead rows", {"shape": (3, 2, 20, 70, 32), "mask": "bool", "mask_values": "rows"}),
        ("bias", {"shape": (2, 3, 20, 300, 32), "mask": "float", "lse": True}),
        (
            "float32 bias, off by -inf",
            {"shape": (2, 3, 20, 37, 32), "mask": "float32", "mask_values": "infinite"},
        ),
        (
            "off by a huge bias",
            {"shape": (2, 3, 20, 37, 64), "mask": "float", "mask_values": "huge"},
        ),
        ("negative scale", {"shape": (2, 2, 20, 40, 64), "scale": -0.2, "lse": True}),
        ("every key alike", {"shape": (2, 2, 20, 40, 64), "scale": 0.0, "lse": True}),
        ("grouped heads", {"shape": (2, 4, 33, 40, 64), "heads_kv": 2}),
        (
            "sharp scores over blocks",
            {"shape": (1, 2, 20, 520, 64), "values": "sharpest", "lse": True},
        ),
        (
            "dropout over blocks, causal",
            {"shape": (1, 2, 40, 300, 32), "dropout_p": 0.3, "causal": True},
        ),
        ("dropout of all", {"shape": (1, 2, 20, 40, 32), "dropout_p": 1.0}),
    )
]

DENSE: list[Row] = [
    *_HEAD_DIMS,
    *_LENGTHS,
    *_DTYPES,
    *_TILES,
    *MASKS,
    *_POSITIONS,
    *_HEADS,
    *_NUMERICS,
    *_DROPOUT,
    *_LAYOUTS,
]
