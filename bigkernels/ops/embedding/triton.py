"""Triton drawer of the embedding room: both directions, n up to 4096.

The kernels (triton_kernels.py) are imported at the first call, and triton with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigkernels.ops import triton_launch
from bigkernels.ops.embedding.contract import Facts
from bigkernels.ops.triton_launch import Dropout, dense, device_of

# Two float32 accumulators and the sum of the tables of a wider row do not fit the registers of 16 warps.
MAX_COLUMNS = 4096
FORWARD_ELEMENTS, BACKWARD_ELEMENTS = 16, 8
# Rows and columns of one program of the scatter, and the programs that a small table's rows are shared by.
SCATTER_TILE = (16, 256)
SCATTER_ROWS, MOST_SPLITS = 2048, 64


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


def _flat(ids: Tensor | None) -> Tensor | None:
    return None if ids is None else ids.reshape(-1).contiguous()


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
    from .triton_kernels import embedding_forward_kernel

    m, n = ids.numel(), word.shape[1]
    out = word.new_empty(*ids.shape, n)
    mean, rstd = (word.new_empty(m, dtype=torch.float32) for _ in range(2))
    if m == 0:
        return out, mean, rstd
    dropout = Dropout(dropout_p, seed, offset, rows)
    block_m, block_n, num_warps = triton_launch.row_tile(n, FORWARD_ELEMENTS)
    tables = (ids, word, position_ids, position, type_ids, types)
    with device_of(word):
        triton_launch.launch(
            embedding_forward_kernel,
            (-(-m // block_m),),
            *map(_dense_part, tables),
            dense(weight),
            dense(bias),
            out,
            mean,
            rstd,
            *dropout.place(out),
            m,
            n,
            *map(_rows_of, (word, position, types)),
            eps,
            *dropout.rule(),
            DROPOUT=dropout_p > 0.0,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=num_warps,
        )
        # On a GPU it stops the kernels that follow, as torch's own embedding does; nobody waits for it.
        torch._assert_async((rstd != -1.0).all(), "index out of range: an id is outside its table")
    return out, mean, rstd


def _dense_part(part: Tensor | None) -> Tensor | None:
    """Ids as a vector, tables as they are; both contiguous."""
    return _flat(part) if part is not None and not part.is_floating_point() else dense(part)


def _scatter(dsum: Tensor, ids: Tensor | None, table: Tensor, padding_row: int, m: int) -> Tensor:
    """The gradient of a table: of each row the sum of its tokens' rows of dsum (M, N) float32."""
    from .triton_kernels import embedding_scatter_kernel

    count, n = table.shape
    if m == 0:
        return torch.zeros_like(table, memory_format=torch.contiguous_format)
    flat = _flat(ids)
    if flat is None:
        flat = torch.zeros(m, dtype=torch.int64, device=table.device)
    by_id, order = torch.sort(flat, stable=True)
    starts = torch.searchsorted(by_id, torch.arange(count + 1, device=table.device))
    shares = splits(count)
    block_m, block_n = SCATTER_TILE
    dtype = table.dtype if shares == 1 else torch.float32
    parts = table.new_empty(shares, count, n, dtype=dtype)
    triton_launch.launch(
        embedding_scatter_kernel, (count, -(-n // block_n), shares),
        dsum, order, starts, parts, count, n, padding_row,
        SPLITS=shares, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=4,
    )  # fmt: skip
    if shares == 1:
        return parts[0]
    (total,) = triton_launch.column_sums([parts.view(shares, count * n)], table.dtype)
    assert total is not None
    return total.view(count, n)


def _launch_backward(
    given: tuple[Any, ...],
    sizes: tuple[Any, ...],
    grads: list[Tensor | None],
    programs: int,
    n: int,
) -> None:
    from .triton_kernels import embedding_backward_kernel

    dropout, *rest = sizes
    block_m, block_n, num_warps = triton_launch.row_tile(n, BACKWARD_ELEMENTS)
    triton_launch.launch(
        embedding_backward_kernel,
        (programs,),
        *given,
        *grads,
        *dropout.place(given[0]),
        *rest,
        *dropout.rule(),
        DROPOUT=dropout.p > 0.0,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=num_warps,
        maxnreg=triton_launch.BACKWARD_REGISTERS,
    )


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
    needs = (need_dword, need_dposition, need_dtypes)
    sums: list[Tensor | None] = [
        mean.new_zeros(n) if need else None for need in (need_dweight, need_dbias)
    ]
    dsum = mean.new_empty(m, n) if any(needs) else mean.new_empty(0)
    written = dsum if any(needs) else None
    with device_of(word):
        if m > 0:
            tables = map(_dense_part, (ids, word, position_ids, position, type_ids, types))
            given = (dout.contiguous(), mean, rstd, *tables, dense(weight))
            sizes = (dropout, m, n, *map(_rows_of, (word, position, types)))
            block_m, _, num_warps = triton_launch.row_tile(n, BACKWARD_ELEMENTS)
            programs = triton_launch.row_programs(word.device, -(-m // block_m), num_warps)
            partials = [None if s is None else mean.new_empty(programs, n) for s in sums]
            _launch_backward(given, sizes, [written, *partials], programs, n)
            sums = triton_launch.column_sums(partials, torch.float32)
        grads = [
            None if not need or table is None else _scatter(dsum, index, table, padding, m)
            for need, index, table, padding in (
                (need_dword, ids, word, padding_idx),
                (need_dposition, position_ids, position, position_padding_idx),
                (need_dtypes, type_ids, types, -1),
            )
        ]
    empty = [word.new_empty(0) if g is None else g for g in grads]
    return (*empty, *(mean.new_empty(0) if s is None else s for s in sums))


triton_launch.register(embedding_forward, embedding_backward)
