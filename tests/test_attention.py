"""Attention on every backend: judged by the oracle, and by what must hold without one."""

import pytest

from bigkernels.testing import cases

HAND_PICKED_AND_RANDOM = cases("attention")
MORE_RANDOM = [case for case in cases("attention", full=True) if case not in HAND_PICKED_AND_RANDOM]


@pytest.mark.parametrize("case", HAND_PICKED_AND_RANDOM, ids=str)
def test_outputs_and_gradients_match_float64(case, device):
    device.check(case)


@pytest.mark.full
@pytest.mark.parametrize("case", MORE_RANDOM, ids=str)
def test_random_calls_match_float64(case, device):
    device.check(case)
