"""Bad input gets a ValueError, TypeError or Unsupported of one line that names the argument; and never a crash."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bigkernels as bk

NAN, INF = math.nan, math.inf


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


def ends(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def sparse(count):
    return torch.arange(count).to_sparse()


Q, K = draw(2, 4, 3, 8), draw(2, 2, 5, 8)
PACKED = draw(7, 4, 8)
LSE = draw(2, 4, 3)

# A good call of every public function.
GOOD = {
    "layer_norm": {
        **{"input": draw(3, 8), "normalized_shape": (8,)},
        **{"weight": draw(8), "bias": draw(8)},
    },
    "add_layer_norm": {
        **{name: draw(3, 8) for name in ("x", "residual")},
        **{name: draw(8) for name in ("weight", "bias", "x_bias")},
        **{"dropout_p": 0.1, "seed": 1},
    },
    "scaled_dot_product_attention": {"query": Q, "key": K, "value": K, "enable_gqa": True},
    "varlen_attn": {
        "query": PACKED,
        "key": PACKED,
        "value": PACKED,
        **{name: ends(0, 3, 7) for name in ("cu_seq_q", "cu_seq_k")},
        **{"max_q": 4, "max_k": 4},
    },
    "attention_weights": {"query": Q, "key": K, "lse": LSE, "enable_gqa": True},
    "feed_forward": {
        "x": draw(3, 8),
        "weight1": draw(12, 8),
        "bias1": draw(12),
        "weight2": draw(8, 12),
        "bias2": draw(8),
    },
    "cross_entropy": {"input": draw(3, 8), "target": torch.tensor([1, -100, 7])},
    "embedding": {
        "ids": ends(0, 2, 4),
        "word": draw(5, 8),
        "position": draw(4, 8),
        "types": draw(2, 8),
        "weight": draw(8),
        "bias": draw(8),
        "position_ids": ends(0, 1, 2),
        "type_ids": ends(0, 1, 1),
        "dropout_p": 0.1,
        "seed": 1,
    },
    "explain": {"room": "layer_norm", "input": draw(3, 8), "normalized_shape": (8,)},
    "use_backend": {"name": "reference"},
    "trace": {},
    "accelerate": {"model": torch.nn.Linear(2, 2)},
    "restore": {"model": torch.nn.Linear(2, 2)},
    "verify": {"model": torch.nn.Linear(2, 2), "batch": {"input": draw(1, 2)}},
}

NOT_A_TENSOR = ("text", None, 3, [[1.0]])
NOT_A_FLOAT = (
    draw(3, 8).int(),
    draw(3, 8).bool(),
    draw(3, 8).to(torch.complex64),
    draw(3, 8).to_sparse(),
    torch.nested.nested_tensor([draw(1, 8), draw(2, 8)]),
    torch.nested.nested_tensor([draw(1, 8), draw(2, 8)], layout=torch.jagged),
)
NOT_A_RATE = (-0.1, 1.1, NAN, INF, "0.1", None, True)
NOT_A_SEED = (
    1.5,
    sparse(1),
    "1",
    2**63,
    -(2**63) - 1,
    True,
    torch.tensor(1.0),
    ends(1, 2, dtype=torch.int64),
)
NOT_A_BACKEND = ("gpu", "", "CPU", 1, ["cpu"])
META = torch.empty(8, device="meta")

# function: {argument: values that must be refused by naming it}.
BAD = {
    "layer_norm": {
        "input": (*NOT_A_TENSOR, *NOT_A_FLOAT),
        "normalized_shape": (7, (3,), (), (8, 3), (0,), (-8,), (3, 8, 1), 8.0, "8", None, (8.0,), True, [None]),
        "weight": (draw(7), draw(8).to_sparse(), draw(1, 8), draw(8).int(), draw(8).double(), META, 1.0, "weight"),
        "bias": (draw(9), draw(), draw(8).half(), META, [0.0] * 8),
        "eps": (-1e-5, NAN, INF, 2**63, "1e-5", None, True, torch.tensor(1e-5)),
        "backend": NOT_A_BACKEND,
    },
    "add_layer_norm": {
        "x": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw()),
        "residual": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(3, 7), draw(8), draw(1, 3, 8), draw(3, 8).to("meta")),
        "weight": (draw(7), draw(8).int(), META, 1.0),
        "bias": (draw(7), draw(8).int(), META, 1.0),
        "x_bias": (draw(3, 8), draw(7), draw(8).double(), META, 1.0),
        "eps": (-1.0, NAN, "1e-5", None),
        "dropout_p": NOT_A_RATE,
        "seed": NOT_A_SEED,
        "offset": NOT_A_SEED,
        "return_sum": (1, draw(2), None),
        "rows": (ends(0, 1, 2), sparse(3), ends(0, 1, dtype=torch.int64), draw(3), 3, [0, 1, 2]),
        "backend": NOT_A_BACKEND,
    },
    "scaled_dot_product_attention": {
        "query": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(8), draw(2, 4, 3, 0), draw(2, 0, 3, 8), draw(2, 3, 3, 8),
                  draw(2, 4, 3, 9), draw(3, 4, 3, 8), Q.half(), Q.to("meta")),
        "key": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(2, 3, 5, 8), draw(2, 2, 5, 7), draw(2, 0, 5, 8), K.half(),
                K.to_sparse(),
                draw(2, 2, 4, 8), draw(2, 5, 8), K.to("meta")),
        "value": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(2, 2, 4, 8), draw(2, 4, 5, 8), draw(2, 2, 5, 0),
                  K.double(), K.to_sparse(),
                  draw(3, 2, 5, 8), K.to("meta")),
        "enable_gqa": (False, 1, draw(2)),
        "is_causal": (1, "yes", None, draw(2)),
        "return_lse": (1, draw(2)),
        "attn_mask": (draw(4, 5), draw(3, 4), draw(2, 3, 3, 5), draw(1, 2, 4, 3, 5), draw(3, 5).int(), "causal",
                      draw(3, 5).double(), torch.ones(3, 5, dtype=torch.bool, device="meta"), [[True]]),
        "dropout_p": NOT_A_RATE,
        "scale": (NAN, INF, "1", True, torch.tensor(1.0)),
        "key_lengths": (ends(1), sparse(2), ends(1, 2, 3), ends(6, 1), ends(-1, 2), draw(2), [5, 5], ends(5,
                        5).short()),
        "window": (-2, (1,), (1, 2, 3), (0, -3), 1.5, "2", (None, 1), True),
        "causal_alignment": ("left", None, 1),
        "softcap": (-1.0, NAN, "1", None, True),
        "alibi_slopes": (draw(3), draw(1, 4), draw(4).int(), 0.5, META),
        "sinks": (draw(2), draw(4).int(), 0.5, META),
        "seed": NOT_A_SEED,
        "offset": NOT_A_SEED,
        "rows": (ends(*range(6)), sparse(6), torch.arange(5), draw(6), 3),
        "backend": NOT_A_BACKEND,
    },
    "varlen_attn": {
        "query": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(7, 8), draw(1, 7, 4, 8), draw(6, 4, 8), draw(7, 0, 8),
                  draw(7, 3, 8), draw(7, 4, 9), PACKED.half()),
        "key": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(7, 2, 8), draw(6, 4, 8), draw(7, 4, 7), PACKED.double()),
        "value": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(7, 2, 8), draw(6, 4, 8), draw(7, 4, 0)),
        "cu_seq_q": (ends(0, 3, 7).to_sparse(), ends(0, 3, 8), ends(1, 3, 7), ends(0, 5, 3, 7),
                     ends(3, 0, 7), ends(),
                     ends(0, -2, 7), ends(0, 8, 7), ends(0, 3, 7).float(), [0, 3, 7], None, ends(0, 3, 7)[None]),
        "cu_seq_k": (ends(0, 7), ends(0, 3, 5, 7), ends(0, 3, 9), ends(0, 3, 7).short(), None),
        "max_q": (4.0, "4", True),
        "max_k": (4.0, "4", True),
        "window_size": ((1,), (-2, 0), (0.5, 1), None),
        "enable_gqa": (1, draw(2)),
        "is_causal": (1, draw(2)),
        "return_aux": (True, "lse"),
        "scale": (NAN, "1", True),
        "dropout_p": NOT_A_RATE,
        "softcap": (-1.0, NAN, "1"),
        "alibi_slopes": (draw(3), 0.5),
        "sinks": (draw(3), 0.5),
        "seed": NOT_A_SEED,
        "offset": NOT_A_SEED,
        "rows": (ends(*range(7)), sparse(7), torch.arange(6), draw(7)),
        "backend": NOT_A_BACKEND,
    },
    "attention_weights": {
        "query": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(2, 4, 3, 9)),
        "key": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(2, 3, 5, 8)),
        "lse": (*NOT_A_TENSOR, draw(2, 4), draw(2, 4, 5), draw(2, 4, 3).int(), draw(2, 4, 3).to("meta")),
        "attn_mask": (draw(4, 5), "causal"),
        "is_causal": (1, draw(2)),
        "enable_gqa": (False, 1),
        "scale": (NAN, "1"),
        "queries": ([3], [-1], [[0]], torch.tensor([5]), "all", [0.5], 1, [None], META, torch.tensor(1)),
        "heads": ([4], [-1], "all"),
    },
    "cross_entropy": {
        "input": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(8), draw(3, 0), draw(4, 8), draw(3, 8).to("meta")),
        "target": (*NOT_A_TENSOR, draw(3), ends(0, 2, 4), ends(0, 1, dtype=torch.int64), sparse(3)),
        "ignore_index": (1.0, "0", True, None, 2**63), "reduction": ("no", None, 1), "label_smoothing": NOT_A_RATE,
        "backend": NOT_A_BACKEND,
    },
    "embedding": {
        "ids": (*NOT_A_TENSOR, draw(3), ends(0, 2, 4).short(), sparse(3), ends(0, 2, 4).to("meta")),
        "word": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(8), draw(5, 0), draw(5, 8, 1)),
        "position": (draw(4, 7), draw(8), draw(4, 8).half(), draw(4, 8).to("meta"), 1.0),
        "types": (draw(2, 9), draw(2, 8).int(), "types"),
        "weight": (draw(7), draw(8).int(), META, 1.0),
        "bias": (draw(9), draw(8).double(), META, 1.0),
        "eps": (-1.0, NAN, "1e-5", None),
        "position_ids": (draw(3), ends(0, 1), ends(0, 1, 2)[None], sparse(3), 3, ends(0, 1, 2).to("meta")),
        "type_ids": (draw(3), ends(0, 1), ends(0, 1, 2).short(), [0, 1, 1]),
        "padding_idx": (-1, 5, 1.0, "0", True),
        "position_padding_idx": (-1, 4, 1.0, True),
        "dropout_p": NOT_A_RATE,
        "seed": NOT_A_SEED,
        "offset": NOT_A_SEED,
        "rows": (ends(0, 1, 2), sparse(3), ends(0, 1, dtype=torch.int64), draw(3), 3),
        "backend": NOT_A_BACKEND,
    },
    "feed_forward": {
        "x": (*NOT_A_TENSOR, *NOT_A_FLOAT, draw(), draw(3, 0)),
        "weight1": (*NOT_A_TENSOR, draw(12, 7), draw(12), draw(0, 8), draw(12, 8).half(), draw(12, 8).to("meta")),
        "bias1": (draw(8), draw(12).int(), 1.0, draw(12).to("meta")),
        "weight2": (*NOT_A_TENSOR, draw(8, 8), draw(0, 12), draw(8, 12, 1), draw(8, 12).double()),
        "bias2": (draw(12), draw(8).half(), 1.0),
        "activation": ("tanh", "", None, torch.relu, ["gelu"]),
        "dropout_p": NOT_A_RATE,
        "weight_gate": (draw(8, 12), draw(12, 8).half(), "gate"),
        "bias_gate": (draw(12),),
        "recompute": (3, -1, "1", None, True),
        "seed": NOT_A_SEED,
        "offset": NOT_A_SEED,
        "rows": (ends(0, 1, 2), sparse(3), torch.arange(2), draw(3)),
        "backend": NOT_A_BACKEND,
    },
    "explain": {
        "room": ("softmax", "", None, 1, ["ffn"]),
        "normalized_shape": (7,),
        "input": (3, draw(3, 8).int()),
        "backend": NOT_A_BACKEND,
    },
    "use_backend": {"name": (*NOT_A_BACKEND, None)},
    "trace": {},
    "accelerate": {"model": (None, "bert", draw(3)), "dtype": ("float99", 3, torch.int8)},
    "restore": {"model": (None, "bert")},
    "verify": {"model": (None, "bert"), "batch": (None, draw(1, 2), [1])},
}  # fmt: skip

for layer, rms in (("layer_norm", "rms_norm"), ("add_layer_norm", "add_rms_norm")):
    GOOD[rms], BAD[rms] = (
        {n: v for n, v in of[layer].items() if n != "bias"} for of in (GOOD, BAD)
    )
    BAD[rms]["eps"] = (-1.0, NAN, "1e-5")

# What an argument's fault may be reported as: shapes that disagree are the other one's fault as well.
ALSO = {
    ("scaled_dot_product_attention", "query"): "query|key|value",
    ("scaled_dot_product_attention", "key"): "key|value",
    ("scaled_dot_product_attention", "value"): "key|value",
    ("scaled_dot_product_attention", "enable_gqa"): "enable_gqa|key",
    ("varlen_attn", "query"): "query|key|value|cu_seq_q",
    ("varlen_attn", "key"): "key|value|cu_seq_k",
    ("attention_weights", "query"): "query|key|lse",
    ("attention_weights", "enable_gqa"): "enable_gqa|key",
    ("attention_weights", "key"): "key|value",
    ("layer_norm", "input"): "input|normalized_shape",
    ("explain", "input"): "input|normalized_shape",
    ("cross_entropy", "input"): "input|target",
    ("embedding", "ids"): "ids|position_ids|type_ids",
    ("embedding", "word"): "word|position|types|ids|weight",
    ("feed_forward", "weight1"): "weight1|bias1|weight2",
    ("feed_forward", "weight2"): "weight2|bias2",
    ("rms_norm", "input"): "input|normalized_shape",
    ("add_layer_norm", "x"): "x|residual",
    ("add_rms_norm", "x"): "x|residual",
}

ROWS = [
    pytest.param(function, argument, value, id=f"{function}-{argument}-{index}")
    for function, arguments in BAD.items()
    for argument, values in arguments.items()
    for index, value in enumerate(values)
]


def call(function, **arguments):
    result = getattr(bk, function)(**arguments)
    if function in ("use_backend", "trace"):
        with result:
            pass
    return result


def test_the_table_covers_every_public_function_and_argument():
    public = {*bk.__all__, *bk._LAZY_FUNCTIONS} - {"Unsupported", "packing"}  # a module
    assert set(GOOD) == set(BAD) == public
    for function, arguments in BAD.items():
        code = getattr(bk, function)
        names = getattr(code, "__wrapped__", code).__code__.co_varnames
        count = code.__code__.co_argcount + code.__code__.co_kwonlyargcount
        if function not in ("explain", "use_backend", "trace"):
            assert set(names[:count]) <= set(arguments), function


@pytest.mark.parametrize("function", sorted(set(GOOD) - {"accelerate", "restore", "verify"}))
def test_the_good_calls_are_good(function):
    call(function, **GOOD[function])


@pytest.mark.parametrize("grad", [False, True], ids=("inference", "training"))
@pytest.mark.parametrize(("function", "argument", "value"), ROWS)
def test_a_bad_argument_is_named(function, argument, value, grad):
    arguments = {**GOOD[function], argument: value}
    if grad:
        tensors = {
            n: t for n, t in arguments.items() if isinstance(t, torch.Tensor) and n != argument
        }
        floats = {n: t for n, t in tensors.items() if t.is_floating_point()}
        arguments |= {n: t.detach().clone().requires_grad_() for n, t in floats.items()}
    with pytest.raises((ValueError, TypeError, bk.Unsupported)) as error:
        call(function, **arguments)
    message = str(error.value)
    named = ALSO.get((function, argument), argument)
    assert re.match(rf"({named})\b", message), message
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize("argument", ["key", "value"])
def test_the_shortest_call_names_a_tensor_of_another_device(argument):
    arguments = {"query": Q, "key": Q, "value": Q, argument: Q.to("meta")}
    with pytest.raises(ValueError, match=rf"^{argument}: device meta, but query is on cpu"):
        bk.scaled_dot_product_attention(**arguments)


@pytest.mark.parametrize(
    ("room", "function"),
    [
        ("attention", "scaled_dot_product_attention"),
        ("varlen_attn", "varlen_attn"),
        ("layer_norm", "layer_norm"),
        ("add_layer_norm", "add_layer_norm"),
        ("embedding", "embedding"),
        ("ffn", "feed_forward"),
    ],
)
def test_explain_speaks_of_the_public_function(room, function):
    with pytest.raises(TypeError, match=rf"^{function}\(\): .*'foo'"):
        bk.explain(room, **GOOD[function], foo=1)
    with pytest.raises(TypeError, match=rf"^{function}\(\): missing a required argument"):
        bk.explain(room)
    assert bk.explain(room, **GOOD[function]).chosen


def test_messages_name_what_is_wrong_and_nothing_twice():
    with pytest.raises(TypeError, match=r"^attention_weights\(\) .*'foo'"):
        call("attention_weights", **GOOD["attention_weights"], foo=1)
    with pytest.raises(
        ValueError, match=r"^value: shape .*, expected a last dimension of at least 1"
    ):
        bk.scaled_dot_product_attention(Q, Q, Q[..., :0])
    with pytest.raises(TypeError, match=r"expected torch.float32 or torch.bool \("):
        bk.scaled_dot_product_attention(Q, Q, Q, torch.zeros(3, 3).int())


@pytest.mark.parametrize("wrong", NOT_A_TENSOR)
@pytest.mark.parametrize("argument", ["query", "key", "value", "attn_mask", "key_padding_mask"])
def test_the_module_names_what_is_no_tensor(argument, wrong):
    if wrong is None and "mask" in argument:
        wrong = 1.0  # None is no mask, and right
    x = draw(2, 3, 8)
    module = bk.nn.MultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(TypeError, match=f"^{argument}: "):
        module(**{"query": x, "key": x, "value": x, argument: wrong})


def test_bad_weights_are_named_under_autocast_too():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"^weight2: "):
        call("feed_forward", **{**GOOD["feed_forward"], "weight2": "text"})


def fuzz(count, seed):
    found = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz.py"), str(count), str(seed)],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    *before, last = found.stdout.decode().split("\r")
    told = [part for part in before if not part.isdigit()]
    shown = "\r".join([*told, f"after call {before[-1]}: {last}"])
    assert found.returncode == 0, f"exit {found.returncode}\n{shown[-3000:]}"


def test_random_arguments_never_crash():
    fuzz(3000, 0)


@pytest.mark.full
def test_a_hundred_thousand_random_calls_never_crash():
    fuzz(100_000, 1)
