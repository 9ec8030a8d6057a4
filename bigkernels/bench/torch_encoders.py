"""Encoder peers that run in torch: transformers' own ways, torch's fast path, prepacked linears,
torch.compile, and ours."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers.models.bert.modeling_bert  # noqa: F401 - or AutoModel would, at the first model
from torch import Tensor, nn

from . import encoders
from .built import Built, Forward
from .cases import encoder_bytes
from .encoders import Array, Batch


def stock(model: str, threads: int, attention: str, dtype: str) -> Built:
    """transformers' model. attention: "eager" or "sdpa". dtype: "float32", "bfloat16", or "autocast"
    (float32 weights, products in bfloat16)."""
    loaded = _loaded(model, threads, attention, "float32" if dtype == "autocast" else dtype)
    how = f"AutoModel, {attention} attention, {dtype}, {threads} threads"
    autocast = dtype == "autocast"
    return _built(how, loaded, autocast, training=dtype != "bfloat16")


def accelerated(model: str, threads: int, dtype: str) -> Built:
    """bigkernels.accelerate on the same model. dtype: as for `stock`; "int8" and "int8_weights" as accelerate
    takes them, and "high", float32 with torch's precision setting at that."""
    import bigkernels

    integer = dtype if dtype in ("int8", "int8_weights") else None
    kept = integer or dtype in ("autocast", "high")
    loaded = _loaded(model, threads, "sdpa", "float32" if kept else dtype)
    if dtype == "high":
        torch.set_float32_matmul_precision("high")
    report = bigkernels.accelerate(loaded, integer).report()
    if not report.swapped:
        raise RuntimeError(str(report).splitlines()[-1])
    how = f"bigkernels.accelerate(AutoModel), {dtype}, {threads} threads"
    training = dtype in ("float32", "autocast")
    built = _built(how, loaded, dtype == "autocast", training)
    return dataclasses.replace(built, version=bigkernels.__version__)


def compiled(model: str, threads: int, dtype: str, mode: str) -> Built:
    """torch.compile of transformers' model. mode: "default", or "max-autotune" with frozen weights."""
    import torch._inductor.config as inductor

    loaded = _loaded(model, threads, "sdpa", dtype)
    options: dict[str, Any] = {}
    if mode == "max-autotune":
        inductor.freezing = True
        options["mode"] = "max-autotune-no-cudagraphs"
    loaded.forward = torch.compile(loaded.forward, dynamic=False, **options)
    frozen = ", frozen" if mode == "max-autotune" else ""
    return _built(f"torch.compile, {mode}{frozen}, {dtype}, {threads} threads", loaded, False)


def prepacked(model: str, threads: int) -> Built:
    """Every linear as one oneDNN call on a weight it has reordered once; the rest is transformers'.
    oneDNN reorders bfloat16 weights only."""
    loaded = _loaded(model, threads, "sdpa", "bfloat16")
    for parent in list(loaded.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _Prepacked(child))
    return _built(f"mkldnn._linear_pointwise, bfloat16, {threads} threads", loaded, False)


def fast_path(model: str, threads: int, dtype: str, how: str = "fast path") -> Built:
    """nn.TransformerEncoder in evaluation mode, holding the model's weights; nested tensors drop padding. how: or
    "accelerated", by bigkernels."""
    loaded = _loaded(model, threads, "sdpa", dtype)
    config = loaded.config
    layer = nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        activation="gelu",
        batch_first=True,
        layer_norm_eps=config.layer_norm_eps,
    )
    stack = nn.TransformerEncoder(layer, config.num_hidden_layers)
    for ours, theirs in zip(stack.layers, loaded.encoder.layer, strict=True):
        _copy_layer(ours, theirs)
    stack.eval()
    stack.to(loaded.dtype)
    if how == "accelerated":
        import bigkernels

        bigkernels.accelerate(stack)

    def prepare(batch: Batch) -> Forward:
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        padding = None if mask.all() else mask == 0

        def call() -> Tensor:
            with torch.no_grad():
                embedded = loaded.embeddings(input_ids=ids)
                out: Tensor = stack(embedded, src_key_padding_mask=padding)
                return out

        return call

    def to_numpy(result: Tensor) -> Array:
        return result.float().numpy()

    shown = f"nn.TransformerEncoder, {how}, {dtype}, {threads} threads"
    return Built(shown, torch.__version__, prepare, to_numpy)


