"""What users put into torch's encoders keeps its effect: forwards and blocks of their own, hooks, other norms."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nn_problems import random, scramble
from torch import nn

import bigkernels as bk

B, L, E, H, HIDDEN = 3, 5, 16, 4, 24
IGNORE = torch.arange(L) >= torch.tensor([L, 3, 1])[:, None]


@pytest.fixture(autouse=True)
def _slow_path() -> Iterator[None]:
    """torch's fast path ignores overridden blocks itself, and mixes other zeros into what follows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def _stock(norm_first: bool = False, norm: nn.Module | None = None) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        E, H, HIDDEN, 0.0, nn.GELU(), batch_first=True, norm_first=norm_first
    )
    return scramble(nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)).eval()


def _ours(stock: nn.TransformerEncoder, how: str) -> nn.TransformerEncoder:
    """The same by ``accelerate``, or built of bigkernels.nn with the same children."""
    if how == "accelerate":
        bk.accelerate(stock)
        stock.enable_nested_tensor = True
        return stock
    layer = bk.nn.TransformerEncoderLayer(E, H, HIDDEN, 0.0, nn.GELU(), batch_first=True)
    ours = bk.nn.TransformerEncoder(layer, 2, stock.norm).eval()
    for mine, theirs in zip(ours.layers, stock.layers, strict=True):
        mine.__dict__.update(theirs.__dict__)
    return ours


def _double(module: nn.Module, name: str) -> None:
    """Replaces a method on the instance, in a way that survives changing the module's class."""
    before = getattr(type(module), name)
    body = lambda self, *a, **k: before(self, *a, **k) * 2  # noqa: E731
    setattr(module, name, types.MethodType(body, module))


def _forward_of(path: str) -> Any:
    return lambda layer: _double(layer.get_submodule(path), "forward")


CHANGES = {
    "linear1": _forward_of("linear1"),
    "linear2": _forward_of("linear2"),
    "dropout": _forward_of("dropout"),
    "dropout1": _forward_of("dropout1"),
    "activation": _forward_of("activation"),
    "norm1": _forward_of("norm1"),
    "norm2": _forward_of("norm2"),
    "_sa_block": lambda layer: _double(layer, "_sa_block"),
    "_ff_block": lambda layer: _double(layer, "_ff_block"),
}


@pytest.mark.parametrize("how", ["accelerate", "nn"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_method_of_its_own_is_obeyed(change, norm_first, how):
    stock = _stock(norm_first)
    CHANGES[change](stock.layers[0])
    x = random(B, L, E, seed=0)
    padded, whole = stock(x, src_key_padding_mask=IGNORE), stock(x)
    ours = _ours(stock, how)
    torch.testing.assert_close(ours(x), whole)
    out = ours(x, src_key_padding_mask=IGNORE)
    torch.testing.assert_close(out[~IGNORE], padded[~IGNORE])


def test_a_block_overridden_in_a_subclass_is_obeyed_and_named():
    class Louder(bk.nn.TransformerEncoderLayer):
        def _ff_block(self, x):
            return super()._ff_block(x) * 2

    ours = scramble(Louder(E, H, HIDDEN, batch_first=True)).eval()
    stock = nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True).eval()
    stock.load_state_dict(ours.state_dict())
    _double(stock, "_ff_block")
    x = random(B, L, E, seed=0)
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x, causal, IGNORE), stock(x, causal, IGNORE))
    assert ours.unfused_reasons()[0] == "_ff_block is overridden"


class Centred(nn.Module):
    """Mixes the positions of a batch (B, L, E)."""

    def forward(self, x):
        assert x.dim() == 3
        return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("make", [Centred, lambda: nn.InstanceNorm1d(L)])
@pytest.mark.parametrize("where", ["norm", "norm1", "norm2"])
def test_a_norm_that_mixes_positions_sees_the_padded_batch(where, make):
    stock = _stock(norm=make() if where == "norm" else None)
    if where != "norm":
        setattr(stock.layers[0], where, make())
    x = random(B, L, E, seed=0)
    expected = stock(x, src_key_padding_mask=IGNORE)
    out = _ours(stock, "accelerate")(x, src_key_padding_mask=IGNORE)
    torch.testing.assert_close(out[~IGNORE], expected[~IGNORE])


@pytest.mark.parametrize(
    "path", ["norm", "layers.0.linear1", "layers.1.dropout2", "layers.0.norm2"]
)
def test_hooks_inside_see_the_padded_batch(path):
    ours = _ours(_stock(norm=nn.LayerNorm(E)), "accelerate")
    expected = ours(random(B, L, E, seed=0), src_key_padding_mask=IGNORE)
    seen = []
    ours.get_submodule(path).register_forward_hook(lambda m, i, o: seen.append(i[0].shape))
    out = ours(random(B, L, E, seed=0), src_key_padding_mask=IGNORE)
    assert [tuple(shape[:2]) for shape in seen] == [(B, L)]
    torch.testing.assert_close(out, expected)


def test_feed_forward_obeys_forwards_of_its_children():
    for path in ("linear1", "dropout", "linear2", "activation"):
        ours = scramble(bk.nn.FeedForward(E, HIDDEN, activation=nn.GELU())).eval()
        _double(ours.get_submodule(path), "forward")
        plain = nn.Sequential(ours.linear1, ours.activation, ours.dropout, ours.linear2)
        x = random(B, E, seed=0)
        torch.testing.assert_close(ours(x), plain(x))
        assert ours.unfused_reasons()


def test_the_report_names_a_layer_with_its_own_block():
    stock = _stock()
    _double(stock.layers[1], "_sa_block")
    assert bk.accelerate(stock).report().skipped == {"layers.1": "_sa_block is overridden"}
    assert type(stock.layers[1]) is nn.TransformerEncoderLayer
