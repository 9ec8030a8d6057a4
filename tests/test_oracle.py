"""The oracle itself: it must accept honest kernels and fail on planted faults."""

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigkernels import library
from bigkernels.testing import Case, Problem, judge, oracle
from bigkernels.testing.canary import LAYOUTS, Canary, poisoned_outputs
from bigkernels.testing.precision import products_rounded_like

ROWS, N, EPS = 12, 96, 1e-5

Results = Mapping[str, Tensor]


def reference(inputs: Mapping[str, Any]) -> Results:
    # Statistics in float32 at least, as every kernel has them.
    x = inputs["x"]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return {"out": (centred * rstd * inputs["weight"] + inputs["bias"]).to(x.dtype)}


def honest(inputs: Mapping[str, Any], eps: float = EPS) -> Results:
    x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
    return {"out": F.layer_norm(x, (N,), weight, bias, eps)}


def changed(change: Callable[[Tensor], Tensor]) -> Callable[[Mapping[str, Any]], Results]:
    return lambda inputs: {"out": change(honest(inputs)["out"])}


def three_ulp_more(out: Tensor) -> Tensor:
    size = 2.0 ** torch.frexp(out.detach().abs().double())[1]
    return out + (3 * torch.finfo(out.dtype).eps / 2 * size).to(out.dtype)


def one_element(out: Tensor) -> Tensor:
    wrong = torch.zeros_like(out)
    wrong[7, 31] = 0.25 * float(out.detach().abs().max())
    return out + wrong


def one_nan(out: Tensor) -> Tensor:
    return out.index_fill(0, torch.tensor([3]), math.nan)


def read_past_the_end(inputs: Mapping[str, Any]) -> Results:
    x = inputs["x"]
    # One element more than the row has: of the last row that one lies in the wall.
    longer = x.detach().as_strided((ROWS, N + 1), x.stride())
    return {"out": honest(inputs)["out"] + 0 * longer.sum(-1, keepdim=True)}


def last_row_unwritten(inputs: Mapping[str, Any]) -> Results:
    good = honest(inputs)["out"]
    out = torch.empty_like(good)
    out[:-1] = good[:-1]
    return {"out": out}


def scribbles_on_its_input(inputs: Mapping[str, Any]) -> Results:
    inputs["x"].data[0, 0] += 1
    return honest(inputs)


def scribbles_past_its_input(inputs: Mapping[str, Any]) -> Results:
    x = inputs["x"].detach()
    x.as_strided((1,), (1,), x.storage_offset() + x.numel()).fill_(0)
    return honest(inputs)


