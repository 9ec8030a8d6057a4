"""Triton drawer of the ffn room.

Two products are ours, with what follows them: the first (bias, activation, dropout) and the gradient of hidden
(dropout, the activation's gradient, bias sums). The others are torch's. The kernels (triton_kernels.py) are imported
at the first call, and triton with them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigkernels.ops import checks, triton_launch
from bigkernels.ops.ffn import triton_tiles
from bigkernels.ops.ffn.contract import Facts
from bigkernels.ops.triton_launch import Dropout, dense, device_of, kind

_FORWARD, _BACKWARD = triton_launch.Replays(), triton_launch.Replays()


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    return triton_launch.common_limits(facts.dtype, facts.chip)


class _Call(NamedTuple):
    """What both directions are given: M rows, E columns of x, F hidden, E2 of the result."""

    x: Tensor  # (M, E), or as many rows in more dimensions
    weight1: Tensor  # (F, E)
    bias1: Tensor | None
    weight2: Tensor  # (E2, F)
    weight_gate: Tensor | None  # (F, E)
    bias_gate: Tensor | None
    activation: str
    dropout: Dropout
    row_length: int  # of x as it came
    m: int
    f: int

    def precision(self) -> str:
        """tl.dot's."""
        return triton_launch.float32_products(self.x.dtype)

    def tile(self, direction: str) -> triton_tiles.Tile:
        """How a product is cut."""
        dtype, device = self.x.dtype, self.x.device
        kind = (triton_launch.architecture(device), direction, dtype, self.precision())
        return triton_tiles.choose(*kind, self.m, self.f)

    def launch(
        self,
        replays: triton_launch.Replays,
        direction: str,
        pointers: tuple[Tensor | None, ...],
        depth: int,
    ) -> None:
        """The kernel over all tiles of the (M, F) plane; `depth` is the length of its product's sums."""
        drop, precision = self.dropout, self.precision()
        pointers = (*pointers, drop.seed, drop.offset, drop.row_ids())
        numbers = (self.row_length, self.m, self.f, depth)
        rule = (direction, self.activation, precision, drop.p)
        key = (*numbers, *rule, *map(kind, pointers), self.x.device)
        if replays.again(key, pointers):
            return
        from . import triton_kernels

        backward = direction == "backward"
        kernel: Any = getattr(triton_kernels, f"ffn_{'backward' if backward else 'forward'}_kernel")
        tile = self.tile(direction)
        tiles = -(-self.m // tile.block_m) * -(-self.f // tile.block_n)
        known = triton_launch.launch(
            kernel,
            (tiles,),
            *pointers,
            *numbers,
            *drop.rule(),
            ACTIVATION=self.activation,
            PRECISION=precision,
            DROPOUT=drop.p > 0.0,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        replays.keep_plain(key, known)

    def first_products(
        self, shape: tuple[int, ...], keep_pre: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """pre, gate (where they are kept) and hidden, in a shape of M * F."""
        gated = self.weight_gate is not None
        pre = self.x.new_empty(*shape) if keep_pre else None
        gate = self.x.new_empty(*shape) if keep_pre and gated else None
        hidden = self.x.new_empty(*shape)
        if self.m > 0:
            parameters = (self.weight1, self.bias1, self.weight_gate, self.bias_gate)
            pointers = (self.x, *map(dense, parameters), pre, gate, hidden)
            direction = "gated" if gated else "forward"
            self.launch(_FORWARD, direction, pointers, self.x.shape[-1])
        return pre, gate, hidden


def _call(x: Tensor, *rest: Any) -> _Call:
    """x with its rows one behind the other."""
    *leading, columns = x.shape
    length = leading[-1] if leading else 1
    f, _ = rest[0].shape
    return _Call._make((x.contiguous(), *rest, length, x.numel() // columns, f))


def ffn_forward(
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
    dropout = Dropout(dropout_p, seed, offset, rows)
    call = _call(x, weight1, bias1, weight2, weight_gate, bias_gate, activation, dropout)
    with device_of(x), checks.own_dtypes(x):
        shape = (*x.shape[:-1], call.f)
        pre, gate, hidden = call.first_products(shape, keep_pre=save >= 1)
        out = torch.nn.functional.linear(hidden, weight2, bias2)
    saved = (pre, gate, hidden if save >= 2 else None)
    return out, *(x.new_empty(0) if s is None else s for s in saved)


def _hidden_gradients(
    call: _Call, dout: Tensor, pre: Tensor, gate: Tensor | None, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Those of (dpre, dgate, hidden, dbias1, dbias_gate) that are wanted."""
    planes = [dout.new_empty(call.m, call.f) if want else None for want in wanted[:3]]
    if call.m == 0:
        sums = [dout.new_zeros(call.f) if want else None for want in wanted[3:]]
        return [*planes, *sums]
    blocks = -(-call.m // call.tile("backward").block_m)
    partials = [
        dout.new_empty(blocks, call.f, dtype=torch.float32) if want else None for want in wanted[3:]
    ]
    pointers = (dout, dense(call.weight2), dense(pre), dense(gate), *planes, *partials)
    call.launch(_BACKWARD, "backward", pointers, dout.shape[1])
    return [*planes, *triton_launch.column_sums(partials, dout.dtype)]


def ffn_backward(
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
    need_dx: bool,
    need_dweight1: bool,
    need_dbias1: bool,
    need_dweight2: bool,
    need_dbias2: bool,
    need_dweight_gate: bool,
    need_dbias_gate: bool,
) -> tuple[Tensor, ...]:
    dropout = Dropout(dropout_p, seed, offset, rows)
    call = _call(x, weight1, bias1, weight2, weight_gate, bias_gate, activation, dropout)
    gated = weight_gate is not None
    need_dpre = need_dx or need_dweight1
    need_dgate = gated and (need_dx or need_dweight_gate)
    through = need_dpre or need_dgate or need_dbias1 or need_dbias_gate
    dout = dout.reshape(call.m, weight2.shape[0]).contiguous()
    grads: list[Tensor | None] = [None] * 7
    with device_of(x), checks.own_dtypes(x):
        kept_pre: Tensor | None = pre
        kept_gate = gate if gated else None
        known: Tensor | None = hidden
        # What was not saved has no elements; of no rows nothing has.
        if call.m > 0 and hidden.numel() == 0:
            known = None
            if (through and pre.numel() == 0) or (need_dweight2 and not through):
                kept_pre, kept_gate, known = call.first_products((call.m, call.f), True)
        if through:
            again = need_dweight2 and known is None
            wanted = (need_dpre, need_dgate, again, need_dbias1, need_dbias_gate)
            assert kept_pre is not None
            found = _hidden_gradients(call, dout, kept_pre, kept_gate, wanted)
            dpre, dgate, hidden_again, grads[2], grads[6] = found
            known = hidden_again if again else known
            needs = (need_dx, need_dweight1, need_dweight_gate)
            grads[0], grads[1], grads[5] = _products(call, dpre, dgate, needs)
        if need_dweight2:
            assert known is not None
            grads[3] = torch.mm(dout.t(), known.view(call.m, call.f))
        if need_dbias2:
            grads[4] = dout.sum(0)
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)


def _products(
    call: _Call, dpre: Tensor | None, dgate: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """dx, dweight1, dweight_gate, those not needed None."""
    need_dx, need_dweight1, need_dweight_gate = needs
    dx = None
    if need_dx:
        assert dpre is not None
        dx = torch.mm(dpre, call.weight1)
        if dgate is not None and call.weight_gate is not None:
            dx = torch.addmm(dx, dgate, call.weight_gate)
        dx = dx.view(call.x.shape)
    if not (need_dweight1 or need_dweight_gate):
        return dx, None, None
    x = call.x.view(call.m, call.x.shape[-1])
    dweight1 = torch.mm(dpre.t(), x) if need_dweight1 and dpre is not None else None
    dweight_gate = torch.mm(dgate.t(), x) if need_dweight_gate and dgate is not None else None
    return dx, dweight1, dweight_gate


triton_launch.register(ffn_forward, ffn_backward)
