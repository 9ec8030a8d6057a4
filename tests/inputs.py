"""What the rooms' property tests share: the dtypes, random inputs, a function's results with its gradients."""

import pytest
import torch

HALVES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", HALVES, ids=("f32", "bf16", "f16"))


def draw(device, dtype, *shapes):
    """Normal random tensors of the shapes, on the device."""
    return [torch.randn(shape).to(device.type, dtype) for shape in shapes]


def gradients(function, *inputs, dout=None):
    """Output of the function and gradients of its inputs that are not None.

    dout: the gradient of the output, default a fixed random one.
    """
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    out = function(*leaves)
    if dout is None:
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out)
    return [out.detach(), *torch.autograd.grad(out, [t for t in leaves if t is not None], dout)]


def moved(t, shift):
    """The same values in memory that starts `shift` elements after an allocation."""
    room = torch.empty(t.numel() + shift, dtype=t.dtype, device=t.device)
    return room[shift:].view(t.shape).copy_(t)
