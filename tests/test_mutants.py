"""Mutation: every barrier, wait and fence of every shipped GPU kernel is removed in turn, and the emulator must see
it, or the results must change. What keeps nothing apart has a rule of tests/emulator/needless.py that says why, or
stands in EQUIVALENT with the reason."""

import ctypes
import dataclasses
import functools

import pytest
import torch

from bigkernels import backends
from bigkernels.ops import triton_launch
from bigkernels.testing.cases import Case
from bigkernels.testing.cases.attention import AttentionCase
from bigkernels.testing.cases.attention_packed import PackedAttentionCase
from bigkernels.testing.cases.cross_entropy import CrossEntropyCase
from bigkernels.testing.cases.embedding import EmbeddingCase
from bigkernels.testing.cases.ffn import FeedForwardCase
from bigkernels.testing.cases.layer_norm import AddLayerNormCase, LayerNormCase
from bigkernels.testing.cases.packing import PackingCase
from tests import gpu_drawers
from tests.emulator import needless
from tests.emulator.core import Module
from tests.emulator.device import emulated, why_not
from tests.emulator.ptx import mutants

SEEDS, SEEDS_FULL = (1,), (1, 2, 3)
PROGRAMS = 70  # of kernels whose programs walk over rows: every loop goes round twice
ROUNDS = 2  # that a loop must go round, before what survives in it counts as needless
BF16 = torch.bfloat16

