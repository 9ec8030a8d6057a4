"""What the Triton drawers of all rooms need to launch their kernels. Does not import triton.

With TRITON_INTERPRET=1 Triton runs its kernels in Python on CPU tensors: slow, for tests, and not for
bfloat16, which its interpreter rounds wrong.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigkernels.backends import Remembered
from bigkernels.library import IMPLEMENTATIONS, LIBRARY
from bigkernels.ops import triton_table
from bigkernels.ops.triton_table import RowTile

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What persistent kernels are launched for where no GPU is: enough programs to have partial sums.
INTERPRETED_MULTIPROCESSORS = 3
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _missing() -> str | None:
    """Why triton cannot be imported here, or None."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return "triton is not installed"
    text = pathlib.Path(spec.origin).read_text()
    version = re.search(r"__version__ = ['\"](\d+)\.(\d+)", text)
    if version is None or (int(version[1]), int(version[2])) < (3, 6):
        return "triton is older than 3.6"
    return None


MISSING = _missing()


def dtype_limits(dtype: torch.dtype) -> tuple[str, ...]:
    """Why no kernel of ours takes tensors of a dtype; empty if they may."""
    if dtype == torch.bfloat16 and INTERPRETED:
        return ("dtype torch.bfloat16 is rounded wrong by the interpreter",)
    if dtype not in _DTYPES:
        return (f"dtype {dtype} not in float32, bfloat16, float16",)
    return ()


def chip_limits(chip: str) -> tuple[str, ...]:
    """chip: as checks.chip has it. Of AMD's all kernels were compiled for one alone."""
    return (f"GPU {chip} is not gfx942",) if chip.startswith("gfx") else ()


def common_limits(dtype: torch.dtype, chip: str) -> tuple[str, ...]:
    """Why no kernel of ours takes tensors of a dtype on a GPU."""
    return (*chip_limits(chip), *dtype_limits(dtype))


_CUDA_ONLY = frozenset({"maxnreg"})


def known_options(options: dict[str, Any], hip: bool) -> dict[str, Any]:
    """Of a kernel's constants and Triton's options those that its compiler for a GPU knows: it refuses others."""
    if not hip:
        return options
    return {name: value for name, value in options.items() if name not in _CUDA_ONLY}


_HERE = nullcontext()


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes the device of x current, if it is not: the usual case costs next to nothing."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)


@functools.cache
def _multiprocessors(device_index: int) -> int:
    return int(torch.cuda.get_device_properties(device_index).multi_processor_count)


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; a few for a CPU, whose kernels are emulated or interpreted."""
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


_REGISTERS = 65536  # of a multiprocessor


def row_tile(op: str, x: Tensor, n: int) -> RowTile:
    """The table's, for rows of n columns like x."""
    return triton_table.row_tile(op, architecture(x.device), x.dtype, n)


def row_programs(device: torch.device, row_blocks: int, tile: RowTile) -> int:
    """Programs that go round over rows, as many as run at once: each makes one partial sum.

    They may have all registers, which is said aloud (`maxnreg`), because ptxas otherwise spills two here and there to
    fit a warp more.
    """
    assert tile.registers is not None
    at_once = _REGISTERS // (32 * tile.registers * tile.num_warps) if device.type == "cuda" else 1
    return min(row_blocks, multiprocessors(device) * at_once)


@functools.cache
def _architecture(device_index: int) -> str:
    if torch.version.hip is not None:
        return "gfx942"
    # Chips of 12.x have the shared memory of 8.6 again.
    large = (9, 0) <= torch.cuda.get_device_capability(device_index) < (12, 0)
    return "sm_90" if large else "sm_80"


def architecture(device: torch.device) -> str:
    """The one of "sm_80", "sm_90" and "gfx942" whose configurations suit a device."""
    if device.type == "cuda":
        return _architecture(torch.cuda.current_device() if device.index is None else device.index)
    if INTERPRETED:
        return "sm_80"
    import triton

    return f"sm_{triton.runtime.driver.active.get_current_target().arch}"


def deterministic() -> bool:
    """Whether torch wants every sum in a fixed order."""
    return torch.are_deterministic_algorithms_enabled()


_PRODUCTS = {"highest": "ieee", "high": "bf16x3", "medium": "tf32"}


