"""Attention on the CPU, bit for bit: neither padding nor neighbours, threads or later tokens matter."""

import pytest
import torch

import bigkernels as bk
from bigkernels import library

pytestmark = pytest.mark.skipif(
    library.extension_error is not None, reason=str(library.extension_error)
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["open", "causal"])
LENGTHS = (300, 17, 64, 1, 263)  # around the blocks of the kernels
HEADS, DIM = 2, 64


@pytest.fixture
def packed(dtype):
    """q, k, v (T, H, D)"""
    return [torch.randn(sum(LENGTHS), HEADS, DIM).to(dtype) for _ in "qkv"]


def padded(packed):
    """(B, H, L, D) of each."""
    split = [x.split(LENGTHS) for x in packed]
    dense = [torch.nn.utils.rnn.pad_sequence(s, batch_first=True).transpose(1, 2) for s in split]
    return [x.contiguous() for x in dense]


def attend(q, k, v, **options):
    return bk.scaled_dot_product_attention(q, k, v, backend="cpu", return_lse=True, **options)


@DTYPES
@CAUSAL
def test_packed_equals_padded_by_mask_or_by_lengths(packed, causal):
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    options = {"is_causal": causal, "dropout_p": 0.1, "seed": 5}
    expected = bk.varlen_attn(*packed, ends, ends, backend="cpu", **options)
    lengths = torch.tensor(LENGTHS)
    mask = (torch.arange(max(LENGTHS)) < lengths[:, None])[:, None, None]
    for padding in ({"attn_mask": mask}, {"key_lengths": lengths}):
        out, _ = attend(*padded(packed), **padding, **options)
        real = [out[b, :, :length].transpose(0, 1) for b, length in enumerate(LENGTHS)]
        assert torch.equal(torch.cat(real), expected), padding


@DTYPES
@CAUSAL
def test_a_sample_alone_and_one_thread_give_the_same_bits(packed, causal):
    q, k, v = padded(packed)
    together = attend(q, k, v, is_causal=causal)
    torch.set_num_threads(1)
    for b in range(len(LENGTHS)):
        alone = attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], is_causal=causal)
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[b])


@DTYPES
def test_later_tokens_change_no_bit_of_earlier_ones(packed, dtype):
    q, k, v = padded(packed)
    out, lse = attend(q, k, v, is_causal=True)
    for length in (1, 16, 33, 256, 270):
        head, lse_head = attend(*(x[:, :, :length] for x in (q, k, v)), is_causal=True)
        assert torch.equal(head, out[:, :, :length]), length
        assert torch.equal(lse_head, lse[:, :, :length]), length


@DTYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sample_and_out_of_padding(packed, bad):
    lengths = torch.tensor(LENGTHS)
    q, k, v = padded(packed)
    expected = attend(q, k, v, key_lengths=lengths)
    for x in (k, v):
        for b, length in enumerate(LENGTHS):
            x[b, :, length:] = bad
    got = attend(q, k, v, key_lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    q[1, 0, 3], k[2, 1, 5], v[4, 0, 9] = bad, bad, bad
    out, _ = attend(q, k, v, key_lengths=lengths)
    assert torch.equal(out[[0, 3]], expected[0][[0, 3]])
    for b, head in ((1, 0), (2, 1), (4, 0)):
        assert not out[b, head].isfinite().all()
        assert torch.equal(out[b, 1 - head], expected[0][b, 1 - head])


def gradients(function, inputs, dout, **options):
    """Of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, backend="cpu", **options)
    return torch.autograd.grad(out, leaves, dout)


@DTYPES
@CAUSAL
def test_packed_gradients_equal_padded_ones(packed, dtype, causal):
    dout = torch.randn(sum(LENGTHS), HEADS, DIM).to(dtype)
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    options = {"is_causal": causal, "dropout_p": 0.1, "seed": 5}
    expected = gradients(
        lambda q, k, v, **all_: bk.varlen_attn(q, k, v, ends, ends, **all_), packed, dout, **options
    )
    lengths = torch.tensor(LENGTHS)
    mask = (torch.arange(max(LENGTHS)) < lengths[:, None])[:, None, None]
    dense, (padded_dout,) = padded(packed), padded([dout])
    for padding in ({"attn_mask": mask}, {"key_lengths": lengths}):
        got = gradients(bk.scaled_dot_product_attention, dense, padded_dout, **padding, **options)
        for one, all_ in zip(got, expected, strict=True):
            real = [one[b, :, :length].transpose(0, 1) for b, length in enumerate(LENGTHS)]
            assert torch.equal(torch.cat(real), all_), padding


@DTYPES
@CAUSAL
def test_gradients_do_not_depend_on_threads_or_other_samples(packed, dtype, causal):
    # Two heads of 300 keys on two threads: dq has a pass of its own; alone on one it has none.
    inputs, dout = padded(packed), torch.randn(len(LENGTHS), HEADS, max(LENGTHS), DIM).to(dtype)
    together = gradients(bk.scaled_dot_product_attention, inputs, dout, is_causal=causal)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        alone = gradients(
            bk.scaled_dot_product_attention,
            [x[:1] for x in inputs],
            dout[:1],
            is_causal=causal,
        )
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[0]), threads


@DTYPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_read_nothing_behind_a_sample_and_keep_what_is_not_finite(packed, dtype, bad):
    lengths = torch.tensor(LENGTHS)
    inputs, dout = padded(packed), torch.randn(len(LENGTHS), HEADS, max(LENGTHS), DIM).to(dtype)
    attention = bk.scaled_dot_product_attention
    expected = gradients(attention, inputs, dout, key_lengths=lengths)
    for x in inputs[1:]:
        for b, length in enumerate(LENGTHS):
            x[b, :, length:] = bad
    got = gradients(attention, inputs, dout, key_lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    dout[1, 0, 3] = bad
    for one, all_ in zip(
        gradients(attention, inputs, dout, key_lengths=lengths), expected, strict=True
    ):
        assert not one[1, 0].isfinite().all()
        assert torch.equal(one[1, 1], all_[1, 1]) and torch.equal(one[2:], all_[2:])


@DTYPES
def test_a_query_of_one_key_has_no_gradient(packed, dtype):
    dout = torch.randn(len(LENGTHS), HEADS, max(LENGTHS), DIM).to(dtype)
    dq, _, _ = gradients(bk.scaled_dot_product_attention, padded(packed), dout, is_causal=True)
    assert torch.equal(dq[:, :, 0], torch.zeros_like(dq[:, :, 0]))