# Of each room, calls that together reach all of its kernels, and all of their loops, often enough. A line a
# room or a way through one; the test names the kernels that none of them reaches.
CASES: dict[str, tuple[Case, ...]] = {
    "layer_norm": (
        AddLayerNormCase(reason="mutants", shape=(140, 2048), x_bias=True, dropout_p=0.1),
        LayerNormCase(reason="a row a warp", shape=(600, 256)),
    ),
    "attention": (
        # Of the window's rows some have whole blocks of keys alone before the diagonal, of the second sample none.
        AttentionCase(
            reason="whole and masked blocks, large lse", shape=(2, 1, 520, 520, 64), dtype=BF16,
            lengths=(520, 100), causal=True, window=(400, -1), values="sharpest",
        ),
        AttentionCase(
            reason="bias of keys", shape=(1, 2, 40, 300, 64), heads_kv=1, dtype=BF16, lengths=(300,),
            mask="float", mask_dims="k", dropout_p=0.1, values="sharpest",
        ),
        AttentionCase(
            reason="short sequences", shape=(1, 1, 140, 300, 64), dtype=BF16, lengths=(280,),
            window=(400, 10), values="sharpest",
        ),
        # Two blocks of keys: what two programs add to zeros has the same bits in any order.
        AttentionCase(
            reason="one pass", shape=(1, 2, 520, 250, 64), heads_kv=1, dtype=BF16, lengths=(240,),
            window=(300, 100), values="sharpest",
        ),
    ),
    "ffn": (
        FeedForwardCase(
            reason="mutants", shape=(40, 256), hidden=256, dtype=BF16, gated=True, dropout_p=0.1
        ),
    ),
    "embedding": (
        EmbeddingCase(reason="mutants", shape=(8, 36), n=256, dtype=BF16, dropout_p=0.1),
    ),
    "cross_entropy": (
        CrossEntropyCase(reason="mutants", rows=3, classes=6000, label_smoothing=0.1),
        CrossEntropyCase(reason="mutants, many rows", rows=4500, classes=2),
    ),
    "packing": (
        PackingCase(reason="mutants", lengths=(2500, 3), length=2600, side="holes", spare=9),
    ),
}  # fmt: skip
# What `make test-full` tries besides: other tiles, dtypes, forms, and ways that the calls above do not take.
MORE: dict[str, tuple[Case, ...]] = {
    "layer_norm": (
        AddLayerNormCase(reason="wide rows", shape=(140, 8192), x_bias=True, dropout_p=0.1),
        AddLayerNormCase(
            reason="RMSNorm", shape=(140, 2048), x_bias=True, dropout_p=0.1, centred=False
        ),
    ),
    "attention": (
        PackedAttentionCase(
            reason="packed, more sequences than one look at their ends takes",
            lengths=(0,) * 260 + (40, 10, 520), heads=1, dim=64, dtype=BF16, causal=True,
            window=(400, -1), values="sharpest",
        ),
        AttentionCase(
            reason="bias of queries and keys", shape=(2, 2, 70, 220, 64), heads_kv=1, dtype=BF16,
            lengths=(220, 200), mask="float", mask_dims="hqk", dropout_p=0.1, values="sharpest",
        ),
        AttentionCase(
            reason="one number a head", shape=(2, 2, 70, 220, 64), heads_kv=1, dtype=BF16,
            mask="float", mask_dims="h", dropout_p=0.1, values="sharpest",
        ),
        AttentionCase(
            reason="padding mask", shape=(1, 1, 70, 300, 64), dtype=BF16, mask="bool", mask_dims="bk",
            values="sharpest",
        ),
        AttentionCase(
            reason="wide heads", shape=(1, 1, 520, 520, 128), dtype=BF16, causal=True,
            window=(400, -1), values="sharpest",
        ),
        AttentionCase(
            reason="one pass, a mask and dropout", shape=(1, 2, 520, 250, 64), dtype=BF16, mask="float",
            mask_dims="q", dropout_p=0.1, values="sharpest",
        ),
        AttentionCase(
            reason="one pass, wide heads", shape=(1, 1, 260, 250, 128), dtype=BF16, causal=True,
            window=(200, -1), values="sharpest",
        ),
        AttentionCase(
            reason="float32", shape=(1, 1, 170, 170, 32), causal=True, window=(100, -1),
            values="sharpest",
        ),
        AttentionCase(
            reason="float32, wide heads", shape=(1, 1, 70, 70, 256), causal=True, window=(50, -1),
            values="sharpest",
        ),
    ),
}  # fmt: skip
_DEAD = "a mask of many keys has no barriers of a sum over keys: of one key, the code is another"
_FENCED = "the mask's branch, always taken, has a barrier; each thread's own fence comes after it"
_OWN = "each thread reads its own copies first; other barriers are in front of what others copied"
# (the call, kernel, device): {the mutant's number, from 0: why nothing is wrong with it}
EQUIVALENT: dict[tuple[str, str, int], dict[int, str]] = {
    (call, "attention_backward_mask_kernel", device): dict.fromkeys(numbers, _DEAD)
    for call in ("bias of keys", "bias of queries and keys")
    for device, numbers in ((80, (16, 17, 18)), (90, (19, 20, 21)))
} | {
    ("padding mask", "attention_backward_short_kernel", 90): {26: _FENCED},
    ("float32, wide heads", "attention_forward_kernel", 80): {12: _OWN},
    ("float32, wide heads", "attention_forward_kernel", 90): {12: _OWN},
}


# Kernels that a drawer launches on other architectures alone: one pass over the scores is for sm_90.
ELSEWHERE = {80: {"attention_backward_once_kernel", "attention_backward_round_kernel"}, 90: set()}
# Of kernels that several rooms launch, the one whose calls take them round their loops.
SHARED = {"column_sum_kernel": "layer_norm"}


class Memory:
    """What a launch may write, as it was at a moment."""

    def __init__(self, regions):
        self.pieces = [(r.address, ctypes.string_at(r.address, r.bytes)) for r in regions]

    def restore(self):
        for address, held in self.pieces:
            ctypes.memmove(address, held, len(held))

    def __eq__(self, other):
        return self.pieces == other.pieces


