"""Triton kernels of the feed-forward network: the two products that something is done to before they are stored.

Both keep a tile of the (M, F) plane in float32 registers over the whole sum, so the order of a sum depends on
its length and BLOCK_K alone. What a caller has not (gate, biases, ...) is passed as None, which Triton folds away at
compile time. Written for Triton 3.6 and newer, and for its interpreter.
"""

import triton
import triton.language as tl

from bigkernels.ops.triton_philox import keep_rows
from bigkernels.ops.triton_sums import add_product


@triton.jit
def _tail_and_body(x, ACTIVATION: tl.constexpr):
    """S(-|x|) and S(|x|) of the step function S by which the activation multiplies x: nothing cancels."""
    t = tl.abs(x)
    if ACTIVATION == "gelu":
        # 1 - Phi(t) = 2^(t P(t) - 1): one power and no branch, where erf has two of each.
        p = tl.fma(t, -2.334948476e-06, 3.373781146e-05)
        p = tl.fma(t, p, -1.612938067e-04)
        p = tl.fma(t, p, -1.917035988e-04)
        p = tl.fma(t, p, 7.126865443e-03)
        p = tl.fma(t, p, -5.253361166e-02)
        p = tl.fma(t, p, -4.591982961e-01)
        p = tl.fma(t, p, -1.151106000e00)
        tail = tl.exp2(tl.fma(t, p, -1.0))
        return tail, 1.0 - tail
    else:
        if ACTIVATION == "gelu_tanh":
            exponent = t * tl.fma(t * t, -0.10294323959, -2.3022081985)
        else:
            exponent = t * -1.4426950408889634
        power = tl.exp2(exponent)
        body = 1.0 / (1.0 + power)
        return power * body, body


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """act(x) of float32 x; README.md has the formulas."""
    if ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x)  # NaN stays NaN
    else:
        tail, body = _tail_and_body(x, ACTIVATION)
        return x * tl.where(x < 0.0, tail, body)


@triton.jit
def _activate_with_slope(x, ACTIVATION: tl.constexpr):
    """(act(x), act'(x)) of float32 x."""
    if ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x), tl.where(x > 0.0, 1.0, 0.0)
    else:
        tail, body = _tail_and_body(x, ACTIVATION)
        step = tl.where(x < 0.0, tail, body)
        if ACTIVATION == "gelu":
            rise = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
        elif ACTIVATION == "gelu_tanh":
            rise = tail * body * tl.fma(x * x, 0.2140644487, 1.5957691216)
        else:
            rise = tail * body
        return x * step, tl.fma(x, rise, step)


@triton.jit
def _tile(M, F, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Numbers of this program's tile, along rows and columns.

    Eight blocks of rows go through the columns together: what they read stays in the L2 cache.
    """
    row_blocks = tl.cdiv(M, BLOCK_M)
    column_blocks = tl.cdiv(F, BLOCK_N)
    of_a_group = 8 * column_blocks
    program = tl.program_id(0)
    first = program // of_a_group * 8
    height = tl.minimum(row_blocks - first, 8)
    within = program % of_a_group
    return first + within % height, within // height


@triton.jit
def _load_plane(ptr, at, inside):
    return tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store_plane(ptr, at, value, inside):
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _with_bias(product, bias_ptr, columns, F, DTYPE: tl.constexpr):
    """product + bias, rounded to the dtype as torch's linear rounds it."""
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=columns < F, other=0.0).to(tl.float32)
        product += bias[None, :]
    return product.to(DTYPE).to(tl.float32)


