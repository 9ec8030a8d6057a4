"""What a fused operation costs the host: public calls of kernels compiled for sm_90 whose launch does nothing.

    python benchmarks/host.py [--json FILE] [--profile NAME] [--lengths]

Runs anywhere, on CPU tensors: what torch allocates and Python does is timed, a GPU's part (its allocator, Triton's own
launcher and the driver's launch, of about 2 us each) is not. forward: without gradients. training: forward and
backward. torch's: the same memory, products, sums and checks as bare torch calls, in a node of as many tensors; what is
left is the operation's own. --lengths: instead, first calls of lengths that no call had before, with warm kernels.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bigkernels as bk
from bigkernels import backends
from bigkernels.ops import triton_launch
from bigkernels.ops.attention import arguments
from tests.emulator import device as emulation
from tests.emulator.core import Options
from tests.emulator.memory import DeviceMemory

HALF = torch.bfloat16
ON: dict[str, Any] = {"backend": "triton"}
Call = Callable[[], Any]
WARM, NEW = range(17, 90), range(96, 280)  # lengths: of short tiles and of long ones, then more


class Case(NamedTuple):
    """call: of an operation. wrt: what gets gradients. forward, backward: what of it torch alone would do."""

    call: Call
    wrt: tuple[Tensor, ...]
    forward: Call
    backward: Call


class _Bare(torch.autograd.Function):
    """A node of an operation's tensors around what torch alone would do for it."""

    @staticmethod
    def forward(ctx: Any, case: Case, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.case = case
        case.forward()
        return torch.empty_like(tensors[0])

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        ctx.case.backward()
        return None, *map(torch.empty_like, tensors)


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
    arguments.unread = lambda values: True  # as of a GPU's
    emulation._register_triton()
    backends._ON_CPU = backends._ON_CPU | {"triton"}
    driver.attach()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape).to(HALF).requires_grad_()


def memory(halves: int, floats: int = 0) -> Call:
    """Makes so many tensors of 16 and 32 bits."""
    like = torch.empty(4096, dtype=HALF)

    def make() -> None:
        for _ in range(halves):
            torch.empty_like(like)
        for _ in range(floats):
            like.new_empty(64, dtype=torch.float32)

    return make


def together(*parts: Call) -> Call:
    return lambda: [part() for part in parts]


def norm_cases() -> dict[str, Case]:
    x, y, w, b, x_bias = (draw(*shape) for shape in ((4, 16, 64), (4, 16, 64), (64,), (64,), (64,)))
    drops = {"dropout_p": 0.1, "seed": torch.tensor(1), "offset": torch.tensor(2)}
    total = torch.zeros(64)
    back = together(memory(0, 4), lambda: total.to(HALF), lambda: total.to(HALF))

    def add(**given: Any) -> Tensor:
        return bk.add_layer_norm(x, y, w, b, **given, **ON)

    return {
        "layer_norm": Case(
            lambda: bk.layer_norm(x, (64,), w, b, **ON), (x, w, b), memory(0, 2), back
        ),
        "add_layer_norm": Case(add, (x, y, w, b), memory(0, 2), back),
        "add_layer_norm, dropout": Case(
            lambda: add(x_bias=x_bias, **drops), (x, y, w, b), memory(0, 2), back
        ),
    }


def attention_cases(length: int = 16) -> dict[str, Case]:
    q, k, v = (draw(4, 2, length, 32) for _ in range(3))
    t = [draw(4 * length, 2, 32) for _ in range(3)]
    cu = torch.arange(5, dtype=torch.int32) * length
    made = memory(0, 1), memory(0, 3)
    return {
        "attention": Case(lambda: bk.scaled_dot_product_attention(q, k, v, **ON), (q, k, v), *made),
        "varlen_attn": Case(
            lambda: bk.varlen_attn(*t, cu, cu, length, length, **ON), tuple(t), *made
        ),
    }


def ffn_cases(rows: int = 16) -> dict[str, Case]:
    x, w1, b1, w2, b2 = (draw(*s) for s in ((4, rows, 64), (128, 64), (128,), (64, 128), (64,)))
    hidden, flat = torch.randn(4, rows, 128).to(HALF), x.detach().view(-1, 64)
    wide = hidden.view(-1, 128)

    def forward() -> None:
        torch.nn.functional.linear(hidden, w2, b2)

    def products() -> None:
        torch.mm(wide, w1)
        torch.mm(wide.t(), flat)
        torch.mm(flat.t(), wide)
        flat.sum(0)

    return {
        "ffn": Case(
            lambda: bk.feed_forward(x, w1, b1, w2, b2, **ON),
            (x, w1, b1, w2, b2),
            together(memory(3), forward),
            together(memory(1, 1), products),
        )
    }


