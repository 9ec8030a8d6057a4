"""Attention on every backend under numbers at the ends of their range, and the weights behind such calls."""

import pytest
import torch
from inputs import dtypes, gradients
from test_attention_properties import attend, qkv

import bigkernels as bk
from bigkernels.testing.oracle import same_bits

NAN = float("nan")


def weights_add_up(q, k, v, mask, out, lse):
    weights = bk.attention_weights(q, k, lse, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(lse), rtol=1e-4, atol=0)
    torch.testing.assert_close(out, (weights @ v.to(lse.dtype)).to(v.dtype), rtol=0.02, atol=0.02)


@dtypes
def test_rows_under_least_numbers_attend_to_their_keys_alike(dtype, device):
    q, k, v = qkv(device, dtype, 1, 2, 20, 20)
    mask, least = torch.zeros(20, 20, dtype=dtype, device=q.device), torch.finfo(dtype).min
    mask[3], mask[5, 7:] = least, least
    out, lse = attend(device, q, k, v, mask, return_lse=True)
    assert lse[0, :, 3].tolist() == pytest.approx([least] * 2, rel=0.01)
    weights_add_up(q, k, v, mask, out, lse)


@pytest.mark.parametrize("number", [-1e6, -6e8, -1e9, -1e12, -1e30, 1e6, 6e8, 1e30])
@dtypes
def test_a_score_is_not_lost_beside_a_large_number(number, dtype, device):
    """Not one that is more than the number's rounding; and those that are less, which float16 could not hold as
    exponents, stay weights."""
    q, k, _ = qkv(device, dtype, 1, 1, 24, 24)
    q, ones = 8 * q, torch.ones_like(k)
    mask = torch.full((24, 24), number, device=q.device)
    out = attend(device, q, k, ones, mask)
    torch.testing.assert_close(out, ones, rtol=0.02, atol=0)
    if abs(number) < 1e10:
        q, k = torch.zeros_like(q), torch.zeros_like(k)
        q[..., 0], k[:, :, 5, 0] = 32, 60  # a score of 1920 / sqrt(24), 392
        v = torch.arange(24.0, device=q.device)[:, None].expand_as(k).to(dtype)
        out, *grads = gradients(lambda *x: attend(device, *x, mask), q, k, v)
        torch.testing.assert_close(out, torch.full_like(out, 5), rtol=0.001, atol=0)
        assert all(grad.isfinite().all() for grad in grads)


@dtypes
def test_what_a_sum_with_a_mask_rounds_off_is_no_infinite_weight(dtype, device):
    """In units of log 2 this mask is just below 2^28, its sums with the scores are just above, rounded down by 16."""
    q, _, v = qkv(device, dtype, 1, 1, 16, 16)
    q = torch.zeros_like(q)
    q[..., 0] = 1
    mask = torch.full((16, 16), 186065280.0, device=q.device)
    out = attend(device, q, q, v, mask, scale=11.0903)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out), rtol=0.02, atol=0.02)


@dtypes
def test_nan_in_a_mask_stays_in_its_rows(dtype, device):
    q, k, v = qkv(device, dtype, 1, 2, 20, 20)
    mask = torch.zeros(20, 20, dtype=dtype, device=q.device)
    clean = attend(device, q, k, v, mask, return_lse=True)
    bad = mask.clone()
    bad[3, 4], bad[7], bad[9] = NAN, NAN, torch.finfo(dtype).min
    bad[9, 2] = NAN
    rows = torch.tensor([3, 7, 9], device=q.device)
    for found, straight in zip(attend(device, q, k, v, bad, return_lse=True), clean, strict=True):
        assert found[:, :, rows].isnan().all()
        keep = torch.ones(20, dtype=torch.bool, device=q.device).index_fill(0, rows, False)
        assert same_bits(found[:, :, keep], straight[:, :, keep])
    _, dq, dk, dv, dmask = gradients(lambda *x: attend(device, *x), q, k, v, bad)
    assert dq[:, :, rows].isnan().all() and dmask[rows].isnan().all()
    assert dk.isnan().all() and dv.isnan().all()
    assert dq[:, :, 11].isfinite().all() and dmask[11].isfinite().all()


