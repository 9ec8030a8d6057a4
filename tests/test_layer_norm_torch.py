"""layer_norm and add_layer_norm as citizens of torch: derivatives of any kind, transforms, autocast, compile."""

import contextlib
import copy

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import bigkernels as bk
from bigkernels.ops.layer_norm.contract import Facts

N = 6
# torch.compile refuses the dispatch mode by which an emulated device follows allocations.
EAGER_ONLY = "an emulated device follows eager calls only"


def require(device, dtype, op="add_layer_norm", dropout=False):
    device.require("layer_norm", Facts(op, device.type, dtype, dtype, N, dropout, True))


def draw(device, dtype, *shapes):
    return [torch.randn(shape).to(device.type, dtype).requires_grad_() for shape in shapes]


def layer_norm(device):
    return lambda x, weight, bias: bk.layer_norm(x, (N,), weight, bias, backend=device.backend)


def add_layer_norm(device, dropout_p=0.0, return_sum=False):
    def call(x, residual, weight, bias, x_bias):
        return bk.add_layer_norm(
            x,
            residual,
            weight,
            bias,
            1e-5,
            x_bias=x_bias,
            dropout_p=dropout_p,
            seed=11,
            return_sum=return_sum,
            backend=device.backend,
        )

    return call


ADD_SHAPES = ((3, N), (3, N), (N,), (N,), (N,))


def test_first_and_second_derivatives_of_layer_norm(device):
    require(device, torch.float64, "layer_norm")
    inputs = draw(device, torch.float64, (3, N), (N,), (N,))
    assert gradcheck(layer_norm(device), inputs)
    assert gradgradcheck(layer_norm(device), inputs)


@pytest.mark.parametrize("return_sum", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_first_and_second_derivatives_of_add_layer_norm(dropout_p, return_sum, device):
    require(device, torch.float64, dropout=dropout_p > 0)
    inputs = draw(device, torch.float64, *ADD_SHAPES)
    assert gradcheck(add_layer_norm(device, dropout_p, return_sum), inputs)
    assert gradgradcheck(add_layer_norm(device, dropout_p, return_sum), inputs)


def test_second_derivatives_of_a_single_row(device):
    require(device, torch.float64)
    inputs = draw(device, torch.float64, *((N,) for _ in range(5)))
    assert gradgradcheck(add_layer_norm(device, return_sum=True), inputs)


def test_a_gradient_penalty_agrees_with_torch(device):
    require(device, torch.float32)
    x, residual, weight, bias, x_bias = draw(device, torch.float32, *ADD_SHAPES)

    def penalty(out):
        (dx,) = torch.autograd.grad((out**3).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, residual, weight, x_bias))

    ours = penalty(add_layer_norm(device)(x, residual, weight, bias, x_bias))
    theirs = penalty(F.layer_norm(x + x_bias + residual, (N,), weight, bias, 1e-5))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_forward_mode_agrees_with_torch(device):
    require(device, torch.float32)
    primals = [t.detach() for t in draw(device, torch.float32, *ADD_SHAPES)]
    tangents = [torch.randn_like(t) for t in primals]

    def plain(x, residual, weight, bias, x_bias):
        return F.layer_norm(x + x_bias + residual, (N,), weight, bias, 1e-5)

    def jvp(function):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
            return forward_ad.unpack_dual(function(*duals))

    ours, theirs = jvp(add_layer_norm(device)), jvp(plain)
    torch.testing.assert_close(ours.tangent, theirs.tangent)
    torch.testing.assert_close(ours.primal, theirs.primal)
    value, tangent = torch.func.jvp(add_layer_norm(device), tuple(primals), tuple(tangents))
    torch.testing.assert_close(tangent, theirs.tangent)
    torch.testing.assert_close(value, theirs.primal)


def test_vmap_and_functional_gradients_agree_with_torch(device):
    require(device, torch.float32, "layer_norm")
    x, weight, bias = (t.detach() for t in draw(device, torch.float32, (4, 5, N), (N,), (N,)))
    call = layer_norm(device)

    def plain(x, weight, bias):
        return F.layer_norm(x, (N,), weight, bias)

    torch.testing.assert_close(
        torch.vmap(call, (0, None, None))(x, weight, bias), plain(x, weight, bias)
    )
    torch.testing.assert_close(
        torch.vmap(call, (1, None, None), 1)(x, weight, bias), plain(x, weight, bias)
    )

    def per_sample(function):
        loss = torch.func.grad(lambda w, sample: (function(sample, w, bias) ** 2).sum())
        return torch.vmap(loss, (None, 0))(weight, x)

    torch.testing.assert_close(per_sample(call), per_sample(plain))
    torch.testing.assert_close(
        torch.func.jacrev(call)(x[0], weight, bias), torch.func.jacrev(plain)(x[0], weight, bias)
    )


