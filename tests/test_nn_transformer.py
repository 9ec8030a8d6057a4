"""What bigkernels.nn's encoder does beside torch's results: packing, dropout, dead rows, hooks, what is unfused."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from nn_problems import pair, random, scramble
from torch import nn
from torch.nn import functional as F

import bigkernels as bk
from bigkernels.ops import dropout

B, L, E, H, HIDDEN = 3, 6, 24, 4, 40
LENGTHS = (L, 4, 1)


def _encoder(**make: Any) -> bk.nn.TransformerEncoder:
    layer = bk.nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True, **make)
    return scramble(bk.nn.TransformerEncoder(layer, 2, bk.nn.LayerNorm(E)))


def _right(lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    return torch.arange(L) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("training", [False, True])
def test_encoder_packs_plain_padding_once_and_gives_zeros_there(training):
    ours = _encoder(dropout=0.0).train(training)
    x = random(B, L, E, seed=0)
    for ignore in (_right(), _right().flip(1)):
        with bk.trace() as records:
            out = ours(x, src_key_padding_mask=ignore)
        packed = [r.facts.packed for r in records if r.room == "attention"]
        assert packed == [True, True]
        assert torch.equal(out[ignore], torch.zeros_like(out[ignore]))
        assert (out[~ignore].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("ignore", [None, torch.zeros(B, L, dtype=torch.bool)])
def test_encoder_does_not_pack_a_batch_without_padding(ignore):
    with bk.trace() as records:
        _encoder()(random(B, L, E, seed=0), src_key_padding_mask=ignore)
    assert not any(r.facts.packed for r in records if r.room == "attention")


def test_enable_nested_tensor_false_computes_rows_of_padding_like_torch():
    ours = _encoder().eval()
    ours.enable_nested_tensor = False
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True), 2,
                                   nn.LayerNorm(E), enable_nested_tensor=False).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    x = random(B, L, E, seed=0)
    expected = theirs(x, src_key_padding_mask=_right())
    torch.testing.assert_close(ours(x, src_key_padding_mask=_right()), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_equals_torch_evaluating_without_gradients():
    """torch's fast path: nested tensors, zeros in the rows of padding (before its norm)."""
    ours = _encoder().eval()
    ours.norm = None
    theirs = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True), 2
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = random(B, L, E, seed=0)
    with torch.no_grad():
        expected = theirs(x, src_key_padding_mask=_right())
        torch.testing.assert_close(ours(x, src_key_padding_mask=_right()), expected)


