"""layer_norm and add_layer_norm on every backend: judged by the oracle, and by what must hold without one."""

import pytest
import torch
from inputs import draw, dtypes, gradients, moved

import bigkernels as bk
from bigkernels.ops.layer_norm import reference
from bigkernels.ops.layer_norm.contract import Facts
from bigkernels.testing import cases, judge
from bigkernels.testing.cases.layer_norm import AddLayerNormCase, LayerNormCase
from bigkernels.testing.oracle import same_bits

HAND_PICKED_AND_RANDOM = cases("layer_norm")
MORE_RANDOM = [
    case for case in cases("layer_norm", full=True) if case not in HAND_PICKED_AND_RANDOM
]


@pytest.mark.parametrize("case", HAND_PICKED_AND_RANDOM, ids=str)
def test_outputs_and_gradients_match_float64(case, device):
    device.check(case)


@pytest.mark.full
@pytest.mark.parametrize("case", MORE_RANDOM, ids=str)
def test_random_calls_match_float64(case, device):
    device.check(case)


@dtypes
def test_every_width_up_to_two_vectors_matches_float64(dtype, device):
    # Of fewer features some rows are nearly constant: their gradients are rounding over sqrt(eps).
    widths = (4, 5, 13, 32) if device.slow else range(4, 36)
    for n in widths:
        common = {"reason": "every remainder", "shape": (3, n), "dtype": dtype, "seed": n}
        device.check(LayerNormCase(**common))
        device.check(AddLayerNormCase(x_bias=True, eps=1e-5, **common))


def require(device, dtype, n, op="layer_norm", dropout=False):
    device.require("layer_norm", Facts(op, device.type, dtype, dtype, n, dropout, True))


@dtypes
def test_the_address_changes_no_bit(dtype, device):
    n = 50
    require(device, dtype, n)
    x, weight, bias = draw(device, dtype, (4, n), (n,), (n,))

    def call(x, weight, bias):
        return bk.layer_norm(x, (n,), weight, bias, backend=device.backend)

    straight = gradients(call, x, weight, bias)
    for shift in (1, 2, 3, 7) if device.slow else range(1, 17):
        elsewhere = [moved(t, shift) for t in (x, weight, bias)]
        for a, b in zip(straight, gradients(call, *elsewhere), strict=True):
            assert same_bits(a, b), f"shift {shift}"


@dtypes
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_rows_do_not_know_their_neighbours(dropout_p, dtype, device):
    n = 70
    require(device, dtype, n, "add_layer_norm", dropout_p > 0)
    x, residual, weight, bias = draw(device, dtype, (9, n), (9, n), (n,), (n,))
    rows = torch.arange(9, device=x.device)

    def call(x, residual, rows):
        return bk.add_layer_norm(
            x,
            residual,
            weight,
            bias,
            dropout_p=dropout_p,
            seed=3,
            rows=rows,
            backend=device.backend,
        )

    def both(part):
        leaves = [x[part].requires_grad_(), residual[part].requires_grad_()]
        out = call(*leaves, rows[part])
        return [out.detach(), *torch.autograd.grad(out, leaves, x[part].detach())]

    x, residual = x.detach(), residual.detach()
    whole = both(slice(None))
    for part in (slice(0, 1), slice(4, 5), slice(2, 9), torch.tensor([8, 0, 3])):
        for a, b in zip(both(part), whole, strict=True):
            assert same_bits(a, b[part])


