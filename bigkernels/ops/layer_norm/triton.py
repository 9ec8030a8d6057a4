"""Triton drawer of the layer_norm room: all operations, both directions, n up to 8192.

The kernels (triton_kernels.py) are imported at the first call, and triton with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigkernels.ops import triton_launch
from bigkernels.ops.layer_norm.contract import Facts
from bigkernels.ops.triton_launch import NO_DROPOUT, Dropout, dense, device_of, kind
from bigkernels.ops.triton_table import RowTile

MAX_COLUMNS = 8192
# Three float32 accumulators of a row wider than this do not fit the registers of 16 warps.
MAX_COLUMNS_ONE_PASS = 4096
_FORWARD, _BACKWARD = triton_launch.Replays(), triton_launch.Replays()


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    reasons = triton_launch.common_limits(facts.dtype, facts.chip)
    if not 1 <= facts.n <= MAX_COLUMNS:
        reasons += (f"n {facts.n} not in 1..{MAX_COLUMNS}",)
    return reasons


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    eps: float,
    x_bias: Tensor | None = None,
    dropout: Dropout = NO_DROPOUT,
    save_sum: bool = False,
    centred: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """out, the sum if it is to be saved, mean unless it is zero, rstd."""
    x = x.contiguous()
    m = x.numel() // n
    out = torch.empty_like(x)
    total = torch.empty_like(x) if save_sum else None
    mean = x.new_empty(m, dtype=torch.float32) if centred else None
    rstd = x.new_empty(m, dtype=torch.float32)
    if m == 0:
        return out, total, mean, rstd
    seed, offset, rows, length = dropout.place(x)
    given = (x, dense(x_bias), dense(residual), dense(weight), dense(bias))
    pointers = (*given, out, total, mean, rstd, seed, offset, rows)
    without = offset is None, rows is None
    key = (m, n, length, eps, dropout.p, *map(kind, given), save_sum, centred, *without)
    with device_of(x):
        if not _FORWARD.again(key, pointers):
            _FORWARD.keep_plain(key, _launch_forward(pointers, (length, m, n, eps), dropout))
    return out, total, mean, rstd


def _launch_forward(
    pointers: tuple[Tensor | None, ...],
    numbers: tuple[int, int, int, float],
    dropout: Dropout,
) -> triton_launch.Replay | None:
    from .triton_kernels import layer_norm_forward_kernel

    x, (_, m, n, _) = pointers[0], numbers
    assert x is not None
    tile = triton_launch.row_tile("layer_norm_forward", x, n)
    return triton_launch.launch(
        layer_norm_forward_kernel, (-(-m // tile.block_m),), *pointers, *numbers, *dropout.rule(),
        DROPOUT=dropout.p > 0.0, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, **tile.options(),
    )  # fmt: skip


def layer_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    eps: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    out, _, mean, rstd = _forward(x, None, weight, bias, n, eps, centred=centred)
    return out, x.new_empty(0, dtype=torch.float32) if mean is None else mean, rstd


def add_layer_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    x_bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    save_sum: bool,
    centred: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dropout = Dropout(dropout_p, seed, offset, rows)
    n = x.shape[-1]
    given = (x, residual, weight, bias, n, eps, x_bias, dropout, save_sum, centred)
    out, total, mean, rstd = _forward(*given)
    mean = rstd.new_empty(0) if mean is None else mean
    return out, x.new_empty(0) if total is None else total, mean, rstd


def _launch_backward(
    pointers: tuple[Tensor | None, ...],
    numbers: tuple[int, int, int],
    dropout: Dropout,
    grads: list[Tensor | None],
    programs: int,
    tile: RowTile,
) -> triton_launch.Replay | None:
    """Fill those of (dresidual, dx, dweight, dbias, dx_bias) that are not None; the last three
    are (programs, n) partial sums."""
    from .triton_kernels import layer_norm_backward_kernel

    return triton_launch.launch(
        layer_norm_backward_kernel, (programs,), *pointers[:6], *grads, *pointers[6:], *numbers, *dropout.rule(),
        DROPOUT=dropout.p > 0.0, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, **tile.options(),
    )  # fmt: skip


def _backward(
    dout: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    needs: tuple[bool, bool, bool, bool, bool],
    dsum: Tensor | None = None,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[Tensor | None, ...]:
    """(dresidual, dx, dweight, dbias, dx_bias), those not in `needs` None."""
    total, m = total.contiguous(), rstd.shape[0]
    rows = [torch.empty_like(total) if need else None for need in needs[:2]]
    if m == 0:
        return *rows, *(rstd.new_zeros(n) if need else None for need in needs[2:])
    tile = triton_launch.row_tile("layer_norm_backward", total, n)
    programs = triton_launch.row_programs(total.device, -(-m // tile.block_m), tile)
    partials = [rstd.new_empty(programs, n) if need else None for need in needs[2:]]
    seed, offset, row_ids, length = dropout.place(total)
    given = (dout.contiguous(), dense(dsum), total)
    centre, scale = mean if mean.shape[0] else None, dense(weight)
    pointers = (*given, centre, rstd, scale, seed, offset, row_ids)
    numbers = (length, m, n)
    without = dsum is None, centre is None, offset is None, row_ids is None
    key = (*numbers, needs, dropout.p, total.dtype, kind(scale), programs, *without)
    with device_of(total):
        if n > MAX_COLUMNS_ONE_PASS:
            parts = [*rows, None, None, partials[2]], [None, None, *partials[:2], None]
            for part in parts:
                _launch_backward(pointers, numbers, dropout, part, programs, tile)
        else:
            grads = [*rows, *partials]
            if not _BACKWARD.again(key, (*pointers[:6], *grads, *pointers[6:])):
                _BACKWARD.keep_plain(
                    key, _launch_backward(pointers, numbers, dropout, grads, programs, tile)
                )
        return *rows, *triton_launch.column_sums(partials, torch.float32)


def _results(likes: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Those that are not needed without elements: results may not share memory, empty ones neither."""
    return tuple(
        like.new_empty(0) if grad is None else grad for like, grad in zip(likes, grads, strict=True)
    )


def layer_norm_backward(
    dout: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    need_dx: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, ...]:
    needs = (need_dx, False, need_dweight, need_dbias, False)
    dx, _, dweight, dbias, _ = _backward(dout, x, mean, rstd, weight, n, needs)
    return _results((x, rstd, rstd), (dx, dweight, dbias))


def add_layer_norm_backward(
    dout: Tensor,
    dsum: Tensor | None,
    sum: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    offset: Tensor | None,
    rows: Tensor | None,
    need_dx: bool,
    need_dweight: bool,
    need_dbias: bool,
    need_dx_bias: bool,
) -> tuple[Tensor, ...]:
    needs = (True, need_dx and dropout_p > 0.0, need_dweight, need_dbias, need_dx_bias)
    dropout = Dropout(dropout_p, seed, offset, rows)
    grads = _backward(dout, sum, mean, rstd, weight, sum.shape[-1], needs, dsum, dropout)
    return _results((sum, sum, rstd, rstd, rstd), grads)


triton_launch.register(
    layer_norm_forward, layer_norm_backward, add_layer_norm_forward, add_layer_norm_backward
)
