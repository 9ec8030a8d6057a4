"""Packing a padded batch and back, on every backend: judged by the oracle, and by what must hold without one."""

import pytest
import torch
from conftest import INTERPRETED

import bigkernels as bk
from bigkernels import packing
from bigkernels.ops.packing import reference
from bigkernels.ops.packing.contract import Facts
from bigkernels.testing import cases
from bigkernels.testing.oracle import same_bits

HAND_PICKED_AND_RANDOM = cases("packing")


def _keep(lengths, length, side="right"):
    place = torch.arange(length)
    counts = torch.tensor(lengths)[:, None]
    return place < counts if side == "right" else place >= length - counts


def require(device, dtype=torch.float32):
    device.require("packing", Facts(device.type, dtype, True))


@pytest.mark.parametrize("case", HAND_PICKED_AND_RANDOM, ids=str)
def test_copies_and_their_gradients_are_exact(case, device):
    found = device.check(case)
    problem = case.problem()
    truth = problem.solve(problem.reference)
    for name, expected in truth.items():
        # A row that is read twice has a gradient of two terms: exact too, in the dtype.
        assert same_bits(found[name], expected), name


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32]
)
@pytest.mark.parametrize("tokens", [None, 9, 20])
def test_plans_are_the_reference_s(dtype, tokens, device):
    require(device)
    keep = _keep([5, 0, 3, 1], 5, "left")[:, torch.tensor([3, 0, 4, 1, 2])].to(dtype)
    plan = packing.plan(keep.to(device.type), tokens, backend=device.backend)
    expected = reference.plan(keep, tokens)
    for name in ("indices", "cu_seq", "rows"):
        assert same_bits(getattr(plan, name), getattr(expected, name)), name
    assert (plan.batch, plan.length, plan.slack) == (4, 5, tokens is not None)
    if plan.places is not None:
        assert same_bits(plan.places, reference.places(expected))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens", [None, 9, 14])
def test_pad_undoes_unpad_and_zeroes_padding(side, tokens, device):
    require(device)
    keep = _keep([5, 0, 3, 1], 5, side).to(device.type)
    x = torch.randn(4, 5, 3, device=device.type)
    plan = packing.plan(keep, tokens, backend=device.backend)
    packed = packing.unpad(x, plan, backend=device.backend)
    assert torch.equal(packed[:9], x[keep])
    assert packed.shape[0] == (tokens or 9) and not packed[9:].any()
    assert plan.cu_seq.tolist() == [0, 5, 5, 8, 9]
    assert plan.max_length in (5, None)
    packed[9:] = float("nan")  # not read
    again = packing.pad(packed, plan, backend=device.backend)
    assert torch.equal(again, x * keep[..., None])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8])
def test_ids_and_masks_are_packed_too(dtype, device):
    require(device, dtype)
    keep = _keep([2, 3], 4).to(device.type)
    ids = torch.randint(0, 2, (2, 4), device=device.type).to(dtype)
    plan = packing.plan(keep, 6, backend=device.backend)
    packed = packing.unpad(ids, plan, backend=device.backend)
    assert packed.dtype == dtype and torch.equal(packed[:5], ids[keep])
    assert torch.equal(packing.pad(packed, plan, backend=device.backend), ids * keep)


def test_a_plan_serves_every_backend(device):
    """What another drawer planned is packed and padded as its own plan would be."""
    require(device)
    keep = _keep([2, 0, 3], 4, "left").to(device.type)
    x = torch.randn(3, 4, 5, device=device.type)
    ours, others = packing.plan(keep, 7, backend=device.backend), reference.plan(keep, 7)
    for plan, backend in ((ours, "reference"), (others, device.backend)):
        packed = packing.unpad(x, plan, backend=backend)
        assert torch.equal(packed[:5], x[keep])
        assert torch.equal(packing.pad(packed, plan, backend=backend), x * keep[..., None])


def test_rows_hold_sample_and_position_of_the_padded_batch():
    plan = packing.plan(_keep([2, 1], 3, "left"))
    assert [(r >> 32, r & 0xFFFFFFFF) for r in plan.rows.tolist()] == [(0, 1), (0, 2), (1, 2)]


