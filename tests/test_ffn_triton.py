"""What is the ffn room's Triton drawer's own: every tile of its table, and how float32 is multiplied."""

import dataclasses

import pytest
import torch

from bigkernels.ops.ffn import triton_tiles
from bigkernels.testing import oracle
from bigkernels.testing.cases.ffn import FeedForwardCase

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


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_obeys_torchs_precision(precision, device, matmul_precision):
    only_triton(device)
    if device.name == "interpreted":
        pytest.skip("interpreted: its products are true float32")
    exact = device.check(PLAIN)
    matmul_precision(precision)
    assert not oracle.same_bits(device.check(PLAIN)["out"], exact["out"])
