"""cross_entropy on every backend: judged by the oracle, and by what must hold without one."""

import types

import pytest
import torch
from inputs import dtypes
from torch.nn import functional as F

import bigkernels as bk
from bigkernels.ops.cross_entropy import api
from bigkernels.ops.cross_entropy.contract import Facts
from bigkernels.testing import cases
from bigkernels.testing.oracle import same_bits

HAND_PICKED_AND_RANDOM = cases("cross_entropy")


@pytest.mark.parametrize("case", HAND_PICKED_AND_RANDOM, ids=str)
def test_outputs_and_gradients_match_float64(case, device):
    device.check(case)


def require(device, dtype):
    device.require("cross_entropy", Facts(device.type, dtype, False, True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_reference_is_torch_s(reduction, smoothing):
    logits = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([3, 8, -100, 0, 4, -100, 2])
    rule = {"reduction": reduction, "label_smoothing": smoothing}
    ours, theirs = bk.cross_entropy(logits, target, **rule), F.cross_entropy(logits, target, **rule)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(out.sum(), logits)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@dtypes
def test_rows_do_not_know_their_neighbours(dtype, device):
    require(device, dtype)
    logits, target = torch.randn(9, 150).to(device.type, dtype), torch.randint(150, (9,))
    target = target.to(device.type)

    def both(part):
        leaf = logits[part].detach().requires_grad_()
        loss = bk.cross_entropy(leaf, target[part], reduction="none", backend=device.backend)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), leaf)]

    whole = both(slice(None))
    for part in (slice(0, 1), slice(2, 9), torch.tensor([8, 0, 3])):
        for a, b in zip(both(part), whole, strict=True):
            assert same_bits(a, b[part])


@dtypes
def test_ignored_rows_may_hold_anything_and_get_no_gradient(dtype, device):
    require(device, dtype)
    logits = torch.randn(4, 40).to(device.type, dtype)
    logits[1:3] = float("nan")
    logits.requires_grad_()
    target = torch.tensor([5, -100, -100, 39], device=device.type)
    loss = bk.cross_entropy(logits, target, backend=device.backend)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert (gradient[1:3] == 0).all() and gradient[[0, 3]].isfinite().all()


def test_the_mean_of_no_rows_is_nan(device):
    require(device, torch.float32)
    logits, target = torch.randn(3, 8, device=device.type), torch.full((3,), -100)
    target = target.to(device.type)
    assert bk.cross_entropy(logits, target, backend=device.backend).isnan()
    assert bk.cross_entropy(logits, target, reduction="sum", backend=device.backend) == 0


@pytest.mark.parametrize("wrong", [-1, 8])
def test_a_target_outside_the_classes_is_an_error(wrong, device):
    require(device, torch.float32)
    if device.type == "cuda":
        pytest.skip("cuda: an assertion on the device ends the process")
    target = torch.tensor([0, wrong])
    with pytest.raises(IndexError):
        bk.cross_entropy(torch.randn(2, 8), target, backend=device.backend)


@dtypes
def test_autocast_keeps_the_loss_in_float32(dtype, device):
    require(device, dtype)
    logits = (100 * torch.randn(4, 40)).to(device.type, dtype).requires_grad_()
    target = torch.tensor([5, 0, 17, 39], device=device.type)

    def loss(function, **given):
        return function(logits, target, reduction="sum", **given)

    low = torch.float16 if device.type == "cuda" else torch.bfloat16
    with torch.autocast(device.type, low):
        found, torchs = loss(bk.cross_entropy, backend=device.backend), loss(F.cross_entropy)
    assert found.dtype == torchs.dtype == torch.float32
    torch.testing.assert_close(found, torchs)
    assert (found * 2.0**16).isfinite()  # the first factor of a GradScaler
    (gradient,) = torch.autograd.grad(found * 2.0**4, logits)
    assert gradient.dtype == dtype and gradient.isfinite().all()


def test_cudas_autocast_wants_a_loss_of_float32_too():
    def wanted(dtype):
        return api._loss_dtype(types.SimpleNamespace(device=torch.device("cuda"), dtype=dtype))

    torch.set_autocast_enabled("cuda", True)
    try:
        assert wanted(torch.float16) == wanted(torch.bfloat16) == torch.float32
        assert wanted(torch.float64) == torch.float64
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert wanted(torch.float16) == torch.float16


def test_it_differentiates_twice():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, -100, 5, 0])

    def call(logits):
        return bk.cross_entropy(logits, target, label_smoothing=0.1)

    assert torch.autograd.gradcheck(call, logits)
    assert torch.autograd.gradgradcheck(call, logits)


@pytest.mark.parametrize(
    ("arguments", "named", "error", "message"),
    [
        ((torch.randn(2, 3, 4), torch.zeros(2)), {}, ValueError, "input: shape"),
        ((torch.randn(2, 3), torch.zeros(2)), {}, TypeError, "target: expected int64"),
        ((torch.randn(2, 3), torch.zeros(3).long()), {}, ValueError, "target: shape"),
        ((torch.randn(2, 3), torch.zeros(2).long()), {"reduction": "no"}, ValueError, "reduction"),
        ((torch.randn(2, 3), torch.zeros(2).long()), {"label_smoothing": 2}, ValueError, "label"),
        ((torch.randn(2, 3), torch.zeros(2).long()), {"ignore_index": 1.5}, TypeError, "ignore"),
    ],
)
def test_bad_arguments_are_named(arguments, named, error, message):
    with pytest.raises(error, match=message):
        bk.cross_entropy(*arguments, **named)
