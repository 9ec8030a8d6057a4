"""Peers of the rooms' functions: what else computes a bigkernels.testing case, on the same inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bigkernels.ops.attention.api import scaled_dot_product_attention
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Problem, Tensors

Call = Callable[[Tensors], Mapping[str, Tensor]]


class RefusedError(RuntimeError):
    """A peer does not take a case; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """call: what is timed. results: outputs (and gradients) by name, once. forward: the forward
    alone with gradients on, which keeps what backward needs; None where the mode has none."""

    call: Callable[[], object]
    results: Callable[[], dict[str, Tensor]]
    forward: Callable[[], object] | None


def timed(call: Call, problem: Problem, mode: str) -> Timed:
    """`call` on the problem's inputs in a mode of bench.cases.MODES."""
    if mode in ("forward", "overhead"):
        plain = dataclasses.replace(problem, wrt=(), douts={})
        leaves = {n: None if t is None else t.detach() for n, t in problem.inputs.items()}

        def infer() -> object:
            with torch.no_grad():
                return call(leaves)

        return Timed(infer, lambda: plain.solve(call), None)
    leaves = {n: None if t is None else t.detach() for n, t in problem.inputs.items()}
    sources = [_leaf(leaves[name]) for name in problem.wrt]
    douts = list(problem.douts.values())

    def forward() -> list[Tensor]:
        outputs = call(leaves)
        return [outputs[name] for name in problem.douts]

    def step() -> object:
        return torch.autograd.grad(forward(), sources, douts, materialize_grads=True)

    if mode == "training":
        return Timed(step, lambda: problem.solve(call), forward)
    roots = forward()

    def backward() -> object:
        return torch.autograd.grad(roots, sources, douts, retain_graph=True)

    return Timed(backward, lambda: problem.solve(call), forward)


