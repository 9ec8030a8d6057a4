"""What gpu_peers.py times: ceilings of the machine, our kernels, and the peers they must beat."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bigkernels import library
from bigkernels.bench import rooms as peers
from bigkernels.testing.cases.attention import AttentionCase
from bigkernels.testing.cases.cross_entropy import CrossEntropyCase
from bigkernels.testing.cases.embedding import EmbeddingCase
from bigkernels.testing.cases.ffn import FeedForwardCase
from bigkernels.testing.cases.layer_norm import AddLayerNormCase, LayerNormCase
from bigkernels.testing.cases.packing import PackingCase
from bigkernels.testing.problem import Problem


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time; `setup` allocates and returns it. bytes and flops: what a call must move
    and compute, for the rates. host: also time the host's side of a call. compiles: torch.compile
    takes its seconds, so these cases come last."""

    group: str
    name: str
    shape: str
    dtype: str
    setup: Callable[[], Callable[[], object]]
    bytes: int = 0
    flops: int = 0
    host: bool = False
    compiles: bool = False


@dataclasses.dataclass(frozen=True)
class Context:
    """device: where tensors live. ours: the backends of ours that are timed there."""

    device: str
    ours: tuple[str, ...]
    smoke: bool
    compile: bool

    def randn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def ceilings(context: Context) -> Iterator[Case]:
    """A copy, and cuBLAS products by dtype: square, and those of a BERT-large layer."""
    size = 1 << 16 if context.smoke else 1 << 30

    def copy() -> Callable[[], object]:
        source = torch.zeros(size, dtype=torch.uint8, device=context.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    yield Case("ceilings", "copy", f"{size >> 20} MiB", "uint8", copy, bytes=2 * size)
    shapes = [(8192, 8192, 8192), (24576, 1024, 4096), (24576, 4096, 1024), (24576, 1024, 1024)]
    if context.smoke:
        shapes = [(32, 16, 8)]
    for m, k, n in shapes:
        for name in ("bfloat16", "float16", "tf32", "float32"):
            if name == "float32" and m == 8192:
                continue  # slow, and the others say the same

            def product(
                m: int = m, k: int = k, n: int = n, name: str = name
            ) -> Callable[[], object]:
                dtype = getattr(torch, name, torch.float32)
                a, b = context.randn(m, k, dtype=dtype), context.randn(k, n, dtype=dtype)

                def call() -> Tensor:
                    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
                    return a @ b

                return call

            shape = f"{m}x{k}x{n}"
            yield Case("ceilings", "product", shape, name, product, flops=2 * m * k * n)


def timed_cases(smoke: bool) -> Iterator[tuple[Any, str, dict[str, int]]]:
    """(case, shape for people, what a forward computes and moves) of every room. Bytes: each row that
    must be read or written, once; no parameters. A padded batch counts as if it were full."""
    half = torch.bfloat16
    for m, n in [(4, 64)] if smoke else [(1, 768), (32768, 768), (32768, 1024), (8192, 4096)]:
        for dtype in (half, torch.float32):
            size, facts = m * n * dtype.itemsize, {"shape": (m, n), "dtype": dtype}
            yield LayerNormCase(reason="timed", **facts), f"{m}x{n}", {"bytes": 2 * size}
            add = AddLayerNormCase(reason="timed", x_bias=True, dropout_p=0.1, **facts)
            yield add, f"{m}x{n}", {"bytes": 3 * size}
    shapes = [(128, 16, 128, 64), (32, 16, 512, 64), (8, 16, 2048, 64), (8, 16, 2048, 128)]
    for b, h, s, d in [(2, 2, 16, 16)] if smoke else shapes:
        full = AttentionCase(reason="timed", shape=(b, h, s, s, d), dtype=half, grads="qkv")
        lengths = tuple(s // 4 + (s - s // 4) * i // (b - 1) for i in range(b))
        for case in (full, dataclasses.replace(full, lengths=lengths)):
            yield case, f"{b}x{h}x{s}x{d}", {"flops": 4 * b * h * s * s * d}
    for m, e, f in [(8, 32, 64)] if smoke else [(4096, 768, 3072), (24576, 1024, 4096)]:
        feed = FeedForwardCase(reason="timed", shape=(m, e), hidden=f, dtype=half)
        yield feed, f"{m}x{e}x{f}", {"flops": 4 * m * e * f}
    words = 100 if smoke else 30522
    for b, s, n in [(2, 8, 64)] if smoke else [(128, 128, 768), (64, 512, 1024)]:
        tables = {"words": words, "positions": 512}
        ids = EmbeddingCase(reason="timed", shape=(b, s), n=n, dtype=half, **tables)
        yield ids, f"{b}x{s}x{n}", {"bytes": 4 * b * s * n * half.itemsize}
    for m, v in [(8, 300)] if smoke else [(16384, 30522)]:
        loss = CrossEntropyCase(reason="timed", rows=m, classes=v, ignored=0, dtype=half)
        yield loss, f"{m}x{v}", {"bytes": m * v * half.itemsize}
    for b, s, n in [(2, 8, 64)] if smoke else [(128, 512, 768)]:
        lengths = tuple(s // 4 + (s - s // 4) * i // (b - 1) for i in range(b))
        tokens, where = sum(lengths), {"length": s, "rest": (n,), "dtype": half}
        pack = PackingCase(reason="timed", lengths=lengths, spare=0, **where)
        yield pack, f"{b}x{s}x{n}", {"bytes": (3 * tokens + b * s) * n * half.itemsize}


# What a backward computes or moves, of what the forward does. Of rows: dout and the sum come in, a gradient for
# each input goes out.
BACKWARD = {
    "layer_norm": 3 / 2,
    "add_layer_norm": 4 / 3,
    "attention": 5 / 2,
    "feed_forward": 2.0,
    "embedding": 2.0,
    "cross_entropy": 2.0,
    "packing": 1.0,
}


def _peers(context: Context, case: Any) -> Iterator[tuple[str, Callable[[Any], peers.Call]]]:
    """Who computes a case: torch's own, each of its backends, compiled, and ours."""
    yield "default" if case.operation == "attention" else "eager", peers.torch_default
    if case.operation == "attention":
        for name in ("flash", "efficient", "cudnn", "math"):
            yield name, functools.partial(peers.sdpa, name)
    elif context.compile and case.dtype == torch.bfloat16 and case.shape[0] != 1:
        yield "compile", peers.compiled
    contract = importlib.import_module(f"bigkernels.ops.{case.room}.contract")
    for backend in context.ours:
        if backend in contract.BACKENDS:
            yield f"bigkernels {backend}", functools.partial(_ours, backend)


def _ours(backend: str, case: Any) -> peers.Call:
    return lambda inputs: case.call(inputs, backend)


@functools.lru_cache(maxsize=1)
def _problem(case: Any, device: str) -> Problem:
    """Peers of a case follow one another, and share its inputs."""
    return case.problem().mapped(lambda tensor: tensor.to(device))


def _set_up(
    context: Context, case: Any, peer: Callable[[Any], peers.Call], mode: str
) -> Callable[[], object]:
    return peers.timed(peer(case), _problem(case, context.device), mode).call


def rooms(context: Context, room: str) -> Iterator[Case]:
    """Forward and backward of a room's operations: cases of bigkernels.testing, at the sizes of a GPU."""
    for case, shape, sizes in timed_cases(context.smoke):
        if case.room != room:
            continue
        padded = " padded" if getattr(case, "lengths", None) else ""
        for name, peer in _peers(context, case):
            for mode, share in (("forward", 1.0), ("backward", BACKWARD[case.operation])):
                yield Case(
                    case.operation,
                    f"{name}{padded} {mode}",
                    shape,
                    _name(case.dtype),
                    functools.partial(_set_up, context, case, peer, mode),
                    host=shape.startswith("1x"),
                    compiles=name == "compile",
                    **{kind: int(size * share) for kind, size in sizes.items()},
                )


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled for the shapes of one case; older cases' code would count against Dynamo's limit."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def encoder(context: Context) -> Iterator[Case]:
    """BERT-base in bfloat16, eager and (padded) compiled: inference and a training step.
    FLOPs: six per parameter of the layers and token for a step, two for inference, without attention."""
    batch, length = (2, 16) if context.smoke else (32, 128)
    parameters = 85_054_464  # of the 12 layers
    for padded in (False, True):
        for compiled in (False, True) if context.compile and padded else (False,):
            for step in (False, True):
                name = f"{'compile' if compiled else 'eager'}{' padded' if padded else ''}"
                flops = (6 if step else 2) * parameters * batch * length
                yield Case(
                    "encoder",
                    f"{name} {'step' if step else 'inference'}",
                    f"{batch}x{length}",
                    "bfloat16",
                    functools.partial(_encoder, context, batch, length, padded, compiled, step),
                    flops=0 if context.smoke else flops,
                    compiles=compiled,
                )


@functools.cache
def _bert(context: Context) -> tuple[str, torch.nn.Module]:
    """("bert", transformers' BertModel), or ("torch", an encoder of torch.nn of the same size)."""
    hidden, heads, layers = (32, 2, 2) if context.smoke else (768, 12, 12)
    torch.manual_seed(0)
    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        layer = torch.nn.TransformerEncoderLayer(
            hidden, heads, 4 * hidden, activation="gelu", batch_first=True
        )
        stack = torch.nn.TransformerEncoder(layer, layers)
        return "torch", stack.to(context.device, torch.bfloat16)
    config = BertConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden,
    )
    model = BertModel(config, add_pooling_layer=False)
    return "bert", model.to(context.device, torch.bfloat16)


def _encoder(
    context: Context, batch: int, length: int, padded: bool, compiled: bool, step: bool
) -> Callable[[], object]:
    kind, model = _bert(context)
    model.train(step)
    lengths = torch.linspace(length / 4 if padded else length, length, batch).long()
    mask = (torch.arange(length) < lengths[:, None]).to(context.device)
    if kind == "bert":
        tokens = torch.randint(100, 30_000, (batch, length), device=context.device)
        call = lambda: model(tokens, attention_mask=mask.long() if padded else None)[0]  # noqa: E731
    else:
        embedded = context.randn(
            batch, length, model.layers[0].linear1.in_features, dtype=torch.bfloat16
        )
        call = lambda: model(embedded, src_key_padding_mask=~mask if padded else None)  # noqa: E731
    if compiled:
        call = _compiled(call)

    def infer() -> Tensor:
        with torch.inference_mode():
            return call()

    def train() -> None:
        call().float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return train if step else infer


def _has_gpu_drawer(room: str) -> bool:
    contract = importlib.import_module(f"bigkernels.ops.{room}.contract")
    return not {"cuda", "triton"}.isdisjoint(contract.BACKENDS)


GROUPS: dict[str, Callable[[Context], Iterator[Case]]] = {
    "ceilings": ceilings,
    **{
        room: functools.partial(rooms, room=room) for room in library.ROOMS if _has_gpu_drawer(room)
    },
    "encoder": encoder,
}
