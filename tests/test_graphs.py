"""A bf16 encoder layer as torch.compile and CUDA graphs take it: one graph of our GPU kernels, nothing to wait for."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import bigkernels as bk
from bigkernels import backends
from bigkernels.ops import triton_launch

E, H, HIDDEN = 128, 2, 256
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _layer(device: str, dropout: float = 0.1) -> torch.nn.Module:
    make = {"batch_first": True, "dropout": dropout, "device": device, "dtype": torch.bfloat16}
    return bk.nn.TransformerEncoderLayer(E, H, HIDDEN, **make).train()


def _step(layer: torch.nn.Module, x: torch.Tensor, ignore: torch.Tensor) -> list[torch.Tensor]:
    """Forward and backward: the result, and all gradients."""
    out = layer(x, src_key_padding_mask=ignore)
    return [out, *torch.autograd.grad(out.float().sum(), [x, *layer.parameters()])]


@pytest.mark.skipif(triton_launch.MISSING is not None, reason=str(triton_launch.MISSING))
def test_a_layer_of_our_gpu_kernels_is_one_graph_that_reads_no_value(monkeypatch):
    """Traced on tensors without memory, of the CPU as torch without CUDA has no others, which a GPU's drawers are told
    to take: an .item() or a size that values decide would stop it."""
    monkeypatch.setattr(backends, "_ON_CPU", frozenset({"triton"}))
    layer = _layer("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        empty = functools.partial(torch.empty, dtype=torch.bfloat16)
        named = {name: empty(p.shape, requires_grad=True) for name, p in layer.named_parameters()}
        x = empty(4, 32, E, requires_grad=True)
        ignore = torch.empty(4, 32, dtype=torch.bool)

        def step(x: torch.Tensor, ignore: torch.Tensor) -> list[torch.Tensor]:
            given = {"src_key_padding_mask": ignore}
            out = torch.func.functional_call(layer, named, (x,), given)
            return [out, *torch.autograd.grad(out.float().sum(), [x, *named.values()])]

        with bk.use_backend("triton"):
            graph = make_fx(step)(x, ignore).graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    for room in ("attention", "ffn", "add_layer_norm"):
        for direction in ("forward", "backward"):
            kinds = {
                n.split(".")[1] for n in names if n.startswith(f"bigkernels.{room}_{direction}")
            }
            assert kinds == {f"{room}_{direction}_triton"}
    assert any("philox_seed" in name for name in names)  # a tensor, drawn in the graph
    waits = ("_local_scalar_dense", "nonzero", "aten.item", "masked_select", "_unique")
    assert not [name for name in names if any(wait in name for wait in waits)]


@on_gpu
@pytest.mark.parametrize("length", [33, 128])
def test_a_cuda_graph_of_a_layer_replays_what_eager_computes(length):
    """Without dropout bit for bit; with it, replays draw anew. New values, same addresses."""
    layer = _layer("cuda", 0.0)
    x = torch.randn(4, length, E, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    ignore = torch.arange(length, device="cuda") >= torch.tensor(
        [[9], [length], [3], [17]], device="cuda"
    )
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            _step(layer, x, ignore)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _step(layer, x, ignore)
    for seed in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        for got, expected in zip(found, _step(layer, x, ignore), strict=True):
            assert torch.equal(got, expected)


@on_gpu
def test_a_compiled_layer_on_cuda_graphs_agrees_with_eager():
    layer = _layer("cuda", 0.0)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True, mode="reduce-overhead")
    for length in (64, 64, 96, 96):
        x = torch.randn(4, length, E, dtype=torch.bfloat16, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(compiled(x), layer(x), rtol=3e-2, atol=3e-2)
