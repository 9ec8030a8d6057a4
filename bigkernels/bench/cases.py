"""What is timed: calls of the rooms' functions, taken from bigkernels.testing, and whole encoders."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

GROUPS = ("layer_norm", "attention", "ffn", "embedding", "encoder")
MODES = ("forward", "backward", "training", "end_to_end", "overhead")


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    id: unique. group: of GROUPS. mode: forward (no gradients), backward (alone), training (forward
    and backward; of an encoder also the optimizer), end_to_end (text in, sentence vectors out),
    overhead (a call too small to compute anything). shape: for people. dtype: of the inputs; of an
    encoder "" (each peer says its own). quick: also in quick runs. compiled: also by peers that take
    minutes to set up. flops, bytes: what a call must
    compute and move, 0 = unknown. tokens: real ones of an encoder's batch, length: the sequence
    length, 0 = none. problem: the call, a bigkernels.testing case. batch: (model, B, L, kind) of
    an encoder. narrow: also by peers that are held to AVX2. streams: also by the mere reading of
    the weights, which is most of its time. heavy: by those peers alone that could be the fastest,
    as a round takes many seconds. patience: how many times an effort's seconds it may take to get
    its rounds.
    """

    id: str
    group: str
    mode: str
    shape: str
    dtype: str
    quick: bool
    flops: int = 0
    bytes: int = 0
    length: int = 0
    compiled: bool = False
    problem: Any = None
    batch: tuple[str, int, int, str] | None = None
    narrow: bool = False
    streams: bool = False
    heavy: bool = False
    patience: float = 1.0


@functools.cache
def catalogue() -> dict[str, Case]:
    """Every case by its id; the same in every process."""
    encoders = [
        dataclasses.replace(
            case,
            patience=_PATIENCE if case.batch in _AIMED else _IMPATIENCE,
            heavy=case.batch in _AIMED and case.batch[0] == "bert-base" and case.length > 16,
        )
        for case in _encoders()
    ]
    found = [*_layer_norm(), *_attention(), *_feed_forward(), *_embedding(), *encoders]
    by_id = {case.id: case for case in found}
    assert len(by_id) == len(found), "two cases share an id"
    return by_id


def find(name: str) -> Case:
    """The case of an id, also of a user's model or of the grid; raises KeyError."""
    if name in catalogue():
        return catalogue()[name]
    group, _, rest = name.partition(" ")
    mode, _, rest = rest.partition(" ")
    if group != "encoder" or rest.count(" ") < 2:
        raise KeyError(name)
    model, kind, size = rest.rsplit(" ", 2)  # a path may have blanks
    rows, length = size.split("x")
    return encoder_case(model, int(rows), int(length), kind, mode, False)


def encoder_case(model: str, size: int, length: int, kind: str, mode: str, quick: bool) -> Case:
    """A whole encoder on a batch; kind as in encoders.batch."""
    name = f"encoder {mode} {model} {kind} {size}x{length}"
    shape = f"{model} {size}x{length}{'' if kind == 'dense' else ' ' + kind}"
    batch = (model, size, length, kind)
    facts: dict[str, Any] = {"length": length, "batch": batch, "compiled": batch in _COMPILED}
    facts |= {"narrow": batch in _NARROW, "streams": batch == ("bert-base", 1, 16, "dense")}
    return Case(name, "encoder", mode, shape, "", quick, **facts)


def _layer_norm() -> Iterator[Case]:
    import torch

    from bigkernels.testing.cases.layer_norm import AddLayerNormCase, LayerNormCase

    reason = "timed"
    for rows, columns, quick in ((128, 768, False), (1024, 768, True), (8192, 768, False)):
        for dtype in (torch.float32, torch.bfloat16):
            size = rows * columns * dtype.itemsize
            plain = LayerNormCase(reason=reason, shape=(rows, columns), dtype=dtype)
            add = AddLayerNormCase(reason=reason, shape=(rows, columns), dtype=dtype)
            drop = dataclasses.replace(add, dropout_p=0.1)
            for problem, mode, moved in (
                (plain, "forward", 2),
                (plain, "backward", 3),
                (add, "forward", 3),
                (drop, "training", 8),
            ):
                shape = f"{rows}x{columns}"
                yield _room(problem, mode, shape, quick, bytes=moved * size)