def _leaf(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.requires_grad_()


def bigkernels(case: Case) -> Call:
    """Ours as a user calls it, the drawer that is chosen here."""
    if case.operation == "attention":
        return functools.partial(_our_attention, case)
    return functools.partial(_ours, case)


def _ours(case: Case, inputs: Tensors) -> Mapping[str, Tensor]:
    return case.call(inputs, None)


def _our_attention(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    q, k, v = _qkv(inputs)
    out = scaled_dot_product_attention(
        q,
        k,
        v,
        dropout_p=case.dropout_p,
        is_causal=case.causal,
        key_lengths=inputs.get("lengths"),
    )
    return {"out": out}


def torch_default(case: Case) -> Call:
    """What a user of torch calls."""
    made: dict[str, Callable[..., Mapping[str, Tensor]]] = {
        "layer_norm": _layer_norm,
        "add_layer_norm": _add_layer_norm,
        "attention": functools.partial(_sdpa, None),
        "feed_forward": _feed_forward,
        "embedding": _embedding,
        "cross_entropy": _cross_entropy,
        "packing": _packing,
    }
    return functools.partial(made[case.operation], case)


def eager_attention(case: Case) -> Call:
    """Two products and a softmax, as transformers' "eager" attention."""
    return functools.partial(_eager_attention, case)


def sdpa(backend: str, case: Case) -> Call:
    """One backend of scaled_dot_product_attention: "flash", "math", "efficient" or "cudnn"."""
    names = {
        "flash": "FLASH_ATTENTION",
        "efficient": "EFFICIENT_ATTENTION",
        "cudnn": "CUDNN_ATTENTION",
    }
    chosen = getattr(SDPBackend, names.get(backend, "MATH"))
    return functools.partial(_sdpa, chosen, case)


def compiled(case: Case) -> Call:
    """torch.compile of what a user of torch calls."""
    torch.compiler.reset()
    call: Call = torch.compile(torch_default(case), dynamic=False)
    return call


def copy(case: Any) -> Call:
    """No result, but a copy that moves the bytes of one: two tensors are read and one is written, so the copy is
    of half as much again."""
    if case.operation != "add_layer_norm" or case.dropout_p or case.dtype != torch.float32:
        raise RefusedError("it stands beside add_layer_norm in float32 without dropout only")
    places: dict[int, tuple[Tensor, Tensor]] = {}

    def call(inputs: Tensors) -> Mapping[str, Tensor]:
        x = inputs["x"]
        assert x is not None
        if x.data_ptr() not in places:
            source = x.new_ones(x.numel() * 3 // 2)
            places[x.data_ptr()] = (source, torch.empty_like(source))
        source, target = places[x.data_ptr()]
        target.copy_(source)
        return {}

    return call


def prepacked(case: Any) -> Call:
    """Linears as oneDNN calls on reordered weights, the activation in the first one's epilogue."""
    if case.operation != "feed_forward" or case.dtype != torch.bfloat16:
        raise RefusedError("oneDNN reorders bfloat16 weights of linears only")
    packed: list[Tensor] = []

    def call(inputs: Tensors) -> Mapping[str, Tensor]:
        if torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in inputs.values()
        ):
            raise RefusedError("it has no backward")
        x = inputs["x"]
        assert x is not None
        if not packed:
            reorder = torch.ops.mkldnn._reorder_linear_weight
            packed.extend(reorder(inputs[name], x.shape[0]) for name in ("weight1", "weight2"))
        linear = torch.ops.mkldnn._linear_pointwise
        hidden = linear(x, packed[0], inputs["bias1"], case.activation, [], "none")
        return {"out": linear(hidden, packed[1], inputs["bias2"], "none", [], "")}

    return call


def _layer_norm(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    x = inputs["x"]
    assert x is not None
    out = F.layer_norm(x, case.normalized_shape, inputs["weight"], inputs["bias"], case.eps)
    return {"out": out}


def _add_layer_norm(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    x, residual = inputs["x"], inputs["residual"]
    assert x is not None and residual is not None
    if inputs.get("x_bias") is not None:
        x = x + inputs["x_bias"]  # type: ignore[operator]
    total = residual + F.dropout(x, case.dropout_p)
    out = F.layer_norm(total, x.shape[-1:], inputs["weight"], inputs["bias"], case.eps)
    return {"out": out, "sum": total} if case.return_sum else {"out": out}


def _feed_forward(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    x, weight1, weight2 = inputs["x"], inputs["weight1"], inputs["weight2"]
    assert x is not None and weight1 is not None and weight2 is not None
    hidden = F.gelu(F.linear(x, weight1, inputs["bias1"]))
    return {"out": F.linear(F.dropout(hidden, case.dropout_p), weight2, inputs["bias2"])}


def _embedding(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    word, types = inputs["word"], inputs["types"]
    assert word is not None and types is not None
    total = F.embedding(inputs["ids"], word) + F.embedding(inputs["type_ids"], types)  # type: ignore[arg-type]
    total = total + F.embedding(inputs["places"], inputs["position"])  # type: ignore[arg-type]
    return {"out": F.layer_norm(total, (case.n,), inputs["weight"], inputs["bias"], case.eps)}


def _cross_entropy(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    logits, target = inputs["input"], inputs["target"]
    assert logits is not None and target is not None
    return {"out": F.cross_entropy(logits, target, ignore_index=case.ignore_index)}


def _packing(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    x, keep = inputs["x"], inputs["keep"]
    assert x is not None and keep is not None
    packed = x[keep]
    return {"packed": packed, "out": torch.zeros_like(x).masked_scatter(keep[..., None], packed)}


def _padding(case: Any, k: Tensor) -> Tensor | None:
    if case.lengths is None:
        return None
    lengths = torch.tensor(case.lengths, device=k.device)
    on: Tensor = torch.arange(k.shape[2], device=k.device) < lengths[:, None, None, None]
    return on


def _qkv(inputs: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    assert q is not None and k is not None and v is not None
    return q, k, v


def _sdpa(backend: SDPBackend | None, case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    q, k, v = _qkv(inputs)
    forced = contextlib.nullcontext() if backend is None else sdpa_kernel(backend)
    with forced:
        out = F.scaled_dot_product_attention(
            q, k, v, _padding(case, k), case.dropout_p, case.causal
        )
    return {"out": out}


def _eager_attention(case: Any, inputs: Tensors) -> Mapping[str, Tensor]:
    q, k, v = _qkv(inputs)
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    mask = _padding(case, k)
    if case.causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return {"out": torch.matmul(F.dropout(weights, case.dropout_p), v)}
