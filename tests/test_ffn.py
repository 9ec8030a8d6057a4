"""feed_forward on every backend: judged by the oracle, and by what must hold without one."""

from dataclasses import replace

import pytest
import torch
from inputs import draw, dtypes, gradients, moved
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import bigkernels as bk
from bigkernels.ops.ffn.contract import ACTIVATIONS, Facts
from bigkernels.testing import cases, judge
from bigkernels.testing.oracle import same_bits

HAND_PICKED_AND_RANDOM = cases("ffn")
MORE_RANDOM = [case for case in cases("ffn", full=True) if case not in HAND_PICKED_AND_RANDOM]
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


@pytest.mark.parametrize("case", HAND_PICKED_AND_RANDOM, ids=str)
def test_outputs_and_gradients_match_float64(case, device):
    device.check(case)


@pytest.mark.full
@pytest.mark.parametrize("case", MORE_RANDOM, ids=str)
def test_random_calls_match_float64(case, device):
    device.check(case)


def require(device, dtype, activation="gelu", gated=False, dropout=False):
    device.require("ffn", Facts(device.type, dtype, activation, gated, dropout, True))


def weights(device, dtype, width, hidden):
    """weight1, bias1, weight2, bias2 with sums of about unit size."""
    shapes = (hidden, width), (hidden,), (width, hidden), (width,)
    return [t / t.shape[-1] ** 0.5 if t.dim() > 1 else t / 2 for t in draw(device, dtype, *shapes)]


def through_unit_matrices(device, activation="gelu", **options):
    """x to hidden, biases passed through: products with unit matrices are exact in any order, so
    that what is left is the room's own arithmetic, to be compared bit by bit."""

    def call(x, bias1, bias2):
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return bk.feed_forward(
            x, eye, bias1, eye, bias2, activation, backend=device.backend, **options
        )

    return call


@dtypes
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_rows_do_not_know_their_neighbours(dropout_p, dtype, device):
    require(device, dtype, dropout=dropout_p > 0)
    x, bias1, bias2 = draw(device, dtype, (9, 70), (70,), (70,))
    rows = torch.arange(9, device=x.device)

    def both(part):
        call = through_unit_matrices(device, dropout_p=dropout_p, seed=3, rows=rows[part])
        leaf = x[part].detach().requires_grad_()
        out = call(leaf, bias1, bias2)
        return [out.detach(), *torch.autograd.grad(out, leaf, x[part])]

    whole = both(slice(None))
    for part in (slice(0, 1), slice(4, 5), slice(2, 9), torch.tensor([8, 0, 3])):
        for a, b in zip(both(part), whole, strict=True):
            assert same_bits(a, b[part])


@dtypes
@activations
def test_nan_and_infinity_stay_in_their_row(activation, dtype, device):
    require(device, dtype, activation)
    (x,) = draw(device, dtype, (5, 24))
    parts = weights(device, dtype, 24, 90)

    def call(x):
        return bk.feed_forward(x, *parts, activation, backend=device.backend)

    others = torch.tensor([0, 1, 3, 4])
    clean = gradients(call, x)
    for bad in (float("nan"), float("inf"), -float("inf")):
        poisoned = x.clone()
        poisoned[2, 17] = bad
        found = gradients(call, poisoned)
        assert not found[0][2].isfinite().any()
        for a, b in zip(clean, found, strict=True):
            assert b[others].isfinite().all()
            assert judge(b[others], a[others].double(), [a[others]])
    poisoned[2, 17] = float("nan")
    assert call(poisoned)[2].isnan().all()


@dtypes
def test_the_number_of_threads_changes_no_bit(dtype, device):
    if device.name != "cpu":
        pytest.skip("threads belong to the CPU kernels")
    x, bias1, bias2 = draw(device, dtype, (301, 96), (96,), (96,))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        call = through_unit_matrices(device, dropout_p=0.1, seed=5)
        found.append(gradients(call, x, bias1, bias2))
    for a, b in zip(*found, strict=True):
        assert same_bits(a, b)


