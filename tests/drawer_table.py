"""What each drawer takes, refuses and serves, as one table: `python tests/drawer_table.py > tests/drawers.md`.

Each room has a usual call and what may differ from it, one fact at a time; below that, how much of the product of all
those facts each drawer takes, so that a refusal of a combination shows too.
"""

import importlib.util
import itertools
import pathlib
import unittest.mock

import torch

from bigkernels import backends, library
from bigkernels.ops.attention.contract import Facts as AttentionFacts
from bigkernels.ops.cross_entropy.contract import Facts as CrossEntropyFacts
from bigkernels.ops.embedding.contract import Facts as EmbeddingFacts
from bigkernels.ops.encoder import api as encoder  # noqa: F401  registers its drawers
from bigkernels.ops.encoder import cpu as encoder_cpu
from bigkernels.ops.encoder.contract import PRECISIONS
from bigkernels.ops.encoder.contract import Facts as EncoderFacts
from bigkernels.ops.ffn.contract import ACTIVATIONS
from bigkernels.ops.ffn.contract import Facts as FfnFacts
from bigkernels.ops.layer_norm.contract import Facts as LayerNormFacts
from bigkernels.ops.packing.contract import Facts as PackingFacts

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DRAWERS = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu"}
SERVED = {"on a GPU": "cuda", "on a CPU": "cpu"}

# Of each fact its usual value first.
ROOMS = {
    "layer_norm": (
        LayerNormFacts,
        {
            "op": ("layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm"),
            "dtype": DTYPES,
            "weight_dtype": (torch.float32, None),
            "n": (768, 1, 31, 4096, 5001, 8192, 8200, 65536),
            "dropout": (False, True),
            "needs_grad": (True, False),
        },
    ),
    "attention": (
        AttentionFacts,
        {
            "dtype": DTYPES,
            "head_dim": (64, 16, 80, 128, 256, 300),
            "head_dim_v": (64, 128),
            "packed": (False, True),
            "grouped": (False, True),
            "mask": ("none", "bool", "float"),
            "mask_grad": (False, True),
            "causal": (0, 1, 2, 3),
            "window": (False, True),
            "lengths": (False, True),
            "dropout": (False, True),
            "softcap": (False, True),
            "alibi": (False, True),
            "sinks": (False, True),
            "needs_grad": (True, False),
            "learned": (False, True),
        },
    ),
    "ffn": (
        FfnFacts,
        {
            "dtype": DTYPES,
            "activation": ACTIVATIONS,
            "gated": (False, True),
            "dropout": (False, True),
            "needs_grad": (True, False),
        },
    ),
    "encoder": (
        EncoderFacts,
        {
            "dtype": DTYPES,
            "precision": PRECISIONS,
            "activation": ACTIVATIONS,
            "norm_first": (False, True),
            "causal": (False, True),
            "width": (768, 100),
            "hidden": (3072, 100),
            "head_dim": (64, 20),
            "needs_grad": (False, True),
        },
    ),
    "embedding": (
        EmbeddingFacts,
        {
            "dtype": DTYPES,
            "weight_dtype": (torch.float32, None),
            "n": (768, 1, 31, 4096, 65536),
            "position": (True, False),
            "types": (True, False),
            "dropout": (False, True),
            "needs_grad": (True, False),
        },
    ),
    "cross_entropy": (
        CrossEntropyFacts,
        {"dtype": DTYPES, "smoothing": (False, True), "needs_grad": (True, False)},
    ),
    "packing": (
        PackingFacts,
        {"dtype": (*DTYPES, torch.bool, torch.int64), "needs_grad": (True, False)},
    ),
}

# What a fact is never without.
BESIDE = {"mask_grad": {"mask": "float"}, "learned": {"alibi": True}}


def missing():
    """Why the table cannot be made here, or None: every kind of kernel must be there, whether it can run or not."""
    if library.extension_error:
        return library.extension_error
    if not pathlib.Path(library.__file__).with_name("libbigkernels_cuda.so").exists():
        return "libbigkernels_cuda.so is not built"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def answer(room, drawer, facts):
    with unittest.mock.patch.object(
        encoder_cpu, "_isa", return_value="amx"
    ):  # whatever machine this is
        reasons = backends.refusals(
            room, drawer, facts._replace(device=DRAWERS[drawer]), forced=True
        )
    return "; ".join(reasons)


def chosen(room, device, facts):
    """The drawer that `explain` names for such a call."""
    with unittest.mock.patch.object(encoder_cpu, "_isa", return_value="amx"):
        return backends._first(room, facts._replace(device=device), None)  # kept nowhere


def combinations(facts, values):
    """Pairs of facts that differ from the usual call, which is all a drawer may tie together."""
    usual = {name: choices[0] for name, choices in values.items()}
    for first, second in itertools.combinations(values, 2):
        for a, b in itertools.product(values[first], values[second]):
            yield facts(device="cpu", **{**usual, first: a, second: b})


def word(value):
    return str(value).removeprefix("torch.")


def lines():
    yield "# What each drawer takes"
    yield ""
    yield "Made by `python tests/drawer_table.py`, compared by tests/test_backends.py. Refusals may only fall."
    for room, (facts, values) in ROOMS.items():
        usual = facts(device="cpu", **{name: choices[0] for name, choices in values.items()})
        yield ""
        yield f"## {room}"
        yield ""
        yield f"| fact | {' | '.join((*DRAWERS, *SERVED))} |"
        yield f"| --- |{' --- |' * len((*DRAWERS, *SERVED))}"
        rows = [("usual", usual)]
        for name, choices in values.items():
            beside = BESIDE.get(name, {})
            rows += [
                (f"{name} {word(v)}", usual._replace(**{name: v}, **beside)) for v in choices[1:]
            ]
        for label, row in rows:
            answers = [answer(room, drawer, row) or "yes" for drawer in DRAWERS]
            answers += [chosen(room, device, row) for device in SERVED.values()]
            yield f"| {label} | {' | '.join(answers)} |"
        pairs = list(combinations(facts, values))
        taken = [sum(not answer(room, drawer, row) for row in pairs) for drawer in DRAWERS]
        yield f"| of all {len(pairs)} pairs | {' | '.join(map(str, taken))} | | |"


if __name__ == "__main__":
    print("\n".join(lines()))