def reading(model: str, threads: int, dtype: str) -> Built:
    """No encoder: reads as many bytes as the layers' weights have in `dtype`, which no encoder can do without."""
    torch.set_num_threads(threads)
    size = encoder_bytes(encoders.facts(model)) // 4 * getattr(torch, dtype).itemsize
    weights = torch.ones(size // 4)

    def prepare(batch: Batch) -> Forward:
        return weights.sum

    def to_numpy(result: Tensor) -> Array:
        return result.numpy()

    return Built(f"{size} bytes, {threads} threads", torch.__version__, prepare, to_numpy)


class _Prepacked(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.out_features = linear.out_features
        self.bias = linear.bias
        with torch.no_grad():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1024)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return out.view(*x.shape[:-1], self.out_features)  # type: ignore[no-any-return]


def _copy_layer(ours: Any, theirs: Any) -> None:
    attention, block = theirs.attention.self, theirs.attention.output
    pairs = [
        (ours.self_attn.out_proj, block.dense),
        (ours.norm1, block.LayerNorm),
        (ours.linear1, theirs.intermediate.dense),
        (ours.linear2, theirs.output.dense),
        (ours.norm2, theirs.output.LayerNorm),
    ]
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        ours.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        ours.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        for mine, other in pairs:
            mine.weight.copy_(other.weight)
            mine.bias.copy_(other.bias)


def _loaded(model: str, threads: int, attention: str, dtype: str) -> Any:
    from transformers import AutoModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loaded: Any = AutoModel.from_pretrained(
        encoders.folder(model), dtype=getattr(torch, dtype), attn_implementation=attention
    )
    loaded.pooler = None  # only last hidden states are compared, and engines compute nothing else
    if hasattr(loaded.config, "use_cache"):
        loaded.config.use_cache = False
    return loaded.eval()


def _built(how: str, loaded: Any, autocast: bool, training: bool = False) -> Built:
    def context() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

    def prepare(batch: Batch) -> Forward:
        inputs = _inputs(loaded, batch)

        def call() -> Tensor:
            with torch.no_grad(), context():
                return loaded(**inputs).last_hidden_state  # type: ignore[no-any-return]

        loaded.eval()
        return call

    def to_numpy(result: Tensor) -> Array:
        return result.detach().to(torch.promote_types(result.dtype, torch.float32)).numpy()

    if not training:
        return Built(how, torch.__version__, prepare, to_numpy)
    steps = functools.partial(_training, loaded, context)
    return Built(
        how,
        torch.__version__,
        prepare,
        to_numpy,
        step=lambda batch: steps(batch)[0],
        forward_step=lambda batch: steps(batch)[1],
    )


def _training(
    loaded: Any, context: Callable[[], contextlib.AbstractContextManager[Any]], batch: Batch
) -> tuple[Forward, Forward]:
    """One step with dropout and fused AdamW, and its forward alone."""
    inputs = _inputs(loaded, batch)
    loaded.train()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-6, fused=True)
    draw = torch.Generator().manual_seed(0)
    size = (*batch.ids.shape, loaded.config.hidden_size)
    target = torch.randn(size, generator=draw) * torch.from_numpy(batch.mask)[..., None]

    def forward() -> Tensor:
        with context():
            hidden: Tensor = loaded(**inputs).last_hidden_state
        return (hidden.float() * target).sum() / batch.tokens

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, forward


def _inputs(loaded: Any, batch: Batch) -> dict[str, Tensor]:
    if loaded.main_input_name == "pixel_values":
        sides = (loaded.config.num_channels, *[loaded.config.image_size] * 2)
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randn(len(batch.ids), *sides, generator=draw)
        return {"pixel_values": pixels.to(loaded.dtype)}
    inputs = {"input_ids": torch.from_numpy(batch.ids)}
    return inputs | {"attention_mask": torch.from_numpy(np.ascontiguousarray(batch.mask))}
