"""What the embedding room promises: the facts a drawer is chosen by, the schemas, the shapes of results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("triton", "cpu")


class Facts(NamedTuple):
    """What the choice of a drawer depends on; never sizes other than the width, never strides."""

    device: str
    dtype: torch.dtype
    weight_dtype: torch.dtype | None
    n: int
    position: bool
    types: bool
    dropout: bool
    needs_grad: bool
    chip: str = ""  # as checks.chip has it


# Ids are int64, of ids' shape. Without type_ids all are 0; without position_ids a token's is its own place
# (places), which the CPU's kernels are always given.
SCHEMAS = {
    "embedding_forward": "(Tensor ids, Tensor word, Tensor? position_ids, Tensor? position,"
    " Tensor? type_ids, Tensor? types, Tensor? weight, Tensor? bias, float eps, float dropout_p,"
    " Tensor? seed, Tensor? offset, Tensor? rows) -> (Tensor out, Tensor mean, Tensor rstd)",
    "embedding_backward": "(Tensor dout, Tensor mean, Tensor rstd, Tensor ids, Tensor word,"
    " Tensor? position_ids, Tensor? position, Tensor? type_ids, Tensor? types, Tensor? weight,"
    " int padding_idx, int position_padding_idx, float dropout_p, Tensor? seed, Tensor? offset,"
    " Tensor? rows, bool need_dword, bool need_dposition, bool need_dtypes, bool need_dweight,"
    " bool need_dbias)"
    " -> (Tensor dword, Tensor dposition, Tensor dtypes, Tensor dweight, Tensor dbias)",
}


def stat_dtype(dtype: torch.dtype) -> torch.dtype:
    """Statistics and gradients of weight and bias: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def places(ids: Tensor, rows: Tensor | None) -> Tensor:
    """The place of each token in its sequence: its column, or what ``rows`` says; of ids' shape."""
    if rows is not None:
        return (rows & 0xFFFFFFFF).reshape(ids.shape)
    if ids.dim() == 0:
        return torch.zeros_like(ids, dtype=torch.int64)
    return torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)


def _stat(x: Tensor, size: int | torch.SymInt) -> Tensor:
    return x.new_empty((size,), dtype=stat_dtype(x.dtype))


def _forward(ids: Tensor, word: Tensor, *rest: object) -> tuple[Tensor, ...]:
    out = word.new_empty((*ids.shape, word.shape[1]))
    return out, _stat(word, ids.numel()), _stat(word, ids.numel())


def _backward(
    dout: Tensor,
    mean: Tensor,
    rstd: Tensor,
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    types: Tensor | None,
    weight: Tensor | None,
    padding_idx: int,
    position_padding_idx: int,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    need_dword: bool,
    need_dposition: bool,
    need_dtypes: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, ...]:
    def table(given: Tensor | None, needed: bool) -> Tensor:
        return word.new_empty(given.shape if needed and given is not None else (0,))

    n = word.shape[1]
    return (
        table(word, need_dword),
        table(position, need_dposition),
        table(types, need_dtypes),
        _stat(word, n if need_dweight else 0),
        _stat(word, n if need_dbias else 0),
    )


FAKES = {"embedding_forward": _forward, "embedding_backward": _backward}
