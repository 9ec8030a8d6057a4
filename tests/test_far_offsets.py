"""Tensors of more than 2^31 elements: every Triton kernel counts them in 64 bits.

Their memory is asked for and hardly touched. Of a grid over all of it the emulator runs the last blocks alone; whoever
counts in 32 bits leaves the tensors, and is told so.
"""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm

import bigkernels as bk
from bigkernels.ops import triton_launch
from bigkernels.ops.attention import triton as attention_drawer
from bigkernels.ops.cross_entropy import triton as cross_entropy_drawer
from bigkernels.ops.embedding import triton as embedding_drawer
from bigkernels.ops.ffn import triton as ffn_drawer
from bigkernels.ops.layer_norm import triton as layer_norm_drawer
from bigkernels.ops.packing import triton as packing_drawer
from bigkernels.ops.triton_launch import NO_DROPOUT
from tests.emulator.core import Options

HALF = torch.float16
N, CLASSES = 4096, 1 << 15
ROWS, TOKENS = (1 << 31) // N + 3, (1 << 31) // CLASSES + 3
# What is looked at: the last rows, and of those that take several blocks what the last ones write.
LAST, COLUMNS = 3, slice(-16, None)


def runs(device, last=0):
    """Skips all but emulated Triton, of whose launches the last blocks run; 0: all."""
    if device.backend != "triton":
        pytest.skip("tiles belong to the Triton kernels")
    if not device.architecture:
        pytest.skip(f"{device.name}: too large for the interpreter")
    device.emulation.options = Options(checked=False, last=last, init_fences=False)


@pytest.fixture
def emulation(device, monkeypatch):
    """That of a Triton device, on which the last blocks of each launch run, and each row has a program."""
    runs(device, last=4)
    # What is not computed is not an error.
    monkeypatch.setattr(torch, "_assert_async", lambda *given: None)
    monkeypatch.setattr(triton_launch, "row_programs", lambda device, blocks, tile: blocks)
    monkeypatch.setattr(triton_launch, "column_sums", lambda partials, dtype: partials)
    return device.emulation


def ending(rows, n=N):
    """(rows, n), of which the last are random, and these alone."""
    x = torch.empty(rows, n, dtype=HALF)
    x[-LAST:] = torch.randn(LAST, n)
    return x, x[-LAST:].float()


def close(got, expected):
    torch.testing.assert_close(got.float(), expected, atol=4e-3, rtol=4e-3)


def test_layer_norm(emulation):
    x, last = ending(ROWS)
    weight, bias = torch.randn(2, N, dtype=HALF)
    out, mean, rstd = layer_norm_drawer.layer_norm_forward(x, weight, bias, N, 1e-5)
    last.requires_grad_()
    scale = weight.float().requires_grad_()
    expected = layer_norm(last, (N,), scale, bias.float(), 1e-5)
    close(out[-LAST:], expected)
    dout, dlast = ending(ROWS)
    found = layer_norm_drawer.layer_norm_backward(dout, x, mean, rstd, weight, N, True, True, True)
    dx, dweight = torch.autograd.grad(expected, (last, scale), dlast)
    close(found[0][-LAST:], dx)
    close(found[1][-LAST:].sum(0), dweight)


def test_embedding(emulation):
    word, last = ending(ROWS)
    ids = torch.zeros(ROWS, dtype=torch.int64)
    ids[-LAST:] = ROWS - LAST + torch.arange(LAST)
    absent = (None,) * 4
    nothing = (0.0, None, None, None)
    out, mean, rstd = embedding_drawer.embedding_forward(
        ids, word, *absent, None, None, 1e-5, *nothing
    )
    last.requires_grad_()
    expected = layer_norm(last, (N,), eps=1e-5)
    close(out[-LAST:], expected)
    dout, dlast = ending(ROWS)
    needs = (True, False, False, False, False)
    found = embedding_drawer.embedding_backward(
        dout, mean, rstd, ids, word, *absent, None, -1, -1, *nothing, *needs
    )
    (dword,) = torch.autograd.grad(expected, last, dlast)
    close(found[0][-LAST:, COLUMNS], dword[:, COLUMNS])