def test_adding_a_constant_to_a_row_changes_nothing(device):
    n = 96
    require(device, torch.float32, n)
    # Small integers: x + c is exact, so that only the kernel's own arithmetic is judged.
    x = (torch.randn(6, n) * 8).round()
    (weight,) = draw(device, torch.float32, (n,))
    truth = reference.layer_norm(x.double(), weight.cpu().double(), None, n, 1e-5)
    for constant in (64.0, -1000.0, 4096.0):
        shifted = x + constant
        peer = reference.layer_norm(shifted, weight.cpu(), None, n, 1e-5)
        got = bk.layer_norm(shifted.to(device.type), (n,), weight, backend=device.backend)
        verdict = judge(got, truth, [peer])
        assert verdict, verdict


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@dtypes
def test_nan_and_infinity_stay_in_their_row(dtype, bad, device):
    n = 40
    require(device, dtype, n, "add_layer_norm")
    x, residual, weight, bias = draw(device, dtype, (5, n), (5, n), (n,), (n,))

    def call(x, residual):
        return bk.add_layer_norm(x, residual, weight, bias, 1e-5, backend=device.backend)

    clean = gradients(call, x, residual)
    poisoned = x.detach().clone()
    poisoned[2, 17] = bad
    for a, b in zip(clean, gradients(call, poisoned, residual), strict=True):
        assert b[2].isnan().all()
        keep = torch.tensor([0, 1, 3, 4])
        assert same_bits(a[keep], b[keep])

    alone = bk.layer_norm(poisoned, (n,), weight, bias, backend=device.backend)
    assert alone[2].isnan().all()
    assert alone[[0, 1, 3, 4]].isfinite().all()


@dtypes
def test_the_number_of_threads_changes_no_bit(dtype, device):
    if device.name != "cpu":
        pytest.skip("threads belong to the CPU kernels")
    shape, n = (301, 96), 96
    x, residual, weight, bias, x_bias = draw(device, dtype, shape, shape, (n,), (n,), (n,))

    def call(x, residual, weight, bias, x_bias):
        return bk.add_layer_norm(
            x, residual, weight, bias, x_bias=x_bias, dropout_p=0.1, seed=5, backend=device.backend
        )

    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(gradients(call, x, residual, weight, bias, x_bias))
    for a, b in zip(*found, strict=True):
        assert same_bits(a, b)


@dtypes
def test_strides_change_no_bit(dtype, device):
    n = 45
    require(device, dtype, n)
    x, weight = draw(device, dtype, (4, 6, n), (n,))

    def call(x, weight):
        return bk.layer_norm(x, (n,), weight, backend=device.backend)

    straight = gradients(call, x, weight)
    for layout in (x.mT.contiguous().mT, x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(layout, x)
        for a, b in zip(straight, gradients(call, layout, weight), strict=True):
            assert same_bits(a, b)


def test_the_output_is_dense_and_its_own_memory(device):
    n = 20
    require(device, torch.float32, n)
    (x,) = draw(device, torch.float32, (n, 3, 4))
    out = bk.layer_norm(x.permute(1, 2, 0), (n,), backend=device.backend)
    assert out.is_contiguous()
    assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("used", ["out", "sum"])
def test_either_result_alone_may_be_used(used, device):
    n = 33
    require(device, torch.float32, n, "add_layer_norm", True)
    x, residual, weight, bias = draw(device, torch.float32, (4, n), (4, n), (n,), (n,))

    def call(x, residual, weight, bias, backend=device.backend):
        out, total = bk.add_layer_norm(
            x, residual, weight, bias, dropout_p=0.4, seed=1, return_sum=True, backend=backend
        )
        return out if used == "out" else total + 0 * weight.sum() + 0 * bias.sum()

    got = gradients(call, x, residual, weight, bias)
    inputs = [t.cpu() for t in (x, residual, weight, bias)]
    peers = gradients(lambda *t: call(*t, backend="reference"), *inputs)
    truth = gradients(lambda *t: call(*t, backend="reference"), *(t.double() for t in inputs))
    for index, (value, exact, peer) in enumerate(zip(got, truth, peers, strict=True)):
        verdict = judge(value, exact, [peer], grad=index > 0)
        assert verdict, verdict


def test_changing_a_saved_input_in_place_is_noticed(device):
    n = 16
    require(device, torch.float32, n)
    x, weight = (t.requires_grad_() for t in draw(device, torch.float32, (4, n), (n,)))
    out = bk.layer_norm(x, (n,), weight, backend=device.backend)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
