"""What gpu_peers.py times: ceilings of the machine, our kernels, and the peers they must beat."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import bigkernels as bk


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

    def randn(self, *shape: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
        made = torch.randn(shape, device=self.device).to(dtype)
        return made.requires_grad_(grad)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """The backward pass alone: the forward runs here."""
    out = function(*inputs)
    dout = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)


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


def _eager_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def _eager_add_layer_norm(
    x: Tensor, residual: Tensor, x_bias: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return F.layer_norm(residual + F.dropout(x + x_bias, 0.1), x.shape[-1:], weight, bias)


def _our_layer_norm(backend: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return bk.layer_norm(x, x.shape[-1:], weight, bias, backend=backend)


def _our_add_layer_norm(
    backend: str, x: Tensor, residual: Tensor, x_bias: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return bk.add_layer_norm(
        x, residual, weight, bias, x_bias=x_bias, dropout_p=0.1, backend=backend
    )


def layer_norm(context: Context) -> Iterator[Case]:
    """Forward and backward of both operations, torch's and ours. Bytes: each row that must be read or
    written, once; no parameters."""
    compiled = {(32768, 1024), (8192, 4096)} if context.compile else set()
    shapes = [(1, 768), (32768, 768), (32768, 1024), (8192, 4096)]
    if context.smoke:
        shapes = [(4, 64)]
        compiled = {(4, 64)} if context.compile else set()
    for m, n in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            for title, inputs, eager, mine in (
                ("layer_norm", 1, _eager_layer_norm, _our_layer_norm),
                ("add_layer_norm", 2, _eager_add_layer_norm, _our_add_layer_norm),
            ):
                functions = {"eager": eager}
                if (m, n) in compiled and dtype == torch.bfloat16:
                    functions["compile"] = eager
                for backend in context.ours:
                    functions[f"bigkernels {backend}"] = functools.partial(mine, backend)
                sizes = (m, n, dtype, inputs)
                for name, function in functions.items():
                    for backward in (False, True):
                        # Backward: dout and the sum in, one gradient per input out.
                        rows = inputs + (2 if backward else 1)
                        yield Case(
                            title,
                            f"{name} {'backward' if backward else 'forward'}",
                            f"{m}x{n}",
                            _name(dtype),
                            functools.partial(
                                _rows, context, sizes, function, backward, name == "compile"
                            ),
                            bytes=rows * m * n * dtype.itemsize,
                            host=m == 1,
                            compiles=name == "compile",
                        )


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled for the shapes of one case; older cases' code would count against Dynamo's limit."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def _rows(
    context: Context,
    sizes: tuple[int, int, torch.dtype, int],
    function: Callable[..., Tensor],
    backward: bool,
    compiles: bool,
) -> Callable[[], object]:
    m, n, dtype, inputs = sizes
    if compiles:
        function = _compiled(function)
    tensors = [context.randn(m, n, dtype=dtype, grad=backward) for _ in range(inputs)]
    vectors = 2 if inputs == 1 else 3
    tensors += [context.randn(n, dtype=dtype, grad=backward) for _ in range(vectors)]
    return _gradients(function, tensors) if backward else lambda: function(*tensors)


def attention(context: Context) -> Iterator[Case]:
    """Each backend of scaled_dot_product_attention, dense and with a padding mask; full FLOPs either way."""
    shapes = [(128, 16, 128, 64), (32, 16, 512, 64), (8, 16, 2048, 64), (8, 16, 2048, 128)]
    if context.smoke:
        shapes = [(2, 2, 16, 8)]
    backends = {
        "default": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    for b, h, s, d in shapes:
        for masked in (False, True):
            for name, backend in backends.items():
                make = functools.partial(_attention, context, b, h, s, d, masked, backend)
                title = f"{name}{' padded' if masked else ''}"
                common = {"shape": f"{b}x{h}x{s}x{d}", "dtype": "bfloat16"}
                flops = 4 * b * h * s * s * d
                yield Case("attention", f"{title} forward", setup=make, flops=flops, **common)
                backward = functools.partial(make, backward=True)
                yield Case(
                    "attention", f"{title} backward", setup=backward, flops=flops * 5 // 2, **common
                )


def _attention(
    context: Context,
    b: int,
    h: int,
    s: int,
    d: int,
    masked: bool,
    backend: SDPBackend | None,
    backward: bool = False,
) -> Callable[[], object]:
    q, k, v = (context.randn(b, h, s, d, dtype=torch.bfloat16, grad=backward) for _ in range(3))
    mask = None
    if masked:  # lengths from a quarter of s to s
        lengths = torch.linspace(s / 4, s, b, device=context.device).long()
        mask = (torch.arange(s, device=context.device) < lengths[:, None])[:, None, None, :]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return _gradients(call, [q, k, v]) if backward else lambda: call(q, k, v)


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


GROUPS: dict[str, Callable[[Context], Iterator[Case]]] = {
    "ceilings": ceilings,
    "layer_norm": layer_norm,
    "attention": attention,
    "encoder": encoder,
}