def test_cross_entropy(emulation):
    logits, last = ending(TOKENS, CLASSES)
    target = torch.randint(CLASSES, (TOKENS,))
    loss, lse, rows = cross_entropy_drawer.cross_entropy_forward(
        logits, target, -100, 0.0, "none", True
    )
    last.requires_grad_()
    expected = cross_entropy(last, target[-LAST:], reduction="none")
    close(loss[-LAST:], expected)
    dout = torch.ones(TOKENS)
    found = cross_entropy_drawer.cross_entropy_backward(dout, logits, lse, rows, target, -100, 0.0)
    (dlogits,) = torch.autograd.grad(expected.sum(), last)
    close(found[-LAST:, COLUMNS], dlogits[:, COLUMNS])


def test_packing(emulation):
    x, last = ending(ROWS)
    out = packing_drawer.packing_forward(x, torch.arange(ROWS))
    close(out[-LAST:, COLUMNS], last[:, COLUMNS])


def test_ffn(emulation):
    width = 16
    x, dout, weight = torch.randn(ROWS, width), torch.randn(ROWS, width), torch.randn(2, N, width)
    x, dout, (weight1, weight2) = x.to(HALF), dout.to(HALF), weight.to(HALF)
    absent = (None, None)
    call = ffn_drawer._call(x, weight1, None, weight2.t(), *absent, "gelu", NO_DROPOUT)
    pre, _, hidden = call.first_products((ROWS, N), True)
    expected = x[-LAST:].float() @ weight1.float().t()
    close(pre[-LAST:, COLUMNS], expected[:, COLUMNS])
    close(hidden[-LAST:, COLUMNS], gelu(expected[:, COLUMNS]))
    pre[-LAST:] = expected.to(HALF)
    wanted = (True, False, False, True, False)
    dpre, *_ = ffn_drawer._hidden_gradients(call, dout, pre, None, wanted)
    leaf = expected.requires_grad_()
    (dexpected,) = torch.autograd.grad(gelu(leaf), leaf, dout[-LAST:].float() @ weight2.float().t())
    torch.testing.assert_close(
        dpre[-LAST:, COLUMNS].float(), dexpected[:, COLUMNS], atol=2e-2, rtol=1e-2
    )


def test_sums_of_columns(device):
    runs(device, last=2)
    partial = torch.empty(70, (1 << 31) // 69)
    partial[:, -64:] = torch.randn(70, 64)
    (total,) = triton_launch.column_sums([partial], torch.float32)
    torch.testing.assert_close(total[COLUMNS], partial[:, COLUMNS].sum(0))


def far(shape, dim, step):
    """Random, and the elements of a dimension `step` apart."""
    strides = list(torch.empty(shape, device="meta").stride())
    strides[dim] = step
    size = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return torch.empty(size, dtype=HALF).as_strided(shape, strides).copy_(torch.randn(shape))


def agree(reference, q, k, v, mask, dout, ends=None):
    """The kernels' results on strided tensors and those of the reference on dense ones."""
    length = -1 if ends is None else q.shape[0]
    rule = (q.shape[-1] ** -0.5, 0, -1, -1, 0.0, None, None, 0.0, None, None, None)
    call = (q, k, v, mask, None, ends, ends, length, length, *rule)
    out, lse = attention_drawer.attention_forward(*call)
    bias = mask is not None
    found = attention_drawer.attention_backward(dout, None, *call[:3], out, lse, *call[3:], bias)
    given = [q, k, v, mask] if bias else [q, k, v]
    leaves = [x.float().contiguous().requires_grad_() for x in given]
    expected = reference(*leaves)
    close(out, expected)
    gradients = torch.autograd.grad(expected, leaves, dout.float())
    for got, exact in zip(found, gradients, strict=False):
        torch.testing.assert_close(got.float(), exact, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dim", [0, 1], ids=["samples", "heads"])
def test_attention(dim, device):
    runs(device)
    step = (1 << 31) + 64
    q, k, v, dout = (far((2, 2, 20, 32), dim, step) for _ in range(4))
    mask = far((2, 2, 20, 20), dim, step)
    agree(
        functools.partial(bk.scaled_dot_product_attention, backend="reference"), q, k, v, mask, dout
    )


def test_packed_attention(device):
    runs(device)
    tokens, step = 340, (1 << 23) - 64
    q, k, v, dout = (far((tokens, 1, 16), 0, step) for _ in range(4))
    ends = torch.tensor([0, 10, tokens])

    def reference(*leaves):
        return bk.varlen_attn(*leaves, ends, ends, tokens, tokens, backend="reference")

    agree(reference, q, k, v, None, dout, ends)