class LossyGradient(torch.autograd.Function):
    """Right forward; the gradient forgets the last row."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight).expand(ROWS, N)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        return dout[:-1].sum(0)


def gradient_without_last_row(inputs: Mapping[str, Any]) -> Results:
    plain = F.layer_norm(inputs["x"], (N,), None, None, EPS)
    return {"out": plain * LossyGradient.apply(inputs["weight"]) + inputs["bias"]}


def other_bits_each_time(inputs: Mapping[str, Any]) -> Results:
    out = honest(inputs)["out"]
    last = torch.zeros_like(out)
    last[0, 0] = torch.finfo(out.dtype).eps * float(torch.rand(())) * float(out.detach()[0, 0])
    return {"out": out + 2 * last}


FAULTS: dict[str, tuple[Callable[[Mapping[str, Any]], Results], str]] = {
    "eps_doubled": (lambda inputs: honest(inputs, 2 * EPS), "out: error .* > bound"),
    "three_ulp": (changed(three_ulp_more), "out: (rms )?error .* > bound"),
    "one_element": (changed(one_element), r"out: error .* > bound .* at \[7, 31\]"),
    "one_nan": (changed(one_nan), r"out: nan where truth is .* at \[3, 0\]"),
    "infinity": (changed(lambda out: out / 0), "out: (-?inf|nan) where truth is"),
    "name": (lambda inputs: {**honest(inputs), "sum": inputs["x"]}, r"differ in names: \['sum'\]"),
    "read_past_the_end": (read_past_the_end, r"out: nan where truth is .* at \[11, 0\]"),
    "last_row_unwritten": (last_row_unwritten, r"out: nan where truth is .* at \[11, 0\]"),
    "scribbles_on_input": (scribbles_on_its_input, "tensor 0, contiguous: element 64 of its"),
    "scribbles_past_input": (scribbles_past_its_input, "tensor 0, contiguous: element 1216 of"),
    "gradient": (gradient_without_last_row, "dweight: error .* > bound"),
    "nondeterminism": (other_bits_each_time, "a second run gave other bits"),
}


@dataclass(frozen=True, kw_only=True)
class PlainNorm(Case):
    room: ClassVar[str] = "plain"
    operation: ClassVar[str] = "plain_norm"
    elements: ClassVar[int] = ROWS * N

    def problem(self) -> Problem:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        # A variance near eps: a wrong eps shows even in bfloat16.
        inputs = {"x": 0.005 * draw(ROWS, N), "weight": 1 + draw(N) / 4, "bias": draw(N) / 8}
        axes = {"x": "mn", "weight": "n", "bias": "n", "out": "mn"}
        return Problem(inputs, {"out": draw(ROWS, N)}, ("x", "weight", "bias"), reference, axes)

    def call(self, inputs: Mapping[str, Any], backend: str | None) -> Results:
        return honest(inputs) if backend is None else FAULTS[backend][0](inputs)

    def facts(self, device: str) -> None:
        return None


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_honest_kernel_passes(dtype, layout):
    for seed in range(3):
        oracle.check(PlainNorm(reason="honest", dtype=dtype, layout=layout, seed=seed), None)


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [
        (fault, dtype)
        for fault in FAULTS
        for dtype in DTYPES
        # Truth itself knows float64 results no better than to three ulp.
        if (fault, dtype) != ("three_ulp", torch.float64)
    ],
    ids=str,
)
def test_a_planted_fault_fails(fault, dtype):
    case = PlainNorm(reason="a fault", dtype=dtype)
    with pytest.raises(AssertionError, match=FAULTS[fault][1]) as failure:
        oracle.check(case, fault)
    if "tensor 0" not in str(failure.value):
        assert case.id in str(failure.value)


def test_bits_that_may_differ_are_those_of_the_named_alone():
    case = PlainNorm(reason="no order")
    with pytest.raises(AssertionError, match="a second run gave other bits"):
        oracle.check(case, "nondeterminism", unordered=("dx",))
    torch.manual_seed(0)
    oracle.check(case, "nondeterminism", unordered=("out",))
    with pytest.raises(AssertionError, match=r"out: error .* > bound"):
        oracle.check(case, "eps_doubled", unordered=("out",))


def test_the_wrong_shape_or_dtype_is_refused():
    truth = torch.ones(3, 4, dtype=torch.float64)
    peers = [truth.bfloat16()]
    verdict = judge(torch.ones(4, 3).bfloat16(), truth, peers)
    assert verdict.reason == "shape (4, 3), expected (3, 4)"
    assert (
        judge(truth.float(), truth, peers).reason == "dtype torch.float32, expected torch.bfloat16"
    )


def test_an_expected_infinity_must_be_there():
    truth = torch.tensor([1.0, -math.inf], dtype=torch.float64)
    peers = [truth.float()]
    assert judge(truth.float(), truth, peers)
    assert not judge(torch.tensor([1.0, math.inf]), truth, peers)
    assert not judge(torch.tensor([1.0, -1e30]), truth, peers)
    assert judge(torch.tensor([1.0, -1e30]), truth, peers).worst == (1,)


def test_overflow_of_the_tested_dtype_is_the_right_answer():
    truth = torch.tensor([1.0, 1e6], dtype=torch.float64)
    peers = [truth.half()]
    assert judge(truth.half(), truth, peers)
    assert not judge(torch.tensor([1.0, 65504.0]).half(), truth, peers)


def test_a_peer_that_overflows_widens_nothing():
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    peers = [torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 2.0])]
    assert judge(torch.tensor([1.0, 2.0]), truth, peers)
    assert not judge(torch.tensor([1.0, 2.01]), truth, peers)


def test_gradients_get_half_as_much_again():
    truth = torch.zeros(1000, dtype=torch.float64)
    peers = [torch.full((1000,), 1e-3)]
    got = torch.zeros(1000)
    got[0] = 2.5e-3
    assert not judge(got, truth, peers)
    assert judge(got, truth, peers, grad=True)


def test_a_single_number_is_judged_by_the_rule_for_single_numbers():
    truth, peers = torch.zeros(1, dtype=torch.float64), [torch.full((1,), 1e-3)]
    assert judge(torch.full((1,), 1.9e-3), truth, peers)
    assert not judge(torch.full((1,), 2.1e-3), truth, peers)
    assert not judge(torch.full((2,), 1.9e-3), truth.repeat(2), [peers[0].repeat(2)])


def test_empty_and_scalar_tensors_are_judged():
    empty = torch.empty(0, 4)
    assert judge(empty, empty.double(), [empty])
    one = torch.tensor(1.0)
    assert judge(one, one.double(), [one])
    assert not judge(torch.tensor(math.nan), one.double(), [one])


def test_no_peer_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="peers"):
        judge(torch.ones(1), torch.ones(1).double(), [])


def test_permuted_problems_have_the_same_answer():
    problem = PlainNorm(reason="same", dtype=torch.float64).problem()
    straight = problem.solve(reference)
    shuffled, undo = problem.permuted(1)
    assert not torch.equal(shuffled.inputs["x"], problem.inputs["x"])
    for name, value in undo(shuffled.solve(reference)).items():
        torch.testing.assert_close(value, straight[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (3, 4), (2, 1, 5), (2, 3, 4, 5), (0, 3)], ids=str
)
def test_walls_keep_the_values_and_surround_them(shape, layout):
    canary = Canary(layout)
    tensor = torch.randn(shape)
    walled = canary.wall(tensor)
    assert torch.equal(walled, tensor)
    buffer = canary._buffers[0][0]
    assert int(buffer.isfinite().sum()) == tensor.numel()
    assert buffer[:64].isnan().all()
    assert buffer[-64:].isnan().all()
    if layout == "odd_offset" and tensor.numel():
        assert walled.data_ptr() % 8 == 4
    if layout == "doubled" and tensor.numel() > 1:
        assert walled.stride(-1) == 2
    if layout == "transposed" and tensor.dim() == 4:
        assert walled.stride() == (1, 2, 6, 24)


def test_repeated_dimensions_stay_repeated():
    walled = Canary().wall(torch.randn(1, 4).expand(3, 4))
    assert walled.stride() == (0, 1)


def test_what_is_allocated_inside_starts_as_nan():
    was = torch.are_deterministic_algorithms_enabled()
    with poisoned_outputs():
        assert torch.empty(1000).isnan().all()
        assert torch.empty_like(torch.zeros(7, dtype=torch.bfloat16)).isnan().all()
        assert torch.zeros(3).new_empty((2, 2)).isnan().all()
        assert torch.empty_strided((5, 2), (1, 5)).isnan().all()
        assert (torch.empty(9, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
    assert torch.are_deterministic_algorithms_enabled() == was


def test_what_the_front_ends_allocate_starts_as_nan():
    if library.extension_error is not None:
        pytest.skip(str(library.extension_error))
    path = library.__file__.replace("library.py", "_C.so")
    watch = ctypes.CDLL(path).bigkernels_watch_allocations
    assert watch(0) == 0
    with poisoned_outputs():
        assert watch(1) == 1
        with poisoned_outputs():
            pass
        assert watch(1) == 1
    assert watch(0) == 0


def test_rounded_products_lose_what_torch_documents():
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    exact = a.double() @ b.double()
    scale = float(exact.abs().mean())

    def error(precision):
        with products_rounded_like(precision):
            return float(((a @ b).double() - exact).abs().mean()) / scale

    assert error("highest") < 1e-6
    assert error("high") < 1e-5
    assert 1e-4 < error("tf32") < 1e-3
    assert 1e-3 < error("medium") < 1e-2
    with products_rounded_like("high"):
        sum_ = torch.addmm(torch.ones(64, 64), a, b)
    assert float((sum_.double() - exact - 1).abs().mean()) / scale < 1e-5
    with pytest.raises(ValueError, match="precision"), products_rounded_like("low"):
        pass


def test_rounded_products_reach_the_backward():
    a = torch.randn(8, 64, requires_grad=True)
    b = torch.randn(64, 8)
    gradients = []
    for precision in ("highest", "medium"):
        with products_rounded_like(precision):
            gradients.append(torch.autograd.grad((a @ b).sum(), a)[0])
    assert not torch.equal(*gradients)


def test_half_types_pass_products_unchanged():
    a, b = torch.randn(8, 8).bfloat16(), torch.randn(8, 8).bfloat16()
    with products_rounded_like("medium"):
        inside = a @ b
    assert torch.equal(inside, a @ b)
