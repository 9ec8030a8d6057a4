"""Inputs between walls of NaN and memory that starts as NaN: stray reads and unwritten outputs show
in the result."""

from __future__ import annotations

import contextlib
import ctypes
import math
import pathlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bigkernels import library

WALL = 64  # elements before and after every tensor
LAYOUTS = ("contiguous", "odd_offset", "row_gap", "doubled", "transposed")


def _front_ends() -> Callable[[int], int]:
    """The switch of the C++ front ends, whose allocations torch's own does not reach."""
    if library.extension_error is not None:
        return lambda on: 0
    path = pathlib.Path(library.__file__).with_name("_C.so")
    switch: Callable[[int], int] = ctypes.CDLL(str(path)).bigkernels_watch_allocations
    return switch


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """What torch and the kernels' front ends allocate inside starts as NaN (integers: their largest
    value), as in fill_uninitialized_memory.

    Turns on torch.use_deterministic_algorithms in its warning form, which that filling needs, and
    restores both.
    """
    watch = _front_ends()
    enabled, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    was = watch(1)
    try:
        yield
    finally:
        watch(was)
        torch.use_deterministic_algorithms(enabled, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


class Canary:
    """Places tensors inside larger buffers of NaN and later tells whether anything there changed.

    layout: how the elements lie between the walls.
        contiguous: dense, last dimension fastest. odd_offset: the same, one element off any
        alignment. row_gap: three elements of wall after each row. doubled: every second element is
        wall. transposed: dimensions in reverse order, first dimension fastest.
    device: where the buffers are. Raises ValueError for an unknown layout.
    """

    def __init__(self, layout: str = "contiguous", device: torch.device | str = "cpu") -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout: {layout!r} not in {LAYOUTS}")
        self.layout = layout
        self.device = torch.device(device)
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def wall(self, tensor: Tensor) -> Tensor:
        """The same values, any shape and dtype, between walls; dimensions of stride 0 stay so."""
        repeated = [
            dim for dim in range(tensor.dim()) if tensor.stride(dim) == 0 and tensor.shape[dim] > 1
        ]
        core = tensor.detach()
        for dim in repeated:
            core = core.narrow(dim, 0, 1)
        strides, span = self._strides(core.shape)
        offset = WALL + (1 if self.layout == "odd_offset" else 0)
        buffer = torch.full(
            (offset + span + WALL,), _poison(tensor.dtype), dtype=tensor.dtype, device=self.device
        )
        view = buffer.as_strided(core.shape, strides, offset)
        view.copy_(core)
        self._buffers.append((buffer, buffer.clone()))
        return view.expand(tensor.shape)

    def assert_intact(self) -> None:
        """Raises AssertionError if a wall or an input has changed since it was built."""
        for number, (buffer, before) in enumerate(self._buffers):
            changed = (buffer.view(torch.uint8) != before.view(torch.uint8)).nonzero()
            if len(changed):
                place = int(changed[0]) // buffer.element_size()
                raise AssertionError(
                    f"tensor {number}, {self.layout}: element {place} of its buffer changed"
                )

    def _strides(self, shape: torch.Size) -> tuple[list[int], int]:
        """Strides of `shape` in this layout and the number of elements they span."""
        order = list(range(len(shape)))  # fastest dimension last
        if self.layout == "transposed":
            order.reverse()
        step = 2 if self.layout == "doubled" else 1
        strides = [0] * len(shape)
        for position, dim in enumerate(reversed(order)):
            strides[dim] = step
            step *= max(shape[dim], 1)
            if self.layout == "row_gap" and position == 0:
                step += 3
        return strides, max(step, 1)


def _poison(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max
