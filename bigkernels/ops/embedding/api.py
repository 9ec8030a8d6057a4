"""Public function of the embedding room: checks, the choice of a drawer, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigkernels import backends, library
from bigkernels.ops import checks, dropout
from bigkernels.ops.embedding import contract, reference
from bigkernels.ops.embedding.contract import Facts

_OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}
backends.register("embedding", contract.BACKENDS)
# Of earlier calls: eps, p, drawer, whether gradients are wanted.
_KNOWN: backends.Remembered[tuple[float, float, str, bool]] = backends.Remembered()


def notes(facts: Facts, chosen: str) -> tuple[str, ...]:
    """Remarks for ``explain``."""
    return ()


def _forward(backend: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The drawer's forward; an id outside its table is an IndexError, as torch's."""
    return checks.raising_index_errors(_OPS["embedding_forward"][backend], *arguments)  # type: ignore[no-any-return]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        word: Tensor,
        position_ids: Tensor | None,
        position: Tensor | None,
        type_ids: Tensor | None,
        types: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        padding: tuple[int | None, int | None],
        dropout_p: float,
        seed: Tensor | None,
        offset: Tensor | None,
        rows: Tensor | None,
        backend: str,
    ) -> Tensor:
        given = (ids, word, position_ids, position, type_ids, types, weight, bias)
        out, mean, rstd = _forward(backend, *given, eps, dropout_p, seed, offset, rows)
        ctx.save_for_backward(*given, mean, rstd, seed, offset, rows)
        ctx.eps, ctx.padding, ctx.dropout_p, ctx.backend = eps, padding, dropout_p, backend
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        ids, word, position_ids, position, type_ids, types, weight, bias, *rest = ctx.saved_tensors
        mean, rstd, seed, offset, rows = rest
        padding_word, padding_position = ctx.padding
        needs = [ctx.needs_input_grad[at] for at in (1, 3, 5, 6, 7)]
        if checks.recomputing():
            found = checks.differentiate(
                lambda w, p, t, scale, shift: reference.embedding(
                    ids, w, position_ids, p, type_ids, t, scale, shift, ctx.eps,
                    padding_word, padding_position, ctx.dropout_p, seed, offset, rows,
                ),
                (word, position, types, weight, bias),
                needs,
                (dout,),
            )  # fmt: skip
        else:
            padding = [-1 if at is None else at for at in ctx.padding]
            found = _OPS["embedding_backward"][ctx.backend](
                dout, mean, rstd, ids, word, position_ids, position, type_ids, types, weight,
                *padding, ctx.dropout_p, seed, offset, rows, *needs,
            )  # fmt: skip
            parameters = (word, position, types, weight, bias)
            found = [
                gradient.to(parameter.dtype) if need else None
                for gradient, parameter, need in zip(found, parameters, needs, strict=True)
            ]
        dword, dposition, dtypes, dweight, dbias = found
        return None, dword, None, dposition, None, dtypes, dweight, dbias, *(None,) * 7


def _check_ids(name: str, value: object, word: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32, got {value.dtype}")
    checks.check_dense(name, value)
    if value.device != word.device:
        raise ValueError(f"{name}: device {value.device}, but word is on {word.device}")


def _check_table(name: str, table: object, word: Tensor) -> None:
    checks.check_like(name, table, "word", word)
    assert isinstance(table, Tensor)
    if table.dim() != 2 or table.shape[1] != word.shape[1]:
        raise ValueError(
            f"{name}: shape {tuple(table.shape)}, expected (count, {word.shape[1]}) as word"
        )


def _check_padding(name: str, padding_idx: object, table: Tensor | None) -> None:
    if padding_idx is None:
        return
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int):
        raise TypeError(f"{name}: expected an int or None, got {type(padding_idx).__name__}")
    if table is None or not 0 <= padding_idx < table.shape[0]:
        raise ValueError(f"{name}: got {padding_idx}, which is no row of its table")


