"""What the counts of the emulator and the published rates of an H100 SXM predict for our Triton kernels: the least time
that their memory traffic, products, instructions and shared memory could take, and which of these bounds them.

    python benchmarks/predict.py [--write benchmarks/predicted.md] [--only TEXT]

Nothing here was ever measured. A call is emulated on a part of its rows or heads, at full widths, and scaled. A launch
of P programs of w warps, of which registers and shared memory (ptxas has compiled them) let a multiprocessor hold c:

    round(r) = r * max(issue / min(1, r * w / 16), tensor, special, shared)    of one program, on one multiprocessor
    computing = floor(P / 132c) * round(c) + round(ceil((P mod 132c) / 132))
    moving = max(memory, l2)
    predicted = max(computing, moving) + min(computing, moving) / (c * stages)

so that the last wave of programs, and warps too few to issue every cycle (one warp issues at most every fourth, the
latency of an addition), cost what they cost; and that a program, which loads before it computes, overlaps the two only
with the others of its multiprocessor and with the stages of its loads (counted where there are products, whose loads
Triton pipelines). memory: each tensor once; l2: each sector as often as tiles load or store it. Kernels that go round
over rows are launched as one full wave. Left out: latency of memory, launches; instructions are PTX's, not ptxas'.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict_cases
from predict_cases import Case

from bigkernels.ops.attention import triton as attention_drawer
from bigkernels.ops.ffn import triton_tiles
from tests.emulator.core import Options, Report
from tests.emulator.device import emulated
from tests.static import occupancy

# Of an H100 SXM (NVIDIA's data sheet and tuning guide): 132 multiprocessors at 1.755 GHz, each with 4 warp
# instructions, 16 special functions, 128 bytes of shared memory a cycle; bytes a second of HBM3, products a second.
# Of its L2 cache nothing is published: the 5,120 bytes a cycle of an A100.
MULTIPROCESSORS = 132
CLOCKS = MULTIPROCESSORS * 1.755e9
MEMORY = 3.35e12
L2 = 5120 * 1.755e9
# And of it what blocks add to memory, in bytes a second: flash-attention's backward of 256-wide heads reaches so much
# on an H200, whose cache is the same (its pull request 2889).
REDUCTIONS = 2.65e12
PRODUCTS = {"bf16": 989.4e12, "f16": 989.4e12, "tf32": 494.7e12}
BUSY_WARPS = 16  # that issue every cycle of the four schedulers
GOING_ROUND = ("layer_norm_backward_kernel", "embedding_backward_kernel")
# As many partial sums as programs run at once: no share of them is emulated.
LEFT_OUT = "column_sum_kernel"
_SHAPE = re.compile(r"\.m(\d+)n(\d+)k(\d+)\.")
_SPECIAL = ("ex2", "rsqrt", "rcp", "sqrt", "tanh", "lg2", "sin", "cos")


@dataclasses.dataclass
class Bounds:
    """Seconds that each of them takes at the published rate."""

    memory: float = 0.0
    l2: float = 0.0
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


@dataclasses.dataclass(frozen=True)
class Launch:
    """A counted report, and of the launch its tensors, programs, their warps, shared bytes and stages, and the PTX."""

    report: Report
    tensors: tuple[Tensor, ...]
    programs: int = 1
    warps: int = 4
    shared: int = 0
    stages: int = 1
    ptx: str = ""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """blocks: programs that a multiprocessor holds. spilled: bytes a thread."""

    kernel: str
    bounds: Bounds
    registers: int
    spilled: int
    blocks: int
    seconds: float


def _products(opcode: str) -> tuple[float, float]:
    """Operations of one warp's part of a product, and the rate; zeros of another instruction."""
    shape = _SHAPE.search(opcode)
    if shape is None or not opcode.startswith(("mma", "wgmma.mma_async")):
        return 0.0, 1.0
    m, n, k = map(int, shape.groups())
    rate = next((r for name, r in PRODUCTS.items() if f".{name}." in f"{opcode}."), 1.0)
    return 2.0 * m * n * k / (4 if opcode.startswith("wgmma") else 1), rate


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
        else:
            adds = line.opcode.startswith(("atom", "red"))
            found.l2 += scale * 32 * line.moved / (REDUCTIONS if adds else L2)
    found.issue = scale * launch.report.instructions / (4 * CLOCKS)
    return found