def float32_products(dtype: torch.dtype) -> str:
    """tl.dot's input_precision for a dtype, as torch's setting has it: "high" is what torch documents, each float32
    as a sum of two bfloat16, and "medium" the one product that is cheapest.

    The newer setting of CUDA's own products, where it was used, knows these alone: "ieee" and "tf32".
    """
    if dtype != torch.float32:
        return "tf32"  # which products of 16-bit elements do not look at
    own = torch.backends.cuda.matmul.fp32_precision
    if own == "ieee":
        return "ieee"
    try:
        return _PRODUCTS[torch.get_float32_matmul_precision()]
    except RuntimeError:  # the settings of several backends differ: CUDA's is the one
        return "tf32" if own == "tf32" else "ieee"


class _Places(NamedTuple):
    """Of a kernel's arguments: what Triton builds a form of its own for."""

    pointers: int  # so many at the front are tensors or None
    widths: tuple[int, ...]  # integers: whether they are 1, or multiples of 16
    sizes: tuple[int, ...]  # integers: whether they fit 32 bits
    numbers: tuple[int, ...]  # floats: nothing


_HIP = torch.version.hip is not None
_PLACES: dict[int, _Places] = {}  # by the kernel's id: its hash is slow
_READY: dict[tuple[Any, ...], tuple[Any, ...]] = {}


def _places(kernel: Any, arguments: tuple[Any, ...]) -> _Places:
    pointers = sum(p.name.endswith("_ptr") for p in kernel.params)
    behind = list(zip(range(pointers, len(arguments)), kernel.params[pointers:], strict=False))
    numbers = tuple(i for i, _ in behind if isinstance(arguments[i], float))
    others = [(i, p) for i, p in behind if i not in numbers]
    assert all(p.name.endswith("_ptr") for p in kernel.params[:pointers]), kernel
    widths = tuple(i for i, p in others if not p.do_not_specialize)
    sizes = tuple(i for i, p in others if not p.annotation_type or i in widths)
    return _PLACES.setdefault(id(kernel), _Places(pointers, widths, sizes, numbers))


class Replay(NamedTuple):
    """A launch that was plain, all but its pointers: what runs it, and the numbers and constants behind them."""

    hooked: Callable[[], bool]
    device: int
    run: Callable[..., None]
    grid: tuple[int, ...]
    function: Any
    metadata: Any
    values: tuple[Any, ...]
    scratch: int = 0  # elements of memory that the caller makes for it


@functools.cache
def _triton() -> tuple[Any, Any]:
    """Its settings of running kernels, and what knows the active driver."""
    from triton import knobs
    from triton.runtime import driver

    return knobs.runtime, driver


def _hooked(kernel: Any) -> bool:
    runtime = _triton()[0]
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(kernel.pre_run_hooks or (enter and enter.calls) or (leave and leave.calls))


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> Replay | None:
    """``kernel[grid](*arguments, **constants)``, in less time where it was launched like this before.

    Triton looks at every argument of every call, writes all options down as a string and asks its hooks: 11
    microseconds. Here a compiled form is found by what it depends on, and any call in which that is not plain (a
    tensor that is not aligned to 16 bytes, an integer beyond 32 bits, a hook) goes through Triton.

    Args:
        kernel: its tensors come first, named ``*_ptr``, constants last.
        constants: of the kernel, and Triton's options, always in the same order.

    Returns:
        What ``replay`` takes, if the launch was plain.
    """
    constants = known_options(constants, _HIP)
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return None
    pointers, widths, sizes, numbers = _PLACES.get(id(kernel)) or _places(kernel, arguments)
    active = _triton()[1].active
    device = active.get_current_device()
    key: list[Any] = [id(kernel), device, *constants.values()]
    bits = wide = 0
    for argument in arguments[:pointers]:
        if argument is None:
            key.append(None)
        else:
            key.append(argument.dtype)
            bits |= argument.data_ptr()
            if _HIP:  # where offsets into less than 2 GiB have 32 bits
                key.append(argument.untyped_storage().size() < 1 << 31)
    for i in widths:
        value = arguments[i]
        key.append(2 if value == 1 else value & 15 == 0)
    for i in sizes:
        wide |= (arguments[i] + 0x80000000) >> 32
    for i in numbers:
        wide |= arguments[i].__class__ is not float
    plain = not (bits & 15 or wide or _hooked(kernel))
    found = _READY.get(tuple(key)) if plain else None
    if found is None:
        form = kernel[grid](*arguments, **constants)
        if not plain or form is None:  # a hook may have taken over what was to be compiled
            return None
        tail = tuple(constants[p.name] for p in kernel.params[len(arguments) :])
        hooked = functools.partial(_hooked, kernel)
        found = _READY[tuple(key)] = hooked, form.run, form.function, form.packed_metadata, tail
    else:
        run, x, y, z = found[1], *(*grid, 1, 1)[:3]
        stream = active.get_current_stream(device)
        run(x, y, z, stream, *found[2:4], None, None, None, *arguments, *found[4])
    hooked, run, function, metadata, tail = found
    values = *arguments[pointers:], *tail
    return Replay(hooked, device, run, (*grid, 1, 1)[:3], function, metadata, values)


