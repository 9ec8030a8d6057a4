"""Triton drawer of the layer_norm room: both operations, both directions, n up to 8192.

The kernels (triton_kernels.py) are imported at the first call, and triton with them. With
TRITON_INTERPRET=1 Triton runs them in Python on CPU tensors: slow, for tests, and not for bfloat16,
which its interpreter rounds wrong.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import pathlib
import re
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from bigkernels.library import LIBRARY
from bigkernels.ops.layer_norm.contract import Facts

MAX_COLUMNS = 8192
# Three float32 accumulators of a row wider than this do not fit the registers of 16 warps.
MAX_COLUMNS_ONE_PASS = 4096
# Elements of a row that one thread holds: the backward kernel keeps several values of each.
FORWARD_ELEMENTS, BACKWARD_ELEMENTS = 16, 8
# The backward kernel runs 16 warps a multiprocessor: they may have all of its 65,536 registers.
# Said aloud, because ptxas otherwise spills two of them here and there to fit a warp more.
BACKWARD_WARPS, BACKWARD_REGISTERS = 16, 128
COLUMN_SUM_TILE = (64, 32)
INTERPRETED_PROGRAMS = 3


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _missing() -> str | None:
    """Why the kernels cannot be imported here, or None; triton itself stays out of `import bigkernels`."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return "triton is not installed"
    text = pathlib.Path(spec.origin).read_text()
    version = re.search(r"__version__ = ['\"](\d+)\.(\d+)", text)
    if version is None or (int(version[1]), int(version[2])) < (3, 6):
        return "triton is older than 3.6"
    return None


_MISSING = _missing()


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if _MISSING is not None:
        return (_MISSING,)
    reasons = []
    if facts.dtype == torch.bfloat16 and INTERPRETED:
        reasons.append("dtype torch.bfloat16 is rounded wrong by the interpreter")
    elif facts.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reasons.append(f"dtype {facts.dtype} not in float32, bfloat16, float16")
    if not 1 <= facts.n <= MAX_COLUMNS:
        reasons.append(f"n {facts.n} not in 1..{MAX_COLUMNS}")
    return tuple(reasons)


