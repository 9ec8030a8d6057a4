"""Packing a padded batch and back."""

import pytest
import torch

from bigkernels.integrations import packing


def _keep(lengths, length, side="right"):
    place = torch.arange(length)
    counts = torch.tensor(lengths)[:, None]
    return place < counts if side == "right" else place >= length - counts


@pytest.mark.parametrize("side", ["right", "left"])
def test_pad_undoes_unpad_and_zeroes_padding(side):
    keep = _keep([5, 0, 3, 1], 5, side)
    x = torch.randn(4, 5, 3)
    plan = packing.plan(keep)
    packed = packing.unpad(x, plan)
    assert torch.equal(packed, x[keep])
    assert plan.cu_seq.tolist() == [0, 5, 5, 8, 9]
    assert plan.max_length == 5
    assert torch.equal(packing.pad(packed, plan), x * keep[..., None])


def test_rows_hold_sample_and_position_of_the_padded_batch():
    plan = packing.plan(_keep([2, 1], 3, "left"))
    assert [(r >> 32, r & 0xFFFFFFFF) for r in plan.rows.tolist()] == [(0, 1), (0, 2), (1, 2)]


def test_integer_masks_and_empty_batches_have_plans():
    assert packing.plan(torch.tensor([[1, 1, 0]])).indices.tolist() == [0, 1]
    for shape in ((0, 4), (2, 0)):
        plan = packing.plan(torch.ones(shape, dtype=torch.bool))
        x = torch.randn(*shape, 3)
        assert packing.pad(packing.unpad(x, plan), plan).shape == x.shape


def test_gradients_go_to_tokens_alone():
    keep = _keep([2, 3], 4)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    plan = packing.plan(keep)
    assert torch.autograd.gradcheck(lambda x: packing.pad(packing.unpad(x, plan) ** 2, plan), x)
    packing.pad(packing.unpad(x, plan), plan).sum().backward()
    assert torch.equal(x.grad, keep[..., None].expand_as(x).double())


def test_plain_padding_is_told_from_holes():
    assert packing.plain_padding(_keep([2, 4], 4))
    assert packing.plain_padding(_keep([2, 4], 4, "left"))
    assert not packing.plain_padding(torch.tensor([[True, False, True]]))
    assert not packing.plain_padding(torch.tensor([[True, False], [False, True]]))
