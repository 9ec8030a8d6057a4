"""bigkernels.nn against torch.nn: same constructors, same state_dict, same results."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from nn_problems import judge_against_torch, pair, random, scramble
from torch import nn
from torch.nn import functional as F

import bigkernels as bk

B, L, E, H, HIDDEN = 3, 6, 24, 4, 40
LENGTHS = (L, 4, 1)


@dataclass(frozen=True)
class Layer:
    """One TransformerEncoderLayer or a stack of them, one way to call it, and what it is for."""

    id: str
    reason: str
    make: dict[str, Any] = field(default_factory=dict)
    padding: str = ""  # "right", "left", "holes", "float"
    mask: str = ""  # "bool", "float", "float 3", "causal"
    batched: bool = True
    layers: int = 0  # 0: the layer itself
    norm: bool = False  # a final norm
    hint: bool | None = False


LAYERS = [
    Layer("post-norm", "the default: ReLU, norms behind the additions"),
    Layer("pre-norm", "norms in front", {"norm_first": True}),
    Layer("gelu", "by name", {"activation": "gelu"}),
    Layer("gelu-pre-norm", "both", {"activation": F.gelu, "norm_first": True}),
    Layer("gelu-module", "nn.GELU with tanh", {"activation": nn.GELU("tanh")}),
    Layer("gelu-partial", "a partial of F.gelu", {"activation": functools.partial(F.gelu, approximate="tanh")}),
    Layer("silu", "an activation torch's own fast path has not", {"activation": nn.SiLU()}),
    Layer("callable", "not one of ours: unfused", {"activation": torch.tanh}),
    Layer("callable-pre-norm", "the same", {"activation": torch.tanh, "norm_first": True}),
    Layer("no-bias", "bias=False reaches the norms", {"bias": False}),
    Layer("no-bias-pre-norm", "the same", {"bias": False, "norm_first": True}),
    Layer("eps", "layer_norm_eps reaches both", {"layer_norm_eps": 0.3}),
    Layer("seq-first", "torch's default layout", {"batch_first": False}),
    Layer("unbatched", "(L, E)", batched=False),
    Layer("right", "lengths", padding="right"),
    Layer("left", "a mask", padding="left"),
    Layer("float-padding", "an additive one", padding="float"),
    Layer("causal", "without a hint", mask="causal"),
    Layer("causal-hint", "with it", mask="causal", hint=True),
    Layer("causal-hint-right", "and with padding", mask="causal", padding="right", hint=True),
    Layer("bool-right", "mask and padding", mask="bool", padding="right"),
    Layer("float-3", "a bias per sample and head", mask="float 3"),
    Layer("stack", "no mask", layers=2),
    Layer("stack-norm", "a final norm", {"norm_first": True}, layers=2, norm=True),
    Layer("stack-right", "packed", padding="right", layers=2, norm=True),
    Layer("stack-left", "packed", {"norm_first": True}, padding="left", layers=2, norm=True),
    Layer("stack-seq-first", "packed from (L, B, E)", {"batch_first": False}, padding="right", layers=2),
    Layer("stack-causal", "found out, packed", mask="causal", padding="right", layers=2, hint=None),
    Layer("stack-causal-left", "causal within the tokens", mask="causal", padding="left", layers=2, hint=True),
    Layer("stack-bool", "a mask: not packed", mask="bool", padding="right", layers=2, hint=None),
    Layer("stack-holes", "no plain padding: not packed", padding="holes", layers=2),
    Layer("stack-float", "additive: not packed", padding="float", layers=2),
    Layer("stack-unbatched", "(L, E)", padding="right", batched=False, layers=2),
    Layer("stack-callable", "packed with an unfused activation", {"activation": torch.tanh}, "right", layers=2),
]  # fmt: skip


def _masks(case: Layer, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    lengths, place = torch.tensor(LENGTHS)[:, None], torch.arange(L)
    padding = {
        "": None, "right": place >= lengths, "left": place < L - lengths,
        "holes": (place % 3 == 1) & (place < lengths), "float": random(B, L, seed=3, dtype=dtype),
    }[case.padding]  # fmt: skip
    ones = torch.ones(L, L, dtype=torch.bool).triu(1)
    mask = {
        "": None, "bool": (place[:, None] * 5 + place) % 4 == 3, "float": random(L, L, seed=4, dtype=dtype),
        "float 3": random(B * H, L, L, seed=4, dtype=dtype), "causal": ones,
    }[case.mask]  # fmt: skip
    return mask, padding if padding is None or case.batched else padding[1]


def _stack(case: Layer) -> tuple[nn.Module, nn.Module]:
    make = {"batch_first": True, "dim_feedforward": HIDDEN, **case.make}
    ours, theirs = pair("TransformerEncoderLayer", E, H, **make)
    if not case.layers:
        return ours, theirs
    norms = [nn.LayerNorm(E) if case.norm else None for _ in range(2)]
    theirs = nn.TransformerEncoder(theirs, case.layers, norms[0], enable_nested_tensor=False)
    ours = bk.nn.TransformerEncoder(ours, case.layers, norms[1])
    ours.load_state_dict(scramble(theirs).state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def _check_layer(case: Layer, dtype: torch.dtype) -> None:
    ours, theirs = _stack(case)
    mask, padding = _masks(case, dtype)
    first = case.make.get("batch_first", True)
    shape = ((B, L, E) if first else (L, B, E)) if case.batched else (L, E)
    letters = (".le" if first else "l.e") if case.batched else "le"
    tensors = {"src": random(*shape, seed=0, dtype=dtype), "padding": padding, "mask": mask}
    axes = {"src": letters, "padding": ".l" if case.batched else "l"}
    axes["mask"] = ".ll" if case.mask.endswith("3") else "ll"
    # Rows of padding are zero here; torch computes them. Only rows of tokens are compared.
    plain = case.padding in ("right", "left") and case.batched
    kept = None if not plain else (~padding if first else ~padding.T)[..., None]
    if kept is not None:
        tensors["kept"], axes["kept"] = kept, letters[:2] + "."

    def call(hint):
        def run(module, t):
            named = "src_mask" if not case.layers else "mask"
            out = module(
                t["src"], **{named: t["mask"]}, src_key_padding_mask=t["padding"], is_causal=hint
            )
            return {"out": out if kept is None else out * t["kept"]}

        return run

    judge_against_torch(
        f"{case.id} ({case.reason})", ours, theirs, tensors, axes, call(case.hint), dtype, {"out": letters},
        call(False),
    )  # fmt: skip


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.id)
def test_layers_equal_torch(case):
    _check_layer(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["gelu-pre-norm", "right", "stack-right"])
def test_layers_equal_torch_in_every_dtype(name, dtype):
    _check_layer(next(case for case in LAYERS if case.id == name), dtype)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize(
    ("make", "shape", "letters"),
    [
        ({"normalized_shape": E}, (B, L, E), "ble"),
        ({"normalized_shape": [E], "eps": 0.1}, (E,), "e"),
        ({"normalized_shape": (L, E)}, (B, L, E), "b.."),
        ({"normalized_shape": E, "bias": False}, (B, E), "be"),
        ({"normalized_shape": E, "elementwise_affine": False}, (B, E), "be"),
    ],
    ids=["last", "one-row", "two-dims", "no-bias", "plain"],
)
def test_layer_norm_equals_torch(make, shape, letters, dtype):
    ours, theirs = pair("LayerNorm", **make)
    own = "".join(letters[-len(ours.normalized_shape) :])
    judge_against_torch(
        "LayerNorm", ours, theirs, {"x": random(*shape, seed=0, dtype=dtype)}, {"x": letters},
        lambda module, t: {"out": module(t["x"])}, dtype, {"out": letters},
        parameter_axes={"weight": own, "bias": own},
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("make", [{}, {"eps": 0.1}, {"elementwise_affine": False}], ids=str)
def test_rms_norm_equals_torch(make, dtype):
    ours, theirs = pair("RMSNorm", normalized_shape=E, **make)
    judge_against_torch(
        "RMSNorm", ours, theirs, {"x": random(B, L, E, seed=0, dtype=dtype)}, {"x": "ble"},
        lambda module, t: {"out": module(t["x"])}, dtype, {"out": "ble"},
        parameter_axes={"weight": "e"},
    )  # fmt: skip


class _FeedForward(nn.Module):
    """What bigkernels.nn.FeedForward computes, spelled out."""

    def __init__(self, like: bk.nn.FeedForward, function: Any) -> None:
        super().__init__()
        self.linear1, self.linear2, self.linear_gate = like.linear1, like.linear2, like.linear_gate
        self.function = function

    def forward(self, x):
        hidden = self.linear1(x)
        if self.linear_gate is None:
            return self.linear2(self.function(hidden))
        return self.linear2(self.function(self.linear_gate(x)) * hidden)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", F.relu),
        ("gelu", F.gelu),
        ("gelu_tanh", functools.partial(F.gelu, approximate="tanh")),
        ("silu", F.silu),
        (torch.tanh, torch.tanh),
    ],
)
def test_feed_forward_equals_its_formula(activation, function, gated, dtype):
    ours = scramble(bk.nn.FeedForward(E, HIDDEN, activation=activation, gated=gated)).eval()
    assert bool(ours.unfused_reasons()) == (activation is torch.tanh)
    theirs = _FeedForward(copy.deepcopy(ours), function)
    judge_against_torch(
        "FeedForward", ours, theirs, {"x": random(B, L, E, seed=0, dtype=dtype)}, {"x": "ble"},
        lambda module, t: {"out": module(t["x"])}, dtype, {"out": "ble"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["LayerNorm", "MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder"]
)
def test_constructor_and_forward_take_what_torch_takes(name):
    ours, theirs = getattr(bk.nn, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    for method in ("__init__", "forward"):
        mine, his = (inspect.signature(getattr(c, method)).parameters for c in (ours, theirs))
        assert [(p.name, p.default) for p in mine.values()] == [
            (p.name, p.default) for p in his.values()
        ]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_one_seed_makes_the_same_parameters_and_both_state_dicts_load():
    made = []
    for home in (nn, bk.nn):
        torch.manual_seed(3)
        layer = home.TransformerEncoderLayer(E, H, HIDDEN)
        made.append(home.TransformerEncoder(layer, 2, home.LayerNorm(E)))
    theirs, ours = made
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    theirs.load_state_dict(scramble(ours).state_dict(), strict=True)
    assert torch.equal(theirs.layers[1].linear1.weight, ours.layers[1].linear1.weight)


def test_encoder_adopts_copies_of_a_torch_layer():
    layer = nn.TransformerEncoderLayer(E, H, HIDDEN)
    ours = bk.nn.TransformerEncoder(layer, 2)
    assert (
        type(layer) is nn.TransformerEncoderLayer and type(layer.self_attn) is nn.MultiheadAttention
    )
    assert type(ours.layers[0]) is bk.nn.TransformerEncoderLayer
    assert type(ours.layers[0].self_attn) is bk.nn.MultiheadAttention
    assert not ours.layers[0].unfused_reasons()
