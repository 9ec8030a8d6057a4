"""The gradients of the layer_norm room: what forward keeps, and which op goes back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bigkernels import library
from bigkernels.ops import checks
from bigkernels.ops.layer_norm import contract, reference

OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}


def _as(gradient: Any, parameter: Any) -> Tensor:
    """(N,) in a parameter's dtype and shape; what is so already is not looked at by torch again."""
    if gradient.dtype is not parameter.dtype:
        gradient = gradient.to(parameter.dtype)
    return gradient if parameter.dim() == 1 else gradient.view(parameter.shape)  # type: ignore[no-any-return]


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        n: int,
        eps: float,
        centred: bool,
        backend: str,
    ) -> Tensor:
        out, mean, rstd = OPS["layer_norm_forward"][backend](x, weight, bias, n, eps, centred)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.rule, ctx.backend = (n, eps, centred), backend
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if checks.recomputing():
            grads = checks.differentiate(
                lambda x, w, b: reference.layer_norm(x, w, b, *ctx.rule),
                (x, weight, bias),
                needs,
                (dout,),
            )
            return (*grads, None, None, None, None)
        op = OPS["layer_norm_backward"][ctx.backend]
        dx, dweight, dbias = op(dout, x, mean, rstd, weight, ctx.rule[0], *needs)
        return (
            dx if needs[0] else None,
            _as(dweight, weight) if needs[1] else None,
            _as(dbias, bias) if needs[2] else None,
            *(None,) * 4,
        )


class AddNorm(torch.autograd.Function):
    """Returns (out, sum) always: the saved sum then carries this node's own graph, which makes a second
    differentiation possible without keeping x and residual alive."""

    @staticmethod
    def forward(
        ctx: Any,
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
        centred: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        out, total, mean, rstd = OPS["add_layer_norm_forward"][backend](
            x, residual, weight, bias, eps, x_bias, dropout_p, seed, offset, rows, True, centred
        )
        ctx.save_for_backward(total, mean, rstd, weight, bias, x_bias, seed, offset, rows)
        ctx.rule, ctx.dropout_p, ctx.backend = (eps, centred), dropout_p, backend
        ctx.set_materialize_grads(False)
        return out, total

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dsum: Tensor | None) -> tuple[Tensor | None, ...]:
        total, mean, rstd, weight, bias, x_bias, seed, offset, rows = ctx.saved_tensors
        need_x, need_residual, need_weight, need_bias, _, need_x_bias = ctx.needs_input_grad[:6]
        p = ctx.dropout_p
        if dout is None:
            dout = torch.zeros_like(total)
        if checks.recomputing():
            need = need_x or need_residual or need_x_bias
            dresidual, dweight, dbias = checks.differentiate(
                lambda t, w, b: reference.layer_norm(t, w, b, t.shape[-1], *ctx.rule),
                (total, weight, bias),
                (need, need_weight, need_bias),
                (dout,),
            )
            dx = dx_bias = None
            if need:
                assert dresidual is not None
                dresidual = dresidual if dsum is None else dresidual + dsum
                dx = reference.drop_gradient(dresidual, p, seed, offset, rows)
                dx_bias = None if x_bias is None else dx.reshape(-1, dx.shape[-1]).sum(0)
        else:
            dresidual, dx, dweight, dbias, dx_bias = OPS["add_layer_norm_backward"][ctx.backend](
                dout, dsum, total, mean, rstd, weight, p, seed, offset, rows,
                need_x, need_weight, need_bias, need_x_bias,
            )  # fmt: skip
            dx = dx if p > 0.0 else dresidual
        return (
            dx if need_x else None,
            dresidual if need_residual else None,
            _as(dweight, weight) if need_weight else None,
            _as(dbias, bias) if need_bias else None,
            None,
            _as(dx_bias, x_bias) if need_x_bias else None,
            *(None,) * 6,
        )
