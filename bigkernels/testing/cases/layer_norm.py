"""Cases of the layer_norm room: layer_norm, rms_norm and their fused forms."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigkernels.ops import dropout
from bigkernels.ops.layer_norm import api, reference
from bigkernels.ops.layer_norm.contract import Facts, stat_dtype
from bigkernels.testing.cases import Case
from bigkernels.testing.problem import Function, Problem, Tensors

SEED, OFFSET = 0x1234_5678_9ABC_DEF, 7

VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "constant": lambda x: torch.full_like(x, 1.7),
    "zeros": torch.zeros_like,
    "large": lambda x: x * 1e4,
    "huge": lambda x: x * 1e15,
    "tiny": lambda x: x * 1e-20,
    "subnormal": lambda x: x * 1e-6,
    "near_eps": lambda x: x * 3e-3,
    "far_mean": lambda x: x + 30,
    "very_far_mean": lambda x: x + 1e4,
    "outlier": lambda x: torch.where(torch.arange(x.shape[-1]) == x.shape[-1] // 3, x * 1e3, x),
    "positive": lambda x: x.abs() * 1e4,
    "integers": lambda x: (x * 4).round(),
}


@dataclass(frozen=True, kw_only=True)
class LayerNormCase(Case):
    """A call of layer_norm, or of rms_norm if it is not centred.

    shape: of the input; the last `dims` dimensions are normalized. weight, bias: present or not;
    wide: they are float32 beside a 16-bit input. values: what the input holds, a key of VALUES.
    repeated: names ("x", "dout") of the tensors whose first dimension has stride 0. grads: inputs
    whose gradient is wanted, by their first letter.
    """

    room: ClassVar[str] = "layer_norm"
    operation: ClassVar[str] = "layer_norm"

    shape: tuple[int, ...]
    dims: int = 1
    weight: bool = True
    bias: bool = True
    wide: bool = False
    eps: float = 1e-5
    values: str = "normal"
    repeated: tuple[str, ...] = ()
    grads: str = "xwb"
    centred: bool = True

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        return self.shape[-self.dims :]

    def problem(self) -> Problem:
        draw = _drawer(self.seed)
        x = VALUES[self.values](draw(self.shape)).to(self.dtype)
        inputs: dict[str, Tensor | None] = {
            "x": _repeated(x) if "x" in self.repeated else x,
            "weight": _parameter(self, draw, 1.0) if self.weight else None,
            "bias": _parameter(self, draw, 0.0) if self.bias and self.centred else None,
        }
        dout = draw(self.shape).to(self.dtype)
        letters = "abcdefgh"[: len(self.shape)]
        axes = {
            "x": letters,
            "weight": letters[-self.dims :],
            "bias": letters[-self.dims :],
            "out": letters,
        }
        douts = {"out": _repeated(dout) if "dout" in self.repeated else dout}
        return Problem(inputs, douts, _wanted(inputs, self.grads), self._reference(), axes)

    def _reference(self) -> Function:
        n = math.prod(self.normalized_shape)

        def function(inputs: Tensors) -> Mapping[str, Tensor]:
            x = _present(inputs["x"])
            rule = (n, self.eps, self.centred)
            return {"out": reference.layer_norm(x, inputs["weight"], inputs["bias"], *rule)}

        return function

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        x, weight, bias = _present(inputs["x"]), inputs["weight"], inputs["bias"]
        if self.centred:
            out = api.layer_norm(x, self.normalized_shape, weight, bias, self.eps, backend=backend)
        else:
            out = api.rms_norm(x, self.normalized_shape, weight, self.eps, backend=backend)
        return {"out": out}

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def facts(self, device: str) -> Facts:
        n = math.prod(self.normalized_shape)
        needs_grad = bool(self.grads)
        op = "layer_norm" if self.centred else "rms_norm"
        return Facts(op, device, self.dtype, _weight_dtype(self), n, False, needs_grad)


@dataclass(frozen=True, kw_only=True)
class AddLayerNormCase(Case):
    """A call of add_layer_norm, or of add_rms_norm if it is not centred.

    shape, weight, bias, wide, values, repeated, grads ("r" for residual, "a" for x_bias): as in
    LayerNormCase, values and the stride 0 for x and residual alike. residual_dtype: if not the
    case's. x_bias, return_sum: as the function's arguments; a returned sum gets a gradient. packed:
    lengths of the samples the rows belong to, given as `rows`.
    """

    room: ClassVar[str] = "layer_norm"
    operation: ClassVar[str] = "add_layer_norm"

    shape: tuple[int, ...]
    weight: bool = True
    bias: bool = True
    wide: bool = False
    eps: float = 1e-12
    x_bias: bool = False
    dropout_p: float = 0.0
    return_sum: bool = False
    residual_dtype: torch.dtype | None = None
    packed: tuple[int, ...] = ()
    values: str = "normal"
    repeated: tuple[str, ...] = ()
    grads: str = "xrwba"
    centred: bool = True

    @property
    def result_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, self.residual_dtype or self.dtype)

    def problem(self) -> Problem:
        draw = _drawer(self.seed)
        x = VALUES[self.values](draw(self.shape)).to(self.dtype)
        residual = VALUES[self.values](draw(self.shape)).to(self.residual_dtype or self.dtype)
        rows = _rows_of(self.packed) if self.packed else None
        inputs: dict[str, Tensor | None] = {
            "x": _repeated(x) if "x" in self.repeated else x,
            "residual": _repeated(residual) if "x" in self.repeated else residual,
            "weight": _parameter(self, draw, 1.0) if self.weight else None,
            "bias": _parameter(self, draw, 0.0) if self.bias and self.centred else None,
            "x_bias": _parameter(self, draw, 0.0) if self.x_bias else None,
            "rows": rows,
            "keep": self._keep(x, rows) if self.dropout_p else None,
        }
        douts = {"out": draw(self.shape).to(self.result_dtype)}
        if self.return_sum:
            douts["sum"] = draw(self.shape).to(self.result_dtype)
        if "dout" in self.repeated:
            douts = {name: _repeated(dout) for name, dout in douts.items()}
        letters = "abcdefgh"[: len(self.shape)]
        axes = dict.fromkeys(("x", "residual", "keep", "out", "sum"), letters)
        axes |= dict.fromkeys(("weight", "bias", "x_bias"), letters[-1]) | {"rows": "."}
        return Problem(inputs, douts, _wanted(inputs, self.grads), self._reference, axes)

    def _keep(self, x: Tensor, rows: Tensor | None) -> Tensor:
        return dropout.keep_rows(x, self.dropout_p, torch.tensor(SEED), torch.tensor(OFFSET), rows)

    def _reference(self, inputs: Tensors) -> Mapping[str, Tensor]:
        x, residual = _present(inputs["x"]), _present(inputs["residual"])
        dtype = torch.promote_types(x.dtype, residual.dtype)
        stat = stat_dtype(dtype)
        weight, bias = inputs["weight"], inputs["bias"]
        out, total = reference.add_layer_norm_keeping(
            x.to(stat),
            residual.to(stat),
            weight,
            bias,
            self.eps,
            inputs["x_bias"],
            self.dropout_p,
            inputs["keep"],
            self.centred,
        )
        # The contract keeps the sum for the backward in the result's dtype, as torch's own ops in
        # that dtype would: gradients are those at the rounded sum, the output is that of the exact one.
        rounded = total + (total.to(dtype).to(stat) - total).detach()
        through = reference.layer_norm(
            rounded, weight, bias, self.shape[-1], self.eps, self.centred
        )
        out = (through + (out - through).detach()).to(dtype)
        return {"out": out, "sum": total.to(dtype)} if self.return_sum else {"out": out}

    def call(self, inputs: Tensors, backend: str | None) -> Mapping[str, Tensor]:
        x, residual, weight = _present(inputs["x"]), _present(inputs["residual"]), inputs["weight"]
        function: Callable[..., Any] = functools.partial(api.add_rms_norm, x, residual, weight)
        if self.centred:
            function = functools.partial(api.add_layer_norm, x, residual, weight, inputs["bias"])
        found = function(
            self.eps,
            x_bias=inputs["x_bias"],
            dropout_p=self.dropout_p,
            return_sum=self.return_sum,
            seed=SEED if self.dropout_p else None,
            offset=OFFSET if self.dropout_p else None,
            rows=inputs["rows"],
            backend=backend,
        )
        return {"out": found} if isinstance(found, Tensor) else {"out": found[0], "sum": found[1]}

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def facts(self, device: str) -> Facts:
        weight_dtype, n = _weight_dtype(self), self.shape[-1]
        return Facts(
            "add_layer_norm" if self.centred else "add_rms_norm",
            device,
            self.result_dtype,
            weight_dtype,
            n,
            self.dropout_p > 0,
            bool(self.grads),
        )


def random_cases(count: int) -> list[Case]:
    """Seeded random calls: what no one thought of."""
    found: list[Case] = []
    for seed in range(count):
        r = random.Random(seed)
        dims = r.choice((1, 1, 1, 2))
        shape = tuple(r.randint(1, 9) for _ in range(r.randint(0, 2)))
        # Of one or two features the gradient cancels down to noise, which nothing can be judged by.
        width = round(2 ** r.uniform(2, 11))
        common: dict[str, Any] = {
            "reason": "random",
            "seed": seed,
            "dtype": r.choice(
                (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
            ),
            "layout": r.choice(("contiguous", "odd_offset", "row_gap", "doubled", "transposed")),
            "weight": r.random() < 0.8,
            "bias": r.random() < 0.8,
            "wide": r.random() < 0.2,
            "values": r.choice(("normal", "integers")),
            "centred": seed % 5 != 0,
        }
        if seed % 2:
            shape = (*shape, width) if dims == 1 else (*shape, r.randint(1, 4), max(1, width // 4))
            found.append(LayerNormCase(shape=shape, dims=dims, **common))
        else:
            more: dict[str, Any] = {"x_bias": r.random() < 0.5, "return_sum": r.random() < 0.5}
            p = r.choice((0.0, 0.1, 0.5))
            found.append(AddLayerNormCase(shape=(*shape, width), dropout_p=p, **more, **common))
    return found


def hand_picked() -> list[Case]:
    """About 120 cases, each with its reason; see layer_norm_table.py."""
    from bigkernels.testing.cases import layer_norm_table as table

    return [
        *(LayerNormCase(reason=reason, **what) for reason, what in table.LAYER_NORM),
        *(AddLayerNormCase(reason=reason, **what) for reason, what in table.ADD_LAYER_NORM),
    ]


def _drawer(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def _parameter(
    case: LayerNormCase | AddLayerNormCase, draw: Callable[[tuple[int, ...]], Tensor], centre: float
) -> Tensor:
    shape = case.normalized_shape if isinstance(case, LayerNormCase) else case.shape[-1:]
    dtype = case.dtype if isinstance(case, LayerNormCase) else case.result_dtype
    wide = case.wide and dtype in (torch.bfloat16, torch.float16)
    return (centre + draw(shape) / 2).to(torch.float32 if wide else dtype)


def _weight_dtype(case: LayerNormCase | AddLayerNormCase) -> torch.dtype | None:
    if not case.weight:
        return None
    dtype = case.dtype if isinstance(case, LayerNormCase) else case.result_dtype
    return torch.float32 if case.wide and dtype != torch.float64 else dtype


def _repeated(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


def _rows_of(lengths: tuple[int, ...]) -> Tensor:
    pairs = [b << 32 | i for b, length in enumerate(lengths) for i in range(length)]
    return torch.tensor(pairs, dtype=torch.int64)


def _wanted(inputs: Mapping[str, Tensor | None], letters: str) -> tuple[str, ...]:
    names = {"x": "x", "r": "residual", "w": "weight", "b": "bias", "a": "x_bias"}
    return tuple(
        name for letter, name in names.items() if letter in letters and inputs.get(name) is not None
    )


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
