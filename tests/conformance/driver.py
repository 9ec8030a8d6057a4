"""The CUDA driver through ctypes: loads PTX and runs it on arrays, on a GPU or on the emulator's stand-in."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
# Of CUtensorMapDataType.
TYPES = {"u8": 0, "u16": 1, "u32": 2, "s32": 3, "f16": 6, "f32": 7, "bf16": 9}
_MAX_DYNAMIC_SHARED = 8  # of CUfunction_attribute
_MAJOR = 75  # of CUdevice_attribute


class DriverError(RuntimeError):
    """What the driver, or a check of the emulator, says of a call."""


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A view of the array argument `of` for TMA: the innermost size first; strides in bytes, of all sizes but
    the innermost."""

    of: int
    type: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0


Argument = np.ndarray | int | TensorMap


class Driver:
    """One device. library: of the driver, "libcuda.so.1" or the emulator's own."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)
        self.call("cuInit", 0)
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        major = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        self.major = major.value
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(status, ctypes.byref(text))
            raise DriverError(f"{name}: error {status}: {(text.value or b'').decode()}")

    @contextlib.contextmanager
    def _memory(self, arrays: Sequence[np.ndarray], fresh: bool) -> Iterator[list[ctypes.c_uint64]]:
        """Addresses of copies on the device, which are copied back at the end; of unwritten memory if `fresh`."""
        addresses: list[ctypes.c_uint64] = []
        try:
            for array in arrays:
                address = ctypes.c_uint64()
                self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(array.nbytes))
                addresses.append(address)
                if not fresh:
                    self.call(
                        "cuMemcpyHtoD_v2", address, _pointer(array), ctypes.c_size_t(array.nbytes)
                    )
            yield addresses
            for array, address in zip(arrays, addresses, strict=True):
                self.call(
                    "cuMemcpyDtoH_v2", _pointer(array), address, ctypes.c_size_t(array.nbytes)
                )
        finally:
            for address in addresses:
                self.library.cuMemFree_v2(address)

    def encode(self, view: TensorMap, address: int) -> ctypes.Array[ctypes.c_uint64]:
        """A CUtensorMap of memory at `address`, aligned as the device wants it."""
        rank = len(view.sizes)
        made = (ctypes.c_uint64 * 32)()
        start = (-ctypes.addressof(made) % 64) // 8
        aligned = (ctypes.c_uint64 * 16).from_buffer(made, 8 * start)
        self.call(
            "cuTensorMapEncodeTiled",
            ctypes.byref(aligned),
            TYPES[view.type],
            ctypes.c_uint32(rank),
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * rank)(*view.sizes),
            (ctypes.c_uint64 * max(1, rank - 1))(*view.strides),
            (ctypes.c_uint32 * rank)(*view.box),
            (ctypes.c_uint32 * rank)(*(1,) * rank),
            0,
            SWIZZLES[view.swizzle],
            0,
            0,
        )
        return aligned

    def run(
        self,
        ptx: str,
        arguments: Sequence[Argument],
        threads: int = 32,
        blocks: int = 1,
        shared: int = 0,
        kernel: str = "test",
        fresh: bool = False,
    ) -> None:
        """Runs a kernel of a module; arrays are changed in place. fresh: what they hold is not copied to it."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(ptx.encode()))
        try:
            self.call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
            if shared > 48 * 1024:
                self.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared)
            arrays = [a for a in arguments if isinstance(a, np.ndarray)]
            with self._memory(arrays, fresh) as addresses:
                self._launch(function, arguments, addresses, threads, blocks, shared)
        finally:
            self.library.cuModuleUnload(module)

    def _launch(self, function, arguments, addresses, threads, blocks, shared) -> None:
        places = iter(addresses)
        values: list[object] = []
        for argument in arguments:
            if isinstance(argument, TensorMap):
                values.append(self.encode(argument, addresses[argument.of].value))
            elif isinstance(argument, np.ndarray):
                values.append(next(places))
            else:
                values.append(ctypes.c_int(argument))
        pointers = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        grid, block = (blocks, 1, 1), (threads, 1, 1)
        sizes = [ctypes.c_uint32(size) for size in (*grid, *block, shared)]
        self.call("cuLaunchKernel", function, *sizes, None, pointers, None)
        self.call("cuCtxSynchronize")


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def emulated(seed: int = 1, major: int = 9) -> Driver:
    """The emulator's stand-in, as a device of compute capability `major`."""
    from tests.emulator import build

    build.build(False)
    library = str(build.core_library())
    ctypes.CDLL(library).emulator_driver_set(ctypes.c_uint64(seed), major)
    return Driver(library)


def gpu() -> Driver:
    return Driver("libcuda.so.1")
