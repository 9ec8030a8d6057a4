"""Stock once more with every sum in another order: what an honest implementation may lose by its order of summation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_ATTENTION = "aten::_scaled_dot_product_"


class Permuted(TorchDispatchMode):
    """Within it products, attention scores and LayerNorm add up in an order drawn from the seed.

    The functions computed stay the same, so results differ by rounding alone.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draw = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        first = _PRODUCTS.get(function)
        if first is not None:
            a, b = args[first : first + 2]  # (.., M, K), (.., K, N)
            order = self._order(a.shape[-1], a)
            both = (a.index_select(-1, order), b.index_select(-2, order))
            return function(*args[:first], *both, *args[first + 2 :], **named)
        if function is _aten.native_layer_norm.default:
            return self._layer_norm(function, *args)
        if function.name().startswith(_ATTENTION):
            q, k, *rest = args  # (B, H, L, D)
            order = self._order(q.shape[-1], q)
            return function(q.index_select(-1, order), k.index_select(-1, order), *rest, **named)
        return function(*args, **named)

    def _order(self, size: int, like: Tensor) -> Tensor:
        return torch.randperm(size, generator=self._draw).to(like.device)

    def _layer_norm(
        self,
        function: Callable[..., Any],
        x: Tensor,
        shape: list[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Any:
        if len(shape) != 1:
            return function(x, shape, weight, bias, eps)
        order = self._order(shape[0], x)
        w, b = (None if t is None else t.index_select(0, order) for t in (weight, bias))
        out, *rest = function(x.index_select(-1, order), shape, w, b, eps)
        return (out.index_select(-1, order.argsort()), *rest)


# Where the first factor stands among the arguments.
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}
