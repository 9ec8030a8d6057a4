"""Triton kernels such as attention and feed-forward drawers will have, in the PTX made of them: a base to start
from. Values against float64, every check on, and every barrier and wait removed in turn."""

import math
import re

import pytest
import torch

from tests.emulator.core import Module, Options
from tests.emulator.device import why_not
from tests.emulator.ptx import mutants
from tests.test_emulator_matrix import driver

pytestmark = pytest.mark.skipif(
    why_not("triton") is not None, reason=f"emulated: {why_not('triton')}"
)
HEADS, LQ, LK, D = 3, 70, 90, 32
LENGTHS = (90, 33, 0)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
DEVICES = (80, 90)


def attention(q, k, v, lengths, causal):
    from tests.emulator.triton_attention import attention_kernel

    out, lse = torch.full_like(q, float("nan")), torch.full((HEADS, LQ), float("nan"))
    attention_kernel[(math.ceil(LQ / 64), HEADS)](
        q, k, v, lengths, out, lse, D**-0.5, LQ, LK, causal, D, 64, 32, num_warps=4, num_stages=3
    )
    return out, lse


def attention_inputs(dtype):
    q = torch.randn(HEADS, LQ, D).to(dtype)
    k, v = (torch.randn(HEADS, LK, D).to(dtype) for _ in range(2))
    return q, k, v, torch.tensor(LENGTHS, dtype=torch.int32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_attention_with_masks_and_an_online_softmax_is_right(device, dtype, causal):
    q, k, v, lengths = attention_inputs(DTYPES[dtype])
    with driver(device):
        out, lse = attention(q, k, v, lengths, causal)
    columns = torch.arange(LK)
    keep = (columns < lengths[:, None])[:, None, :].expand(HEADS, LQ, LK)
    if causal:
        keep = keep & (columns <= torch.arange(LQ)[:, None])
    scores = (q.double() @ k.double().mT * D**-0.5).masked_fill(~keep, -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    exact = weights @ v.double()
    # Weights are rounded to the dtype before their product, and so is the result.
    eps = torch.finfo(DTYPES[dtype]).eps
    bound = eps * (weights @ v.double().abs() + exact.abs()) + 1e-6
    assert ((out - exact).abs() <= bound).all()
    expected = scores.logsumexp(-1)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)
    assert (out[2] == 0).all() and (lse[2] == -math.inf).all()


M, E, F = 50, 64, 100


def ffn(x, weight1, bias1, weight2):
    from tests.emulator.triton_ffn import ffn_kernel

    out, hidden = torch.zeros(M, E), torch.full((M, F), float("nan"), dtype=x.dtype)
    ffn_kernel[(math.ceil(M / 32), math.ceil(F / 32))](
        x, weight1, bias1, weight2, out, hidden, M, F, E, 32, 32, 32, num_warps=4, num_stages=2
    )
    return out, hidden


def ffn_inputs(dtype):
    return [torch.randn(*shape).to(dtype) for shape in ((M, E), (F, E), (F,), (E, F))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_feed_forward_whose_parts_meet_in_atomics_is_right(device, dtype):
    x, weight1, bias1, weight2 = ffn_inputs(DTYPES[dtype])
    with driver(device):
        out, hidden = ffn(x, weight1, bias1, weight2)
    pre = x.double() @ weight1.double().T + bias1.double()
    exact = torch.nn.functional.gelu(pre)
    eps = torch.finfo(DTYPES[dtype]).eps
    assert ((hidden - exact).abs() <= eps * exact.abs() + 1e-5).all()
    # The second product takes the rounded features, and sums in float32.
    products = hidden.double() @ weight2.double().T
    bound = 2.0**-20 * (hidden.double().abs() @ weight2.double().abs().T)
    assert ((out - products).abs() <= bound).all()


# Which barriers and waits, counted from 0, the code that Triton 3.6 makes does not need, and why.
EQUIVALENT = {
    ("attention", 80): {
        0: "before the second copy: nobody has read shared memory yet",
        5: "behind the loop: what is overwritten was read before the last turn's second barrier",
    },
    ("attention", 90): {0: "before the second copy: nobody has read shared memory yet"},
    ("ffn", 80): {},
    ("ffn", 90): {},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["attention", "ffn"])
def test_every_barrier_wait_and_fence_is_needed(name, device, monkeypatch):
    survivors, tried = {}, []
    original = Module.launch

    def launch(self, kernel, grid, block, arguments, regions, shared, options):
        for number, (line, text) in enumerate(mutants(self.ptx, kernel)):
            tried.append(line)
            reports = (
                original(
                    Module(text),
                    kernel,
                    grid,
                    block,
                    arguments,
                    regions,
                    shared,
                    Options(seed=seed),
                )
                for seed in (1, 2, 3, 4)
            )
            if all(reports):
                survivors[number] = line
        return original(self, kernel, grid, block, arguments, regions, shared, options)

    with driver(device):
        monkeypatch.setattr(Module, "launch", launch)
        if name == "attention":
            attention(*attention_inputs(torch.bfloat16), False)
        else:
            ffn(*ffn_inputs(torch.bfloat16))
    assert len(tried) > 4
    assert sorted(survivors) == sorted(EQUIVALENT[name, device]), survivors


# What is put next to a product whose registers of A begin with \2, and what is said of it.
AT_A_PRODUCT = {
    "before its wait": (r"\1\n\tmov.b32 \2, 0;", "registers of A were overwritten"),
    "behind its fence": (r"\tor.b32 \2, \2, \2;\n\1", "write behind the wgmma.fence"),
}


@pytest.mark.parametrize("where", AT_A_PRODUCT)
def test_registers_of_a_product_may_not_change(where, monkeypatch):
    product = re.compile(r"^(.*wgmma\.mma_async[^}]*\},\s*\{(%r\d+),.*)$", re.MULTILINE)
    original, reports = Module.launch, []
    change, what = AT_A_PRODUCT[where]

    def launch(self, *arguments):
        wrong, count = product.subn(change, self.ptx)
        assert count > 0
        *arguments, _ = arguments
        reports.extend(original(Module(wrong), *arguments, Options(seed=s)) for s in range(25))
        return original(self, *arguments)

    with driver(90):
        monkeypatch.setattr(Module, "launch", launch)
        attention(*attention_inputs(torch.bfloat16), False)
    assert len(reports) == 25
    assert all(what in str(report) for report in reports)