@dtypes
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_what_is_computed_again_has_the_same_bits(gated, dtype, device):
    require(device, dtype, gated=gated, dropout=True)
    (x,) = draw(device, dtype, (2, 13, 24))
    parts = weights(device, dtype, 24, 90)
    gate = weights(device, dtype, 24, 90)[:2] if gated else []

    def call(x, weight1, bias1, weight2, bias2, *gate, recompute=0):
        options = {"weight_gate": gate[0], "bias_gate": gate[1]} if gate else {}
        return bk.feed_forward(
            x, weight1, bias1, weight2, bias2, "silu", 0.2, seed=1, recompute=recompute,
            backend=device.backend, **options,
        )  # fmt: skip

    saved = gradients(call, x, *parts, *gate)
    for recompute in (1, 2):
        again = gradients(lambda *t, r=recompute: call(*t, recompute=r), x, *parts, *gate)
        for a, b in zip(saved, again, strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_recompute_saves_the_memory_it_promises(gated, device):
    require(device, torch.float32, gated=gated)
    (x,) = draw(device, torch.float32, (40, 8))
    x.requires_grad_()
    parts = weights(device, torch.float32, 8, 64)
    gate = {"weight_gate": weights(device, torch.float32, 8, 64)[0]} if gated else {}
    products = 2 if gated else 1
    for recompute, expected in ((0, products + 1), (1, products), (2, 0)):
        saved = []

        def pack(tensor, saved=saved):
            saved.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            bk.feed_forward(x, *parts, **gate, recompute=recompute, backend=device.backend)
        assert saved.count(torch.Size((40, 64))) == expected


@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_a_second_backward_finds_what_the_first_one_found(recompute, device):
    require(device, torch.float32, gated=True)
    (x,) = draw(device, torch.float32, (7, 24))
    leaves = [t.requires_grad_() for t in (x, *weights(device, torch.float32, 24, 90))]
    gate = draw(device, torch.float32, (90, 24), (90,))
    out = bk.feed_forward(
        *leaves, weight_gate=gate[0], bias_gate=gate[1], recompute=recompute, backend=device.backend
    )
    first = torch.autograd.grad(out, leaves, x, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(out, leaves, x), strict=True):
        assert same_bits(a, b)


@dtypes
def test_strides_and_addresses_change_no_bit(dtype, device):
    require(device, dtype)
    x, bias1, bias2 = draw(device, dtype, (4, 6, 45), (45,), (45,))
    call = through_unit_matrices(device)
    straight = gradients(call, x, bias1, bias2)
    layouts = [x.mT.contiguous().mT, x.transpose(0, 1).contiguous().transpose(0, 1)]
    layouts += [moved(x, shift) for shift in (1, 3, 7)]
    for layout in layouts:
        assert torch.equal(layout, x)
        for a, b in zip(straight, gradients(call, layout, bias1, bias2), strict=True):
            assert same_bits(a, b)


def test_the_output_is_dense_and_its_own_memory(device):
    require(device, torch.float32)
    (x,) = draw(device, torch.float32, (20, 3, 4))
    parts = weights(device, torch.float32, 20, 32)
    out = bk.feed_forward(x.permute(1, 2, 0), *parts, backend=device.backend)
    assert out.is_contiguous()
    assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@dtypes
def test_dropout_keeps_and_drops_what_the_reference_does(dtype, device):
    require(device, dtype, "relu", dropout=True)
    x, bias1, bias2 = draw(device, dtype, (3, 11, 70), (70,), (70,))

    def run(backend):
        call = through_unit_matrices(
            replace(device, backend=backend), "relu", dropout_p=0.4, seed=9, offset=2
        )
        return gradients(call, x + 5, bias1, bias2 * 0)

    out, dx, *_ = run(device.backend)
    expected, expected_dx, *_ = run("reference")
    assert same_bits(out, expected)
    assert same_bits(dx, expected_dx)
    assert torch.equal(dx == 0, out == 0)
    # The next layer, told by its offset, drops others.
    other = through_unit_matrices(device, "relu", dropout_p=0.4, seed=9, offset=3)(
        x + 5, bias1, bias2 * 0
    )
    assert 0.3 < ((other == 0) == (out == 0)).double().mean() < 0.7


def test_what_is_dropped_is_zero_even_if_it_was_nan(device):
    require(device, torch.float32, dropout=True)
    x, bias1, bias2 = draw(device, torch.float32, (3, 70), (70,), (70,))
    call = through_unit_matrices(device, dropout_p=1.0)
    assert torch.equal(call(torch.full_like(x, float("nan")), bias1, bias2), bias2.expand(3, 70))


def test_a_backward_inside_autocast_keeps_the_forwards_dtype(device):
    require(device, torch.float32)
    (x,) = draw(device, torch.float32, (7, 24))
    leaves = [t.requires_grad_() for t in (x, *weights(device, torch.float32, 24, 90))]

    def out():
        return bk.feed_forward(*leaves, recompute=2, backend=device.backend)

    expected = torch.autograd.grad(out(), leaves, x)
    late = out()
    with torch.autocast(device.type, torch.bfloat16):
        found = torch.autograd.grad(late, leaves, x)
    for a, b in zip(expected, found, strict=True):
        assert same_bits(a, b)


def test_autocast_runs_it_in_the_lower_precision(device):
    require(device, torch.bfloat16)
    (x,) = draw(device, torch.float32, (7, 24))
    leaves = [t.requires_grad_() for t in (x, *weights(device, torch.float32, 24, 90))]
    with torch.autocast(device.type, torch.bfloat16):
        out = bk.feed_forward(*leaves, backend=device.backend)
    low = bk.feed_forward(*(t.bfloat16() for t in leaves), backend=device.backend)
    assert same_bits(out, low)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), leaves))


@activations
def test_first_and_second_derivatives(activation, device):
    require(device, torch.float64, activation, gated=True)
    shapes = (3, 4), (5, 4), (5,), (2, 5), (2,), (5, 4), (5,)
    inputs = [t.requires_grad_() for t in draw(device, torch.float64, *shapes)]

    def call(x, weight1, bias1, weight2, bias2, weight_gate, bias_gate):
        return bk.feed_forward(
            x, weight1, bias1, weight2, bias2, activation, 0.3, seed=4,
            weight_gate=weight_gate, bias_gate=bias_gate, backend=device.backend,
        )  # fmt: skip

    assert gradcheck(call, inputs)
    if activation != "relu":  # whose corners finite differences of differences trip over
        assert gradgradcheck(call, inputs)