@functools.lru_cache(maxsize=256)
def compiled(ptx: str, architecture: str = "sm_90a") -> tuple[int, int]:
    """(registers of a thread, bytes that it spills), as Triton's ptxas says."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        ptxas = triton.knobs.nvidia.ptxas.path
        command = [ptxas, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (
        re.search(text, said) for text in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    assert registers is not None and spilled is not None, said
    return int(registers[1]), int(spilled[1])


def computing(found: Bounds, programs: int, warps: int, blocks: int) -> float:
    """Seconds of P programs: waves of as many as run at once, and what is left."""

    def lasting(at_once: int) -> float:
        issue = found.issue / min(1.0, at_once * warps / BUSY_WARPS)
        slowest = max(issue, found.tensor, found.special, found.shared)
        return at_once * slowest * MULTIPROCESSORS / programs

    waves, rest = divmod(programs, MULTIPROCESSORS * blocks)
    return waves * lasting(blocks) + (lasting(-(-rest // MULTIPROCESSORS)) if rest else 0.0)


def predicted(
    launch: Launch, scale: float = 1.0, sizes: dict[int, int] | None = None
) -> Prediction:
    """What a launch of the whole takes, of which the share was emulated."""
    found = bounds(launch, scale, sizes)
    registers, spilled = compiled(launch.ptx)
    blocks = max(1, occupancy.cuda("90", launch.warps, registers, launch.shared))
    programs = max(1, round(launch.programs * scale))
    if launch.report.kernel in GOING_ROUND:
        programs = MULTIPROCESSORS * blocks
    parts = (
        computing(found, programs, launch.warps, blocks),
        max(found.memory, found.l2),
    )
    overlapped = blocks * (launch.stages if found.tensor else 1)
    seconds = max(parts) + min(parts) / overlapped
    return Prediction(launch.report.kernel, found, registers, spilled, blocks, seconds)


_DEVICES = itertools.count(1000)


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
                made = self.metadata
                programs = given[0] * given[1] * given[2]
                form = (programs, made.num_warps, made.shared, made.num_stages, given[4].ptx)
                launches.append(Launch(emulation.reports[-1], tuple(tensors.values()), *form))

        # A kernel keeps its launcher: none that notes elsewhere is to be found.
        mine = next(_DEVICES)
        emulation.get_current_device = lambda: mine  # type: ignore[attr-defined]
        emulation.launcher_cls = Noting  # type: ignore[attr-defined]
        yield launches


@contextlib.contextmanager
def as_the_whole() -> Iterator[list[Launch]]:
    """As counting: and the part of a plane or batch that is emulated is cut as the whole would be."""
    triton_tiles.choose.cache_clear()
    patch = mock.patch.object
    with (
        patch(triton_tiles, "_ENOUGH", 1),
        patch(attention_drawer, "_fills", lambda call: True),
        counting() as so_far,
    ):
        yield so_far
    triton_tiles.choose.cache_clear()


def rows(only: str = "") -> Iterator[tuple[Case, list[Prediction]]]:
    """Of each case: its launches."""
    with as_the_whole() as so_far:
        for case in predict_cases.cases():
            if only in case.name:
                run = case.setup()
                so_far.clear()
                run()
                kept = [x for x in so_far if x.report.kernel != LEFT_OUT]
                yield case, [predicted(launch, case.scale, case.sizes) for launch in kept]


HEAD = """# Predicted times of the Triton kernels on an H100 SXM

Predicted from emulation, never measured. `python benchmarks/predict.py --write benchmarks/predicted.md` counts what the
PTX for sm_90 executes on the emulated device and divides by published rates; its docstring has the formula. The largest
column of a kernel is the least time that it can take, and its bound; predicted adds waves of programs that do not come
out even, warps too few to issue every cycle, and what too few programs at once on a multiprocessor do not overlap. The
roofline is the products that are asked for, or the tensors of the kernel that has most. Left out: torch's own products
and copies, sums of partial sums, latency of memory, and what asynchronous copies write to shared memory. bfloat16;
microseconds. `benchmarks/gpu.sh` measures the same calls where a GPU is.
"""
CALLS = "| call | predicted | TFLOP/s | share of the roofline |\n| --- | ---: | ---: | ---: |\n"
KERNELS = (
    "| call | kernel | memory | l2 | tensor | issue | special | shared | registers | at once | predicted | bound |\n"
    "| --- | --- |" + " ---: |" * 9 + " --- |\n"
)


def call_line(case: Case, launches: list[Prediction]) -> str:
    seconds = sum(x.seconds for x in launches)
    memory = max(x.bounds.memory for x in launches)
    roof = max(memory, case.flops / PRODUCTS["bf16"])
    rate = f"{case.flops / seconds / 1e12:.0f}" if case.flops else ""
    return f"| {case.name} | {1e6 * seconds:.1f} | {rate} | {roof / seconds:.2f} |"


def kernel_line(case: Case, x: Prediction) -> str:
    columns = [f"{1e6 * value:.1f}" for value in dataclasses.astuple(x.bounds)]
    columns += [str(x.registers), str(x.blocks), f"{1e6 * x.seconds:.1f}", x.bounds.name]
    return f"| {case.name} | {x.kernel} | {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the table's file")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    calls: list[str] = []
    kernels: list[str] = []
    for case, launches in rows(arguments.only):
        calls.append(call_line(case, launches))
        kernels += [kernel_line(case, launch) for launch in launches]
        print(calls[-1], *kernels[len(kernels) - len(launches) :], sep="\n", flush=True)
    if arguments.write:
        tables = (CALLS + "\n".join(calls), KERNELS + "\n".join(kernels))
        arguments.write.write_text("\n".join((HEAD, *tables)) + "\n")


if __name__ == "__main__":
    main()
