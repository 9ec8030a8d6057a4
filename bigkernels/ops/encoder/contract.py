"""What the encoder room promises: the facts a drawer is chosen by, the schemas, the shapes of results.

All layers of a Transformer encoder at inference are one call, on packed tokens (no padding). The weights are packed
beforehand, once, into one tensor of bytes that belongs to the instruction set of this process: it must not be saved
or sent to another machine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("cpu",)

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
PRECISIONS = ("float32", "high", "bfloat16", "int8", "int8_weights")

# The tensors of one layer, in this order. A bias or a norm's weight that is absent is an empty (0,) tensor.
PARTS = (
    "query.weight", "query.bias", "key.weight", "key.bias", "value.weight", "value.bias",
    "out.weight", "out.bias", "norm1.weight", "norm1.bias",
    "up.weight", "up.bias", "down.weight", "down.bias", "norm2.weight", "norm2.bias",
)  # fmt: skip


class Facts(NamedTuple):
    """What the choice of a drawer depends on; never lengths, batch or strides."""

    device: str
    dtype: torch.dtype  # of x
    precision: str  # of the products
    activation: str
    norm_first: bool
    causal: bool
    width: int  # E
    hidden: int  # F
    head_dim: int
    needs_grad: bool


SCHEMAS = {
    # weights: 16 * layers tensors, float32 or bfloat16, as PARTS says for each layer.
    "encoder_pack": "(Tensor[] weights, int layers, int heads, str precision) -> Tensor packed",
    # x (T, E) float32 or bfloat16; cu_seq (B + 1,) int32 or int64, first tokens of the sequences, then T; max_seq the
    # longest of them or more, -1 = unknown. hidden, layers, heads, precision: what `packed` was made for. out like x.
    "encoder_forward": "(Tensor x, Tensor cu_seq, SymInt max_seq, Tensor packed, int layers, int heads, int hidden,"
    " float eps, str activation, bool norm_first, bool causal, str precision) -> Tensor out",
    # (16 * layers,) int64: changes when a weight does, so that packed copies are known to be stale.
    "encoder_fingerprint": "(Tensor[] weights, bool pages) -> Tensor fingerprint",
}

_HEADER = 4096
_ELEMENT = {"float32": 4, "high": 4, "bfloat16": 2, "int8": 1, "int8_weights": 1}


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def packed_bytes(layers: int, width: int, hidden: int, precision: str) -> int:
    """Size of the packed weights: whole blocks of 96 rows, vectors in float32 (biases, norms, and for the integer
    precisions two numbers a row), a header."""
    matrices = ((3 * width, width), (width, width), (hidden, width), (width, hidden))
    padded = [(_round_up(rows, 96), columns) for rows, columns in matrices]
    size = _ELEMENT[precision]
    products = sum(rows * columns for rows, columns in padded) * size
    if size == 1:  # the attention's own product is bfloat16's
        products += padded[1][0] * padded[1][1]
    vectors = 3 * sum(rows for rows, _ in padded) + 4 * _round_up(width, 96)
    return int(layers * (products + 4 * vectors) + _HEADER)


def _encoder_pack(weights: list[Tensor], layers: int, heads: int, precision: str) -> Tensor:
    width, hidden = weights[0].shape[1], weights[10].shape[0]
    size = packed_bytes(layers, width, hidden, precision)
    return weights[0].new_empty((size,), dtype=torch.uint8)


def _encoder_forward(
    x: Tensor,
    cu_seq: Tensor,
    max_seq: int,
    packed: Tensor,
    layers: int,
    heads: int,
    hidden: int,
    eps: float,
    activation: str,
    norm_first: bool,
    causal: bool,
    precision: str,
) -> Tensor:
    return x.new_empty(x.shape)


def _encoder_fingerprint(weights: list[Tensor], pages: bool) -> Tensor:
    return weights[0].new_empty((len(weights),), dtype=torch.int64)


FAKES = {
    "encoder_pack": _encoder_pack,
    "encoder_forward": _encoder_forward,
    "encoder_fingerprint": _encoder_fingerprint,
}
