"""The encoder room's door: checks, the choice of a drawer, packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigkernels import backends, library
from bigkernels.ops import checks
from bigkernels.ops.encoder import contract, reference
from bigkernels.ops.encoder.contract import ACTIVATIONS, PARTS, PRECISIONS, Facts

_OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}
backends.register("encoder", contract.BACKENDS)


class Packed(NamedTuple):
    """An encoder's weights as the kernels read them."""

    data: Tensor  # uint8
    layers: int
    heads: int
    width: int
    hidden: int
    precision: str


def _check_weights(weights: Sequence[Tensor], heads: int) -> None:
    if not weights or len(weights) % len(PARTS):
        raise ValueError(
            f"weights: {len(weights)} tensors, expected {len(PARTS)} a layer: {', '.join(PARTS)}"
        )
    for tensor in weights:
        checks.check_float_tensor("weights", tensor)
    if weights[0].dim() != 2 or weights[10].dim() != 2 or 0 in weights[0].shape:
        raise ValueError(f"weights: query.weight {tuple(weights[0].shape)}, expected (E, E)")
    width, hidden = weights[0].shape[1], weights[10].shape[0]
    checks.check_number("heads", heads, 1, width)
    if width % heads:
        raise ValueError(f"heads: {heads} does not divide the width {width}")
    shapes = {"up.weight": (hidden, width), "up.bias": (hidden,), "down.weight": (width, hidden)}
    for index, tensor in enumerate(weights):
        name = PARTS[index % len(PARTS)]
        matrix = name.endswith("weight") and "norm" not in name
        expected = shapes.get(name, (width, width) if matrix else (width,))
        if tuple(tensor.shape) != expected and (matrix or tuple(tensor.shape) != (0,)):
            place = f"layer {index // len(PARTS)}"
            raise ValueError(f"weights: {place}: {name} {tuple(tensor.shape)}, expected {expected}")


def pack_encoder(weights: Sequence[Tensor], heads: int, precision: str = "float32") -> Packed:
    """An encoder's weights packed for ``encoder`` on the CPU.

    Args:
        weights: 16 tensors a layer in the order of ``contract.PARTS``, float32 or bfloat16; an absent bias (or weight
            of a norm) is an empty (0,) tensor.
        heads: attention heads, which divide the width.
        precision: of the products: "float32", "high" (three bfloat16 products), "bfloat16", "int8" (dynamic
            activations), "int8_weights" (activations of 16 bits or, without tiles, float32).

    Raises:
        TypeError, ValueError: wrong number, dtype or shape of the weights, unknown precision.
        Unsupported: this machine's kernels do not serve the precision.
    """
    _check_weights(weights, heads)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    layers = len(weights) // len(PARTS)
    width, hidden = weights[0].shape[1], weights[10].shape[0]
    facts = Facts(
        "cpu", torch.float32, precision, "gelu", False, False, width, hidden, width // heads, False
    )
    backends.choose("encoder", facts, "cpu", traceable=True)
    data = _OPS["encoder_pack"]["cpu"](list(weights), layers, heads, precision)
    return Packed(data, layers, heads, width, hidden, precision)


def _sizes(weights: Sequence[Tensor] | Packed, heads: int, precision: str) -> tuple[int, int, int]:
    """Layers, E and F of checked weights."""
    if not isinstance(weights, Packed):
        _check_weights(weights, heads)
        return len(weights) // len(PARTS), weights[0].shape[1], weights[10].shape[0]
    if (weights.heads, weights.precision) != (heads, precision):
        raise ValueError(
            f"weights: packed for {weights.heads} heads in {weights.precision}, not {heads} in {precision}"
        )
    return weights.layers, weights.width, weights.hidden


def _check_call(x: Tensor, cu_seq: Tensor, width: int, activation: str, eps: float) -> None:
    checks.check_float_tensor("x", x)
    if x.dim() != 2 or x.shape[1] != width:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (T, {width})")
    if not isinstance(cu_seq, Tensor) or cu_seq.dtype not in (torch.int32, torch.int64):
        kind = cu_seq.dtype if isinstance(cu_seq, Tensor) else type(cu_seq).__name__
        raise TypeError(f"cu_seq: expected an int32 or int64 tensor, got {kind}")
    if cu_seq.dim() != 1 or cu_seq.numel() < 1 or cu_seq.device != x.device:
        raise ValueError(f"cu_seq: shape {tuple(cu_seq.shape)}, expected (B + 1,) on {x.device}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    checks.check_number("eps", eps, 0.0)


def encoder(
    x: Tensor,
    cu_seq: Tensor,
    weights: Sequence[Tensor] | Packed,
    *,
    heads: int,
    eps: float = 1e-12,
    activation: str = "gelu",
    norm_first: bool = False,
    causal: bool = False,
    precision: str = "float32",
    max_seq: int = -1,
    backend: str | None = None,
) -> Tensor:
    """All layers of a Transformer encoder at inference, on packed tokens.

    Post-LayerNorm as in BERT, pre-LayerNorm (``norm_first``, without a last norm) as in ViT and GPT-2.

    Args:
        x: (T, E), float32 or bfloat16: the tokens of all sequences one after another.
        cu_seq: (B + 1,) int32 or int64: where each sequence begins, then T.
        weights: what ``pack_encoder`` takes or, packed once for many calls, gives. The reference takes tensors alone.
        heads: attention heads. eps: of the norms. activation: "gelu" (exact), "gelu_tanh", "relu" or "silu".
        causal: tokens see those before them alone.
        precision: of the products; that of packed weights must be the same.
        max_seq: length of the longest sequence, -1 if unknown.
        backend: forces a backend.

    Returns:
        (T, E) in x's dtype; between the layers it is float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range.
        Unsupported: the forced backend cannot serve the call.
    """
    layers, width, hidden = _sizes(weights, heads, precision)
    _check_call(x, cu_seq, width, activation, eps)
    tensors = (x,) if isinstance(weights, Packed) else (x, *weights)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    facts = Facts(
        x.device.type, x.dtype, precision, activation, norm_first, causal, width, hidden,
        width // heads, needs_grad,
    )  # fmt: skip
    name = backends.choose("encoder", facts, backend, traceable=True)
    if name != "reference":
        packed = weights if isinstance(weights, Packed) else pack_encoder(weights, heads, precision)
    elif isinstance(weights, Packed):
        raise ValueError("weights: packed ones are for the cpu backend alone")
    else:
        lengths = cu_seq.diff().tolist()
        return reference.encoder(x, lengths, weights, heads, eps, activation, norm_first, causal)
    return _OPS["encoder_forward"][name](  # type: ignore[no-any-return]
        x, cu_seq, max_seq, packed.data, layers, heads, hidden, eps, activation, norm_first, causal, precision
    )  # fmt: skip


def fingerprint(weights: Sequence[Tensor], pages: bool) -> Tensor:
    """(number of weights,) int64, equal for equal bits, dtypes and shapes. Of each weight a cache line of every page
    of 4 KiB is read, or without pages 16 lines; small ones whole."""
    return _OPS["encoder_fingerprint"]["cpu"](list(weights), pages)  # type: ignore[no-any-return]
