"""What is the Triton drawer's own: the order of its sums, and how it multiplies float32."""

import pytest
import torch

import bigkernels as bk
from bigkernels.ops import triton_launch
from bigkernels.ops.attention import api, triton, triton_config
from bigkernels.testing.cases.attention import AttentionCase
from bigkernels.testing.oracle import same_bits


def only_triton(device):
    if device.backend != "triton":
        pytest.skip("tiles belong to the Triton kernels")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_a_mask_that_turns_no_key_off_changes_no_bit(dtype, device):
    only_triton(device)
    q, k, v = (
        torch.randn(1, heads, length, 24).to(device.type, dtype)
        for heads, length in ((2, 40), (1, 90), (1, 90))
    )
    facts = api.attention_facts(q, k, v, None, enable_gqa=True)
    device.require("attention", facts, q.numel(), turn=device.architecture)

    def attend(mask):
        return bk.scaled_dot_product_attention(
            q, k, v, mask, enable_gqa=True, backend=device.backend
        )

    on = torch.ones(1, 1, 40, 90, dtype=torch.bool, device=q.device)
    straight = attend(None)
    for mask in (on, torch.zeros_like(on, dtype=dtype)):
        assert same_bits(attend(mask), straight), mask.dtype


@pytest.mark.parametrize("broadcast", [False, True], ids=["rows", "expanded"])
def test_a_boolean_mask_beside_dropout_gives_the_bits_of_lengths(broadcast, device):
    only_triton(device)
    q, k, v, dout = (torch.randn(2, 2, 40, 16).to(device.type, torch.float16) for _ in "qkvo")
    facts = api.attention_facts(q, k, v, None, dropout_p=0.2)
    device.require("attention", facts, q.numel(), turn=device.architecture)
    lengths = torch.tensor([23, 40], device=q.device)
    mask = (torch.arange(40, device=q.device) < lengths[:, None])[:, None, None]
    if broadcast:
        mask = mask.expand(2, 2, 40, 40)

    def gradients(**padding):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = bk.scaled_dot_product_attention(
            *leaves, dropout_p=0.2, is_causal=True, seed=3, backend=device.backend, **padding
        )
        # dq has no order where one pass serves the backward.
        return out.detach(), *torch.autograd.grad(out, leaves, dout)[1:]

    found, expected = gradients(attn_mask=mask), gradients(key_lengths=lengths)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("dtype", "dropout_p", "given"),
    [
        (torch.float16, 0.0, torch.int8),
        (torch.float16, 0.2, torch.float16),
        (torch.float32, 0.0, torch.float32),
    ],
)
def test_where_registers_are_short_a_backward_is_given_a_boolean_mask_as_numbers(
    dtype, dropout_p, given, sm_80, monkeypatch
):
    masks, launch = {}, triton_launch.launch

    def watched(kernel, grid, *arguments, **constants):
        masks[kernel.__name__] = arguments[kernel.arg_names.index("mask_ptr")].dtype
        return launch(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(triton_launch, "launch", watched)
    for name in ("_FORWARD", "_BACKWARD"):
        monkeypatch.setattr(triton, name, triton_launch.Replays())
    q = torch.randn(1, 2, 20, 16, dtype=dtype, requires_grad=True)
    on = torch.rand(20, 20) > 0.2
    out = bk.scaled_dot_product_attention(q, q, q, on, dropout_p, seed=1, backend="triton")
    assert masks == {"attention_forward_kernel": torch.int8}
    masks.clear()
    torch.autograd.grad(out.sum(), q)
    assert masks and set(masks.values()) == {given}


# Each tile of float32, and what of it needs most registers.
LOADED = {"mask": "float", "mask_dims": "hqk", "dropout_p": 0.1, "lse": True}
FLOATS = [
    AttentionCase(reason="products of float32", shape=(1, 2, 20, 37, dim), **facts)
    for dim in (64, 128, 256)
    for facts in ({}, LOADED)
]
# The second of each head dim takes longer to compile.
FEW = [
    pytest.param(case, id=str(case), marks=[] if i in (1, 2, 4) else pytest.mark.full)
    for i, case in enumerate(FLOATS)
]


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("case", FEW)
def test_float32_obeys_torchs_precision(case, precision, device, matmul_precision):
    only_triton(device)
    if device.name == "interpreted":
        pytest.skip("interpreted: its products are true float32")
    exact = device.check(case)
    matmul_precision(precision)
    found = device.check(case)
    wanted = {"high": "bf16x3", "medium": "tf32"}[precision]
    same = triton_config.products(wanted, case.shape[-1]) == "ieee"
    assert all(same_bits(found[name], exact[name]) is same for name in exact)
