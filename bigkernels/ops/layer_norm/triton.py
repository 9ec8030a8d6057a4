"""Triton drawer of the layer_norm room: all operations, both directions, n up to 8192.

The kernels (triton_kernels.py) are imported at the first call, and triton with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigkernels.ops import triton_launch
from bigkernels.ops.layer_norm.contract import Facts
from bigkernels.ops.triton_launch import NO_DROPOUT, Dropout, dense, device_of

MAX_COLUMNS = 8192
# Three float32 accumulators of a row wider than this do not fit the registers of 16 warps.
MAX_COLUMNS_ONE_PASS = 4096
# Elements of a row that one thread holds: the backward kernel keeps several values of each.
FORWARD_ELEMENTS, BACKWARD_ELEMENTS = 16, 8


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    reasons = triton_launch.dtype_limits(facts.dtype)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import triton_kernels as kernels

    x = x.contiguous()
    m = x.numel() // n
    out = torch.empty_like(x)
    total = torch.empty_like(x) if save_sum else x.new_empty(0)
    mean = x.new_empty(m if centred else 0, dtype=torch.float32)
    rstd = x.new_empty(m, dtype=torch.float32)
    if m == 0:
        return out, total, mean, rstd
    block_m, block_n, num_warps = triton_launch.row_tile(n, FORWARD_ELEMENTS)
    with device_of(x):
        triton_launch.launch(
            kernels.layer_norm_forward_kernel,
            (-(-m // block_m),),
            x,
            dense(x_bias),
            dense(residual),
            dense(weight),
            dense(bias),
            out,
            total if save_sum else None,
            mean if centred else None,
            rstd,
            *dropout.place(x),
            m,
            n,
            eps,
            *dropout.rule(),
            DROPOUT=dropout.p > 0.0,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=num_warps,
        )
    return out, total, mean, rstd


def layer_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    eps: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    out, _, mean, rstd = _forward(x, None, weight, bias, n, eps, centred=centred)
    return out, mean, rstd


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
    return _forward(x, residual, weight, bias, n, eps, x_bias, dropout, save_sum, centred)


def _launch_backward(
    dout: Tensor,
    dsum: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    dropout: Dropout,
    grads: list[Tensor | None],
    programs: int,
) -> None:
    """Fill those of (dresidual, dx, dweight, dbias, dx_bias) that are not None; the last three
    are (programs, n) partial sums."""
    from . import triton_kernels as kernels

    block_m, block_n, num_warps = triton_launch.row_tile(n, BACKWARD_ELEMENTS)
    triton_launch.launch(
        kernels.layer_norm_backward_kernel,
        (programs,),
        dout,
        dsum,
        total,
        mean if mean.numel() else None,
        rstd,
        weight,
        *grads,
        *dropout.place(total),
        rstd.shape[0],
        n,
        *dropout.rule(),
        DROPOUT=dropout.p > 0.0,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=num_warps,
        maxnreg=triton_launch.BACKWARD_REGISTERS,
    )


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
) -> tuple[Tensor, ...]:
    """(dresidual, dx, dweight, dbias, dx_bias), those not in `needs` empty."""
    total, m = total.contiguous(), rstd.shape[0]
    rows = [torch.empty_like(total) if need else None for need in needs[:2]]
    sums: list[Tensor | None] = [rstd.new_zeros(n) if need else None for need in needs[2:]]
    if m > 0:
        block_m, _, num_warps = triton_launch.row_tile(n, BACKWARD_ELEMENTS)
        programs = triton_launch.row_programs(total.device, -(-m // block_m), num_warps)
        partials = [rstd.new_empty(programs, n) if need else None for need in needs[2:]]
        inputs = (dout.contiguous(), dense(dsum), total, mean, rstd, dense(weight), n, dropout)
        with device_of(total):
            if n <= MAX_COLUMNS_ONE_PASS:
                _launch_backward(*inputs, [*rows, *partials], programs)
            else:
                _launch_backward(*inputs, [*rows, None, None, partials[2]], programs)
                _launch_backward(*inputs, [None, None, *partials[:2], None], programs)
            sums = triton_launch.column_sums(partials, torch.float32)
    # Results may not share memory, empty ones neither.
    likes = (total, total, rstd, rstd, rstd)
    return tuple(
        like.new_empty(0) if g is None else g for g, like in zip([*rows, *sums], likes, strict=True)
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
    return dx, dweight, dbias


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
    return _backward(dout, sum, mean, rstd, weight, sum.shape[-1], needs, dsum, dropout)


triton_launch.register(
    layer_norm_forward, layer_norm_backward, add_layer_norm_forward, add_layer_norm_backward
)
