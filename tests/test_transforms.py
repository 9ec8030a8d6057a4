"""torch's transforms of our functions: derivatives of every order and kind, batched, compiled and composed."""

from __future__ import annotations

import pytest
import torch
from differentiable import FUNCTIONS, functions
from nn_problems import pair, random
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import bigkernels as bk


@functions
def test_gradients_and_forward_derivatives_are_exact(function, inputs):
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)


@functions
def test_second_derivatives_are_exact(function, inputs):
    assert torch.autograd.gradgradcheck(
        function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
    )


@functions
def test_vmap_equals_a_loop(function, inputs):
    batched = [torch.stack([x.detach(), x.detach() * 0.5 + 0.1]) for x in inputs]
    expected = [function(*(x[at] for x in batched)) for at in range(2)]
    got = torch.func.vmap(function)(*batched)
    if isinstance(got, Tensor):
        got, expected = (got,), [(e,) for e in expected]
    for part, *singles in zip(got, *expected, strict=True):
        torch.testing.assert_close(part, torch.stack(singles))


@pytest.mark.parametrize("name", [f[0] for f in FUNCTIONS if f[0] != "varlen_attn"])
def test_compiled_transforms_equal_eager_ones(name):
    """The arguments that a transform differentiates do not look as if they required gradients there.

    Packed sequences are an error in torch.compile: the reference's loop over them depends on their ends.
    """
    function, inputs = next(f[1:] for f in FUNCTIONS if f[0] == name)

    def total(*x):
        out = function(*x)
        return sum(o.square().sum() for o in ((out,) if isinstance(out, Tensor) else out))

    def gradients(*x):
        return torch.func.grad(total, tuple(range(len(x))))(*x)

    def tangent(*x):
        return torch.func.jvp(total, x, tuple(t.cos() for t in x))

    given = [x.detach() for x in inputs]
    for transform in (gradients, tangent):
        torch._dynamo.reset()
        compiled = torch.compile(transform, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*given), transform(*given))


@functions
def test_a_backward_keeps_the_tangents_of_its_gradient(function, inputs):
    """Of a forward outside of forward-mode AD, too."""
    out = function(*inputs)
    out = out if isinstance(out, Tensor) else out[0]
    twice = torch.ones_like(out), random(*out.shape, seed=9, dtype=out.dtype)
    one, other = (torch.autograd.grad(out, inputs[0], g, retain_graph=True)[0] for g in twice)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(*twice)
        (dx,) = torch.autograd.grad(out, inputs[0], dual)
        found = torch.autograd.forward_ad.unpack_dual(dx)
        torch.testing.assert_close((found.primal, found.tangent), (one, other))


def test_transforms_compose_through_a_module():
    """Per-sample gradients and a Hessian-vector product, as torch.func computes them for torch's module."""
    ours, theirs = pair("TransformerEncoderLayer", 16, 2, 24, batch_first=True, activation="gelu")
    x = random(3, 5, 16, seed=0, dtype=torch.float64)
    found = []
    for layer in (ours.double(), theirs.double()):
        parameters = dict(layer.named_parameters())

        def loss(p, sample, layer=layer):
            return torch.func.functional_call(layer, p, (sample[None],)).square().sum()

        tangent = {n: torch.ones_like(p) for n, p in parameters.items()}
        total = torch.func.grad(lambda p, loss=loss: loss(p, x[0]))
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no forward derivative
            each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
            product = torch.func.jvp(total, (parameters,), (tangent,))[1]
        found.append((each, product))
    torch.testing.assert_close(found[0], found[1])


def _dropped(x: Tensor) -> Tensor:
    return bk.add_layer_norm(x, torch.zeros_like(x), None, None, dropout_p=0.5, return_sum=True)[1]  # type: ignore[no-any-return]


def test_dropout_obeys_the_randomness_of_vmap():
    x = torch.ones(3, 4, 32)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(_dropped)(x)
    same = torch.vmap(_dropped, randomness="same")(x)
    assert torch.equal(same, same[:1].expand_as(same))
    assert 0 < (same == 0).sum() < same.numel()
    different = torch.vmap(_dropped, randomness="different")(x)
    assert not torch.equal(different[0], different[1])
    weights, one = torch.ones(2, 32, 32), torch.ones(4, 32)  # only a weight is mapped
    for p, alike in (("same", True), ("different", False)):
        call = lambda w: bk.feed_forward(one, w, None, torch.eye(32), None, dropout_p=0.5)  # noqa: E731
        out = torch.vmap(call, randomness=p)(weights)
        assert torch.equal(out[0], out[1]) == alike
    q = torch.randn(2, 1, 2, 8, 8)
    attend = lambda q: bk.scaled_dot_product_attention(q, q, q, dropout_p=0.5)  # noqa: E731
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(attend)(q)
    same = torch.vmap(attend, randomness="same")(q[:1].expand_as(q))
    assert torch.equal(same[0], same[1])