def replay(known: Replay, pointers: tuple[Tensor | None, ...]) -> bool:
    """Launches again with other tensors, of the same dtypes and with the same ones missing; only if that is plain."""
    bits = 0
    for pointer in pointers:
        if pointer is not None:
            bits |= pointer.data_ptr()
    active = _triton()[1].active
    device = active.get_current_device()
    hooked, device_then, run, (x, y, z), function, metadata, values, _ = known
    if bits & 15 or device != device_then or _HIP or hooked():
        return False
    stream = active.get_current_stream(device)
    run(x, y, z, stream, function, metadata, None, None, None, *pointers, *values)
    return True


Key = tuple[Any, ...]


class Replays(Remembered[tuple[Replay, ...]]):
    """The launches of an op's earlier calls, by all that their numbers, constants and missing pointers follow from."""

    def again(self, key: Key, *pointers: tuple[Tensor | None, ...]) -> bool:
        """Whether the launches of an earlier call could serve this one; of each its pointers."""
        known = self.get(key)
        return known is not None and all(map(replay, known, pointers))

    def keep_plain(self, key: Key, *launches: Replay | None) -> None:
        """Of a call, all of whose launches were plain."""
        plain = tuple(known for known in launches if known is not None)
        if len(plain) == len(launches):
            self.keep(key, plain)


def kind(tensor: Tensor | None) -> torch.dtype | None:
    return None if tensor is None else tensor.dtype


def dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


class Dropout(NamedTuple):
    """The dropout arguments of an op, as the kernels take them."""

    p: float = 0.0
    seed: Tensor | None = None
    offset: Tensor | None = None
    rows: Tensor | None = None

    def place(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, int]:
        """seed_ptr, offset_ptr, row_ids_ptr, row_length: where in Philox's stream x's words are."""
        length = x.shape[-2] if x.dim() > 1 else 1
        return self.seed, self.offset, self.row_ids(), length

    def row_ids(self) -> Tensor | None:
        """None where nothing is dropped: a kernel has one form then, packed or not."""
        return dense(self.rows) if self.p > 0.0 else None

    def rule(self) -> tuple[int, float]:
        """threshold, scale: words below the threshold drop, the rest is scaled."""
        return math.floor(self.p * 2**32), 0.0 if self.p == 1.0 else 1.0 / (1.0 - self.p)


NO_DROPOUT = Dropout()


_COLUMN_SUMS = Replays()


def column_sums(partials: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Each (P, N) float32 of at most three summed to (N,), in an order fixed by its shape."""
    from bigkernels.ops.triton_sums import column_sum_kernel

    totals = [None if p is None else p.new_empty(p.shape[1], dtype=dtype) for p in partials]
    given = [p for p in partials if p is not None]
    if given:
        absent = [None] * (3 - len(partials))
        pointers = (*partials, *absent, *totals, *absent)
        count, n = given[0].shape
        key = (count, n, len(partials), dtype, *map(kind, partials))
        if not _COLUMN_SUMS.again(key, pointers):
            tile = triton_table.tile("column_sum", architecture(given[0].device), torch.float32)
            form = {"BLOCK_M": tile["block_m"], "BLOCK_N": tile["block_n"]}
            form["num_warps"] = tile["num_warps"]
            grid = (-(-n // tile["block_n"]), len(partials))
            _COLUMN_SUMS.keep_plain(
                key, launch(column_sum_kernel, grid, *pointers, count, n, **form)
            )
    return totals


def register(*functions: Callable[..., Any]) -> None:
    """Makes each function the kernel of the op `<its name>_triton`."""
    for function in functions:
        IMPLEMENTATIONS[f"{function.__name__}_triton"] = function
        for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            LIBRARY.impl(f"{function.__name__}_triton", function, key)
