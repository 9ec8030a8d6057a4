"""Kernels without one of their barriers, waits and fences at a time: the emulator must find something wrong."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

from tests.emulator.core import Module, Options
from tests.emulator.ptx import mutants


@dataclasses.dataclass
class Mutations:
    """tried: how many of each kernel. survivors: those nothing was wrong with, by their number in the kernel."""

    tried: dict[str, int] = dataclasses.field(default_factory=dict)
    survivors: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def mutated(seeds: tuple[int, ...] = (1,)) -> Iterator[Mutations]:
    """Inside, the first launch of each kernel runs once for each of its mutants before it runs as it is."""
    found, original = Mutations(), Module.launch

    def launch(self, name, grid, block, arguments, regions, shared, options):
        rest = (name, grid, block, arguments, regions, shared)
        if name not in found.tried:
            texts = list(mutants(self.ptx, name))
            found.tried[name], found.survivors[name] = len(texts), {}
            for number, (line, text) in enumerate(texts):
                changed = Module(text)
                if all(original(changed, *rest, Options(seed=seed)) for seed in seeds):
                    found.survivors[name][number] = line
        return original(self, *rest, options)

    with mock.patch.object(Module, "launch", launch):
        yield found
