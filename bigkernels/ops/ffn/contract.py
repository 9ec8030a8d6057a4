"""What the ffn room promises: the facts a drawer is chosen by, the schemas, the shapes of results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("triton", "cpu")

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


class Facts(NamedTuple):
    """What the choice of a drawer depends on; never sizes or strides."""

    device: str
    dtype: torch.dtype
    activation: str
    gated: bool
    dropout: bool
    needs_grad: bool
    chip: str = ""  # as checks.chip has it


_DROPOUT = "str activation, float dropout_p, Tensor? seed, Tensor? offset, Tensor? rows"

SCHEMAS = {
    "ffn_forward": "(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2,"
    f" Tensor? weight_gate, Tensor? bias_gate, {_DROPOUT}, int save)"
    " -> (Tensor out, Tensor pre, Tensor gate, Tensor hidden)",
    "ffn_backward": "(Tensor dout, Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2,"
    f" Tensor? weight_gate, Tensor? bias_gate, Tensor pre, Tensor gate, Tensor hidden, {_DROPOUT},"
    " bool need_dx, bool need_dweight1, bool need_dbias1, bool need_dweight2, bool need_dbias2,"
    " bool need_dweight_gate, bool need_dbias_gate) -> (Tensor dx, Tensor dweight1, Tensor dbias1,"
    " Tensor dweight2, Tensor dbias2, Tensor dweight_gate, Tensor dbias_gate)",
}


def _ffn_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    weight_gate: Tensor | None,
    bias_gate: Tensor | None,
    activation: str,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    save: int,
) -> tuple[Tensor, ...]:
    wide = (*x.shape[:-1], weight1.shape[0])
    nothing = (0,)
    return (
        x.new_empty((*x.shape[:-1], weight2.shape[0])),
        x.new_empty(wide if save >= 1 else nothing),
        x.new_empty(wide if save >= 1 and weight_gate is not None else nothing),
        x.new_empty(wide if save >= 2 else nothing),
    )


def _ffn_backward(
    dout: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    weight_gate: Tensor | None,
    bias_gate: Tensor | None,
    pre: Tensor,
    gate: Tensor,
    hidden: Tensor,
    activation: str,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    *needs: bool,
) -> tuple[Tensor, ...]:
    hidden_size, out_size = weight1.shape[0], weight2.shape[0]
    shapes = (
        x.shape,
        weight1.shape,
        (hidden_size,),
        weight2.shape,
        (out_size,),
        weight1.shape,
        (hidden_size,),
    )
    return tuple(
        x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)
    )


FAKES = {"ffn_forward": _ffn_forward, "ffn_backward": _ffn_backward}
