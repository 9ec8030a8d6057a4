"""Mutation: every barrier, wait and fence of every shipped GPU kernel is removed in turn, and the emulator must see
it. What it cannot see missing is not needed, and stands in EQUIVALENT with the reason."""

import dataclasses
import functools
import re

import pytest
import torch

from bigkernels import backends
from bigkernels.ops import triton_launch
from bigkernels.testing.cases.cross_entropy import CrossEntropyCase
from bigkernels.testing.cases.embedding import EmbeddingCase
from bigkernels.testing.cases.ffn import FeedForwardCase
from bigkernels.testing.cases.layer_norm import AddLayerNormCase
from bigkernels.testing.cases.packing import PackingCase
from tests.emulator.core import Module
from tests.emulator.device import emulated, why_not
from tests.emulator.ptx import mutants

SEEDS = (1, 2, 3)
PROGRAMS = 70  # of kernels whose programs walk over rows: every loop goes round twice
# Of each room, calls that go through all of its kernels, and round their loops three times; `make test-full`
# takes those behind the first one, too.
CASES = {
    "layer_norm": (
        AddLayerNormCase(reason="mutants", shape=(140, 2048), x_bias=True, dropout_p=0.1),
        AddLayerNormCase(reason="mutants", shape=(140, 8192), x_bias=True, dropout_p=0.1),
    ),
    "ffn": (
        FeedForwardCase(
            reason="mutants",
            shape=(40, 256),
            hidden=256,
            dtype=torch.bfloat16,
            gated=True,
            dropout_p=0.1,
        ),
    ),
    "embedding": (
        EmbeddingCase(reason="mutants", shape=(8, 36), n=256, dtype=torch.bfloat16, dropout_p=0.1),
    ),
    "cross_entropy": (
        CrossEntropyCase(reason="mutants", rows=3, classes=6000, label_smoothing=0.1),
    ),
    "packing": (
        PackingCase(reason="mutants", lengths=(2500, 3), length=2600, side="holes", spare=9),
    ),
}
# (kernel, device): {the mutant's number, from 0: why nothing is wrong with it}
EQUIVALENT: dict[tuple[str, int], dict[int, str]] = {
    ("ffn_forward_kernel", 90): {
        4: "the gate's sums have not changed since the fence of the other product"
    },
}
_TOUCHES = re.compile(
    r"\.shared(?!\.global)|(ld|st)matrix|mma|mbarrier|cp\.async\.wait|^\s*(ld|st|atom|red)\.b"
)
_PLACE = re.compile(r"^\$L__BB\w+:")  # of a loop, perhaps


def nothing_before(ptx, kernel, line):
    """Whether a kernel has only begun copies before a barrier of its straight first part: nobody has read or
    written shared memory yet, so that Triton's barrier between the first copies and the second keeps nothing apart."""
    first = ptx.count("\n", 0, ptx.index(kernel + "("))
    before = ptx.splitlines()[first : line - 1]
    begun = [text for text in before if "cp.async" in text and ".shared.global" in text]
    others = [text for text in before if text not in begun and not text.lstrip().startswith("//")]
    return bool(begun) and not any(_TOUCHES.search(t) or _PLACE.match(t) for t in others)


PARAMETERS = [
    pytest.param(case, backend, id=f"{case}-{backend}", marks=[pytest.mark.full] if index else [])
    for room, backend in sorted(backends._DRAWERS)
    if backend in ("cuda", "triton")
    for index, case in enumerate(CASES.get(room, ()))
]


class Mutation:
    """Stands in for Module.launch: tries the mutants of each kernel it has not met before."""

    def __init__(self, device):
        self.device, self.tried, self.wrong = device, 0, []
        self.original, self.seen = Module.launch, set()

    def launch(self, module, name, *arguments):
        *rest, options = arguments
        if name not in self.seen:
            self.seen.add(name)
            known = EQUIVALENT.get((name, self.device), {})
            counted = dataclasses.replace(options, counted=True)
            traffic = self.original(module, name, *rest, counted).traffic
            reached = {t.ptx_line for t in traffic if t.executed > 0}
            for number, (line, text) in enumerate(mutants(module.ptx, name)):
                self.tried += 1
                mutant = Module(text)
                survives = all(self._clean(mutant, name, rest, options, seed) for seed in SEEDS)
                place = int(line.split(":")[0])
                if survives and nothing_before(module.ptx, name, place):
                    continue
                if survives != (number in known):
                    what = "is not seen" if survives else "is seen, but listed as equivalent"
                    what = what if place in reached else "is never reached by this call"
                    self.wrong.append(f"{name} sm_{self.device}: {number} (line {line}) {what}")
        return self.original(module, name, *arguments)

    def _clean(self, mutant, name, arguments, options, seed):
        # A mutant may never end.
        options = dataclasses.replace(options, seed=seed, limit=2_000_000)
        return bool(self.original(mutant, name, *arguments, options))


@pytest.mark.parametrize("device", [80, 90])
@pytest.mark.parametrize(("case", "backend"), PARAMETERS)
def test_every_barrier_wait_and_fence_is_needed(case, backend, device, monkeypatch):
    if reason := why_not(backend):
        pytest.skip(f"emulated: {reason}")
    monkeypatch.setattr(triton_launch, "INTERPRETED_MULTIPROCESSORS", PROGRAMS)
    mutation = Mutation(device)
    with emulated(device, backend):
        monkeypatch.setattr(Module, "launch", functools.partialmethod(_launch, mutation))
        case.problem().solve(lambda inputs: case.call(inputs, backend))
    assert mutation.tried > 0
    assert mutation.wrong == []


def _launch(module, mutation, *arguments):
    return mutation.launch(module, *arguments)