def _check(
    ids: object,
    word: object,
    position: Tensor | None,
    types: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: object,
    position_ids: Tensor | None,
    type_ids: Tensor | None,
    padding: tuple[object, object],
    dropout_p: object,
    rows: object,
) -> None:
    checks.check_float_tensor("word", word)
    assert isinstance(word, Tensor)
    if word.dim() != 2 or word.shape[1] == 0:
        raise ValueError(f"word: shape {tuple(word.shape)}, expected (count, N), N at least 1")
    _check_ids("ids", ids, word)
    assert isinstance(ids, Tensor)
    for name, table, index in (
        ("position", position, position_ids),
        ("types", types, type_ids),
    ):
        ids_name = f"{name.removesuffix('s')}_ids"
        if table is not None:
            _check_table(name, table, word)
        if index is None:
            continue
        _check_ids(ids_name, index, word)
        if table is None:
            raise ValueError(f"{ids_name}: given, but there is no {name}")
        if index.dim() > ids.dim():
            raise ValueError(f"{ids_name}: shape {tuple(index.shape)}, ids are {tuple(ids.shape)}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            checks.check_parameter(name, value, "word", word, (word.shape[1],))
    checks.check_number("eps", eps, 0.0)
    checks.check_number("dropout_p", dropout_p, 0.0, 1.0)
    _check_padding("padding_idx", padding[0], word)
    _check_padding("position_padding_idx", padding[1], position)
    if rows is not None:
        checks.check_rows(rows, word, ids.numel())


def _whole(name: str, index: Tensor, ids: Tensor) -> Tensor:
    if index.dtype is torch.int64 and index.shape == ids.shape:
        return index
    try:
        return index.to(torch.int64).expand(ids.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: shape {tuple(index.shape)} does not expand to ids' {tuple(ids.shape)}"
        ) from None


def embedding_facts(
    ids: Tensor,
    word: Tensor,
    position: Tensor | None = None,
    types: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-12,
    *,
    position_ids: Tensor | None = None,
    type_ids: Tensor | None = None,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
) -> Facts:
    """The facts by which ``embedding`` chooses its drawer."""
    padding = (padding_idx, position_padding_idx)
    _check(ids, word, position, types, weight, bias, eps, position_ids, type_ids, padding, dropout_p, rows)  # fmt: skip
    return _facts(word, position, types, weight, bias, dropout_p)


def _facts(
    word: Tensor,
    position: Tensor | None,
    types: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dropout_p: float,
) -> Facts:
    given = (word, position, types, weight, bias)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return Facts(
        word.device.type,
        word.dtype,
        None if weight is None else weight.dtype,
        word.shape[1],
        position is not None,
        types is not None,
        dropout_p > 0.0,
        needs_grad,
        checks.chip(word.device),
    )


def _embedding(
    tensors: tuple[Any, ...],
    eps: float,
    padding: tuple[int | None, int | None],
    dropout_p: float,
    seed: int | Tensor | None,
    offset: int | Tensor | None,
    backend: str | None,
) -> Tensor:
    """tensors: ids, word, position, types, weight, bias, position_ids, type_ids, rows."""
    ids, word, position, types, weight, bias, position_ids, type_ids, rows = tensors
    through = new = False
    key = backends.call_key((eps, *padding, dropout_p, backend), *tensors)
    known = None if key is None else _KNOWN.get(key)
    if known is None:
        _check(
            ids, word, position, types, weight, bias, eps, position_ids, type_ids, padding, dropout_p, rows
        )  # fmt: skip
        facts = _facts(word, position, types, weight, bias, dropout_p)
        name = backends.choose("embedding", facts, backend)
        through = name == "reference"
        known = float(eps), float(dropout_p), name, facts.needs_grad
        new = not through
    if position_ids is not None:
        position_ids = _whole("position_ids", position_ids, ids)
    elif position is not None and known[2] == "cpu" and not through:
        position_ids = contract.places(ids, rows)
    if type_ids is not None:
        type_ids = _whole("type_ids", type_ids, ids)
    if ids.dtype is not torch.int64:
        ids = ids.to(torch.int64)
    if new and key is not None:
        _KNOWN.keep(key, known)
    eps, dropout_p, name, needs_grad = known
    seed_, offset_ = dropout.seeds(seed, offset, word, dropout_p)
    given = (ids, word, position_ids, position, type_ids, types, weight, bias, eps)
    if through:
        return reference.embedding(*given, *padding, dropout_p, seed_, offset_, rows)
    if needs_grad:
        return checks.apply(_Embedding, *given, padding, dropout_p, seed_, offset_, rows, name)  # type: ignore[no-any-return]
    return _forward(name, *given, dropout_p, seed_, offset_, rows)[0]


def embedding(
    ids: Tensor,
    word: Tensor,
    position: Tensor | None = None,
    types: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-12,
    *,
    position_ids: Tensor | None = None,
    type_ids: Tensor | None = None,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``dropout(layer_norm(word[ids] + position[position_ids] + types[type_ids]))``, in one pass.

    What BERT, RoBERTa, ELECTRA and DistilBERT do before their first layer (Devlin et al., "BERT", NAACL 2019).

    Args:
        ids: int64 or int32, any shape.
        word, position, types: tables (count, N) of one dtype; None: that table adds nothing.
        weight, bias: (N,) or None, of word's dtype, or float32 beside 16-bit tables.
        eps: added to the variance.
        position_ids: expands to ids' shape; None: the column in ids, or the position in ``rows``.
        type_ids: expands to ids' shape; None: 0 everywhere.
        padding_idx, position_padding_idx: row of word, of position, that gets no gradient.
        dropout_p: probability of dropping an element; no ``training`` flag: pass 0.0 for evaluation.
        seed, offset: int or int64 (); equal values drop equal elements. None draws a seed, offset 0.
        rows: int64, ``b << 32 | i`` of each token, for packed batches (see docs/design.md, dropout).
        backend: forces a backend.

    Returns:
        (*ids.shape, N) in word's dtype, contiguous. Sum and statistics are float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, range or device.
        IndexError: an id outside its table, on the CPU; a GPU stops with an assertion, as torch's does.
        Unsupported: the forced backend cannot serve the call.
    """
    tensors = (ids, word, position, types, weight, bias, position_ids, type_ids, rows)
    padding = (padding_idx, position_padding_idx)
    return _embedding(tensors, eps, padding, dropout_p, seed, offset, backend)
