"""Comparing what two models return: every name, float tensors by the oracle's rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from bigkernels.testing import oracle

# A root mean square of fewer numbers is luck: a tensor has this many, or its peers together.
NUMBERS = 64


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: a result of the fused path beside stock's and beside stock in float64.

    Attributes:
        name: dotted name of the layer, or "end to end: <output>".
        error, bound: largest difference from float64, and what the oracle allows.
        difference: largest difference from stock in the model's own dtype.
        reason: why it failed; empty if it passed.
    """

    name: str
    error: float
    bound: float
    difference: float
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason


def failed(name: str, reason: str, difference: float = 0.0) -> Check:
    """A check that failed before there was an error to measure."""
    return Check(name, math.inf, 0.0, difference, reason)


def judged(
    name: str,
    got: Tensor,
    truth: Tensor,
    stock: Tensor,
    again: Callable[[int], Tensor],
    at: Tensor | None = None,
    loss: str | None = None,
) -> Check:
    """A check by the oracle's rule; by that of docs/design.md section 6 for int8 if that is the loss.

    Stock itself is the first peer; while it alone would fail the result, stock in other orders of summation joins it:
    three of them as in the oracle, or as many as give ``NUMBERS`` numbers.

    Args:
        again: stock's result in the order of summation of that seed.
        at: bool, the positions compared; None: all.
    """

    def part(x: Tensor) -> Tensor:
        return x if at is None or x.shape[: at.dim()] != at.shape else x[at]

    if loss == "int8" and got.shape == truth.shape:
        return _judged_by_cosines(name, part(got), part(truth), part(stock))
    got, truth, peers = part(got), part(truth), [part(stock)]
    verdict = oracle.judge(got, truth, peers)
    most = 1 + max(oracle.PERMUTATIONS, NUMBERS // max(1, got.numel()))
    while not verdict and math.isfinite(verdict.error) and len(peers) < most:
        peers.append(part(again(len(peers))))
        verdict = oracle.judge(got, truth, peers)
    difference = 0.0
    if got.numel() and got.shape == peers[0].shape:
        difference = float((got.double() - peers[0].double()).abs().max())
    return Check(name, verdict.error, verdict.bound, difference, verdict.reason)


MEAN_COSINE, FIRST_PERCENTILE = 0.999, 0.997


def cosines(got: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean and first percentile of the cosines between the vectors of two results (..., N)."""
    a, b = (t.double().reshape(-1, t.shape[-1] if t.dim() else 1) for t in (got, truth))
    found = torch.nn.functional.cosine_similarity(a, b, -1, 0.0).nan_to_num(1.0)
    found = torch.where(a.isfinite().all(-1), found, -1.0)
    return float(found.mean()), float(found.quantile(0.01))


def _judged_by_cosines(name: str, got: Tensor, truth: Tensor, stock: Tensor) -> Check:
    if not got.numel():
        return Check(name, 0.0, 0.0, 0.0, "")
    mean, low = cosines(got, truth)
    reason = ""
    if mean < MEAN_COSINE or low < FIRST_PERCENTILE:
        reason = f"mean cosine {mean:.5f}, 1st percentile {low:.5f}"
    difference = float((got.double() - stock.double()).abs().max())
    return Check(name, 1.0 - mean, 1.0 - MEAN_COSINE, difference, reason)


def named(output: Any) -> dict[str, Any]:
    """The leaves of a model's output by name: keys of mappings and named tuples, indices of others."""
    if isinstance(output, (Mapping, tuple, list)):
        return dict(_leaves("", output))
    return {"output": output}


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif hasattr(value, "_asdict"):
        items = list(value._asdict().items())
    elif isinstance(value, (tuple, list)):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        yield prefix, value
        return
    for key, inner in items:
        yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)


def unlike(got: Any, stock: Any) -> str:
    """Why two outputs that are not both float tensors differ, or ""."""
    if (got is None) != (stock is None):
        return "lost: stock returns it" if got is None else "stock returns none"
    if isinstance(got, Tensor) != isinstance(stock, Tensor):
        return f"a {type(got).__name__}, stock returns a {type(stock).__name__}"
    if isinstance(stock, Tensor):
        return "" if torch.equal(got, stock) else "other values than stock's"
    if isinstance(stock, (bool, int, str)) and got != stock:
        return f"{got!r}, stock returns {stock!r}"
    return ""


def is_float(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def shortened(batch: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """The batch without its last position; keep (B, L) tells which tensors have positions, and where."""
    found = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.shape[:2] == keep.shape:
            found[name] = value[:, :-1]
        elif isinstance(value, Tensor) and value.shape[:2] == keep.T.shape:
            found[name] = value[:-1]
    return found


def tokens(stock: Tensor, short: Tensor | None, masks: list[Tensor]) -> Tensor | None:
    """The positions of a result that hold tokens, as an index, or None if its first dimensions are no positions.

    Args:
        stock: stock's result.
        short: stock's result on the batch without its last position, if there is one.
        masks: (B, L) bool, the padding masks that were used.
    """
    for keep in masks:
        for real, dim in ((keep, 1), (keep.T, 0)):
            if stock.shape[:2] != real.shape:
                continue
            if short is None:  # three dimensions and more are hardly ever pooled
                return real if stock.dim() > 2 else None
            if short.dim() == stock.dim() and short.shape[dim] == stock.shape[dim] - 1:
                return real
    return None
