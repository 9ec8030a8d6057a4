"""``bigkernels warmup``: compiles the GPU kernels that an encoder of given sizes calls, before it calls them.

What a kernel is compiled for are dtypes, widths, which tensors there are (a packed batch has others than a padded one),
and whether all sequences are short: one or two batches of each kind are enough. Triton keeps the results on disk
(TRITON_CACHE_DIR), so that later processes find them there.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bigkernels as bk
from bigkernels.cli import CommandError, print_json
from bigkernels.ops import triton_launch

# Rows of a batch: few, and enough for the tiles of large products.
ROWS = (32, 16384)


class Sizes(NamedTuple):
    """Of the encoder."""

    width: int
    heads: int
    hidden: int
    vocabulary: int
    dtype: torch.dtype
    dropout: float
    training: bool
    positions: int = 512
    activation: str = "gelu"


def calls(
    sizes: Sizes, device: str, rows: tuple[int, ...], backend: str | None
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Each operation's name and a call of it."""
    make = functools.partial(torch.zeros, device=device)
    common: dict[str, Any] = {"backend": backend}
    drops = common | ({"dropout_p": sizes.dropout, "seed": 1} if sizes.training else {})

    def draw(*shape: int) -> Tensor:
        return make(*shape, dtype=sizes.dtype, requires_grad=sizes.training)

    n, f = sizes.width, sizes.hidden
    x, vector = draw(2, 16, n), draw(n)
    tables = draw(sizes.vocabulary, n), draw(sizes.positions, n), draw(2, n)
    # A packed token knows where it stood in its batch, and is told its place and kind.
    ids, places = make(2, 16, dtype=torch.int64), torch.arange(32, device=device)
    told = {"rows": places, "position_ids": places * 0}
    embed: Callable[..., Tensor] = functools.partial(bk.embedding, **drops)
    yield "embedding", lambda: embed(ids, *tables, vector, vector)
    for kind, kinds in {"": {"type_ids": places * 0}, ", one type": {}}.items():
        packed = functools.partial(embed, ids.view(-1), *tables, vector, vector, **told, **kinds)
        yield f"embedding, packed{kind}", packed
    for dtype in (torch.bool, torch.int64):
        keep = make(2, 16, dtype=dtype)
        yield f"packing, {dtype}", functools.partial(_there_and_back, x, ids, keep, common)
    yield "layer_norm", lambda: bk.layer_norm(x, (n,), vector, vector, **common)
    norm = functools.partial(bk.add_layer_norm, x, x, vector, vector, x_bias=vector, **drops)
    yield "add_layer_norm", norm
    yield "add_layer_norm, packed", lambda: norm(rows=places)
    yield from _attention_calls(sizes, draw, device, drops)
    up, down, bias = draw(f, n), draw(n, f), draw(f)
    feed = functools.partial(bk.feed_forward, activation=sizes.activation)
    for m in rows:
        for kind, given in {"": common, ", dropout": drops}.items():
            if given is common or sizes.training:
                call = functools.partial(feed, draw(m, n), up, bias, down, vector, **given)
                yield f"ffn, {m} rows{kind}", call
    logits, target = draw(16, sizes.vocabulary), make(16, dtype=torch.int64)
    yield "cross_entropy", lambda: bk.cross_entropy(logits, target, **common)


def _attention_calls(
    sizes: Sizes, draw: Callable[..., Tensor], device: str, drops: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    heads, dim = sizes.heads, sizes.width // sizes.heads
    # Many short sequences have a backward of one kernel, and a smaller tile in the forward.
    many = max(2, -(-triton_launch.multiprocessors(torch.device(device)) // heads))
    attend: Callable[..., Tensor] = functools.partial(bk.scaled_dot_product_attention, **drops)
    for kind, batch, keys in (("", many, 16), (", long", 2, 600)):
        lengths = torch.full((batch,), 9, device=device)
        q, k = draw(batch, heads, 16, dim), draw(batch, heads, keys, dim)
        yield f"attention{kind}", functools.partial(attend, q, k, k, key_lengths=lengths)
        yield f"attention, no padding{kind}", functools.partial(attend, q, k, k)
        mask = torch.ones(batch, 1, 1, keys, dtype=torch.bool, device=device)
        yield f"attention, mask{kind}", functools.partial(attend, q, k, k, mask)
        steps = torch.arange(batch + 1, dtype=torch.int32, device=device)
        tokens, others = (x.transpose(1, 2).flatten(0, 1) for x in (q, k))
        packed = (tokens, others, others, steps * 16, steps * keys, 16, keys)
        rows = torch.arange(batch * 16, device=device)
        yield f"varlen_attn{kind}", functools.partial(bk.varlen_attn, *packed, rows=rows, **drops)


def _there_and_back(x: Tensor, ids: Tensor, keep: Tensor, common: dict[str, Any]) -> Tensor:
    plan = bk.packing.plan(keep, 25, **common)
    bk.packing.unpad(ids, plan, **common)
    return bk.packing.pad(bk.packing.unpad(x, plan, **common), plan, **common)


def warm(
    sizes: Sizes, device: str, rows: tuple[int, ...] = ROWS, backend: str | None = None
) -> dict[str, float]:
    """Seconds of the first call of each operation, and of its backward if it is trained."""
    found = {}
    for name, call in calls(sizes, device, rows, backend):
        start = time.perf_counter()
        with torch.set_grad_enabled(sizes.training):
            out = call()
            if sizes.training:
                out.float().sum().backward()
        found[name] = time.perf_counter() - start
    return found


def run(arguments: argparse.Namespace) -> int:
    """Compiles, and says how long each operation took."""
    if arguments.width % arguments.heads:
        raise CommandError(f"--heads: {arguments.heads} does not divide --width {arguments.width}")
    if not torch.cuda.is_available():
        raise CommandError("no CUDA device: the CPU's kernels need no warming up")
    sizes = Sizes(
        arguments.width, arguments.heads, arguments.hidden or 4 * arguments.width,
        arguments.vocabulary, getattr(torch, arguments.dtype), arguments.dropout, arguments.training,
        arguments.positions, arguments.activation,
    )  # fmt: skip
    seconds = warm(sizes, "cuda")
    torch.cuda.synchronize()
    if arguments.json:
        print_json({"seconds": seconds})
    else:
        for name, value in seconds.items():
            print(f"{name:28s} {value:7.2f} s")
    return 0