def _attention() -> Iterator[Case]:
    import torch

    from bigkernels.testing.cases.attention import AttentionCase

    shapes = (
        (8, 128, True),
        (32, 32, False),
        (16, 16, False),
        (1, 512, True),
        (1, 2048, False),
    )
    for batch, length, quick in shapes:
        heads, dim = 12, 64
        shape = (batch, heads, length, length, dim)
        text = f"{batch}x{heads}x{length}x{dim}"
        flops = 4 * batch * heads * length * length * dim
        for dtype in (torch.float32, torch.bfloat16):
            plain = AttentionCase(reason="timed", shape=shape, dtype=dtype, grads="qkv")
            size = 4 * batch * heads * length * dim * dtype.itemsize
            sizes: dict[str, Any] = {"bytes": size, "length": length}
            yield _room(plain, "forward", text, quick, flops, **sizes)
            if length == 32:  # only a target wants it
                continue
            yield _room(plain, "backward", text, quick and batch == 8, flops * 5 // 2, **sizes)
            short = quick and batch == 8 and dtype == torch.float32
            if length <= 512:  # the reference's mask of a longer one takes gigabytes
                drop = dataclasses.replace(plain, dropout_p=0.1)
                yield _room(drop, "training", text, short, flops * 7 // 2, **sizes)
            lengths = tuple(max(1, length * (i + 1) // batch) for i in range(batch))
            ragged = dataclasses.replace(plain, lengths=lengths, grads="")
            if batch > 1:
                seen = sum(lengths) / (batch * length)
                yield _room(ragged, "forward", text, short, int(flops * seen), **sizes)
            causal = dataclasses.replace(plain, causal=True)
            if batch == 1:
                yield _room(causal, "forward", text, False, flops // 2, **sizes)
    tiny = AttentionCase(reason="timed", shape=(1, 1, 1, 1, 16), grads="")
    yield _room(tiny, "overhead", "1x1x1x16", True)


def _feed_forward() -> Iterator[Case]:
    import torch

    from bigkernels.testing.cases.ffn import FeedForwardCase

    width, hidden = 768, 3072
    for rows, quick in ((16, False), (128, True), (1024, False)):
        for dtype in (torch.float32, torch.bfloat16):
            problem = FeedForwardCase(
                reason="timed", shape=(rows, width), hidden=hidden, dtype=dtype
            )
            flops = 4 * rows * width * hidden
            size = (2 * width * hidden + 2 * rows * width) * dtype.itemsize
            shape = f"{rows}x{width}x{hidden}"
            yield _room(problem, "forward", shape, quick, flops, bytes=size)
            yield _room(problem, "training", shape, False, 3 * flops, bytes=3 * size)


def _embedding() -> Iterator[Case]:
    import torch

    from bigkernels.testing.cases.embedding import EmbeddingCase

    tables: dict[str, Any] = {"words": 30522, "positions": 512}
    for dtype in (torch.float32, torch.bfloat16):
        problem = EmbeddingCase(reason="timed", shape=(8, 128), n=768, dtype=dtype, **tables)
        moved = 5 * 8 * 128 * 768 * dtype.itemsize  # three rows of tables, a row written and read
        yield _room(problem, "forward", "8x128x768", False, bytes=moved)
        yield _room(problem, "training", "8x128x768", False, bytes=2 * moved)


# Five minutes each.
_COMPILED = (("minilm", 8, 128, "dense"), ("bert-base", 8, 128, "dense"))
_NARROW = (("bert-base", 8, 128, "dense"), ("bert-base", 16, 128, "ragged"))
# The batches that targets name get all their rounds, though a round of a large one takes 15 s.
_AIMED = (
    *_COMPILED,
    *(("bert-base", size, length, "dense") for size, length in ((1, 16), (1, 512), (4, 512))),
    ("bert-base", 16, 128, "ragged"),
)
_PATIENCE, _IMPATIENCE = 5.0, 0.4


def _encoders() -> Iterator[Case]:
    for mode, size, length, kind, quick in (
        ("forward", 1, 16, "dense", True),
        ("forward", 1, 128, "dense", False),
        ("forward", 8, 128, "dense", True),
        ("forward", 16, 128, "ragged", True),
        ("forward", 32, 512, "snippets", False),
        ("end_to_end", 16, 512, "snippets", True),
        ("end_to_end", 32, 512, "snippets", False),
        ("training", 8, 64, "ragged", True),
        ("training", 8, 128, "dense", False),
        ("training", 16, 128, "ragged", False),
        *(("forward", 16, 128, f"fill_{fill}", False) for fill in (0.25, 0.5, 0.75, 1.0)),
        *(("forward", 4, length, "dense", False) for length in (32, 64, 256, 512)),
    ):
        yield encoder_case("minilm", size, length, kind, mode, quick)
    for size, length, kind in (
        (1, 16, "dense"),
        (1, 128, "dense"),
        (8, 128, "dense"),
        (16, 128, "ragged"),
        (1, 512, "dense"),
        (4, 512, "dense"),
    ):
        yield encoder_case("bert-base", size, length, kind, "forward", False)
    yield encoder_case("vit-base", 8, 197, "dense", "forward", False)
    yield encoder_case("gpt2", 8, 128, "dense", "forward", False)
    yield encoder_case("gpt2", 16, 128, "ragged", "forward", False)


def _room(problem: Any, mode: str, shape: str, quick: bool, flops: int = 0, **sizes: Any) -> Case:
    words = [problem.operation, mode, *_marks(problem)]
    dtype = str(problem.dtype).removeprefix("torch.")
    name = " ".join([*words, shape, dtype])
    shown = " ".join([problem.operation, *_marks(problem), shape])
    sizes |= {"problem": problem, "compiled": quick}
    return Case(name, problem.room, mode, shown, dtype, quick, flops, **sizes)


def _marks(problem: Any) -> list[str]:
    marks = []
    if getattr(problem, "dropout_p", 0):
        marks.append(f"dropout_{problem.dropout_p}")
    if getattr(problem, "lengths", None):
        marks.append("ragged")
    if getattr(problem, "causal", False):
        marks.append("causal")
    return marks


def encoder_flops(facts: dict[str, int], lengths: list[int]) -> int:
    """Products of an encoder's forward on real tokens only."""
    width, inner = facts["hidden"], facts["intermediate"]
    tokens = sum(lengths)
    linears = 2 * tokens * (4 * width * width + 2 * width * inner)
    pairs = sum(n * (n + 1) // 2 if facts.get("causal") else n * n for n in lengths)
    return facts["layers"] * (linears + 4 * width * pairs)


def encoder_bytes(facts: dict[str, int]) -> int:
    """Bytes of the layers' weights in float32: what a small batch must read."""
    width, inner = facts["hidden"], facts["intermediate"]
    return 4 * facts["layers"] * math.prod((width, 4 * width + 2 * inner))
