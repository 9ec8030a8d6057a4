"""What the counts of the emulator and the published rates of an H100 SXM predict for our Triton kernels: the least time
that their memory traffic, products, instructions and shared memory could take, and which of these bounds them.

    python benchmarks/predict.py [--write benchmarks/predicted.md] [--only TEXT]

Nothing here was ever measured. A call is emulated on a part of its rows or heads, at full widths, and scaled. Left out:
latency, waves of programs that do not come out even, launches; ptxas' instructions are not PTX's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bigkernels as bk
from bigkernels.ops.attention import triton as attention_drawer
from bigkernels.ops.ffn import triton_tiles
from tests.emulator.core import Options, Report
from tests.emulator.device import emulated

# Of an H100 SXM (NVIDIA's data sheet and tuning guide): 132 multiprocessors at 1.755 GHz, each with 4 warp
# instructions, 16 special functions, 128 bytes of shared memory a cycle; bytes a second of HBM3, products a second.
CLOCKS = 132 * 1.755e9
MEMORY = 3.35e12
PRODUCTS = {"bf16": 989.4e12, "f16": 989.4e12, "tf32": 494.7e12}
_SHAPE = re.compile(r"\.m(\d+)n(\d+)k(\d+)\.")
_SPECIAL = ("ex2", "rsqrt", "rcp", "sqrt", "tanh", "lg2", "sin", "cos")
HALF = torch.bfloat16


@dataclasses.dataclass
class Bounds:
    """Seconds that each of them takes at the published rate."""

    memory: float = 0.0
    tensor: float = 0.0
    issue: float = 0.0
    special: float = 0.0
    shared: float = 0.0

    @property
    def seconds(self) -> float:
        return max(dataclasses.astuple(self))

    @property
    def name(self) -> str:
        return max(dataclasses.asdict(self).items(), key=lambda pair: pair[1])[0]


def _products(opcode: str) -> tuple[float, float]:
    """Operations of one warp's part of a product, and the rate; zeros of another instruction."""
    shape = _SHAPE.search(opcode)
    if shape is None or not opcode.startswith(("mma", "wgmma.mma_async")):
        return 0.0, 1.0
    m, n, k = map(int, shape.groups())
    rate = next((r for name, r in PRODUCTS.items() if f".{name}." in f"{opcode}."), 1.0)
    return 2.0 * m * n * k / (4 if opcode.startswith("wgmma") else 1), rate


@dataclasses.dataclass(frozen=True)
class Launch:
    """A counted report, and the tensors of the launch."""

    report: Report
    tensors: tuple[Tensor, ...]


def bounds(launch: Launch, scale: float = 1.0, sizes: dict[int, int] | None = None) -> Bounds:
    """Of one launch, times the share of the whole that was emulated. Memory has every tensor once. sizes: of
    dimensions, the whole of what was emulated."""
    found = Bounds()
    for tensor in launch.tensors:
        grown = scale if sizes is None else 1.0
        for n in tensor.shape if sizes is not None else ():
            grown *= sizes.get(n, n) / n
        found.memory += grown * tensor.numel() * tensor.element_size() / MEMORY
    for line in launch.report.traffic:
        operations, rate = _products(line.opcode)
        found.tensor += scale * line.executed * operations / rate
        if line.opcode.startswith(_SPECIAL):
            found.special += scale * 2 * line.executed / CLOCKS
        if line.shared:
            found.shared += scale * line.moved / CLOCKS
    found.issue = scale * launch.report.instructions / (4 * CLOCKS)
    return found


@contextlib.contextmanager
def counting(device: int = 90) -> Iterator[list[Launch]]:
    """Inside, Triton's drawers run on the emulated device, and what they launch is listed."""
    with emulated(device, "triton", Options(counted=True, threads=2)) as emulation:
        launches: list[Launch] = []
        launcher = emulation.launcher_cls  # type: ignore[attr-defined]

        class Noting(launcher):  # type: ignore[misc, valid-type]
            def __call__(self, *given: Any) -> None:
                super().__call__(*given)
                tensors = {v.data_ptr(): v for v in given[9:] if isinstance(v, Tensor)}
                launches.append(Launch(emulation.reports[-1], tuple(tensors.values())))

        emulation.get_current_device = lambda: 1000 + device  # type: ignore[attr-defined]
        emulation.launcher_cls = Noting  # type: ignore[attr-defined]
        yield launches


