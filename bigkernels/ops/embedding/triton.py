"""Triton drawer of the embedding room: both directions, n up to 4096.

The kernels (triton_kernels.py) are imported at the first call, and triton with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigkernels.ops import triton_launch, triton_table
from bigkernels.ops.embedding import contract
from bigkernels.ops.embedding.contract import Facts
from bigkernels.ops.triton_launch import Dropout, dense, device_of, kind
from bigkernels.ops.triton_table import RowTile

# Two float32 accumulators and the sum of the tables of a wider row do not fit the registers of 16 warps.
MAX_COLUMNS = 4096
# Of the scatter, the programs that a small table's rows are shared by.
SCATTER_ROWS, MOST_SPLITS = (16 if triton_launch.INTERPRETED else 2048), 64
_FORWARD, _BACKWARD, _SCATTER = (triton_launch.Replays() for _ in range(3))


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    reasons = triton_launch.common_limits(facts.dtype, facts.chip)
    if not 1 <= facts.n <= MAX_COLUMNS:
        reasons += (f"n {facts.n} not in 1..{MAX_COLUMNS}",)
    return reasons


def splits(count: int) -> int:
    """Into how many shares the tokens of each row of a table of `count` rows are cut."""
    return max(1, min(MOST_SPLITS, SCATTER_ROWS // count))


def _rows_of(table: Tensor | None) -> int:
    return 0 if table is None else table.shape[0]


def embedding_forward(
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    types: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, m, (words, n) = ids.shape, ids.numel(), word.shape
    out = word.new_empty(*shape, n)
    mean = word.new_empty(m, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if m == 0:
        return out, mean, rstd
    good = word.new_empty(m, dtype=torch.bool)
    dropout = Dropout(dropout_p, seed, offset, rows)
    given = (ids, word, position_ids, position, type_ids, types, weight, bias)
    length = shape[-1] if shape else 1
    # rows say where a token stands, whether something is dropped or not
    pointers = (*map(dense, given), out, mean, rstd, good, seed, offset, dense(rows))
    numbers = (length, m, n, words, _rows_of(position), _rows_of(types), eps)
    key = (*numbers, dropout_p, *map(kind, pointers))
    with device_of(word):
        if not _FORWARD.again(key, pointers):
            tile = triton_launch.row_tile("embedding_forward", word, n)
            _FORWARD.keep_plain(key, _launch_forward(pointers, numbers, dropout, tile))
        # On a GPU it stops the kernels that follow, as torch's own embedding does; nobody waits for it.
        torch._assert_async(good.all(), "index out of range: an id is outside its table")
    return out, mean, rstd


def _launch_forward(
    pointers: tuple[Tensor | None, ...], numbers: tuple[Any, ...], dropout: Dropout, tile: RowTile
) -> triton_launch.Replay | None:
    from .triton_kernels import embedding_forward_kernel

    return triton_launch.launch(
        embedding_forward_kernel, (-(-numbers[1] // tile.block_m),), *pointers, *numbers, *dropout.rule(),
        DROPOUT=dropout.p > 0.0, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, **tile.options(),
    )  # fmt: skip


def _scatter(
    dsum: Tensor, ids: Tensor | None, period: int, table: Tensor, padding_row: int, m: int
) -> Tensor:
    """The gradient of a table: of each row the sum of its tokens' rows of dsum (M, N) float32. Without ids those of
    the tokens are 0, 1, ... period - 1, again and again."""
    count, n = table.shape
    if m == 0:
        return torch.zeros_like(table, memory_format=torch.contiguous_format)
    order = starts = None
    if ids is not None:
        by_id, order = torch.sort(ids.reshape(-1), stable=True)
        starts = torch.searchsorted(by_id, torch.arange(count + 1, device=table.device))
    shares = splits(count)
    dtype = table.dtype if shares == 1 else torch.float32
    parts = table.new_empty((count, n) if shares == 1 else (shares, count * n), dtype=dtype)
    pointers, numbers = (dsum, order, starts, parts), (m, period, count, n, padding_row)
    key = (*numbers, *map(kind, pointers))
    if not _SCATTER.again(key, pointers):
        from .triton_kernels import embedding_scatter_kernel

        architecture = triton_launch.architecture(table.device)
        tile = triton_table.tile("embedding_scatter", architecture, table.dtype)
        known = triton_launch.launch(
            embedding_scatter_kernel, (count, -(-n // tile["block_n"]), shares), *pointers, *numbers,
            SPLITS=shares, BLOCK_M=tile["block_m"], BLOCK_N=tile["block_n"], num_warps=tile["num_warps"],
        )  # fmt: skip
        _SCATTER.keep_plain(key, known)
    if shares == 1:
        return parts
    (total,) = triton_launch.column_sums([parts], table.dtype)
    assert total is not None
    return total.view(count, n)


def _launch_backward(
    pointers: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    dropout: Dropout,
    programs: int,
    tile: RowTile,
) -> None:
    key = (*numbers, programs, dropout.p, *map(kind, pointers))
    if _BACKWARD.again(key, pointers):
        return
    from .triton_kernels import embedding_backward_kernel

    known = triton_launch.launch(
        embedding_backward_kernel, (programs,), *pointers, *numbers, *dropout.rule(),
        DROPOUT=dropout.p > 0.0, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, **tile.options(),
    )  # fmt: skip
    _BACKWARD.keep_plain(key, known)


def embedding_backward(
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
    m, n = ids.numel(), word.shape[1]
    dropout = Dropout(dropout_p, seed, offset, rows)
    needs = (need_dword, need_dposition, need_dtypes, need_dweight, need_dbias)
    dsum = mean.new_empty(m, n) if any(needs[:3]) else mean.new_empty(0)
    written = dsum if any(needs[:3]) else None
    with device_of(word):
        length = ids.shape[-1] if ids.dim() else 1
        if m > 0:
            parts = (ids, word, position_ids, position, type_ids, types, weight)
            tile = triton_launch.row_tile("embedding_backward", word, n)
            programs = triton_launch.row_programs(word.device, -(-m // tile.block_m), tile)
            partials = [mean.new_empty(programs, n) if s else None for s in needs[3:]]
            given = (dout.contiguous(), mean, rstd, *map(dense, parts), written, *partials)
            numbers = (length, m, n, *map(_rows_of, (word, position, types)))
            where = (seed, offset, dense(rows))
            _launch_backward((*given, *where), numbers, dropout, programs, tile)
            sums = triton_launch.column_sums(partials, torch.float32)
        else:
            sums = [mean.new_zeros(n) if s else None for s in needs[3:]]
        if position_ids is None and rows is not None and need_dposition:
            position_ids = contract.places(ids, rows)
        grads = [
            None if not need or table is None else _scatter(dsum, index, period, table, padding, m)
            for need, index, period, table, padding in (
                (need_dword, ids, 1, word, padding_idx),
                (need_dposition, position_ids, length, position, position_padding_idx),
                (need_dtypes, type_ids, 1, types, -1),
            )
        ]
    empty = [word.new_empty(0) if g is None else g for g in grads]
    return (*empty, *(mean.new_empty(0) if s is None else s for s in sums))


triton_launch.register(embedding_forward, embedding_backward)
