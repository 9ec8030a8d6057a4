"""Time our GPU kernels and the peers they must beat on the GPU at hand.

Each case runs alone, with a cold L2 cache before every sample, timed by CUDA events; the table shows the
median and the quartiles in microseconds, and what that is in TFLOP/s or GB/s. A case that
cannot run says why. Results are written as they come, so that a killed run keeps what it had.

`--smoke` runs tiny shapes a few times on whatever device there is: it says that the script works, nothing
about speed. `--device emulated` runs our GPU kernels in the emulator of tests/emulator and the peers on the
CPU, for rehearsals. `--list` only names the cases.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import gpu_cases
import gpu_more_cases
import gpu_targets
import torch
from gpu_cases import Case

from bigkernels.cli.machine import versions
from bigkernels.testing.timing import sample, timing_of

# More than any L2: writing it leaves nothing of the previous sample behind.
FLUSH_BYTES = 256 << 20
CASE_SECONDS = 0.4
MOST_SAMPLES, FEWEST_SAMPLES = 50, 5
# Of each device, the backends of ours that are timed on it.
GROUPS = gpu_cases.GROUPS | gpu_more_cases.GROUPS
OURS = {"cuda": ("cuda", "triton"), "cpu": ("cpu",), "emulated": ("cuda", "triton")}


@dataclasses.dataclass
class Result:
    """Microseconds of one call, or why there are none; first_call_s includes compilation. host: what its caller spends
    on one, in the mean and at worst."""

    group: str
    name: str
    shape: str
    dtype: str
    median_us: float | None = None
    lower_us: float | None = None
    upper_us: float | None = None
    samples: int = 0
    first_call_s: float | None = None
    tflops: float | None = None
    gbytes: float | None = None
    host_us: float | None = None
    host_worst_us: float | None = None
    error: str | None = None

    def line(self) -> str:
        head = f"{self.group:<18}{self.name:<34}{self.shape:<24}{self.dtype:<9}"
        if self.median_us is None:
            return f"{head}{self.error}"
        rate = f"{self.tflops:8.1f} TFLOP/s" if self.tflops else ""
        rate = f"{self.gbytes:8.0f} GB/s" if self.gbytes else rate
        host = f"   host {self.host_us:.1f} us" if self.host_us else ""
        return f"{head}{self.median_us:10.1f} [{self.lower_us:.1f}, {self.upper_us:.1f}] us{rate}{host}"


def sample_cuda(function: Callable[[], object], count: int, flush: torch.Tensor) -> list[float]:
    """Seconds of `count` calls. The flush keeps the device busy while the host launches the call, so
    that short kernels are not timed with their launch."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in pairs:
        flush.zero_()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 for start, end in pairs]


class Clock:
    """Times functions on one device; `smoke` takes as few samples as possible."""

    def __init__(self, device: str, smoke: bool) -> None:
        self.cuda = device == "cuda"
        self.smoke = smoke
        if self.cuda:
            size = 1 << 20 if smoke else FLUSH_BYTES
            self.flush = torch.empty(size, dtype=torch.uint8, device="cuda")

    def _sample(self, function: Callable[[], object], count: int) -> list[float]:
        if self.cuda:
            return sample_cuda(function, count, self.flush)
        return [sample(function, 1)[0] for _ in range(count)]

    def measure(self, function: Callable[[], object], result: Result) -> None:
        start = time.perf_counter()
        function()
        self.wait()
        result.first_call_s = round(time.perf_counter() - start, 3)
        (probe,) = self._sample(function, 1)
        count = int(CASE_SECONDS / max(probe, 1e-6))
        count = 2 if self.smoke else min(MOST_SAMPLES, max(FEWEST_SAMPLES, count))
        seconds = self._sample(function, count)
        timing = timing_of(list(enumerate(seconds)), 0, 1)
        result.samples = count
        result.median_us = timing.median * 1e6
        result.lower_us, result.upper_us = timing.lower * 1e6, timing.upper * 1e6

    def host(self, function: Callable[[], object]) -> list[float]:
        """Microseconds the host needs for each of some calls; the device must keep up, so they are few."""
        function()
        self.wait()
        ends = [time.perf_counter()]
        for _ in range(2 if self.smoke else 50):
            function()
            ends.append(time.perf_counter())
        self.wait()
        return [(end - start) * 1e6 for start, end in itertools.pairwise(ends)]

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def run(case: Case, clock: Clock) -> Result:
    result = Result(case.group, case.name, case.shape, case.dtype)
    try:
        function = case.setup()
        clock.measure(function, result)
        if case.host:
            spent = clock.host(function)
            result.host_us, result.host_worst_us = statistics.fmean(spent), max(spent)
    except Exception as error:  # a peer that refuses a case must not end the run
        text = str(error).strip() or type(error).__name__
        result.error = text.splitlines()[0][:160]
        return result
    assert result.median_us is not None
    if case.flops:
        result.tflops = case.flops / result.median_us * 1e-6
    if case.bytes:
        result.gbytes = case.bytes / result.median_us * 1e-3
    return result


def machine(device: str) -> dict[str, object]:
    found: dict[str, object] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": versions()["triton"],
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    parser.add_argument("--seconds", type=float, default=135.0, help="no case starts later")
    parser.add_argument("--groups", default=",".join(GROUPS), help="comma-separated")
    parser.add_argument("--device", default="cuda", choices=tuple(OURS))
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, two samples")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    chosen = parser.parse_args()
    unknown = set(chosen.groups.split(",")) - set(GROUPS)
    if unknown:
        parser.error(f"--groups: {', '.join(sorted(unknown))} not in {', '.join(GROUPS)}")
    if chosen.device == "cuda" and not chosen.list and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    return chosen


@contextlib.contextmanager
def running(device: str) -> Iterator[None]:
    """On the emulated device, forced GPU backends take CPU tensors."""
    if device != "emulated":
        yield
        return
    from tests.emulator.device import emulated, why_not

    if reason := why_not("cuda") or why_not("triton"):
        raise SystemExit(f"--device emulated: {reason}")
    with emulated(90, "cuda"), emulated(90, "triton"):
        yield


def main() -> None:
    chosen = arguments()
    with running(chosen.device):
        measure(chosen)


def measure(chosen: argparse.Namespace) -> None:
    device = "cuda" if chosen.device == "cuda" else "cpu"
    context = gpu_cases.Context(device, OURS[chosen.device], chosen.smoke, not chosen.no_compile)
    cases = [case for group in chosen.groups.split(",") for case in GROUPS[group](context)]
    wanted = gpu_targets.named()
    cases.sort(
        key=lambda case: (f"{case.group} {case.name} {case.shape}" not in wanted, case.compiles)
    )
    if chosen.list:
        print("\n".join(f"{c.group:<18}{c.name:<34}{c.shape:<24}{c.dtype}" for c in cases))
        return
    clock = Clock(device, chosen.smoke)
    found = machine(device)
    record = {"device": chosen.device, "machine": found, "smoke": chosen.smoke, "results": []}
    start = time.monotonic()
    for case in cases:
        if time.monotonic() - start > chosen.seconds:
            result = Result(
                case.group, case.name, case.shape, case.dtype, error="not run: out of time"
            )
        else:
            result = run(case, clock)
        print(result.line(), flush=True)
        record["results"].append(dataclasses.asdict(result))
        if chosen.json:
            chosen.json.write_text(json.dumps(record, indent=1) + "\n")
    done = sum(r["error"] is None for r in record["results"])
    print(f"{done} of {len(cases)} cases in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
