"""float32 matrix products as torch's precision setting lets a backend compute them, for the
oracle's peers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_PRODUCTS: dict[Any, Any] = {
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.mv.default: (0, 1),
    _aten.dot.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
}


def _bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def _tf32(x: Tensor) -> Tensor:
    # 10 bits of mantissa, ties to even, as the tensor cores' conversion rounds.
    bits = x.contiguous().view(torch.int32)
    rounded = bits + 0xFFF + ((bits >> 13) & 1)
    return torch.where(x.isfinite(), (rounded & ~0x1FFF).view(torch.float32), x)


_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {"medium": _bfloat16, "tf32": _tf32}


class _RoundedProducts(TorchDispatchMode):
    def __init__(self, precision: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.precision = precision

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        places = _PRODUCTS.get(func)
        if places is None or args[places[0]].dtype != torch.float32:
            return func(*args, **kwargs)

        def product(left: Tensor, right: Tensor, with_addend: bool = True) -> Any:
            changed = list(args)
            changed[places[0]], changed[places[1]] = left, right
            if not with_addend and places[0] == 1:
                changed[0] = torch.zeros_like(changed[0])
            return func(*changed, **kwargs)

        a, b = args[places[0]], args[places[1]]
        if self.precision == "high":
            a_high, b_high = _bfloat16(a), _bfloat16(b)
            a_low, b_low = _bfloat16(a - a_high), _bfloat16(b - b_high)
            small = product(a_low, b_high, with_addend=False) + product(
                a_high, b_low, with_addend=False
            )
            return product(a_high, b_high) + small
        rounding = _ROUNDINGS[self.precision]
        return product(rounding(a), rounding(b))


@contextlib.contextmanager
def products_rounded_like(precision: str) -> Iterator[None]:
    """float32 matrix products inside, forward and backward, lose what `precision` allows.

    precision: "highest" (nothing), "high" (each operand a sum of two bfloat16, three products),
    "medium" (operands rounded to bfloat16), "tf32" (operands rounded to 10 bits of mantissa). As
    documented for torch.set_float32_matmul_precision. Raises ValueError for another word.
    """
    if precision == "highest":
        yield
        return
    if precision not in ("high", *_ROUNDINGS):
        raise ValueError(f"precision: {precision!r} not in 'highest', 'high', 'medium', 'tf32'")
    with _RoundedProducts(precision):
        yield
