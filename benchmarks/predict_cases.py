"""The calls that predict.py predicts, by the names under which gpu_peers.py times them: of each the part that is
emulated, and how much of it there is."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import gpu_cases
import torch
from gpu_more_cases import BIAS, VARLEN, lengths_between, shape_of_varlen
from torch import Tensor

import bigkernels as bk
from bigkernels.bench import rooms as peers

HALF = torch.bfloat16


@dataclasses.dataclass(frozen=True)
class Case:
    """name: group, shape and mode. setup: prepares the part and returns what is counted. scale: parts in the whole;
    sizes: of their tensors' dimensions, the whole. flops: of the whole."""

    name: str
    scale: float
    setup: Callable[[], Callable[[], object]]
    sizes: dict[int, int] | None = None
    flops: float = 0.0


def _part(case: Any) -> tuple[Any, float, dict[int, int] | None]:
    """The part of a timed case that is emulated, how many there are, and the whole of its dimensions."""
    change = functools.partial(dataclasses.replace, case)
    if case.operation == "attention":
        b, h, *rest = case.shape
        return change(shape=(1, 1, *rest)), b * h, None
    if case.operation == "feed_forward":
        (m, e), f, part = case.shape, case.hidden, (128, 256)
        return change(shape=(part[0], e), hidden=part[1]), m / 128 * f / 256, {128: m, 256: f}
    if case.operation == "embedding":
        return case, 1.0, None  # a table's rows and a batch's tokens are no share of one another
    if case.operation == "cross_entropy":
        return change(rows=4), case.rows / 4, None
    if case.operation == "packing":
        return change(lengths=case.lengths[:: len(case.lengths) // 3]), len(case.lengths) / 4, None
    m, n = case.shape
    return change(shape=(64, n)), m / 64, None


def _timed() -> Iterator[Case]:
    """Of the rooms' cases in bfloat16, those without padding."""
    for case, shape, sizes in gpu_cases.timed_cases(False):
        if case.dtype != HALF or (getattr(case, "lengths", None) and case.operation == "attention"):
            continue
        if shape.startswith("1x"):
            continue
        part, parts, whole = _part(case)
        for mode, share in (("forward", 1.0), ("backward", gpu_cases.BACKWARD[case.operation])):

            def setup(part: Any = part, mode: str = mode) -> Callable[[], object]:
                call = lambda inputs: part.call(inputs, "triton")  # noqa: E731
                return peers.timed(call, part.problem(), mode).call

            flops = share * sizes.get("flops", 0)
            if (
                case.operation == "feed_forward"
            ):  # of two products forward, and of four backward, one is ours
                flops = sizes["flops"] / 2
            yield Case(f"{case.operation} {shape} {mode}", parts, setup, whole, flops)


def _both(
    name: str, scale: float, flops: float, sizes: dict[int, int] | None, made: Callable[[], Any]
) -> Iterator[Case]:
    """made: returns a call and what it is differentiated by."""

    def forward() -> Callable[[], object]:
        return torch.no_grad()(made()[0])  # type: ignore[no-any-return]

    def backward() -> Callable[[], object]:
        call, wrt = made()
        out = call()
        return lambda: torch.autograd.grad(out, wrt, torch.ones_like(out))

    yield Case(f"{name} forward", scale, forward, sizes, flops)
    yield Case(f"{name} backward", scale, backward, sizes, 2.5 * flops)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape).to(HALF).requires_grad_()


def _varlen() -> Iterator[Case]:
    """Packed sequences of all lengths, one head."""
    b, h, s, d = VARLEN
    lengths = lengths_between(b, s)

    def made() -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
        q, k, v = (_draw(sum(lengths), 1, d) for _ in range(3))
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        call = lambda: bk.varlen_attn(q, k, v, ends, ends, s, s, backend="triton")  # noqa: E731
        return call, (q, k, v)

    flops = 4 * h * d * sum(map(operator.mul, lengths, lengths))
    yield from _both(f"varlen {shape_of_varlen(*VARLEN)}", h, flops, None, made)


def _bias() -> Iterator[Case]:
    """A bias of heads, queries and keys: two samples of three heads."""
    b, h, s, d = BIAS
    part = (2, 3)

    def made() -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
        q, k, v = (_draw(*part, s, d) for _ in range(3))
        mask = _draw(1, part[1], s, s)
        attend = functools.partial(bk.scaled_dot_product_attention, q, k, v, mask)
        return functools.partial(attend, backend="triton"), (q, k, v, mask)

    share, sizes = b / part[0] * h / part[1], {part[0]: b, part[1]: h}
    yield from _both(f"bias {b}x{h}x{s}x{d}", share, 4 * b * h * s * s * d, sizes, made)


def cases() -> Iterator[Case]:
    yield from _timed()
    yield from _varlen()
    yield from _bias()
