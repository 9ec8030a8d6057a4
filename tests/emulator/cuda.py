"""The CUDA launchers that nvcc built, on the stand-in runtime: their kernels' PTX runs in the emulator."""

from __future__ import annotations

import ctypes
import functools

import torch

from tests.emulator import build
from tests.emulator.core import Module, Options, Report, _library
from tests.emulator.memory import DeviceMemory

LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure
NO_KERNEL = 209  # cudaErrorNoKernelImageForDevice
# Of a block, beyond 48 KiB: what each device has, less the KiB the system keeps.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}
MULTIPROCESSORS = 2  # few, so that blocks walk over several rows

_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.c_ulonglong,
    ctypes.c_void_p,
)


@functools.cache
def modules(device: int) -> dict[str, Module]:
    """{kernel: module that holds it} of every CUDA source, for a device."""
    opened = [Module(build.ptx_of(source, device).read_text()) for source in build.cuda_sources()]
    return {name: module for module in opened for name in module.kernels}


class CudaRuntime:
    """Serves the launches of one device while it is attached. reports: one a launch, since `attach`."""

    def __init__(self, device: int, memory: DeviceMemory, options: Options) -> None:
        self.device, self.memory, self.options = device, memory, options
        self.reports: list[Report] = []
        self._callback = _CALLBACK(self._launch)  # must outlive its use

    def attach(self) -> None:
        _library()
        self._runtime = ctypes.CDLL(str(build.cuda_library()))
        self._runtime.cudart_set_device(MULTIPROCESSORS, SHARED_LIMITS[self.device])
        self._runtime.cudart_set_launch(self._callback)
        torch.ops.bigkernels_test.use_cuda_library(str(build.cuda_library()), True)

    def detach(self) -> None:
        torch.ops.bigkernels_test.use_cuda_library("", False)
        self._runtime.cudart_set_launch(_CALLBACK(0))

    def _launch(self, kernel, grid, block, shared, arguments) -> int:
        name = kernel.decode()
        try:
            module = modules(self.device).get(name)
            if module is None:
                self._say(f"no PTX of {name} for sm_{self.device}")
                return NO_KERNEL
            regions = self.memory.running.regions() if self.memory.running else []
            report = module.launch(
                name, grid.contents, block.contents, arguments, regions, shared, self.options
            )
        except Exception as error:  # nothing may pass through the C++ frames above
            report = Report(name, fatal=f"{type(error).__name__}: {error}")
        self.reports.append(report)
        if not report:
            self._say(str(report))
        return 0 if report else LAUNCH_FAILURE

    def _say(self, text: str) -> None:
        self._runtime.cudart_set_error_text(text.encode())