class Mutation:
    """Stands in for Module.launch: tries the mutants of each kernel it has not met before."""

    def __init__(self, room, device, seeds):
        self.room, self.device, self.seeds, self.call = room, device, seeds, ""
        self.original, self.seen, self.tried = Module.launch, set(), 0
        self.caught, self.doubtful = set(), {}

    def launch(self, module, name, *arguments):
        if (self.call, name) not in self.seen and SHARED.get(name, self.room) == self.room:
            self.seen.add((self.call, name))
            self._try(module, name, arguments)
        return self.original(module, name, *arguments)

    def _try(self, module, name, arguments):
        *rest, options = arguments
        regions = rest[3]
        before = Memory(regions)
        counted = dataclasses.replace(options, counted=True)
        executed = {
            t.ptx_line: t.executed for t in self.original(module, name, *rest, counted).traffic
        }
        after = Memory(regions)
        known = EQUIVALENT.get((self.call, name, self.device), {})
        for number, (line, text) in enumerate(mutants(module.ptx, name)):
            self.tried += 1
            mutant, place = Module(text), int(line.split(":")[0])
            survives = True
            for seed in self.seeds:
                before.restore()
                # A mutant may never end.
                changed = dataclasses.replace(options, seed=seed, limit=2_000_000)
                clean = bool(self.original(mutant, name, *rest, changed))
                survives = survives and clean and Memory(regions) == after
            if not survives:
                self.caught.add((module.ptx, name, number))
            if what := self._judge(module.ptx, name, place, executed, survives, number in known):
                where = f"{self.call}, {name} sm_{self.device}: {number} ({line}) {what}"
                self.doubtful[module.ptx, name, number] = where
        before.restore()

    @property
    def wrong(self):
        """What is to be said of mutants, but of those that another call through the same code caught."""
        return [
            text
            for key, text in self.doubtful.items()
            if key not in self.caught or "but listed" in text
        ]

    def _judge(self, ptx, name, place, executed, survives, known):
        """What is wrong with a mutant, if anything."""
        if not survives:
            return "is seen, but listed as equivalent" if known else None
        if known:
            return None
        if executed.get(place, 0) == 0:
            return "is never reached by this call"
        if needless.reason(ptx, name, place) is None:
            return "is not seen"
        rounds = needless.flow(ptx, name).rounds(place, executed)
        return None if rounds >= ROUNDS else f"is not seen; its loop goes round {rounds:.1f} times"


@pytest.mark.timeout(3600)  # all calls of attention in three orders: a quarter of an hour
@pytest.mark.parametrize("device", [80, 90])
@pytest.mark.parametrize(("room", "backend"), gpu_drawers.DRAWERS)
def test_every_barrier_wait_and_fence_is_needed(room, backend, device, monkeypatch, request):
    if reason := why_not(backend):
        pytest.skip(f"emulated: {reason}")
    full = request.config.getoption("-m") != "not full"
    # Attention asks whether a program a head is enough to keep them busy.
    count = 1 if room == "attention" else PROGRAMS
    monkeypatch.setattr(triton_launch, "INTERPRETED_MULTIPROCESSORS", count)
    mutation = Mutation(room, device, SEEDS_FULL if full else SEEDS)
    with emulated(device, backend):
        monkeypatch.setattr(Module, "launch", functools.partialmethod(_launch, mutation))
        for case in CASES.get(room, ()) + (MORE.get(room, ()) if full else ()):
            if backends.refusals(room, backend, case.facts("cpu"), forced=True):
                continue  # a way that these kernels do not go
            mutation.call = case.reason
            ordered = not case.reason.startswith("one pass")
            monkeypatch.setattr(triton_launch, "deterministic", lambda ordered=ordered: ordered)
            case.problem().solve(lambda inputs, case=case: case.call(inputs, backend))
    assert mutation.wrong == [], "\n".join(mutation.wrong)
    missed = [
        name
        for name in sorted(gpu_drawers.kernels(room, backend) - ELSEWHERE[device])
        if not any(name in seen for _, seen in mutation.seen)
    ]
    assert missed == [], f"no call in CASES[{room!r}] reaches these kernels: give it one that does"
    assert mutation.tried > 0


def _launch(module, mutation, *arguments):
    return mutation.launch(module, *arguments)
