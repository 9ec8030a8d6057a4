"""bigkernels.nn.MultiheadAttention against torch's, every argument of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from nn_problems import judge_against_torch, pair, random
from torch import nn
from torch.nn import functional as F

from bigkernels.ops import dropout

B, L, S, E, H = 3, 5, 7, 24, 4


@dataclass(frozen=True)
class Attention:
    """One way to call MultiheadAttention, and what it is for."""

    id: str
    reason: str
    make: dict[str, Any] = field(default_factory=dict)
    keys: str = "self"  # "self": query is key is value; "kv": key is value; "own": all differ
    attn_mask: str = ""  # dtype and rank: "bool 2", "float 3", "causal bool", "causal float"
    padding: str = ""  # "right", "left", "holes", "float"
    batched: bool = True
    weights: str = ""  # "", "mean", "heads"
    hint: bool = False


ATTENTION = [
    Attention("plain", "self-attention: one product for q, k and v"),
    Attention("kv", "key is value: two products", keys="kv"),
    Attention("cross", "three products, Lk != Lq", keys="own"),
    Attention("seq-first", "torch's default layout", {"batch_first": False}),
    Attention("seq-first-cross", "with three products", {"batch_first": False}, keys="own"),
    Attention("unbatched", "2-D input ignores batch_first", batched=False),
    Attention("unbatched-seq-first", "the same the other way", {"batch_first": False}, batched=False),
    Attention("no-bias", "bias=False drops all of them", {"bias": False}),
    Attention("kdim", "separate weights", {"kdim": 10, "vdim": 14}, keys="own"),
    Attention("kdim-no-bias", "their bias is absent too", {"kdim": 10, "bias": False}, keys="own"),
    Attention("bias-kv", "one learned key more", {"add_bias_kv": True}),
    Attention("zero-attn", "one key of zeros more", {"add_zero_attn": True}),
    Attention(
        "bias-kv-zero-attn-masks", "the masks grow with the keys",
        {"add_bias_kv": True, "add_zero_attn": True}, "own", "bool 2", "right", weights="heads",
    ),
    Attention("odd-heads", "torch's own fast path refuses them", {"num_heads": 3}),
    Attention("one-head", "H = 1", {"num_heads": 1}),
    Attention("weights", "averaged over the heads", weights="mean"),
    Attention("weights-heads", "per head", weights="heads"),
    Attention("weights-unbatched", "without the batch", batched=False, weights="mean"),
    Attention("weights-heads-unbatched", "heads stay", batched=False, weights="heads"),
    Attention("weights-seq-first", "batch first all the same", {"batch_first": False}, weights="mean"),
    Attention("weights-masked", "zeros where masked", {}, "own", "bool 2", "right", weights="heads"),
    Attention("weights-bias", "gradient of the bias from both", keys="own", attn_mask="float 3", weights="heads"),
    Attention("bool-2", "one mask for all", attn_mask="bool 2"),
    Attention("bool-3", "a mask per sample and head", attn_mask="bool 3"),
    Attention("float-2", "an additive mask gets its gradient", attn_mask="float 2"),
    Attention("float-3", "per sample and head", attn_mask="float 3"),
    Attention("float-3-unbatched", "(H, L, S)", attn_mask="float 3", batched=False),
    Attention("right", "padding as lengths", padding="right"),
    Attention("left", "padding as a mask", padding="left"),
    Attention("holes", "padding in the middle", padding="holes"),
    Attention("additive-padding", "a float key_padding_mask is added", padding="float"),
    Attention("right-unbatched", "(S,)", padding="right", batched=False),
    Attention("right-seq-first", "the mask stays (N, S)", {"batch_first": False}, padding="right"),
    Attention("bool-right", "lengths and mask together", attn_mask="bool 2", padding="right"),
    Attention("bool-left", "two boolean masks become one", attn_mask="bool 3", padding="left"),
    Attention("float-left", "boolean padding into an additive mask", attn_mask="float 3", padding="left"),
    Attention("bool-float", "and the other way round", attn_mask="bool 2", padding="float"),
    Attention("float-float", "two additive masks add up", attn_mask="float 2", padding="float"),
    Attention("causal-bool", "the hint replaces the mask", attn_mask="causal bool", hint=True),
    Attention("causal-float", "the same for an additive one", attn_mask="causal float", hint=True),
    Attention("causal-right", "torch ignores the hint here", attn_mask="causal bool", padding="right", hint=True),
    Attention("causal-weights", "and here", attn_mask="causal float", weights="mean", hint=True),
    Attention("causal-no-hint", "an ordinary mask", attn_mask="causal bool"),
]  # fmt: skip


def _padding(kind: str, keys: int, dtype: torch.dtype) -> torch.Tensor:
    """key_padding_mask (B, keys), True = ignore; at least one key of each sample is kept."""
    lengths = torch.tensor([keys, keys - 3, 2])[:, None]
    place = torch.arange(keys)
    if kind == "float":
        return random(B, keys, seed=3, dtype=dtype)
    if kind == "holes":
        return (place % 3 == 1) & (place < lengths)
    return place >= lengths if kind == "right" else place < keys - lengths


def _attn_mask(kind: str, heads: int, queries: int, keys: int, dtype: torch.dtype) -> torch.Tensor:
    name, rank = kind.split()
    if name == "causal":
        ones = torch.ones(queries, keys, dtype=torch.bool).triu(1)
        return (
            ones
            if rank == "bool"
            else torch.zeros(queries, keys, dtype=dtype).masked_fill(ones, -torch.inf)
        )
    shape = (queries, keys) if rank == "2" else (B * heads, queries, keys)
    noise = random(*shape, seed=4, dtype=dtype)
    if name == "float":
        return noise
    ignore = noise > 0.3
    ignore[..., 0] = ignore[..., -1] = False
    return ignore


def _attention_inputs(case: Attention, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, str]]:
    heads, first = case.make.get("num_heads", H), case.make.get("batch_first", True)
    keys = L if case.keys == "self" else S
    extra = case.make.get("add_bias_kv") or case.make.get("add_zero_attn")
    s = "l" if case.keys == "self" else "." if extra else "s"

    def place(length: int, features: int, letters: str, seed: int) -> tuple[torch.Tensor, str]:
        shape, axes = ((length, features), letters) if not case.batched else (
            ((B, length, features), "." + letters) if first else
            ((length, B, features), letters[0] + "." + letters[1])
        )  # fmt: skip
        return random(*shape, seed=seed, dtype=dtype), axes

    tensors, axes = {}, {}
    tensors["query"], axes["query"] = place(L, E, "le", 0)
    if case.keys != "self":
        kdim, vdim = case.make.get("kdim", E), case.make.get("vdim", E)
        own = "kdim" in case.make
        tensors["key"], axes["key"] = place(keys, kdim, s + ("k" if own else "e"), 1)
        if case.keys == "own":
            letter = "v" if own and "vdim" in case.make else "." if own else "e"
            tensors["value"], axes["value"] = place(keys, vdim, s + letter, 2)
    if case.padding:
        mask = _padding(case.padding, keys, dtype)
        tensors["padding"], axes["padding"] = (mask, "." + s) if case.batched else (mask[1], s)
    if case.attn_mask:
        mask = _attn_mask(case.attn_mask, heads, L, keys, dtype)
        mask = mask[:heads] if mask.dim() == 3 and not case.batched else mask
        tensors["mask"], axes["mask"] = mask, "." * (mask.dim() - 2) + "l" + s
    return tensors, axes


def _call_attention(case: Attention, hint: bool) -> Any:
    def call(module: nn.Module, t: Any) -> dict[str, torch.Tensor]:
        query = t["query"]
        key = t.get("key", query)
        out, weights = module(
            query, key, t.get("value", key), key_padding_mask=t.get("padding"), attn_mask=t.get("mask"),
            need_weights=bool(case.weights), average_attn_weights=case.weights != "heads", is_causal=hint,
        )  # fmt: skip
        assert (weights is None) == (not case.weights)
        return {"out": out} if weights is None else {"out": out, "weights": weights}

    return call


def _check_attention(case: Attention, dtype: torch.dtype) -> None:
    make = {"embed_dim": E, "num_heads": H, "batch_first": True, **case.make}
    ours, theirs = pair("MultiheadAttention", **make)
    tensors, axes = _attention_inputs(case, dtype)
    keys = axes["key"][-2] if "key" in axes else "l"
    outputs = {"out": axes["query"]}
    if case.weights:
        lead = "." * (case.batched + (case.weights == "heads"))
        outputs["weights"] = lead + "l" + keys
    judge_against_torch(
        f"{case.id} ({case.reason})", ours, theirs, tensors, axes, _call_attention(case, case.hint),
        dtype, outputs, _call_attention(case, False),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.id)
def test_multihead_attention_equals_torch(case):
    _check_attention(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["cross", "bool-right", "weights-bias"])
def test_multihead_attention_equals_torch_in_every_dtype(name, dtype):
    _check_attention(next(case for case in ATTENTION if case.id == name), dtype)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_sample_of_padding_alone_gives_no_nan(training, need_weights):
    ours, _ = pair("MultiheadAttention", E, H, batch_first=True)
    ours.train(training)
    x = random(B, L, E, seed=0).requires_grad_()
    padding = torch.zeros(B, L, dtype=torch.bool)
    padding[1] = True
    out, weights = ours(x, x, x, key_padding_mask=padding, need_weights=need_weights)
    torch.testing.assert_close(out[1], ours.out_proj.bias.expand(L, E))  # nothing attended to
    if need_weights:
        assert torch.equal(weights[1], torch.zeros(L, L))
    out.square().sum().backward()
    gradients = [x.grad, *(p.grad for p in ours.parameters())]
    assert all(g.isfinite().all() for g in gradients)
    assert torch.equal(x.grad[1], torch.zeros(L, E))


def test_causal_mask_with_left_padding_gives_no_nan():
    """The queries of padding see no key at all: torch's weights and gradients are NaN here."""
    ours, _ = pair("MultiheadAttention", E, H, batch_first=True)
    x = random(1, 4, E, seed=0).requires_grad_()
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    padding = torch.tensor([[True, True, False, False]])
    out, weights = ours(x, x, x, key_padding_mask=padding, attn_mask=causal)
    assert weights[0, :2].abs().max() == 0
    torch.testing.assert_close(weights[0, 2:].sum(-1), torch.ones(2))
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_dropout_drops_the_weights_that_seed_and_place_say():
    ours, _ = pair("MultiheadAttention", E, H, dropout=0.4, batch_first=True)
    ours.double().train()
    x = random(B, L, E, seed=0, dtype=torch.float64)
    torch.manual_seed(5)
    out, _ = ours(x, x, x, need_weights=False)
    torch.manual_seed(5)
    seed = torch.ops.bigkernels.philox_seed(x)
    q, k, v = (
        F.linear(x, ours.in_proj_weight, ours.in_proj_bias).unflatten(-1, (3, H, -1)).unbind(2)
    )
    weights = torch.softmax(torch.einsum("blhd,bshd->bhls", q, k) * (E // H) ** -0.5, -1)
    keep = dropout.keep_scores(
        torch.arange(B * H).reshape(B, H, 1), torch.arange(L).expand(B, H, L), L, 0.4, seed, None
    )
    mixed = torch.einsum("bhls,bshd->blhd", weights * keep / 0.6, v).flatten(2)
    torch.testing.assert_close(out, F.linear(mixed, ours.out_proj.weight, ours.out_proj.bias))


def test_weights_in_training_are_those_before_dropout():
    ours, _ = pair("MultiheadAttention", E, H, dropout=0.5, batch_first=True)
    x = random(B, L, E, seed=0)
    expected = ours(x, x, x)[1]
    torch.testing.assert_close(ours.train()(x, x, x)[1], expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"is_causal": True}, ValueError, "attn_mask: None, but is_causal .*pass that mask"),
        ({"attn_mask": torch.zeros(2, 2)}, ValueError, "attn_mask: shape"),
        ({"attn_mask": torch.zeros(L, L, dtype=torch.int32)}, TypeError, "attn_mask: dtype"),
        ({"key_padding_mask": torch.zeros(L, dtype=torch.bool)}, ValueError, "key_padding_mask: shape"),
        ({"query": torch.zeros(B, L, E + 1)}, ValueError, "query: shape"),
        ({"query": torch.zeros(E)}, ValueError, "query: shape"),
        ({"key": torch.zeros(B, L, E + 1)}, ValueError, "key: shape"),
        ({"key": torch.zeros(B + 1, L, E), "value": torch.zeros(B + 1, L, E)}, ValueError, "key: shape"),
        ({"value": torch.zeros(B, L + 1, E)}, ValueError, "value: shape"),
    ],
)  # fmt: skip
def test_wrong_arguments_raise_naming_the_argument(arguments, error, message):
    ours, _ = pair("MultiheadAttention", E, H, batch_first=True)
    x = torch.zeros(B, L, E)
    with pytest.raises(error, match=message):
        ours(**{"query": x, "key": x, "value": x, **arguments})