def id_cases() -> dict[str, Case]:
    ids, target = torch.zeros(4, 16, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    tables, w, b = (draw(30, 64), draw(16, 64), draw(2, 64)), draw(64), draw(64)
    logits, good, total = draw(64, 30), torch.ones(64, dtype=torch.bool), torch.zeros(64)

    def checked() -> None:
        torch._assert_async(good.all(), "")

    def sort() -> None:
        by_id, _ = torch.sort(ids.view(-1), stable=True)
        torch.searchsorted(by_id, torch.arange(31))

    rounded = together(lambda: total.to(HALF), lambda: total.to(HALF))
    return {
        "embedding": Case(
            lambda: bk.embedding(ids, *tables, w, b, **ON),
            (*tables, w, b),
            together(memory(0, 3), checked),
            together(memory(0, 8), sort, rounded),
        ),
        "cross_entropy": Case(
            lambda: bk.cross_entropy(logits, target, **ON),
            (logits,),
            together(memory(0, 4), lambda: torch._assert_async(good[0], "")),
            memory(0),
        ),
    }


def packing_cases() -> dict[str, Case]:
    keep, x = torch.ones(4, 16, dtype=torch.bool), draw(4, 16, 64)
    keep[1, 9:] = False
    plan = bk.packing.plan(keep, 57, **ON)
    return {
        "packing.plan": Case(
            lambda: bk.packing.plan(keep, 57, **ON).cu_seq, (), memory(0, 5), memory(0)
        ),
        "packing.unpad": Case(lambda: bk.packing.unpad(x, plan, **ON), (x,), memory(0), memory(0)),
    }


def cases() -> dict[str, Case]:
    return {**norm_cases(), **attention_cases(), **ffn_cases(), **id_cases(), **packing_cases()}


def microseconds(function: Call, rounds: int = 60, repeats: int = 50) -> float:
    """Of this thread, a call: the best of many short samples, as a busy machine disturbs most of them."""
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time_ns()
        for _ in range(repeats):
            function()
        best = min(best, (time.thread_time_ns() - start) / repeats / 1000)
    return best


def trained(call: Call, wrt: tuple[Tensor, ...]) -> Call:
    """The engine hands CPU work to this very thread: its time is all there is."""
    seed = torch.ones_like(call())
    return lambda: torch.autograd.grad(call(), wrt, seed)


def torchs(case: Case) -> Call:
    return lambda: _Bare.apply(case, *case.wrt)


def measure() -> dict[str, dict[str, float]]:
    found = {}
    for name, case in cases().items():
        with torch.no_grad():
            bare = together(case.forward, memory(1))
            found[name] = {"forward": microseconds(case.call), "torch's": microseconds(bare)}
        if case.wrt:
            found[name] |= {
                "training": microseconds(trained(case.call, case.wrt)),
                "torch's training": microseconds(trained(torchs(case), case.wrt)),
            }
    return found


def of_lengths() -> dict[str, Callable[[int], Call]]:
    """A training step of each length's tensors; it is made before it is timed."""
    w, b = draw(64), draw(64)

    def norm(length: int) -> Call:
        x = draw(4, length, 64)
        return trained_once(lambda: bk.layer_norm(x, (64,), w, b, **ON), (x, w, b))

    def of(case: Case) -> Call:
        case.forward(), case.backward()  # torch's products on the CPU want to see a shape once
        return trained_once(case.call, case.wrt)

    return {
        "layer_norm": norm,
        "attention": lambda length: of(attention_cases(length)["attention"]),
        "varlen_attn": lambda length: of(attention_cases(length)["varlen_attn"]),
        "ffn": lambda length: of(ffn_cases(length)["ffn"]),
    }


def trained_once(call: Call, wrt: tuple[Tensor, ...]) -> Call:
    def step() -> None:
        out = call()
        torch.autograd.grad(out, wrt, torch.empty_like(out))

    return step


def first_calls() -> dict[str, dict[str, float]]:
    """Forward and backward of a length's first call: the median, the slowest of a stream, and its second call."""
    found = {}
    for name, make in of_lengths().items():
        times: dict[str, list[float]] = {"first": [], "second": []}
        for length in (*WARM, *NEW):
            step = make(length)
            for which in times:
                start = time.thread_time_ns()
                step()
                if length in NEW:
                    times[which].append((time.thread_time_ns() - start) / 1000)
        found[name] = {
            "first": statistics.median(times["first"]),
            "slowest": max(times["first"]),
            "second": statistics.median(times["second"]),
        }
    return found


def profile(name: str) -> None:
    case = cases()[name]
    for function in (torch.no_grad()(case.call), trained(case.call, case.wrt)):
        function()
        with cProfile.Profile() as profiled:
            for _ in range(2000):
                function()
        pstats.Stats(profiled).sort_stats("tottime").print_stats(28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--profile", help="instead: a profile of this operation, both ways")
    parser.add_argument("--lengths", action="store_true", help="instead: first calls of lengths")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stub()
    if given.profile:
        profile(given.profile)
        return
    found = first_calls() if given.lengths else measure()
    columns = list(next(iter(found.values())))
    print(f"{'microseconds':24s}" + "".join(f"{column:>18s}" for column in columns))
    for name, row in found.items():
        print(f"{name:24s}" + "".join(f"{row[c]:18.1f}" for c in columns if c in row))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
