"""One rule decides whether a kernel is right: its error beside that of the plain formula.

* **truth** is the reference in float64 on the very inputs the kernel saw (drawn in the tested
  dtype, then promoted).
* **peers** are the reference in the tested dtype under three permutations of every reduced axis:
  what an honest implementation may lose by its order of summation; and of a case in another
  layout, once more in that: torch adds up such operands in other orders, which ones is the
  machine's. float32 products follow torch's matmul precision setting.
* A result **passes** if it has the expected shape and dtype, is finite where truth is, and

      max|got - truth| <= f * max|peer - truth| + 2 * eps * max|truth|
      rms(got - truth) <= 1.5 * rms(peer - truth) + eps * rms(truth)

  with f = 2 for outputs and 3 for gradients, the worst of the peers, and eps that of the result's
  dtype. There are no tolerances to choose. Of a float64 result truth knows no more digits than the
  result does, and shares its peers' rounding: there eps counts 16 times. Of a single number the
  root mean square is its error: the first rule, which is for single numbers, judges it alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bigkernels.ops import checks
from bigkernels.testing.canary import Canary, poisoned_outputs
from bigkernels.testing.cases import Case
from bigkernels.testing.precision import products_rounded_like
from bigkernels.testing.problem import Function, Problem, Tensors

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
RMS_FACTOR = 1.5
PERMUTATIONS = 3
FLOAT64_EPS = 16 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Verdict:
    """What `judge` found for one tensor; `reason` is empty when it passed.

    error, bound: maximal absolute error and what it may be. rms, rms_bound: the same for the root
    mean square. worst: index of the largest error (or of the first value that is wrongly finite or
    not finite).
    """

    error: float
    bound: float
    rms: float
    rms_bound: float
    worst: tuple[int, ...]
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason

    def __bool__(self) -> bool:
        return self.passed


def judge(got: Tensor, truth: Tensor, peers: Sequence[Tensor], grad: bool = False) -> Verdict:
    """Judges one tensor by the rule on top of this module.

    got: the result, any device. truth: float64, same shape. peers: the reference in the tested
    dtype, same shape, at least one; their dtype is the one expected of `got`. grad: whether the
    factor for gradients holds. Raises ValueError if there are no peers; never because the result is
    wrong.
    """
    if not peers:
        raise ValueError(
            "peers: at least one result of the reference in the tested dtype is needed"
        )
    if got.shape != truth.shape:
        return _refused(f"shape {tuple(got.shape)}, expected {tuple(truth.shape)}")
    if got.dtype != peers[0].dtype:
        return _refused(f"dtype {got.dtype}, expected {peers[0].dtype}")
    result, exact = got.detach().cpu().double(), truth.detach().cpu().double()
    # What float64 holds may overflow in the tested dtype: there an infinity is the right answer.
    expected = exact.to(got.dtype).double()
    finite = expected.isfinite()
    stray = ~_same_kind(result, expected)
    if stray.any():
        at = _argmax(stray.byte())
        return _refused(f"{_at(result, at)} where truth is {_at(exact, at)}", at)
    if not finite.any():
        return Verdict(0.0, 0.0, 0.0, 0.0, (), "")

    def errors(values: Tensor) -> Tensor:
        return torch.where(finite, (values.detach().cpu().double() - exact).abs(), 0.0)

    count = int(finite.sum())
    known = exact[finite]
    eps = FLOAT64_EPS if got.dtype == torch.float64 else torch.finfo(got.dtype).eps
    # A peer that overflowed on the way says nothing there: it must not widen the bound.
    honest = [errors(peer).nan_to_num(nan=0.0, posinf=0.0) for peer in peers]
    difference = errors(result)
    bound = (GRADIENT_FACTOR if grad else OUTPUT_FACTOR) * max(float(peer.max()) for peer in honest)
    bound += 2 * eps * float(known.abs().max())
    rms_bound = RMS_FACTOR * max(_rms(peer, count) for peer in honest) + eps * _rms(known, count)
    error, rms, worst = float(difference.max()), _rms(difference, count), _argmax(difference)
    reason = ""
    if error > bound:
        reason = f"error {error:.3g} > bound {bound:.3g}"
    elif rms > rms_bound and count > 1:
        reason = f"rms error {rms:.3g} > bound {rms_bound:.3g}"
    return Verdict(error, bound, rms, rms_bound, worst, reason)


@dataclass(frozen=True)
class Expected:
    """What the reference says of one problem: outputs by name, gradients by `d` + name of the
    input."""

    truth: dict[str, Tensor]
    peers: tuple[dict[str, Tensor], ...]
    gradients: frozenset[str]


def expect(problem: Problem, precision: str = "highest") -> Expected:
    """Truth and peers of a problem; `precision` as in torch.set_float32_matmul_precision."""
    doubled = problem.promoted(torch.float64)
    truth = doubled.solve(doubled.reference)
    peers = []
    for seed in range(PERMUTATIONS):
        shuffled, undo = problem.permuted(seed)
        with products_rounded_like(precision):
            peers.append(undo(shuffled.solve(shuffled.reference)))
    return Expected(truth, tuple(peers), frozenset(f"d{name}" for name in problem.wrt))


@functools.lru_cache(maxsize=16)
def _expected_of(case: Case, precision: str) -> tuple[Problem, Expected]:
    problem = case.problem()
    expected = expect(problem, precision)
    if case.layout == "contiguous":
        return problem, expected
    laid_out = problem.mapped(Canary(case.layout, torch.device("cpu")).wall)
    with products_rounded_like(precision):
        peer = laid_out.solve(laid_out.reference)
    return problem, replace(expected, peers=(*expected.peers, peer))


def compare(name: str, got: Mapping[str, Tensor], expected: Expected) -> None:
    """Raises AssertionError that names case, tensor, error, bound and worst index if any tensor
    fails.

    name: what to call the case in the message. got: outputs by name and gradients by `d` + name of
    the input.
    """
    if missing := set(expected.truth) ^ set(got):
        raise AssertionError(f"{name}: results differ in names: {sorted(missing)}")
    failures = []
    for tensor, truth in expected.truth.items():
        peers = [peer[tensor] for peer in expected.peers]
        verdict = judge(got[tensor], truth, peers, grad=tensor in expected.gradients)
        if not verdict:
            failures.append(
                f"{name}: {tensor}: {verdict.reason}{_where(verdict, got[tensor], truth)}"
            )
    if failures:
        raise AssertionError("\n".join(failures))


def check(
    case: Case,
    backend: str | None,
    device: torch.device | str = "cpu",
    unordered: Collection[str] = (),
) -> dict[str, Tensor]:
    """Runs a case on one backend and judges outputs and gradients; returns them.

    The inputs sit inside NaN walls in the case's layout, what the op allocates starts as NaN,
    inputs must be unchanged afterwards and a second run must give the same bits, but for what
    `unordered` names: sums that are known to have no fixed order. Both runs are judged. Raises
    AssertionError that says case, tensor, error, bound and worst index; whatever the public
    function raises passes through.
    """
    place = torch.device(device)
    precision = (
        torch.get_float32_matmul_precision()
        if place.type == "cuda"
        else checks.float32_matmul_precision()
    )
    if precision == "high" and place.type == "cuda":
        precision = "tf32"
    problem, expected = _expected_of(case, precision)

    def call(inputs: Tensors) -> Mapping[str, Tensor]:
        return case.call(inputs, backend)

    got = run_guarded(problem, call, case.layout, place)
    again = run_guarded(problem, call, case.layout, place)
    name = f"{case.id} on {backend or 'the chosen backend'} ({case.reason})"
    compare(name, got, expected)
    if unordered:
        compare(name, again, expected)
    for tensor, value in got.items():
        if tensor not in unordered and not same_bits(value, again[tensor]):
            raise AssertionError(f"{name}: {tensor}: a second run gave other bits")
    return got


def run_guarded(
    problem: Problem, function: Function, layout: str, device: torch.device | str
) -> dict[str, Tensor]:
    """Outputs and gradients of `function`, run between NaN walls on poisoned memory.

    Raises AssertionError if the walls or the inputs changed.
    """
    canary = Canary(layout, torch.device(device))
    guarded = problem.mapped(canary.wall)
    with poisoned_outputs():
        got = guarded.solve(function)
    canary.assert_intact()
    return got


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have equal shape, dtype and bits (NaN equals NaN of the same payload)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _refused(reason: str, worst: tuple[int, ...] = ()) -> Verdict:
    return Verdict(math.inf, 0.0, math.inf, 0.0, worst, reason)


def _same_kind(a: Tensor, b: Tensor) -> Tensor:
    """Where both are finite, or both NaN, or the same infinity."""
    return (a.isfinite() & b.isfinite()) | (a.isnan() & b.isnan()) | (a == b)


def _argmax(values: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(values.argmax(), values.shape))


def _at(values: Tensor, index: tuple[int, ...]) -> str:
    return f"{float(values[index]):.9g}"


def _where(verdict: Verdict, got: Tensor, truth: Tensor) -> str:
    if not math.isfinite(verdict.error):
        return f" at {list(verdict.worst)}" if verdict.worst else ""
    at = verdict.worst
    values = f"got {_at(got, at)}, truth {_at(truth, at)}"
    return f" at {list(at)}: {values}, rms {verdict.rms:.3g} of {verdict.rms_bound:.3g}"


def _rms(values: Tensor, count: int) -> float:
    return math.sqrt(float(values.square().sum()) / count)