@functools.cache
def tile(n: int, elements_per_thread: int) -> tuple[int, int, int]:
    """(BLOCK_M, BLOCK_N, num_warps) for rows of n columns: a function of n alone, so that a row's
    statistics do not depend on how many rows come with it."""
    block_n = max(16, 1 << (n - 1).bit_length())
    block_m = max(1, 1024 // block_n)
    warps = block_m * block_n // (32 * elements_per_thread)
    return block_m, block_n, min(16, max(4, warps))


@functools.cache
def _multiprocessors(device_index: int) -> int:
    return int(torch.cuda.get_device_properties(device_index).multi_processor_count)


def _programs(device: torch.device, row_blocks: int, num_warps: int) -> int:
    """Programs of the backward kernel, as many as run at once: each makes one partial sum."""
    if device.type != "cuda":
        return min(row_blocks, INTERPRETED_PROGRAMS)
    index = torch.cuda.current_device() if device.index is None else device.index
    return min(row_blocks, _multiprocessors(index) * (BACKWARD_WARPS // num_warps))


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes the device of x current, if it is not: the usual case costs next to nothing."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


class _Dropout(NamedTuple):
    """The dropout arguments of an op, as the kernels take them."""

    p: float = 0.0
    seed: Tensor | None = None
    offset: Tensor | None = None
    rows: Tensor | None = None

    def place(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, int]:
        """seed_ptr, offset_ptr, row_ids_ptr, row_length: where in Philox's stream x's words are."""
        return self.seed, self.offset, _dense(self.rows), x.shape[-2] if x.dim() > 1 else 1

    def rule(self) -> tuple[int, float]:
        """threshold, scale: words below the threshold drop, the rest is scaled."""
        return math.floor(self.p * 2**32), 0.0 if self.p == 1.0 else 1.0 / (1.0 - self.p)


_NO_DROPOUT = _Dropout()


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    eps: float,
    x_bias: Tensor | None = None,
    dropout: _Dropout = _NO_DROPOUT,
    save_sum: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import triton_kernels as kernels

    x = x.contiguous()
    m = x.numel() // n
    out = torch.empty_like(x)
    total = torch.empty_like(x) if save_sum else x.new_empty(0)
    mean = x.new_empty(m, dtype=torch.float32)
    rstd = x.new_empty(m, dtype=torch.float32)
    if m == 0:
        return out, total, mean, rstd
    block_m, block_n, num_warps = tile(n, FORWARD_ELEMENTS)
    with _device_of(x):
        kernels.layer_norm_forward_kernel[(-(-m // block_m),)](
            x,
            _dense(x_bias),
            _dense(residual),
            _dense(weight),
            _dense(bias),
            out,
            total if save_sum else None,
            mean,
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
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, _, mean, rstd = _forward(x, None, weight, bias, n, eps)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dropout = _Dropout(dropout_p, seed, offset, rows)
    return _forward(x, residual, weight, bias, x.shape[-1], eps, x_bias, dropout, save_sum)


def _column_sums(partials: list[Tensor | None], programs: int, n: int) -> list[Tensor | None]:
    """Each (programs, n) summed to (n,), in an order fixed by its shape."""
    from . import triton_kernels as kernels

    totals = [None if p is None else p.new_empty(n) for p in partials]
    if any(partial is not None for partial in partials):
        block_m, block_n = COLUMN_SUM_TILE
        kernels.layer_norm_column_sum_kernel[(-(-n // block_n), 3)](
            *partials, *totals, programs, n, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=4
        )
    return totals


def _launch_backward(
    dout: Tensor,
    dsum: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    dropout: _Dropout,
    grads: list[Tensor | None],
    programs: int,
) -> None:
    """Fill those of (dresidual, dx, dweight, dbias, dx_bias) that are not None; the last three
    are (programs, n) partial sums."""
    from . import triton_kernels as kernels

    block_m, block_n, num_warps = tile(n, BACKWARD_ELEMENTS)
    kernels.layer_norm_backward_kernel[(programs,)](
        dout,
        dsum,
        total,
        mean,
        rstd,
        weight,
        *grads,
        *dropout.place(total),
        mean.shape[0],
        n,
        *dropout.rule(),
        DROPOUT=dropout.p > 0.0,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=num_warps,
        maxnreg=BACKWARD_REGISTERS,
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
    dropout: _Dropout = _NO_DROPOUT,
) -> tuple[Tensor, ...]:
    """(dresidual, dx, dweight, dbias, dx_bias), those not in `needs` empty."""
    total, m = total.contiguous(), mean.shape[0]
    rows = [torch.empty_like(total) if need else None for need in needs[:2]]
    sums: list[Tensor | None] = [mean.new_zeros(n) if need else None for need in needs[2:]]
    if m > 0:
        block_m, _, num_warps = tile(n, BACKWARD_ELEMENTS)
        programs = _programs(total.device, -(-m // block_m), num_warps)
        partials = [mean.new_empty(programs, n) if need else None for need in needs[2:]]
        inputs = (dout.contiguous(), _dense(dsum), total, mean, rstd, _dense(weight), n, dropout)
        with _device_of(total):
            if n <= MAX_COLUMNS_ONE_PASS:
                _launch_backward(*inputs, [*rows, *partials], programs)
            else:
                _launch_backward(*inputs, [*rows, None, None, partials[2]], programs)
                _launch_backward(*inputs, [None, None, *partials[:2], None], programs)
            sums = _column_sums(partials, programs, n)
    # Results may not share memory, empty ones neither.
    likes = (total, total, mean, mean, mean)
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
    dropout = _Dropout(dropout_p, seed, offset, rows)
    return _backward(dout, sum, mean, rstd, weight, sum.shape[-1], needs, dsum, dropout)


def _register() -> None:
    for function in (
        layer_norm_forward,
        layer_norm_backward,
        add_layer_norm_forward,
        add_layer_norm_backward,
    ):
        for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            LIBRARY.impl(f"{function.__name__}_triton", function, key)


_register()
