"""torch.nn's modules stated as problems for the oracle: inputs and parameters by name, torch as the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import bigkernels as bk
from bigkernels.testing import Problem, expect
from bigkernels.testing.oracle import compare
from bigkernels.testing.problem import Tensors

# One letter a dimension: e model, f hidden, k and v the key's and value's own features, "." never permuted.
_PARAMETERS = {
    "in_proj_weight": ".e", "in_proj_bias": ".", "q_proj_weight": ".e", "k_proj_weight": ".k",
    "v_proj_weight": ".v", "bias_k": "...", "bias_v": "...", "out_proj.weight": "e.", "out_proj.bias": "e",
    "linear1.weight": "fe", "linear1.bias": "f", "linear_gate.weight": "fe", "linear_gate.bias": "f",
    "linear2.weight": "ef", "linear2.bias": "e", "norm.weight": "e", "norm.bias": "e",
    "norm1.weight": "e", "norm1.bias": "e", "norm2.weight": "e", "norm2.bias": "e",
}  # fmt: skip

Call = Callable[[nn.Module, Tensors], Mapping[str, Tensor]]


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter a value of its own; torch starts biases at zero and norms at one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_(noise * scale + (1.0 if norm else 0.0))
    return module


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's with the same parameters, in eval mode."""
    theirs = scramble(getattr(nn, name)(*args, **kwargs))
    ours = getattr(bk.nn, name)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, drawn the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def judge_against_torch(
    name: str,
    ours: nn.Module,
    theirs: nn.Module,
    inputs: dict[str, Tensor | None],
    axes: dict[str, str],
    call: Call,
    dtype: torch.dtype,
    outputs: Mapping[str, str],
    reference_call: Call | None = None,
    parameter_axes: Mapping[str, str] = _PARAMETERS,
) -> dict[str, Tensor]:
    """Judges ours (outputs, gradients of inputs and parameters) with torch's module as the reference.

    inputs, axes: tensors and their letters; floating ones of `dtype` get gradients. call: how either module is
    called. outputs: name and letters of each result. reference_call: where torch must be called another way.
    parameter_axes: letters of the parameters by the ends of their names.
    """
    ours.to(dtype), theirs.to(dtype)
    parameters = {k: p.detach() for k, p in theirs.named_parameters()}
    letters = {k: next(v for s, v in parameter_axes.items() if k.endswith(s)) for k in parameters}
    held = {**inputs, **parameters}
    wrt = tuple(
        n for n, t in held.items() if t is not None and t.is_floating_point() and t.isfinite().all()
    )

    def run(module: nn.Module, how: Call, tensors: Tensors) -> Mapping[str, Tensor]:
        own = {k: tensors[k] for k in parameters}
        wrapped: Any = _Called(module, how)
        named = {f"module.{k}": t for k, t in own.items()}
        return torch.func.functional_call(wrapped, named, ({n: tensors[n] for n in inputs},))  # type: ignore[no-any-return]

    shapes = run(ours, call, held)
    douts = {n: random(*shapes[n].shape, seed=7 + i, dtype=dtype) for i, n in enumerate(outputs)}
    problem = Problem(
        inputs=held, douts=douts, wrt=wrt,
        reference=lambda t: run(theirs, reference_call or call, t),
        axes={**axes, **letters, **outputs},
    )  # fmt: skip
    got = problem.solve(lambda t: run(ours, call, t))
    compare(f"{name} in {dtype}", got, expect(problem))
    return got


class _Called(nn.Module):
    """A module with its way of being called, so that functional_call can replace its parameters."""

    def __init__(self, module: nn.Module, how: Call) -> None:
        super().__init__()
        self.module, self.how = module, how

    def forward(self, tensors: Tensors) -> Mapping[str, Tensor]:
        return self.how(self.module, tensors)