def autocast(device, dtype):
    return torch.autocast(device.type, dtype=dtype)


LOW = {"cpu": torch.bfloat16, "cuda": torch.float16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_autocast_of_layer_norm_is_torch_s(dtype, device):
    require(device, dtype, "layer_norm")
    x, weight, bias = draw(device, dtype, (3, N), (N,), (N,))
    with autocast(device, LOW[device.type]):
        ours = layer_norm(device)(x, weight, bias)
        theirs = F.layer_norm(x, (N,), weight, bias)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.float16], ids=str)
def test_add_layer_norm_promotes_with_and_without_autocast(x_dtype, residual_dtype, device):
    expected = torch.promote_types(x_dtype, residual_dtype)
    require(device, expected)
    (x,) = draw(device, x_dtype, (3, N))
    (residual,) = draw(device, residual_dtype, (3, N))
    weight, bias, x_bias = draw(device, torch.float32, (N,), (N,), (N,))
    for context in (contextlib.nullcontext(), autocast(device, LOW[device.type])):
        with context:
            out, total = add_layer_norm(device, return_sum=True)(x, residual, weight, bias, x_bias)
        assert out.dtype == total.dtype == expected
        found = torch.autograd.grad(out.float().sum() + total.float().sum(), (x, residual, weight))
        assert [g.dtype for g in found] == [x_dtype, residual_dtype, torch.float32]


def test_no_graph_is_built_where_none_is_wanted(device):
    require(device, torch.float32, "layer_norm")
    x, weight, bias = draw(device, torch.float32, (3, N), (N,), (N,))
    call = layer_norm(device)
    with torch.no_grad():
        assert not call(x, weight, bias).requires_grad
    with torch.inference_mode():
        assert call(x, weight, bias).is_inference()
    assert call(x.detach(), weight, bias).requires_grad
    assert not call(x.detach(), weight.detach(), bias.detach()).requires_grad


class Block(torch.nn.Module):
    """Both operations with dropout, as a layer of a model uses them."""

    def __init__(self, width, backend):
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.linear = torch.nn.Linear(width, width)
        self.backend = backend

    def forward(self, x):
        y = bk.layer_norm(
            x, self.first.normalized_shape, self.first.weight, self.first.bias, backend=self.backend
        )
        y = F.linear(y, self.linear.weight)
        return bk.add_layer_norm(
            y,
            x,
            self.second.weight,
            self.second.bias,
            x_bias=self.linear.bias,
            dropout_p=0.1,
            backend=self.backend,
        )


@pytest.mark.parametrize("dynamic", [True, None], ids=("dynamic", "marked"))
def test_compiles_into_one_graph_for_all_lengths(dynamic, device):
    require(device, torch.float32, dropout=True)
    if device.architecture:
        pytest.skip(EAGER_ONLY)
    torch._dynamo.reset()
    block = Block(16, device.backend).to(device.type)
    compiled = torch.compile(
        copy.deepcopy(block), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    # First two sizes that differ: dynamo takes equal ones for the same.
    lengths = [7, *range(2, 52)]
    sizes = [(2, length) for length in lengths] + [(batch, 5) for batch in range(3, 10)]
    for batch, length in sizes[::20] if device.slow else sizes:
        results = []
        for function in (block, compiled):
            torch.manual_seed(3)
            x = torch.randn(batch, length, 16, device=device.type, requires_grad=True)
            if dynamic is None:
                torch._dynamo.mark_dynamic(x, (0, 1))
            with torch._dynamo.config.patch(error_on_recompile=True):
                out = function(x)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), x)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.full
def test_inductor_agrees_with_eager(device):
    require(device, torch.float32, dropout=True)
    if device.architecture:
        pytest.skip(EAGER_ONLY)
    torch._dynamo.reset()
    block = Block(16, device.backend).to(device.type)
    compiled = torch.compile(block, fullgraph=True)
    x = torch.randn(2, 7, 16, device=device.type)
    found = []
    for function in (block, compiled):
        torch.manual_seed(3)
        out = function(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(block.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_exports(device):
    require(device, torch.float32, "layer_norm")
    if device.architecture:
        pytest.skip(EAGER_ONLY)
    (x,) = (t.detach() for t in draw(device, torch.float32, (2, 5, N)))

    class Norm(torch.nn.LayerNorm):
        def forward(self, x):
            shape = self.normalized_shape
            return bk.layer_norm(x, shape, self.weight, self.bias, backend=device.backend)

    length = torch.export.Dim("length", min=2, max=64)
    module = Norm(N).to(device.type).eval()
    program = torch.export.export(module, (x,), dynamic_shapes=({1: length},))
    longer = torch.randn(2, 9, N, device=device.type)
    torch.testing.assert_close(program.module()(longer), module(longer))
