"""What is the ffn room's Triton drawer's own: every tile of its table, TF32, and what its kernels wait for."""

import dataclasses

import pytest
import torch
from inputs import draw, gradients

import bigkernels as bk
from bigkernels.ops.ffn import triton_tiles
from bigkernels.testing import oracle
from bigkernels.testing.cases.ffn import FeedForwardCase
from tests.emulator.device import emulated, why_not
from tests.mutation import mutated

# Sizes of whole vectors take the way of asynchronous copies, the others that of single elements.
PLAIN = FeedForwardCase(
    reason="steps and edges of every loop, in whole vectors", shape=(9, 144), hidden=80, out=208,
    dropout_p=0.1,
)  # fmt: skip
ODD = FeedForwardCase(
    reason="steps and edges of every loop", shape=(9, 135), hidden=71, out=73, dropout_p=0.1
)
KINDS = {
    "bf16": dataclasses.replace(PLAIN, dtype=torch.bfloat16),
    "bf16-gated": dataclasses.replace(PLAIN, dtype=torch.bfloat16, gated=True, activation="silu"),
    "f16": dataclasses.replace(PLAIN, dtype=torch.float16),
    "f32": PLAIN,
    "bf16-odd": dataclasses.replace(ODD, dtype=torch.bfloat16),
    "f32-odd-gated": dataclasses.replace(ODD, gated=True),
}


def only_triton(device):
    if device.backend != "triton":
        pytest.skip("tiles belong to the Triton kernels")


@pytest.fixture
def large(monkeypatch):
    """Small planes take the tiles of large ones."""
    monkeypatch.setattr(
        triton_tiles, "choose", lambda *kind: triton_tiles.tile_of(*kind[:4], large=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_large_tiles_give_what_small_ones_do(kind, device, large):
    only_triton(device)
    device.check(KINDS[kind])


@pytest.fixture
def setting():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_obeys_torchs_precision(precision, device, setting):
    only_triton(device)
    if device.name == "interpreted":
        pytest.skip("interpreted: its products are true float32")
    exact = device.check(PLAIN)
    setting(precision)
    assert not oracle.same_bits(device.check(PLAIN)["out"], exact["out"])


# Which barriers and waits, counted from 0, the code that Triton 3.6 makes does not need, and why.
FIRST = "before the second copy: nobody has read shared memory yet"
FENCE = "the gate's sums have not changed since the fence of the other product"
EQUIVALENT: dict[tuple[str, int, bool], dict[int, str]] = {
    (f"ffn_{direction}_kernel", architecture, gated): {0: FIRST}
    for direction in ("forward", "backward")
    for architecture in (80, 90)
    for gated in (False, True)
}
EQUIVALENT["ffn_forward_kernel", 90, True][4] = FENCE


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_every_barrier_wait_and_fence_is_needed(gated, architecture):
    if reason := why_not("triton"):
        pytest.skip(f"emulated: {reason}")
    x, *parts = draw_parts(torch.bfloat16, rows=5, width=272, hidden=80)
    gate = {"weight_gate": parts[0].clone()} if gated else {}

    def call(x, *parts):
        return bk.feed_forward(x, *parts, dropout_p=0.2, seed=1, backend="triton", **gate)

    with emulated(architecture, "triton"), mutated(seeds=(1, 2, 3)) as found:
        gradients(call, x, *parts)
    assert set(found.tried) == {"ffn_forward_kernel", "ffn_backward_kernel", "column_sum_kernel"}
    left = {kernel: sorted(numbers) for kernel, numbers in found.survivors.items() if numbers}
    assert left == {
        kernel: sorted(reasons)
        for (kernel, *key), reasons in EQUIVALENT.items()
        if key == [architecture, gated]
    }, found.survivors


def draw_parts(dtype, rows, width, hidden):
    class Here:
        type = "cpu"

    shapes = (rows, width), (hidden, width), (hidden,), (width, hidden), (width,)
    return draw(Here(), dtype, *shapes)