@dtypes
def test_sinks_at_the_ends_of_the_range(dtype, device):
    q, k, v = qkv(device, dtype, 1, 4, 20, 20)
    least = torch.finfo(torch.float32).min
    sinks = torch.tensor([least, -least, -float("inf"), 0.0], device=q.device)
    mask = torch.zeros(20, 20, device=q.device)
    mask[3] = least
    out, lse = attend(device, q, k, v, mask, sinks=sinks, return_lse=True)
    expected, expected_lse = bk.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), mask, sinks=sinks.double(), return_lse=True,
        backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("number", [0.0, 1e6, 1e8, 1e30])
@pytest.mark.parametrize("spread", [1, 300])
def test_weights_of_large_numbers_add_up(number, spread, device):
    q, k, v = qkv(device, torch.float32, 1, 2, 20, 20)
    q = spread * q
    mask = torch.full((20, 20), number, device=q.device)
    _, lse = attend(device, q, k, v, mask, return_lse=True)
    weights = bk.attention_weights(q, k, lse, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(lse), rtol=1e-4, atol=0)
    q = q.requires_grad_()
    bk.attention_weights(q, k, lse, mask).square().sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_leaves_the_statistics_in_float32(backend):
    """What is recomputed beside a kernel (weights, the reference, second derivatives) is as exact inside as outside."""
    q, k, v = (torch.randn(1, 2, 40, 64).bfloat16() * s for s in (4, 4, 1))

    def run():
        x = q.clone().requires_grad_()
        out, lse = bk.scaled_dot_product_attention(x, k, v, return_lse=True, backend=backend)
        if backend == "reference":  # whose backward is torch's own
            return out, lse, bk.attention_weights(q, k, lse)
        (grad,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
        return out, lse, bk.attention_weights(q, k, lse), grad

    outside = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    for found, expected in zip(inside, outside, strict=True):
        assert same_bits(found.detach(), expected.detach())


def test_positions_of_weights_are_checked():
    q = torch.randn(1, 2, 3, 8)
    lse = bk.scaled_dot_product_attention(q, q, q, return_lse=True)[1]
    for name, wrong in (("heads", [2**70]), ("queries", (3,)), ("queries", torch.tensor([-1]))):
        with pytest.raises(ValueError, match=f"^{name}: .*expected positions from 0 to below"):
            bk.attention_weights(q, q, lse, **{name: wrong})
    for wrong in (torch.tensor([[0]]), torch.zeros(0, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^heads: shape .*, expected \(positions,\)"):
            bk.attention_weights(q, q, lse, heads=wrong)
    with pytest.raises(TypeError, match=r"^heads: expected a dense tensor"):
        bk.attention_weights(q, q, lse, heads=torch.tensor([1]).to_sparse())
    with pytest.raises(ValueError, match=r"^query: shape .*, expected 4 dimensions"):
        bk.attention_weights(q[0], q[0], lse[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_positions_of_weights_may_be_an_input(dtype):
    """Of a recorded or transformed function: its result is for other positions too."""
    torch._dynamo.reset()
    q = torch.randn(1, 2, 6, 8)
    lse = bk.scaled_dot_product_attention(q, q, q, return_lse=True)[1]
    chosen = lambda at: bk.attention_weights(q, q, lse, queries=at)  # noqa: E731
    first, then = torch.tensor([0, 1], dtype=dtype), torch.tensor([3, 5], dtype=dtype)
    everything = bk.attention_weights(q, q, lse)
    for recorded in (torch.jit.trace(chosen, (first,)), torch.compile(chosen, fullgraph=True)):
        for at in (first, then):
            torch.testing.assert_close(recorded(at), everything[:, :, at.long()])
    mapped = torch.func.vmap(chosen)(torch.stack([first, then]))
    torch.testing.assert_close(mapped[1], everything[:, :, then.long()])
