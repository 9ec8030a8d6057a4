"""What gpu_peers.py times that no case of bigkernels.testing states: packed against padded sequences, a
bias with its gradient against flex, six bare products beside the feed-forward block, and lengths nobody has seen."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from gpu_cases import Case, Context
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import bigkernels as bk
from bigkernels.bench import rooms as peers
from bigkernels.testing.cases.attention import AttentionCase
from bigkernels.testing.cases.cross_entropy import CrossEntropyCase
from bigkernels.testing.cases.embedding import EmbeddingCase
from bigkernels.testing.cases.ffn import FeedForwardCase
from bigkernels.testing.cases.layer_norm import AddLayerNormCase, LayerNormCase
from bigkernels.testing.problem import Problem, Tensors

HALF = torch.bfloat16
MODES = (("forward", 1.0), ("backward", 2.5))
BACKENDS = {
    "default": None,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
Call = Callable[[Tensors], dict[str, Tensor]]
# Samples, heads, longest sequence, head dim.
VARLEN, BIAS = (64, 16, 512, 64), (16, 16, 512, 64)
NEW_LENGTHS, NEW_FORMS = 1024, ("forward", "backward", "packed")
_SMALL: dict[str, Any] = {"reason": "timed", "dtype": HALF}
# Calls so small that the host's side is all there is to them, by name and shape.
HOST = {
    "layer_norm 64x64": LayerNormCase(shape=(64, 64), **_SMALL),
    "add_layer_norm 64x64": AddLayerNormCase(shape=(64, 64), **_SMALL),
    "attention 4x2x16x32": AttentionCase(shape=(4, 2, 16, 16, 32), **_SMALL),
    "feed_forward 64x64x128": FeedForwardCase(shape=(64, 64), hidden=128, **_SMALL),
    "embedding 4x16x64": EmbeddingCase(shape=(4, 16), n=64, **_SMALL),
    "cross_entropy 64x30": CrossEntropyCase(rows=64, classes=30, **_SMALL),
}


def lengths_between(count: int, longest: int) -> list[int]:
    """As many lengths, spread evenly from a sixteenth of the longest."""
    least = longest // 16
    return [least + (longest - least) * i // (count - 1) for i in range(count)]


def shape_of_varlen(b: int, h: int, s: int, d: int) -> str:
    return f"{b}x{h}x{s // 16}..{s}x{d}"


def shape_of_new_lengths(longest: int) -> str:
    return f"1x4x2..{longest}x64"


def _sdpa(backend: SDPBackend | None) -> Call:
    def call(inputs: Tensors) -> dict[str, Tensor]:
        forced = contextlib.nullcontext() if backend is None else sdpa_kernel(backend)
        with forced:
            q, k, v = inputs["q"], inputs["k"], inputs["v"]
            return {"out": F.scaled_dot_product_attention(q, k, v, inputs["mask"])}  # type: ignore[arg-type]

    return call


def _cases(
    group: str, shape: str, flops: int, problem: Callable[[], Problem], who: dict[str, Call]
) -> Iterator[Case]:
    for name, call in who.items():
        for mode, share in MODES:

            def setup(call: Call = call, mode: str = mode) -> Callable[[], object]:
                return peers.timed(call, problem(), mode).call

            label, compiles = f"{name} {mode}", name == "flex"
            yield Case(
                group, label, shape, "bfloat16", setup, 0, int(share * flops), False, compiles
            )


def _problem(context: Context, wrt: str, **shapes: tuple[int, ...]) -> Problem:
    """Random inputs of these shapes, and a dout like q."""
    inputs: dict[str, Tensor | None] = {
        name: context.randn(*shape, dtype=HALF) for name, shape in shapes.items()
    }
    names = {"q": "q", "k": "k", "v": "v", "m": "mask"}
    dout = context.randn(*shapes["q"], dtype=HALF)
    return Problem(inputs, {"out": dout}, tuple(names[w] for w in wrt), dict, {})


def varlen(context: Context) -> Iterator[Case]:
    """Lengths U(32, 512): packed by us, padded with a mask by torch."""
    b, h, s, d = (3, 2, 24, 16) if context.smoke else VARLEN
    lengths = lengths_between(b, s)

    def packed(backend: str) -> Call:
        def call(inputs: Tensors) -> dict[str, Tensor]:
            q, k, v, ends = (inputs[name] for name in ("q", "k", "v", "ends"))
            return {"out": bk.varlen_attn(q, k, v, ends, ends, s, s, backend=backend)}  # type: ignore[arg-type]

        return call

    def tokens() -> Problem:
        size = (sum(lengths), h, d)
        problem = _problem(context, "qkv", q=size, k=size, v=size)
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        problem.inputs["ends"] = ends.to(context.device)
        return problem

    def padded() -> Problem:
        problem = _problem(context, "qkv", q=(b, h, s, d), k=(b, h, s, d), v=(b, h, s, d))
        on = (
            torch.arange(s, device=context.device)
            < torch.tensor(lengths, device=context.device)[:, None]
        )
        problem.inputs["mask"] = on[:, None, None]
        return problem

    flops, shape = 4 * h * d * sum(n * n for n in lengths), shape_of_varlen(b, h, s, d)
    ours = {f"bigkernels {o} packed": packed(o) for o in context.ours if o != "cuda"}
    yield from _cases("varlen", shape, flops, tokens, ours)
    theirs = {f"{name} padded": _sdpa(BACKENDS[name]) for name in ("default", "efficient", "cudnn")}
    yield from _cases("varlen", shape, flops, padded, theirs)


def _flex() -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def call(inputs: Tensors) -> dict[str, Tensor]:
        bias: Any = inputs["mask"]
        score = lambda score, b, h, i, j: score + bias[0, h, i, j]  # noqa: E731
        return {"out": compiled(inputs["q"], inputs["k"], inputs["v"], score_mod=score)}

    return call


def bias(context: Context) -> Iterator[Case]:
    """A bias of heads, queries and keys, with its gradient."""
    b, h, s, d = (2, 2, 16, 16) if context.smoke else BIAS

    def ours(backend: str) -> Call:
        def call(inputs: Tensors) -> dict[str, Tensor]:
            q, k, v = inputs["q"], inputs["k"], inputs["v"]
            return {
                "out": bk.scaled_dot_product_attention(q, k, v, inputs["mask"], backend=backend)
            }  # type: ignore[arg-type]

        return call

    def problem() -> Problem:
        return _problem(context, "qkvm", **dict.fromkeys("qkv", (b, h, s, d)), mask=(1, h, s, s))

    who = {f"bigkernels {o}": ours(o) for o in context.ours if o != "cuda"}
    who |= {name: _sdpa(BACKENDS[name]) for name in ("default", "efficient")}
    who |= {"flex": _flex()} if context.compile else {}
    yield from _cases("bias", f"{b}x{h}x{s}x{d}", 4 * b * h * s * s * d, problem, who)


def six_products(context: Context) -> Iterator[Case]:
    """The bare products of a feed-forward block, forward and backward, which it cannot beat."""
    for m, e, f in [(8, 32, 64)] if context.smoke else [(4096, 768, 3072), (24576, 1024, 4096)]:

        def setup(m: int = m, e: int = e, f: int = f) -> Callable[[], object]:
            x, hidden, w1, w2 = (
                context.randn(*size, dtype=HALF) for size in ((m, e), (m, f), (f, e), (e, f))
            )
            pairs = [(x, w1.T), (hidden, w2.T), (x, w2), (hidden, w1), (hidden.T, x), (x.T, hidden)]
            return lambda: [a @ b for a, b in pairs]

        shape = f"{m}x{e}x{f}"
        yield Case("products", "six of cublas", shape, "bfloat16", setup, flops=12 * m * e * f)


def _new_lengths(context: Context, backend: str, form: str, longest: int) -> Callable[[], object]:
    """A call whose length none before it had, not near the last one; warm: each kind of length has been met."""
    rows = context.randn(longest, 4, 64, dtype=HALF)
    ends = torch.arange(longest + 1, dtype=torch.int32, device=context.device)[:, None]
    ends = torch.cat([torch.zeros_like(ends), ends], 1)

    def run(n: int) -> object:
        part = rows[:n].detach().requires_grad_(form == "backward")
        if form == "packed":
            return bk.varlen_attn(part, part, part, ends[n], ends[n], n, n, backend=backend)
        x = part.transpose(0, 1)[None]
        out = bk.scaled_dot_product_attention(x, x, x, backend=backend)
        return torch.autograd.grad(out, part, out) if form == "backward" else out

    for n in (1, longest // 2, longest):
        run(n)
    lengths = itertools.cycle(2 + i * 389 % (longest - 2) for i in range(longest - 2))
    return lambda: run(next(lengths))


def new_lengths(context: Context) -> Iterator[Case]:
    """What a call of a new length costs the caller."""
    longest = 24 if context.smoke else NEW_LENGTHS
    for backend, form in itertools.product(context.ours, NEW_FORMS):
        if backend == "cuda":
            continue
        setup = functools.partial(_new_lengths, context, backend, form, longest)
        name, shape = f"bigkernels {backend} {form}", shape_of_new_lengths(longest)
        yield Case("new_length", name, shape, "bfloat16", setup, host=True)


def host(context: Context) -> Iterator[Case]:
    """What a fused operation costs the caller."""
    for backend, (name, case) in itertools.product(context.ours, HOST.items()):
        contract = importlib.import_module(f"bigkernels.ops.{case.room}.contract")
        if backend == "cuda" or backend not in contract.BACKENDS:
            continue

        def setup(backend: str = backend, case: Any = case) -> Callable[[], object]:
            problem = case.problem().mapped(lambda tensor: tensor.to(context.device))
            return peers.timed(lambda inputs: case.call(inputs, backend), problem, "forward").call

        operation, shape = name.split()
        label = f"bigkernels {backend} {operation}"
        yield Case("host", label, shape, "bfloat16", setup, host=True)


GROUPS: dict[str, Callable[[Context], Iterator[Case]]] = {
    "varlen": varlen,
    "bias": bias,
    "six_products": six_products,
    "new_lengths": new_lengths,
    "host": host,
}