@triton.jit
def _halves(plane):
    """(rows, columns) as its left and its right half, each thread keeping what it has."""
    two = tl.reshape(plane, (plane.shape[0], 2, plane.shape[1] // 2))
    return tl.split(tl.permute(two, (0, 2, 1)))


@triton.jit
def _finish_forward(
    pre, gate, rows, in_rows, first_column, bias1_ptr, weight_gate_ptr, bias_gate_ptr, pre_ptr,
    gate_ptr, hidden_ptr, seed_ptr, offset_ptr, row_ids_ptr, row_length, F, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """What follows the first products, 64 columns after another: more at a time would not fit the registers."""
    WIDTH: tl.constexpr = pre.shape[1]
    if WIDTH > 64:
        pre0, pre1 = _halves(pre)
        gate0, gate1 = _halves(gate)
        _finish_forward(
            pre0, gate0, rows, in_rows, first_column, bias1_ptr, weight_gate_ptr, bias_gate_ptr,
            pre_ptr, gate_ptr, hidden_ptr, seed_ptr, offset_ptr, row_ids_ptr, row_length, F,
            threshold, scale, ACTIVATION, DROPOUT,
        )  # fmt: skip
        _finish_forward(
            pre1, gate1, rows, in_rows, first_column + WIDTH // 2, bias1_ptr, weight_gate_ptr,
            bias_gate_ptr, pre_ptr, gate_ptr, hidden_ptr, seed_ptr, offset_ptr, row_ids_ptr,
            row_length, F, threshold, scale, ACTIVATION, DROPOUT,
        )  # fmt: skip
    else:
        columns = first_column + tl.arange(0, WIDTH)
        inside = in_rows[:, None] & (columns < F)[None, :]
        at = rows[:, None] * F + columns[None, :]
        dtype: tl.constexpr = hidden_ptr.dtype.element_ty
        pre = _with_bias(pre, bias1_ptr, columns, F, dtype)
        if pre_ptr is not None:
            _store_plane(pre_ptr, at, pre, inside)
        if weight_gate_ptr is not None:
            gate = _with_bias(gate, bias_gate_ptr, columns, F, dtype)
            if gate_ptr is not None:
                _store_plane(gate_ptr, at, gate, inside)
            hidden = _activate(gate, ACTIVATION) * pre
        else:
            hidden = _activate(pre, ACTIVATION)
        if DROPOUT:
            keep = keep_rows(
                rows, in_rows, first_column, row_ids_ptr, row_length, seed_ptr, offset_ptr,
                threshold, WIDTH,
            )  # fmt: skip
            hidden = tl.where(keep, hidden * scale, 0.0)
        _store_plane(hidden_ptr, at, hidden, inside)


@triton.jit
def _finish_backward(
    dhidden, rows, in_rows, first_column, partial_row, pre_ptr, gate_ptr, dpre_ptr, dgate_ptr,
    hidden_ptr, dbias1_ptr, dbias_gate_ptr, seed_ptr, offset_ptr, row_ids_ptr, row_length, F,
    threshold, scale, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """What follows the gradient of hidden, 32 columns after another; partial_row: where this tile's sums go."""
    WIDTH: tl.constexpr = dhidden.shape[1]
    if WIDTH > 32:
        left, right = _halves(dhidden)
        _finish_backward(
            left, rows, in_rows, first_column, partial_row, pre_ptr, gate_ptr, dpre_ptr,
            dgate_ptr, hidden_ptr, dbias1_ptr, dbias_gate_ptr, seed_ptr, offset_ptr, row_ids_ptr,
            row_length, F, threshold, scale, ACTIVATION, DROPOUT,
        )  # fmt: skip
        _finish_backward(
            right, rows, in_rows, first_column + WIDTH // 2, partial_row, pre_ptr, gate_ptr,
            dpre_ptr, dgate_ptr, hidden_ptr, dbias1_ptr, dbias_gate_ptr, seed_ptr, offset_ptr,
            row_ids_ptr, row_length, F, threshold, scale, ACTIVATION, DROPOUT,
        )  # fmt: skip
    else:
        columns = first_column + tl.arange(0, WIDTH)
        in_columns = columns < F
        inside = in_rows[:, None] & in_columns[None, :]
        at = rows[:, None] * F + columns[None, :]
        pre = _load_plane(pre_ptr, at, inside)
        if gate_ptr is not None:
            gate = _load_plane(gate_ptr, at, inside)
            active, slope = _activate_with_slope(gate, ACTIVATION)
            hidden = active * pre
        else:
            hidden, slope = _activate_with_slope(pre, ACTIVATION)
        if DROPOUT:
            keep = keep_rows(
                rows, in_rows, first_column, row_ids_ptr, row_length, seed_ptr, offset_ptr,
                threshold, WIDTH,
            )  # fmt: skip
            dhidden = tl.where(keep, dhidden * scale, 0.0)
            hidden = tl.where(keep, hidden * scale, 0.0)
        if hidden_ptr is not None:
            _store_plane(hidden_ptr, at, hidden, inside)
        # Rows beyond M have no share in the sums: their dout was read as zeros.
        if gate_ptr is not None:
            dpre = dhidden * active
            dgate = dhidden * pre * slope
            if dgate_ptr is not None:
                _store_plane(dgate_ptr, at, dgate, inside)
            if dbias_gate_ptr is not None:
                tl.store(dbias_gate_ptr + partial_row + columns, tl.sum(dgate, 0), mask=in_columns)
        else:
            dpre = dhidden * slope
        if dpre_ptr is not None:
            _store_plane(dpre_ptr, at, dpre, inside)
        if dbias1_ptr is not None:
            tl.store(dbias1_ptr + partial_row + columns, tl.sum(dpre, 0), mask=in_columns)


@triton.jit(do_not_specialize=("row_length", "M", "threshold"))
def ffn_forward_kernel(
    x_ptr,  # (M, E)
    weight1_ptr,  # (F, E)
    bias1_ptr,  # (F,) or None
    weight_gate_ptr,  # (F, E) or None: no gate
    bias_gate_ptr,  # (F,) or None
    pre_ptr,  # (M, F) or None
    gate_ptr,  # (M, F) or None
    hidden_ptr,  # (M, F)
    seed_ptr,
    offset_ptr,
    row_ids_ptr,
    row_length,
    M,
    F,
    E,
    threshold: tl.int64,
    scale,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_block, column_block = _tile(M, F, BLOCK_M, BLOCK_N)
    rows = row_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = rows < M
    in_columns = columns < F
    depth = tl.arange(0, BLOCK_K)
    x_at = rows[:, None] * E + depth[None, :]
    weight_at = columns[None, :].to(tl.int64) * E + depth[:, None]

    pre = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, E, BLOCK_K):
        in_depth = depth < E - start
        x = tl.load(x_ptr + x_at + start, mask=in_rows[:, None] & in_depth[None, :], other=0.0)
        in_weight = in_depth[:, None] & in_columns[None, :]
        weight1 = tl.load(weight1_ptr + weight_at + start, mask=in_weight, other=0.0)
        pre = add_product(pre, x, weight1, PRECISION)
        if weight_gate_ptr is not None:
            weight_gate = tl.load(weight_gate_ptr + weight_at + start, mask=in_weight, other=0.0)
            gate = add_product(gate, x, weight_gate, PRECISION)

    _finish_forward(
        pre, gate, rows, in_rows, column_block * BLOCK_N, bias1_ptr, weight_gate_ptr,
        bias_gate_ptr, pre_ptr, gate_ptr, hidden_ptr, seed_ptr, offset_ptr, row_ids_ptr, row_length,
        F, threshold, scale, ACTIVATION, DROPOUT,
    )  # fmt: skip


@triton.jit(do_not_specialize=("row_length", "M", "threshold"))
def ffn_backward_kernel(
    dout_ptr,  # (M, E2)
    weight2_ptr,  # (E2, F)
    pre_ptr,  # (M, F)
    gate_ptr,  # (M, F) or None: no gate
    dpre_ptr,  # (M, F)
    dgate_ptr,  # (M, F) or None
    hidden_ptr,  # (M, F) or None: hidden computed again
    dbias1_ptr,  # (row blocks, F) float32 or None: the sums of each block of rows, likewise below
    dbias_gate_ptr,
    seed_ptr,
    offset_ptr,
    row_ids_ptr,
    row_length,
    M,
    F,
    E2,
    threshold: tl.int64,
    scale,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row_block, column_block = _tile(M, F, BLOCK_M, BLOCK_N)
    rows = row_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = rows < M
    in_columns = columns < F
    depth = tl.arange(0, BLOCK_K)
    dout_at = rows[:, None] * E2 + depth[None, :]

    dhidden = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, E2, BLOCK_K):
        in_depth = depth < E2 - start
        in_dout = in_rows[:, None] & in_depth[None, :]
        dout = tl.load(dout_ptr + dout_at + start, mask=in_dout, other=0.0)
        in_weight = in_depth[:, None] & in_columns[None, :]
        weight_at = (start + depth)[:, None].to(tl.int64) * F + columns[None, :]
        weight2 = tl.load(weight2_ptr + weight_at, mask=in_weight, other=0.0)
        dhidden = add_product(dhidden, dout, weight2, PRECISION)

    _finish_backward(
        dhidden, rows, in_rows, column_block * BLOCK_N, row_block.to(tl.int64) * F, pre_ptr,
        gate_ptr, dpre_ptr, dgate_ptr, hidden_ptr, dbias1_ptr, dbias_gate_ptr, seed_ptr, offset_ptr,
        row_ids_ptr, row_length, F, threshold, scale, ACTIVATION, DROPOUT,
    )  # fmt: skip
