"""Triton drawer of the ffn room.

Two products are ours, with what follows them: the first (bias, activation, dropout) and the gradient of hidden
(dropout, the activation's gradient, bias sums). The others are torch's. The kernels (triton_kernels.py) are imported
at the first call, and triton with them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigkernels.ops import triton_launch
from bigkernels.ops.ffn import triton_tiles
from bigkernels.ops.ffn.contract import Facts
from bigkernels.ops.triton_launch import Dropout, dense, device_of


def limits(facts: Facts) -> tuple[str, ...]:
    """Why these kernels do not take a call; empty if they do."""
    if triton_launch.MISSING is not None:
        return (triton_launch.MISSING,)
    return triton_launch.common_limits(facts.dtype, facts.chip)


def _own_dtypes(x: Tensor) -> AbstractContextManager[object]:
    """Keeps torch's products in the dtypes they are given, inside autocast too."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class _Call(NamedTuple):
    """What both directions are given: M rows, E columns of x, F hidden, E2 of the result."""

    x: Tensor  # (M, E)
    weight1: Tensor  # (F, E)
    bias1: Tensor | None
    weight2: Tensor  # (E2, F)
    weight_gate: Tensor | None  # (F, E)
    bias_gate: Tensor | None
    activation: str
    dropout: Dropout
    place: tuple[Any, ...]
    outer: tuple[int, ...]  # sizes of x but the last

    @property
    def m(self) -> int:
        return self.x.shape[0]

    @property
    def f(self) -> int:
        return self.weight1.shape[0]

    def plane(self, wanted: bool = True) -> Tensor | None:
        return self.x.new_empty(*self.outer, self.f) if wanted else None

    def tile(self, direction: str) -> tuple[triton_tiles.Tile, str]:
        """How a product is cut, and tl.dot's precision."""
        dtype, device = self.x.dtype, self.x.device
        precision = triton_launch.float32_products(dtype)
        kind = (triton_launch.architecture(device), direction, dtype, precision)
        return triton_tiles.choose(*kind, self.m, self.f), precision

    def launch(self, kernel: Any, direction: str, arguments: tuple[Any, ...], depth: int) -> None:
        """The kernel over all tiles of the (M, F) plane; `depth` is the length of its product's sums."""
        tile, precision = self.tile(direction)
        tiles = -(-self.m // tile.block_m) * -(-self.f // tile.block_n)
        triton_launch.launch(
            kernel,
            (tiles,),
            *arguments,
            *self.place,
            self.m,
            self.f,
            depth,
            *self.dropout.rule(),
            ACTIVATION=self.activation,
            PRECISION=precision,
            DROPOUT=self.dropout.p > 0.0,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    def first_products(self, keep_pre: bool) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """pre, gate (where they are kept) and hidden."""
        from .triton_kernels import ffn_forward_kernel

        gated = self.weight_gate is not None
        pre, gate = self.plane(keep_pre), self.plane(keep_pre and gated)
        hidden = self.plane()
        assert hidden is not None
        if self.m > 0:
            parameters = (self.weight1, self.bias1, self.weight_gate, self.bias_gate)
            arguments = (self.x, *map(dense, parameters), pre, gate, hidden)
            direction = "gated" if gated else "forward"
            self.launch(ffn_forward_kernel, direction, arguments, self.x.shape[1])
        return pre, gate, hidden


def _call(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    weight_gate: Tensor | None,
    bias_gate: Tensor | None,
    activation: str,
    dropout: Dropout,
) -> _Call:
    rows = x.reshape(x.numel() // x.shape[-1], x.shape[-1]).contiguous()
    parameters = (weight1, bias1, weight2, weight_gate, bias_gate)
    return _Call(rows, *parameters, activation, dropout, dropout.place(x), tuple(x.shape[:-1]))


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
    with device_of(x), _own_dtypes(x):
        pre, gate, hidden = call.first_products(keep_pre=save >= 1)
        flat = hidden.view(call.m, call.f)
        out = flat @ weight2.t() if bias2 is None else torch.addmm(bias2, flat, weight2.t())
    saved = (pre, gate, hidden if save >= 2 else None)
    return out.view(*call.outer, weight2.shape[0]), *(
        x.new_empty(0) if s is None else s for s in saved
    )


def _hidden_gradients(
    call: _Call, dout: Tensor, pre: Tensor, gate: Tensor | None, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Those of (dpre, dgate, hidden, dbias1, dbias_gate) that are wanted."""
    from .triton_kernels import ffn_backward_kernel

    planes = [call.plane(wanted=want) for want in wanted[:3]]
    if call.m == 0:
        sums = [dout.new_zeros(call.f) if want else None for want in wanted[3:]]
        return [*planes, *sums]
    blocks = -(-call.m // call.tile("backward")[0].block_m)
    partials = [
        dout.new_empty(blocks, call.f, dtype=torch.float32) if want else None for want in wanted[3:]
    ]
    arguments = (dout, dense(call.weight2), dense(pre), dense(gate), *planes, *partials)
    call.launch(ffn_backward_kernel, "backward", arguments, dout.shape[1])
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
    with device_of(x), _own_dtypes(x):
        kept_pre: Tensor | None = pre
        kept_gate = gate if gated else None
        known: Tensor | None = hidden
        # What was not saved has no elements; of no rows nothing has.
        if call.m > 0 and hidden.numel() == 0:
            known = None
            if (through and pre.numel() == 0) or (need_dweight2 and not through):
                kept_pre, kept_gate, known = call.first_products(keep_pre=True)
        if through:
            again = need_dweight2 and known is None
            wanted = (need_dpre, need_dgate, again, need_dbias1, need_dbias_gate)
            assert kept_pre is not None
            found = _hidden_gradients(call, dout, kept_pre, kept_gate, wanted)
            dpre, dgate, hidden_again, grads[2], grads[6] = found
            known = hidden_again if again else known
            flat, flat_gate = (None if d is None else d.view(call.m, call.f) for d in (dpre, dgate))
            grads[0], grads[1], grads[5] = _products(
                call, flat, flat_gate, (need_dx, need_dweight1, need_dweight_gate)
            )
        if need_dweight2:
            assert known is not None
            grads[3] = dout.t() @ known.reshape(call.m, call.f)
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
        dx = dpre @ call.weight1
        if dgate is not None and call.weight_gate is not None:
            dx = torch.addmm(dx, dgate, call.weight_gate)
        dx = dx.view(*call.outer, call.x.shape[1])
    dweight1 = dpre.t() @ call.x if need_dweight1 and dpre is not None else None
    dweight_gate = dgate.t() @ call.x if need_dweight_gate and dgate is not None else None
    return dx, dweight1, dweight_gate


triton_launch.register(ffn_forward, ffn_backward)
