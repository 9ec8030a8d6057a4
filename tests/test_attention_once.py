"""The Triton backward in one pass: judged on all kinds of calls, dk and dv with the bits of two kernels, and not taken
where torch's deterministic algorithms are asked for."""

import itertools

import pytest
import torch

import bigkernels as bk
from bigkernels.ops import triton_launch
from bigkernels.ops.attention import triton as drawer
from bigkernels.ops.attention import triton_config
from bigkernels.testing import oracle
from bigkernels.testing.cases.attention import AttentionCase
from bigkernels.testing.cases.attention_packed import PackedAttentionCase
from tests.conftest import UNORDERED, no_short_kernel, one_pass


def _dense(reason, shape, **facts):
    return AttentionCase(reason=reason, shape=shape, dtype=torch.bfloat16, **facts)


CASES = (
    _dense("three programs add to a query", (1, 1, 70, 300, 64), lse=True),
    _dense("causal", (1, 2, 150, 150, 64), causal=True),
    _dense("causal from the bottom right", (1, 2, 40, 150, 32), causal=True, bottom_right=True),
    _dense("windows skip blocks", (1, 1, 270, 270, 16), window=(9, 30)),
    _dense("lengths, a dead sample", (3, 1, 20, 140, 48), lengths=(135, 30, 0), by_position=True),
    _dense("heads share keys", (1, 4, 40, 140, 64), heads_kv=2, scale=-0.3),
    _dense("dropout and softcap", (1, 2, 70, 140, 64), dropout_p=0.1, softcap=5.0, rows=True),
    _dense("ALiBi and sinks", (1, 2, 40, 140, 64), alibi=True, sinks=True),
    _dense("a mask with dead rows", (1, 2, 40, 140, 64), mask="bool", mask_values="rows"),
    _dense("the gradient of a bias", (2, 2, 40, 140, 64), mask="float", mask_dims="hqk"),
    _dense("wide heads", (1, 1, 70, 140, 128), dim_v=40, causal=True),
    _dense("wide heads, a bias", (1, 1, 40, 70, 100), mask="float32", mask_dims="k", grads="qkv"),
    AttentionCase(reason="float16", shape=(1, 1, 70, 140, 64), dtype=torch.float16),
    PackedAttentionCase(
        reason="packed",
        lengths=(5, 0, 170, 33),
        lengths_k=(5, 9, 170, 0),
        heads=2,
        dim=64,
        dtype=torch.bfloat16,
        causal=True,
    ),
)


def _require(device, case):
    if device.backend != "triton":
        pytest.skip("tiles belong to the Triton kernels")
    device.require(case.room, case.facts(device.type))
    if not device.one_pass(case):
        pytest.skip(f"{device.name}: two kernels serve the backward here")


@pytest.fixture
def launched(monkeypatch):
    """Which launches of the one pass were not repeated ones."""
    seen, launch = [], drawer._launch_once

    def noting(*given):
        seen.append(given[0].call)
        return launch(*given)

    monkeypatch.setattr(drawer, "_launch_once", noting)
    return seen


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_pass_matches_float64_and_has_the_bits_of_two_but_of_dq(case, device, launched):
    _require(device, case)
    with one_pass():
        found = oracle.check(case, device.backend, device.type, unordered=UNORDERED)
    assert launched
    with no_short_kernel():
        expected = oracle.run_guarded(
            case.problem(),
            lambda inputs: case.call(inputs, device.backend),
            case.layout,
            device.type,
        )
    assert len(launched) == 1  # the second run repeated its launches, and torch had its order here
    for name, value in found.items():
        assert name in UNORDERED or oracle.same_bits(value, expected[name]), name


def test_slopes_below_0_make_no_infinity_behind_the_queries(device):
    """Rows of a tile that are no queries have no weight, but theirs times infinity would be NaN."""
    case = _dense("slopes below 0", (1, 1, 20, 200, 64), alibi=True)
    _require(device, case)
    q, k, v = (torch.randn(1, 1, n, 64, device=device.type) for n in (20, 200, 200))
    slopes = torch.tensor([-1.0], device=device.type)

    def gradients(backend, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = bk.scaled_dot_product_attention(*leaves, alibi_slopes=slopes, backend=backend)
        return torch.autograd.grad(out.float().sum(), leaves)

    with one_pass():
        found = gradients(device.backend, torch.bfloat16)
    for got, expected in zip(found, gradients("reference", torch.float32), strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=3e-2, atol=3e-2)


def test_deterministic_algorithms_are_obeyed_call_by_call(device, launched):
    case = _dense("the switch", (1, 1, 40, 140, 64))
    _require(device, case)
    problem = case.problem().mapped(lambda tensor: tensor.to(device.type))

    def gradients():
        return problem.solve(lambda inputs: case.call(inputs, device.backend))["dq"]

    was = torch.are_deterministic_algorithms_enabled()
    with no_short_kernel():
        try:
            torch.use_deterministic_algorithms(True)
            ordered = gradients()
            assert not launched
            torch.use_deterministic_algorithms(False)
            assert gradients().shape == ordered.shape
            assert len(launched) == 1
            torch.use_deterministic_algorithms(True)
            assert oracle.same_bits(gradients(), ordered)
        finally:
            torch.use_deterministic_algorithms(was)
    assert len(launched) == 1


def test_explain_says_what_has_no_order(device):
    case = _dense("a note", (1, 1, 40, 40, 64))
    _require(device, case)
    q = torch.zeros(1, 1, 40, 64, dtype=torch.bfloat16, device=device.type, requires_grad=True)

    def notes(x):
        return bk.explain("attention", x, x, x, backend="triton").notes

    assert "in no fixed order" in "".join(notes(q))
    assert notes(q.detach()) == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_launch, "deterministic", lambda: True)
        assert notes(q) == ()


def test_one_pass_is_for_16_bit_heads_on_sm_90():
    for dim, load in itertools.product((16, 64, 128), triton_config.LOADS):
        assert triton_config.once("sm_90", 16, dim, load)
        for others in (("sm_90", 32, dim), ("sm_80", 16, dim), ("gfx942", 16, dim)):
            assert triton_config.once(*others, load) is None
    assert triton_config.once("sm_90", 16, 256, triton_config.PLAIN) is None
