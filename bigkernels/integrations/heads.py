"""Task heads that read padded positions: inside them a padded batch keeps its padding.

The padded positions of a packed result are zeros, stock's are leftovers. A softmax over all positions, or labels at
padded ones, would tell them apart.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigkernels.integrations.twins import Role, stock_class

_reader: contextvars.ContextVar[str | None] = contextvars.ContextVar("reader", default=None)


def reader() -> str | None:
    """Why the model whose forward is running must see padded positions as stock leaves them, or None."""
    return _reader.get()


def why_reads_padding(head: nn.Module) -> str | None:
    """Why every padded batch of this head runs padded, or None if that depends on the call."""
    cls = stock_class(head)
    names = [c.__name__ for c in cls.__mro__]
    if any(name.endswith("ForQuestionAnswering") for name in names):
        return f"{cls.__name__} takes a softmax over padded positions"
    if "GPT2DoubleHeadsModel" in names:
        return f"{cls.__name__} may summarise by a padded position"
    kind = getattr(getattr(head, "config", None), "summary_type", "first")
    if kind not in ("first", "cls_index") and "ElectraForMultipleChoice" in names:
        return f"{cls.__name__} summarises by {kind}, padded positions included"
    return None


def _labels_at_padding(given: dict[str, Any]) -> bool:
    """Whether a label other than the ignored -100 stands at a padded position."""
    labels, mask = given.get("labels"), given.get("attention_mask")
    if not (isinstance(labels, Tensor) and isinstance(mask, Tensor)):
        return False
    return labels.shape == mask.shape and bool(((labels != -100) & (mask == 0)).any())


def _forward(stock: Callable[..., Any], head: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Compiled and traced backbones run padded in any case.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return stock(head, *args, **kwargs)
    reason = why_reads_padding(head)
    if reason is None and len(args) + len(kwargs) > 1:
        names = list(inspect.signature(stock).parameters)[1:]
        if _labels_at_padding({**dict(zip(names, args, strict=False)), **kwargs}):
            reason = f"labels of {stock_class(head).__name__} stand at padded positions"
    token = _reader.set(reason)
    try:
        return stock(head, *args, **kwargs)
    finally:
        _reader.reset(token)


def _refuse(head: nn.Module) -> str | None:
    return None


HEAD = Role(_forward, _refuse, head=True)
