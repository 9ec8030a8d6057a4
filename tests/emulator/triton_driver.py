"""A Triton driver for a GPU that is not there: `kernel[grid](...)` on CPU tensors compiles for it, and
the PTX runs in the emulator. Only with TRITON_INTERPRET unset, which triton reads at its import.
"""

from __future__ import annotations

import dataclasses
import struct
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget

from tests.emulator import build
from tests.emulator.core import EmulatorError, Module, Options, Report
from tests.emulator.memory import DeviceMemory, Running

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}
_FORMATS = {
    **{"i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "?", "u8": "B", "u16": "H"},
    **{"u32": "I", "u64": "Q", "fp32": "f", "fp64": "d"},
}


class _Launcher:
    """What Triton calls for one compiled kernel; `function` is what load_binary returned."""

    def __init__(self, source, metadata) -> None:
        self.signature = list(source.signature.values())
        self.metadata = metadata

    def __call__(self, x, y, z, stream, function, packed, launch_metadata, enter, leave, *values):
        driver = triton.runtime.driver.active
        arguments, tensors = [], []
        for kind, value in zip(self.signature, values, strict=True):
            if kind == "constexpr":
                continue
            if kind.startswith("*"):
                arguments.append(struct.pack("Q", 0 if value is None else value.data_ptr()))
                tensors += [value] if value is not None and value.numel() > 0 else []
            elif kind in _FORMATS:
                arguments.append(struct.pack(_FORMATS[kind], value))
            else:
                raise EmulatorError(f"a kernel's argument of type {kind} is not emulated")
        arguments += [bytes(8), bytes(8)]  # scratch memory, of which no kernel asks any
        if self.metadata.global_scratch_size or self.metadata.profile_scratch_size:
            raise EmulatorError("scratch memory in global memory is not emulated")
        running = driver.memory.running or Running([])
        regions = [running.region_of(tensor) for tensor in tensors]
        block = (self.metadata.num_warps * 32,)
        report = function.launch(
            self.metadata.name, (x, y, z), block, arguments, regions, self.metadata.shared,
            driver.options,
        )  # fmt: skip
        driver.reports.append(report)
        if not report:
            raise EmulatorError(str(report))


class EmulatedDriver:
    """Triton's view of the device. reports: one a launch."""

    launcher_cls = _Launcher

    def __init__(self, device: int, memory: DeviceMemory, options: Options) -> None:
        self.device, self.memory = device, memory
        # Triton 3.6 puts none behind mbarrier.init, and its kernels run.
        self.options = dataclasses.replace(options, init_fences=False)
        self.reports: list[Report] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda index: {
                "max_shared_mem": SHARED_LIMITS[device],
                "multiprocessor_count": 132,
                "warpSize": 32,
                "max_num_regs": 65536,
            },
            # The binary is the PTX: (module, function, registers, spills, threads it may have).
            load_binary=lambda name, ptx, shared, index: (None, Module(ptx.decode()), 0, 0, 1024),
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device, 32)

    def get_current_device(self) -> int:
        return self.device  # so that kernels compiled for one device do not serve the other

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    @staticmethod
    def is_active() -> bool:
        return True

    def attach(self) -> None:
        """Makes this the driver of every kernel. ptxas is not run: its checks are the static gate's."""
        knobs = triton.knobs
        self._before = (knobs.runtime.add_stages_inspection_hook, knobs.cache.dir)
        self._driver_before = triton.runtime.driver._active
        knobs.runtime.add_stages_inspection_hook = _keep_ptx
        knobs.cache.dir = str(build.FOLDER / "triton")
        triton.runtime.driver.set_active(self)

    def detach(self) -> None:
        triton.knobs.runtime.add_stages_inspection_hook, triton.knobs.cache.dir = self._before
        triton.runtime.driver._active = self._driver_before


def _keep_ptx(*arguments):
    """Triton's hook on the stages of compilation: asked without arguments for its part of the cache key."""
    if not arguments:
        return "emulated", "emulated"
    stages = arguments[1]
    stages["cubin"] = lambda ptx, metadata: ptx.encode()
