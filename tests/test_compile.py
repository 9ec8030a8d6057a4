"""torch.compile: one graph, no graph for a new size, the results of eager."""

from __future__ import annotations

import contextlib

import pytest
import torch
from differentiable import FUNCTIONS
from nn_problems import random, scramble
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import bigkernels as bk
from bigkernels import backends

E, H, HIDDEN = 16, 2, 24
COMPILED_ATTENTION = pytest.mark.skipif(
    backends._ABSENT["attention"] is not None,
    reason=f"packed attention on the reference is a loop: {backends._ABSENT['attention']}",
)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@contextlib.contextmanager
def _one_graph():
    """Asserts that what runs inside compiles once, as one graph without a break."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def _compile(function, **options):
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **options})


def _gradients(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    parts = out if isinstance(out, tuple) else (out,)
    found = torch.autograd.grad([p.sum() for p in parts], leaves, allow_unused=True)
    return [*parts, *(g for g in found if g is not None)]


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        pytest.param(*f[1:], id=f[0], marks=[COMPILED_ATTENTION] if f[0] == "varlen_attn" else [])
        for f in FUNCTIONS
    ],
)
def test_functions_compile_to_one_graph_with_eager_results(function, inputs):
    with _one_graph():
        got = _gradients(_compile(function), inputs)
    torch.testing.assert_close(got, _gradients(function, inputs))


def _layer(**make):
    return scramble(bk.nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True, **make))


def _sizes():
    """One size to compile at, then 50 lengths and 8 batch sizes from 2 on."""
    yield 5, 19
    for at in range(50):
        yield 2 + at % 8, 2 + at


@pytest.mark.parametrize("norm_first", [False, True])
def test_no_recompile_for_a_padded_batch_of_another_size(norm_first):
    encoder = bk.nn.TransformerEncoder(_layer(norm_first=norm_first, dropout=0.2), 1).train()
    compiled = _compile(encoder, dynamic=True)
    with _one_graph():
        for batch, length in _sizes():
            x = random(batch, length, E, seed=0)
            ignore = torch.arange(length) >= torch.randint(1, length + 1, (batch, 1))
            encoder.zero_grad()
            compiled(x, src_key_padding_mask=ignore).sum().backward()
            assert encoder.layers[0].linear1.weight.grad.isfinite().all()


@COMPILED_ATTENTION
def test_no_recompile_for_a_packed_batch_of_another_size():
    layer = _layer().train()

    def run(x, cu_seq):
        qkv = torch.nn.functional.linear(x, layer.self_attn.in_proj_weight).unflatten(
            -1, (3, H, -1)
        )
        mixed = bk.varlen_attn(*qkv.unbind(1), cu_seq, cu_seq, dropout_p=0.2).flatten(1)
        x = bk.add_layer_norm(mixed, x, layer.norm1.weight, layer.norm1.bias, dropout_p=0.2)
        return bk.feed_forward(
            x, layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, None, dropout_p=0.2
        )

    compiled = _compile(run, dynamic=True)
    with _one_graph():
        for batch, length in _sizes():
            lengths = torch.randint(1, length + 1, (batch,))
            cu_seq = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
            layer.zero_grad()
            compiled(random(int(cu_seq[-1]), E, seed=0), cu_seq).sum().backward()
            assert layer.linear1.weight.grad.isfinite().all()


def test_compiled_dropout_and_checkpoints_draw_what_eager_draws():
    layer = _layer(dropout=0.3).train()
    x = random(2, 5, E, seed=0).requires_grad_()
    found = []
    for function in (
        layer,
        _compile(layer),
        _compile(lambda x: checkpoint(layer, x, use_reentrant=False)),
    ):
        torch.manual_seed(3)
        layer.zero_grad()
        out = function(x)
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in layer.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)


def test_inductor_compiles_a_training_step():
    layer = _layer(dropout=0.3, activation="gelu").train()
    inputs = [random(3, 7, E, seed=0), *(p.detach() for p in layer.parameters())]
    names = [name for name, _ in layer.named_parameters()]

    def step(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    torch.manual_seed(3)
    expected = _gradients(step, inputs)
    torch.manual_seed(3)
    with _one_graph():
        got = _gradients(_compile(step, backend="inductor"), inputs)
    torch.testing.assert_close(got, expected)


def test_a_forced_backend_holds_in_compiled_functions():
    x = random(4, 8, seed=0)
    compiled = _compile(lambda x: bk.layer_norm(x, 8))
    plain = compiled(x)
    with bk.use_backend("reference"):
        reference = compiled(x)
    torch.testing.assert_close(plain, reference)
    assert counters["stats"]["unique_graphs"] == 2  # guarded on the backend
    with bk.use_backend("cuda"), pytest.raises(Exception, match="device cpu is not cuda"):
        compiled(x)

    def inside(x):
        with bk.use_backend("cuda"):
            return bk.layer_norm(x, 8)

    with pytest.raises(Exception, match="device cpu is not cuda"):
        _compile(inside)(x)
    assert torch.equal(compiled(x), plain)