def test_empty_batches_have_plans(device):
    require(device)
    for shape in ((0, 4), (2, 0)):
        keep = torch.ones(shape, dtype=torch.bool, device=device.type)
        plan = packing.plan(keep, backend=device.backend)
        x = torch.randn(*shape, 3, device=device.type)
        packed = packing.unpad(x, plan, backend=device.backend)
        assert packing.pad(packed, plan, backend=device.backend).shape == x.shape


def test_no_padding_costs_no_copy():
    plan = packing.plan(torch.ones(2, 3))
    x = torch.randn(2, 3, 4)
    packed = packing.unpad(x, plan)
    assert packed.data_ptr() == x.data_ptr() == packing.pad(packed, plan).data_ptr()


def test_more_tokens_than_promised_are_an_error(device):
    require(device)
    if device.type == "cuda":
        pytest.skip("cuda: an assertion on the device ends the process")
    with pytest.raises((ValueError, RuntimeError), match="tokens: 4, but keep has"):
        packing.plan(_keep([2, 3], 4), 4, backend=device.backend)


def test_gradients_go_to_tokens_alone(device):
    require(device)
    keep = _keep([2, 3], 4).to(device.type)
    x = torch.randn(2, 4, 3, device=device.type, requires_grad=True)
    plan = packing.plan(keep, 6, backend=device.backend)
    packed = packing.unpad(x, plan, backend=device.backend)
    packing.pad(packed, plan, backend=device.backend).sum().backward()
    assert torch.equal(x.grad, keep[..., None].expand_as(x).float())


@pytest.mark.parametrize("tokens", [None, 6])
def test_it_differentiates_twice(tokens):
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    plan = packing.plan(_keep([2, 3], 4), tokens)

    def call(x):
        return packing.pad(packing.unpad(x, plan) ** 2, plan)

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


@pytest.mark.skipif(not INTERPRETED, reason="interpreted: only with TRITON_INTERPRET=1")
def test_the_kernels_differentiate_twice():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    plan = packing.plan(_keep([2, 3], 4), 6)

    def call(x):
        packed = packing.unpad(x, plan, backend="triton")
        return packing.pad(packed**2, plan, backend="triton")

    assert torch.autograd.gradgradcheck(call, x)


def test_plain_padding_is_told_from_holes():
    assert packing.plain_padding(_keep([2, 4], 4))
    assert packing.plain_padding(_keep([2, 4], 4, "left"))
    assert not packing.plain_padding(torch.tensor([[True, False, True]]))
    assert not packing.plain_padding(torch.tensor([[True, False], [False, True]]))


def test_explain_names_the_drawer():
    x, keep = torch.randn(2, 4, 3), _keep([2, 3], 4)
    plan = packing.plan(keep)
    assert bk.explain("packing.plan", keep).chosen == "cpu"
    assert bk.explain("packing.unpad", x, plan).chosen == "cpu"
    assert bk.explain("packing.pad", x.flatten(0, 1)[:5], plan).chosen == "cpu"


PLAN = packing.plan(_keep([2, 3], 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: packing.plan([[1, 0]]), TypeError, "keep: expected a tensor"),
        (lambda: packing.plan(torch.ones(3)), ValueError, r"keep: .* expected \(B, L\)"),
        (lambda: packing.plan(torch.ones(1, 2), 3), ValueError, "tokens: got 3"),
        (lambda: packing.plan(torch.ones(1, 2), True), TypeError, "tokens: expected an integer"),
        (lambda: packing.plan(torch.ones(1, 2), 1.0), TypeError, "tokens: expected an integer"),
        (lambda: packing.unpad(torch.ones(2, 4), None), TypeError, "plan: expected"),
        (lambda: packing.unpad([1.0], PLAN), TypeError, "x: expected a tensor"),
        (
            lambda: packing.unpad(torch.ones(2, 4, device="meta"), PLAN),
            ValueError,
            "x: device meta",
        ),
        (lambda: packing.unpad(torch.ones(2, 5, 3), PLAN), ValueError, r"x: .* \(2, 4, ...\)"),
        (lambda: packing.pad(torch.ones(4, 3), PLAN), ValueError, r"x: .* expected \(5, ...\)"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