@dataclasses.dataclass(frozen=True)
class Case:
    """What is emulated, how much of it there is, and what is differentiated, if that is what counts."""

    name: str
    scale: float
    call: Callable[[], Tensor]
    wrt: tuple[Tensor, ...] = ()
    sizes: dict[int, int] | None = None

    def launches(self, so_far: list[Launch]) -> list[Launch]:
        so_far.clear()
        out = self.call()
        if self.wrt:
            so_far.clear()
            torch.autograd.grad(out, self.wrt, torch.ones_like(out))
        return list(so_far)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape).to(HALF).requires_grad_()


def _attention(heads: int, length: int, dim: int) -> Iterator[Case]:
    """(heads, length, dim) of all samples together; one head is emulated."""
    q, k, v = (_draw(1, 1, length, dim) for _ in range(3))

    def call() -> Tensor:
        return bk.scaled_dot_product_attention(q, k, v, backend="triton")

    name = f"attention {heads} heads of {length}, head_dim {dim}"
    yield Case(f"{name}, forward", heads, call)
    yield Case(f"{name}, backward", heads, call, (q, k, v))


def _rows(m: int, n: int) -> Iterator[Case]:
    some = 64
    x, residual, weight, bias = _draw(some, n), _draw(some, n), _draw(n), _draw(n)

    def call() -> Tensor:
        return bk.add_layer_norm(x, residual, weight, bias, backend="triton")  # type: ignore[no-any-return]

    yield Case(f"add_layer_norm ({m}, {n}), forward", m / some, call)
    yield Case(f"add_layer_norm ({m}, {n}), backward", m / some, call, (x, residual, weight, bias))


def _ffn(m: int, e: int, f: int) -> Iterator[Case]:
    """One tile of the plane of hidden, whole sums; the kernels alone, without torch's four products."""
    rows, columns = 128, 256
    x, up, bias, down = _draw(rows, e), _draw(columns, e), _draw(columns), _draw(e, columns)

    def call() -> Tensor:
        return bk.feed_forward(x, up, bias, down, None, backend="triton")

    share, sizes = m / rows * f / columns, {rows: m, columns: f}
    yield Case(f"ffn ({m}, {e}) by {f}, forward", share, call, (), sizes)
    yield Case(f"ffn ({m}, {e}) by {f}, backward", share, call, (x, up, bias, down), sizes)


def cases() -> Iterator[Case]:
    """Of BERT-base and BERT-large: 64 samples of 128 tokens, 32 of 512."""
    yield from _attention(64 * 12, 128, 64)
    yield from _attention(32 * 16, 512, 64)
    yield from _rows(8192, 768)
    yield from _rows(16384, 1024)
    yield from _ffn(8192, 768, 3072)
    yield from _ffn(16384, 1024, 4096)


def rows(only: str = "") -> Iterator[tuple[str, Bounds]]:
    """Of each case and kernel: its name and bounds."""
    # The part of a plane that is emulated is cut as the whole would be.
    triton_tiles.choose.cache_clear()
    patch = mock.patch.object
    with (
        patch(triton_tiles, "_ENOUGH", 1),
        patch(attention_drawer, "_fills", lambda call: True),
        counting() as so_far,
    ):
        for case in cases():
            for launch in case.launches(so_far) if only in case.name else ():
                if launch.report.kernel == "column_sum_kernel":
                    continue  # as many partial sums as programs run at once: no share of them is emulated
                name = f"{case.name} | {launch.report.kernel}"
                yield name, bounds(launch, case.scale, case.sizes)
    triton_tiles.choose.cache_clear()


HEAD = """# Predicted times of the Triton kernels on an H100 SXM

Predicted from emulation, never measured. `python benchmarks/predict.py --write benchmarks/predicted.md` counts what the
PTX for sm_90 executes on the emulated device and divides by published rates. The largest column is the least time that
a launch can take, and its bound; a GPU is slower by what does not overlap. Memory has every tensor once. Left out: the
L2 cache, and what asynchronous copies write to shared memory, which the emulator does not count. bfloat16;
microseconds. `benchmarks/gpu.sh` measures the same operations where a GPU is.

| call | kernel | memory | tensor | issue | special | shared | predicted | bound |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the table's file")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    lines: list[str] = []
    for name, found in rows(arguments.only):
        columns: list[Any] = [f"{1e6 * value:.1f}" for value in dataclasses.astuple(found)]
        lines.append(
            f"| {' | '.join([name, *columns])} | {1e6 * found.seconds:.1f} | {found.name} |"
        )
        print(lines[-1], flush=True)
    if arguments.write:
        arguments.write.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