@pytest.mark.parametrize("norm_first", [False, True])
def test_padded_and_packed_runs_drop_the_same_elements(norm_first):
    """Dropout is a function of seed, sample and position, so packing does not change a training step."""
    ours = _encoder(dropout=0.3, norm_first=norm_first).double().train()
    x = random(B, L, E, seed=0, dtype=torch.float64)
    results = []
    for packs in (True, False):
        if not packs:  # a hook that needs the padded batch
            ours.layers[0].register_forward_hook(lambda *_: None)
        torch.manual_seed(1)
        with bk.trace() as records:
            out = ours(x, src_key_padding_mask=_right())
        assert {r.facts.packed for r in records if r.room == "attention"} == {packs}
        ours.zero_grad()
        out.square().sum().backward()
        results.append((out, [p.grad.clone() for p in ours.parameters()]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layer_drops_what_seed_and_place_say(batch_first, norm_first):
    """Four seeds a call: attention, the addition behind it, the hidden layer, the last addition."""
    p = 0.3
    ours, _ = pair(
        "TransformerEncoderLayer", E, H, HIDDEN, p, batch_first=batch_first, norm_first=norm_first
    )
    ours.double().train()
    x = random(B, L, E, seed=0, dtype=torch.float64)
    torch.manual_seed(5)
    out = ours(x if batch_first else x.transpose(0, 1))
    torch.manual_seed(5)
    seeds = [torch.ops.bigkernels.philox_seed(x) for _ in range(4)]

    def attend(x):
        q, k, v = F.linear(x, ours.self_attn.in_proj_weight, ours.self_attn.in_proj_bias).chunk(
            3, -1
        )
        q, k, v = (t.unflatten(-1, (H, -1)).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(2, 3) * (E // H) ** -0.5, -1)
        keep = dropout.keep_scores(
            torch.arange(B * H).reshape(B, H, 1),
            torch.arange(L).expand(B, H, L),
            L,
            p,
            seeds[0],
            None,
        )
        return ours.self_attn.out_proj((weights * keep / (1 - p) @ v).transpose(1, 2).flatten(2))

    def drop(x, seed):
        return x * dropout.keep_rows(x, p, seed, None, None) / (1 - p)

    def feed(x):
        return ours.linear2(drop(F.relu(ours.linear1(x)), seeds[2]))

    if norm_first:
        x = x + drop(attend(ours.norm1(x)), seeds[1])
        x = x + drop(feed(ours.norm2(x)), seeds[3])
    else:
        x = ours.norm1(x + drop(attend(x), seeds[1]))
        x = ours.norm2(x + drop(feed(x), seeds[3]))
    torch.testing.assert_close(out if batch_first else out.transpose(0, 1), x)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_a_sample_of_padding_alone_gives_zeros_and_finite_gradients(training, packs):
    """torch gives NaN here, in the output and in the gradient of every weight."""
    ours = _encoder().train(training)
    if not packs:
        ours.layers[0].register_forward_hook(lambda *_: None)
    x = random(B, L, E, seed=0).requires_grad_()
    ignore = _right((L, 0, 3))
    out = ours(x, src_key_padding_mask=ignore)
    assert torch.equal(out[1], torch.zeros(L, E))
    out.square().sum().backward()
    assert all(g.isfinite().all() for g in [x.grad, *(p.grad for p in ours.parameters())])
    assert torch.equal(x.grad[1], torch.zeros(L, E))


def test_a_batch_of_padding_alone_and_an_empty_batch_have_results():
    ours = _encoder().eval()
    x = random(B, L, E, seed=0)
    assert torch.equal(ours(x, src_key_padding_mask=_right((0, 0, 0))), torch.zeros(B, L, E))
    assert ours(x[:0], src_key_padding_mask=_right()[:0]).shape == (0, L, E)
    assert ours(x[:0]).shape == (0, L, E)


@pytest.mark.parametrize(
    "path", ["self_attn", "linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2"]
)
@pytest.mark.parametrize("norm_first", [False, True])
def test_hooks_on_children_run_and_change_the_result(path, norm_first):
    ours, theirs = pair(
        "TransformerEncoderLayer", E, H, HIDDEN, batch_first=True, norm_first=norm_first
    )
    x, seen = random(B, L, E, seed=0), []

    def double(module, inputs, output):
        seen.append(type(module))
        return (output[0] * 2, output[1]) if isinstance(output, tuple) else output * 2

    for layer in (ours, theirs):
        layer.get_submodule(path).register_forward_hook(double)
    torch.testing.assert_close(ours(x), theirs(x))
    assert len(seen) == 2
    assert any(path in reason for reason in ours.unfused_reasons())


def test_global_hooks_see_every_child():
    ours, _ = pair("TransformerEncoderLayer", E, H, HIDDEN, batch_first=True)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(m))
    try:
        ours(random(B, L, E, seed=0))
    finally:
        handle.remove()
    assert {ours.self_attn, ours.linear1, ours.linear2, ours.norm1, ours.norm2, ours} <= set(seen)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "activation", torch.tanh), "activation .*tanh.* is not one of"),
        (lambda m: setattr(m, "linear1", nn.Sequential(m.linear1)), "linear1 is a Sequential"),
        (lambda m: setattr(m, "norm2", nn.Identity()), "norm2 is a Identity"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.linear2), "linear2 is a Parametrized"),
        (
            lambda m: setattr(m, "self_attn", nn.MultiheadAttention(E, H)),
            "self_attn is a Multihead",
        ),
    ],
)
def test_what_is_not_fused_says_why_and_works(change, reason):
    ours, theirs = pair("TransformerEncoderLayer", E, H, HIDDEN, 0.0)
    assert ours.unfused_reasons() == ()
    change(theirs)
    ours.__dict__.update(copy.deepcopy(theirs).__dict__)
    assert [True for why in ours.unfused_reasons() if re.match(reason, why)]
    x = random(L, B, E, seed=0)
    torch.testing.assert_close(ours(x), theirs(x))


def test_nested_sequences_go_in_and_come_out():
    ours = _encoder().eval()
    x = random(B, L, E, seed=0)
    parts = [x[b, :n] for b, n in enumerate(LENGTHS)]
    expected = ours(x, src_key_padding_mask=_right())
    with torch.no_grad():
        out = ours(torch.nested.as_nested_tensor(parts))
        assert out.is_nested
        for b, part in enumerate(out.unbind()):
            torch.testing.assert_close(part, expected[b, : LENGTHS[b]])
        # torch's own encoder hands nested tensors to its layers.
        theirs = nn.TransformerEncoder(ours.layers[0], 2).eval()
        assert type(theirs.layers[0]) is bk.nn.TransformerEncoderLayer
        padded = theirs(x, src_key_padding_mask=_right())
    assert torch.equal(padded[_right()], torch.zeros_like(padded[_right()]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"is_causal": True}, ValueError, "attn_mask: None, but is_causal .*pass that mask"),
        ({"mask": torch.zeros(2, 2)}, ValueError, "mask: shape"),
        ({"src_key_padding_mask": torch.zeros(B, L + 1, dtype=torch.bool)}, ValueError, "padding_mask: shape"),
        ({"src_key_padding_mask": torch.zeros(B, L, dtype=torch.int32)}, TypeError, "padding_mask: dtype"),
        ({"src": torch.zeros(B, L, E + 1)}, ValueError, "query: shape"),
        ({"src": torch.zeros(B, L, E + 1), "src_key_padding_mask": _right()}, ValueError, "query: shape"),
        ({"src": None}, TypeError, "src: expected a tensor, got NoneType"),
        ({"src": torch.zeros(B, L, E, dtype=torch.int64)}, TypeError, "query: got dtype torch.int64"),
        ({"mask": "causal"}, TypeError, "mask: expected a tensor, got str"),
        ({"src_key_padding_mask": "right"}, TypeError, "src_key_padding_mask: expected a tensor, got str"),
    ],
)  # fmt: skip
def test_encoder_refuses_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        _encoder()(**{"src": torch.zeros(B, L, E), **arguments})


def test_feed_forward_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match="activation: 'swish' is not one of"):
        bk.nn.FeedForward(E, activation="swish")
