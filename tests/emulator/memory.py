"""Which host memory an op's launches may touch: what it was given, and what it allocates while it runs.

Bounds are those of the very tensors, not of their storages, so that a neighbour's elements are out of
bounds. Memory that an op allocates counts as unwritten until a kernel, or a torch op, writes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.emulator.core import EmulatorError, Region

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def extent(tensor: Tensor) -> tuple[int, int]:
    """(address, bytes) from a tensor's first element to the end of its last."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


class _Allocation:
    """Memory allocated by the running op, kept alive, with a byte for each byte that is written."""

    def __init__(self, tensor: Tensor, written: bool) -> None:
        self.tensor = tensor
        size = tensor.untyped_storage().nbytes()
        self.written = torch.full((size,), int(written), dtype=torch.uint8)

    def region(self) -> Region:
        storage = self.tensor.untyped_storage()
        return Region(
            f"an allocation {describe(self.tensor)}",
            storage.data_ptr(),
            storage.nbytes(),
            self.tensor.element_size(),
            self.written.data_ptr(),
        )


class Running:
    """The op that runs: its arguments and its allocations, by address."""

    def __init__(self, arguments: list[Tensor]) -> None:
        self.arguments = [t for t in arguments if t.numel() > 0]
        self.allocations: dict[int, _Allocation] = {}
        self._given = {t.untyped_storage().data_ptr() for t in self.arguments}

    def note(self, function: torch._ops.OpOverload, arguments, result) -> None:
        """Follows a torch op inside: its results are memory too, and what it wrote is written."""
        name = function._schema.name.rpartition("::")[2]
        written = [
            value
            for value, argument in zip(arguments, function._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in filter(_is_tensor, tree_leaves(written)):
            if found := self.allocations.get(tensor.untyped_storage().data_ptr()):
                found.written.fill_(1)
        for tensor in filter(_is_tensor, tree_leaves(result)):
            address = tensor.untyped_storage().data_ptr()
            known = self._given | self.allocations.keys()  # views, and results written to
            if address and tensor.numel() > 0 and address not in known:
                self.allocations[address] = _Allocation(tensor, name not in _UNWRITTEN)

    def regions(self) -> list[Region]:
        given = [
            Region(f"argument {describe(t)}", *extent(t), t.element_size()) for t in self.arguments
        ]
        inside = {(r.address, r.bytes) for r in given}
        made = [a.region() for a in self.allocations.values()]
        return given + [r for r in made if (r.address, r.bytes) not in inside]

    def region_of(self, tensor: Tensor) -> Region:
        """One tensor that is given to a kernel, wherever it comes from."""
        address, size = extent(tensor)
        made = self.allocations.get(tensor.untyped_storage().data_ptr())
        offset = address - tensor.untyped_storage().data_ptr()
        written = made.written.data_ptr() + offset if made else 0
        return Region(f"{describe(tensor)}", address, size, tensor.element_size(), written)

    def unwritten(self, results) -> Iterator[str]:
        """The results that no kernel wrote in full."""
        for tensor in filter(_is_tensor, tree_leaves(results)):
            made = self.allocations.get(tensor.untyped_storage().data_ptr())
            if made is not None and tensor.numel() > 0 and not bool(made.written.all()):
                yield describe(tensor)


class DeviceMemory(TorchDispatchMode):
    """While active, follows the ops of the backends named; `running` is the one that runs now."""

    def __init__(self, backends: tuple[str, ...]) -> None:
        super().__init__()
        self.suffixes = tuple(f"_{backend}" for backend in backends)
        self.running: Running | None = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.running is not None:
            result = function(*args, **kwargs)
            self.running.note(function, args, result)
            return result
        name = function._schema.name
        if not (name.startswith("bigkernels::") and name.endswith(self.suffixes)):
            return function(*args, **kwargs)
        self.running = Running(list(filter(_is_tensor, tree_leaves((args, kwargs)))))
        try:
            with self:
                result = function.redispatch(_CPU, *args, **kwargs)
            if left := list(self.running.unwritten(result)):
                raise EmulatorError(f"{name} leaves results unwritten: {', '.join(left)}")
            return result
        finally:
            self.running = None


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
