"""An emulated GPU for tests: CPU tensors, forced backends, and the kernels' real PTX."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Protocol

from bigkernels import backends, library
from tests.emulator import build
from tests.emulator.core import Options, Report
from tests.emulator.memory import DeviceMemory


class Emulation(Protocol):
    """A running emulated device: a report for each launch so far, and the options of those to come."""

    reports: list[Report]
    options: Options

    def attach(self) -> None: ...
    def detach(self) -> None: ...


def why_not(backend: str) -> str | None:
    """Why a backend cannot be emulated here, or None."""
    if library.extension_error is not None:
        return library.extension_error
    if backend == "cuda":
        return build.why_no_cuda()
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 keeps Triton from compiling"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return build.why_no_core()


def _register_triton() -> None:
    """Lets CPU tensors reach the Triton drawers' ops."""
    for room in library.ROOMS:
        if (room, "triton") not in backends._DRAWERS:
            continue
        drawer = backends._DRAWERS[room, "triton"]
        contract = importlib.import_module(f"bigkernels.ops.{room}.contract")
        for name in contract.SCHEMAS:
            library.LIBRARY.impl(f"{name}_triton", getattr(drawer, name), "CPU")


_registered: list[bool] = []


@contextlib.contextmanager
def emulated(
    device: int,
    backend: str,
    options: Options = Options(),
) -> Iterator[Emulation]:
    """Inside, calls with this backend, "cuda" or "triton", on CPU tensors run on an emulated device, 80
    or 90. A launch that does not come out clean raises."""
    memory = DeviceMemory((backend,))
    runner: Emulation
    if backend == "cuda":
        from tests.emulator.cuda import CudaRuntime

        runner = CudaRuntime(device, memory, options)
    else:
        from tests.emulator.triton_driver import EmulatedDriver

        runner = EmulatedDriver(device, memory, options)
        if not _registered:
            _register_triton()
            _registered.append(True)
    before = backends._ON_CPU
    runner.attach()
    backends._ON_CPU = before | {backend}
    try:
        with memory:
            yield runner
    finally:
        backends._ON_CPU = before
        runner.detach()
