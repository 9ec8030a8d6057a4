"""What a fused operation costs the host: public calls of kernels compiled for sm_90 whose launch does nothing.

    python benchmarks/host.py [--json FILE] [--profile NAME]

Runs anywhere, on CPU tensors: what torch allocates and Python does is timed, a GPU's part (its allocator, the driver's
launch of about 2 us each) is not. forward: without gradients. training: forward and backward, less what the same graph
costs with a node that does nothing ("empty node", printed first).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bigkernels as bk
from bigkernels import backends
from bigkernels.ops import triton_launch
from tests.emulator import device as emulation
from tests.emulator.core import Options
from tests.emulator.memory import DeviceMemory

HALF = torch.bfloat16


class _Nothing(torch.autograd.Function):
    """The floor of an operation with gradients: its node, one tensor each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def stub() -> None:
    """Makes Triton's launcher do nothing, and lets CPU tensors reach the drawers, for the rest of the process."""
    from tests.emulator.triton_driver import EmulatedDriver

    class Stub(EmulatedDriver):
        @staticmethod
        def launcher_cls(source: object, metadata: object) -> Callable[..., None]:
            return lambda *arguments: None

    driver = Stub(90, DeviceMemory(("triton",)), Options())
    driver.utils.load_binary = lambda *given: (None, object(), 0, 0, 1024)
    triton_launch.architecture = lambda device: (
        "sm_90"
    )  # on a GPU it is known by the device's index
    # What kernels that do nothing leave unwritten may not stop anything.
    asserted, good = torch._assert_async, torch.ones((), dtype=torch.bool)
    torch._assert_async = lambda condition, text: asserted(good, text)
    emulation._register_triton()
    backends._ON_CPU = backends._ON_CPU | {"triton"}
    driver.attach()


def calls() -> dict[str, tuple[Callable[[], Tensor], tuple[Tensor, ...]]]:
    """By name: the call, and what gets gradients."""
    made: list[Tensor] = []

    def draw(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
        made.append(torch.randn(shape).to(dtype).requires_grad_())
        return made[-1]

    x, y, w, b = draw(4, 16, 64), draw(4, 16, 64), draw(64), draw(64)
    q, k, v = (draw(4, 2, 16, 32) for _ in range(3))
    t, cu = [draw(64, 2, 32) for _ in range(3)], torch.arange(0, 65, 16, dtype=torch.int32)
    w1, b1, w2 = draw(128, 64), draw(128), draw(64, 128)
    ids, tables = torch.zeros(4, 16, dtype=torch.int64), (draw(30, 64), draw(16, 64), draw(2, 64))
    logits, target = draw(64, 30), torch.zeros(64, dtype=torch.int64)
    drops = {"dropout_p": 0.1, "seed": torch.tensor(1), "offset": torch.tensor(2)}
    on: dict[str, Any] = {"backend": "triton"}
    attend = bk.scaled_dot_product_attention
    return {
        "layer_norm": (lambda: bk.layer_norm(x, (64,), w, b, **on), (x, w, b)),
        "add_layer_norm": (lambda: bk.add_layer_norm(x, y, w, b, **on), (x, y, w, b)),
        "add_layer_norm, dropout": (
            lambda: bk.add_layer_norm(x, y, w, b, x_bias=b1[:64], **drops, **on),
            (x, y, w, b),
        ),
        "attention": (lambda: attend(q, k, v, **on), (q, k, v)),
        "varlen_attn": (lambda: bk.varlen_attn(*t, cu, cu, 16, 16, **on), tuple(t)),
        "ffn": (lambda: bk.feed_forward(x, w1, b1, w2, b, **on), (x, w1, b1, w2, b)),
        "embedding": (lambda: bk.embedding(ids, *tables, w, b, **on), (*tables, w, b)),
        "cross_entropy": (lambda: bk.cross_entropy(logits, target, **on), (logits,)),
    }


def microseconds(function: Callable[[], object], rounds: int = 60, repeats: int = 50) -> float:
    """Of this thread, a call: the best of many short samples, as a busy machine disturbs most of them."""
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time_ns()
        for _ in range(repeats):
            function()
        best = min(best, (time.thread_time_ns() - start) / repeats / 1000)
    return best


def trained(call: Callable[[], Tensor], wrt: tuple[Tensor, ...]) -> Callable[[], object]:
    seed = torch.ones_like(call())
    return lambda: torch.autograd.grad(call(), wrt, seed)


def measure() -> dict[str, dict[str, float]]:
    found = {}
    x, w = torch.randn(4, 16, 64).requires_grad_(), torch.randn(64).requires_grad_()
    floor = trained(lambda: _Nothing.apply(x, w), (x, w))
    # The engine hands CPU work to this very thread: its time is all there is.
    empty = microseconds(floor)
    found["empty node"] = {"forward": microseconds(lambda: torch.empty_like(x)), "training": empty}
    for name, (call, wrt) in calls().items():
        with torch.no_grad():
            forward = microseconds(call)
        found[name] = {"forward": forward, "training": microseconds(trained(call, wrt))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--profile", help="instead: a profile of this operation, both ways")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stub()
    if arguments.profile:
        call, wrt = calls()[arguments.profile]
        for function in (torch.no_grad()(call), trained(call, wrt)):
            function()
            with cProfile.Profile() as profile:
                for _ in range(2000):
                    function()
            pstats.Stats(profile).sort_stats("tottime").print_stats(28)
        return
    found = measure()
    print(f"{'microseconds':24s} {'forward':>8s} {'training':>8s}")
    for name, row in found.items():
        print(f"{name:24s} {row['forward']:8.1f} {row['training']:8.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
