"""Second differentiation where one input of an operation is made from another one."""

import pytest
import torch
import torch.nn.functional as F

import bigkernels as bk

N = 6


def penalty(function):
    """Gradient of a gradient penalty on w, from which x is made too."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(N, dtype=torch.float64, generator=generator).requires_grad_()
    x = (torch.randn(3, N, dtype=torch.float64, generator=generator) * w).tanh()
    (dw,) = torch.autograd.grad((function(x, w) ** 3).sum(), w, create_graph=True)
    return torch.autograd.grad(dw.square().sum(), w)[0]


CASES = {
    "layer_norm": (
        lambda x, w: bk.layer_norm(x, N, w),
        lambda x, w: F.layer_norm(x, (N,), w),
    ),
    "add_layer_norm": (
        lambda x, w: bk.add_layer_norm(x, x * w, w, w),
        lambda x, w: F.layer_norm(x + x * w, (N,), w, w),
    ),
    "attention": (
        lambda x, w: bk.scaled_dot_product_attention(x, x * w, x),
        lambda x, w: torch.softmax(x @ (x * w).T * N**-0.5, -1) @ x,
    ),
    "feed_forward": (
        lambda x, w: bk.feed_forward(x, w.outer(w), w, w.outer(w), w),
        lambda x, w: F.linear(F.gelu(F.linear(x, w.outer(w), w)), w.outer(w), w),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_inputs_that_depend_on_each_other(name):
    ours, plain = CASES[name]
    torch.testing.assert_close(penalty(ours), penalty(plain), rtol=1e-9, atol=1e-9)
