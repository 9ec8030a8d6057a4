"""The Triton backward of short sequences: one kernel in place of three, and the same bits."""

import pytest
import torch

from bigkernels.ops import triton_launch
from bigkernels.ops.attention import triton as drawer
from bigkernels.ops.attention import triton_config
from bigkernels.testing.cases.attention import AttentionCase
from bigkernels.testing.cases.attention_packed import PackedAttentionCase
from tests.conftest import no_short_kernel, turn


def _dense(reason, shape, **facts):
    return AttentionCase(reason=reason, shape=shape, dtype=torch.bfloat16, **facts)


CASES = (
    _dense("one block of keys", (1, 2, 70, 60, 64), dropout_p=0.1, lse=True),
    _dense("blocks of keys", (1, 1, 30, 140, 64), lengths=(135,), values="sharpest"),
    _dense("a block behind the keys", (2, 1, 20, 140, 48), lengths=(30, 0), by_position=True),
    _dense("heads share keys", (1, 4, 40, 70, 32), heads_kv=2, causal=True, bottom_right=True),
    _dense("windows skip blocks", (1, 2, 150, 150, 16), window=(9, 30), softcap=5.0),
    _dense("masks", (1, 2, 40, 70, 64), mask="bool", mask_values="rows", sinks=True),
    _dense("a bias without gradient", (1, 2, 40, 70, 64), mask="float", alibi=True, grads="qkv"),
    _dense("wide heads", (1, 1, 40, 70, 128), dim_v=40),
    _dense("one tile", (1, 2, 50, 60, 64), causal=True),
    PackedAttentionCase(
        reason="packed",
        lengths=(5, 0, 70, 33),
        lengths_k=(5, 9, 70, 0),
        heads=2,
        dim=64,
        dtype=torch.bfloat16,
        causal=True,
    ),
)


def _gradients(case, device):
    problem = case.problem().mapped(lambda tensor: tensor.to(device.type))
    inputs = {
        name: tensor.detach().requires_grad_() if name in problem.wrt else tensor
        for name, tensor in problem.inputs.items()
    }
    out = case.call(inputs, device.backend)
    names = [name for name in out if name in problem.douts]
    return torch.autograd.grad(
        [out[name] for name in names],
        [inputs[name] for name in problem.wrt],
        [problem.douts[name] for name in names],
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_kernel_gives_the_bits_of_three(case, device, monkeypatch):
    if device.backend != "triton":
        pytest.skip("tiles belong to the Triton kernels")
    device.require(case.room, case.facts(device.type), case.elements, turn(case))
    launched, launch = [], drawer._launch_short
    monkeypatch.setattr(drawer, "_launch_short", lambda *args: launched.append(launch(*args)))
    monkeypatch.setattr(drawer, "_fills", lambda call: True)
    monkeypatch.setattr(drawer, "_BACKWARD", triton_launch.Replays())
    found = _gradients(case, device)
    assert launched
    with no_short_kernel():
        expected = _gradients(case, device)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


FEW = (
    _dense("few queries", (2, 2, 30, 27, 64), lengths=(27, 9), lse=True),
    _dense("few queries of wide heads", (1, 1, 32, 32, 100), causal=True, lse=True),
)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_tile_of_few_queries_gives_the_bits_of_the_usual_one(case, device, monkeypatch):
    if device.backend != "triton":
        pytest.skip("tiles belong to the Triton kernels")
    device.require(case.room, case.facts(device.type), case.elements)
    inputs = case.problem().mapped(lambda tensor: tensor.to(device.type)).inputs
    found = case.call(inputs, device.backend)
    monkeypatch.setattr(triton_config, "few", lambda *given: None)
    for name, expected in case.call(inputs, device.backend).items():
        assert torch.equal(found[name], expected), name


def test_few_queries_change_no_block_of_keys_and_no_other_call():
    for dim in (16, 64, 128):
        usual = triton_config.tiles("sm_90", 16, "tf32", dim, "plain")["forward"]
        found = triton_config.few("sm_90", 16, dim, "plain", 64)
        assert found.block_n == usual.block_n and found.block_m < usual.block_m
    others = [("sm_90", 16, 64, load, 64) for load in ("busy", "full")]
    others += [("sm_90", 16, 64, "plain", 65), ("sm_90", 32, 64, "plain", 64)]
    for other in (*others, ("sm_90", 16, 256, "plain", 64), ("sm_80", 16, 64, "plain", 64)):
        assert triton_config.few(*other) is None


@pytest.mark.parametrize(
    ("dim", "load", "longest"),
    [
        (16, "plain", 512),
        (64, "busy", 512),
        (64, "full", 512),
        (128, "plain", 256),
        (128, "full", 256),
    ],
)
def test_what_is_short_depends_on_the_head_dim(dim, load, longest):
    for architecture in ("sm_80", "sm_90"):
        assert triton_config.short(architecture, 16, dim, load, longest)
        assert triton_config.short(architecture, 16, dim, load, longest + 1) is None
        assert triton_config.short(architecture, 32, dim, load, longest) is None
    assert triton_config.short("gfx942", 16, dim, load, longest) is None
    assert triton_config.short("sm_90", 16, 256, load, 16) is None
