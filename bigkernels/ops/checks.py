"""Checks every room's ``api.py`` shares: one line, naming the argument, what it is and what was expected."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_dense(name: str, value: Tensor) -> None:
    """Raises TypeError if value is sparse or nested: kernels read strided memory."""
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")


def check_float_tensor(name: str, value: object) -> None:
    """Raises TypeError unless value is a dense tensor of float32, bfloat16, float16 or float64."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32, bfloat16, float16 or float64, got {value.dtype}"
        )
    check_dense(name, value)


def check_like(name: str, value: object, x_name: str, x: Tensor, *dtypes: torch.dtype) -> None:
    """Raises unless value is a tensor on x's device, of x's dtype or one of ``dtypes``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype != x.dtype and value.dtype not in dtypes:
        allowed = " or ".join(str(d) for d in dict.fromkeys((x.dtype, *dtypes)))
        raise TypeError(f"{name}: dtype {value.dtype}, expected {allowed} ({x_name} is {x.dtype})")
    if value.device != x.device:
        raise ValueError(f"{name}: device {value.device}, but {x_name} is on {x.device}")
    check_dense(name, value)


def check_parameter(name: str, value: object, x_name: str, x: Tensor, shape: Sequence[int]) -> None:
    """A weight or bias: the shape asked for, of x's dtype, or float32 beside a 16-bit x."""
    extra = () if x.dtype == torch.float64 else (torch.float32,)
    check_like(name, value, x_name, x, *extra)
    if tuple(value.shape) != tuple(shape):  # type: ignore[attr-defined]
        raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {tuple(shape)}")  # type: ignore[attr-defined]


_LARGEST = sys.float_info.max


def check_number(name: str, value: object, low: float = -_LARGEST, high: float = _LARGEST) -> None:
    """Raises unless value is a finite real number in [low, high], Python's or NumPy's."""
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not isinstance(value, (int, float)):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    # Comparisons alone, which torch.compile can trace; NaN fails them. Torch adds no larger integers.
    if not low <= value <= high or (isinstance(value, int) and not -(2**63) <= value < 2**63):
        span = f"a number in [{low:g}, {high:g}]" if high < _LARGEST else "a finite number"
        span += f" of at least {low:g}" if low > -_LARGEST and high == _LARGEST else ""
        raise ValueError(f"{name}: got {value!r}, expected {span}")


def check_integer_or_none(name: str, value: object) -> None:
    """Raises TypeError unless value is an integer, of torch.compile's too, or None."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, torch.SymInt))
    ):
        raise TypeError(f"{name}: expected an integer or None, got {type(value).__name__}")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError unless value is True or False."""
    if not isinstance(value, (bool, torch.SymBool)):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")


def check_rows(rows: object, x: Tensor, count: int) -> None:
    """``rows``: int64, one ``b << 32 | i`` for each of ``count`` rows, on x's device."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
        kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"rows: expected an int64 tensor, got {kind}")
    check_dense("rows", rows)
    if rows.numel() != count:
        raise ValueError(f"rows: shape {tuple(rows.shape)}, expected {count} elements, one a row")
    if rows.device != x.device:
        raise ValueError(f"rows: device {rows.device}, but the input is on {x.device}")


def chip(device: torch.device) -> str:
    """A GPU for which no kernel of ours was ever compiled, by name; empty for all others, and for what is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return ""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        name = str(properties.gcnArchName).split(":")[0]
        return "" if name == "gfx942" else name
    return "" if properties.major >= 8 else f"sm_{properties.major}{properties.minor}"


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype autocast wants products in on this type of device; None where it is off."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


_AS_THEY_ARE = nullcontext()


def own_dtypes(x: Tensor) -> AbstractContextManager[object]:
    """Keeps torch's products in the dtypes they are given, inside autocast too."""
    if not torch._C._is_any_autocast_enabled() or autocast_dtype(x.device.type) is None:
        return _AS_THEY_ARE  # the first is the quickest to ask
    return torch.autocast(x.device.type, enabled=False)


def raising_index_errors(op: Callable[..., Any], *arguments: Any) -> Any:
    """``op(*arguments)``; what it says of an index outside its range is an IndexError, as torch's is."""
    try:
        return op(*arguments)
    except RuntimeError as error:
        _, outside, what = str(error).partition("index out of range: ")
        if not outside:
            raise
        raise IndexError(outside + what) from None


def recorded() -> bool:
    """Whether torch.compile or torch.jit.trace records the call for other values than the ones at hand."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def transformed() -> bool:
    """Whether a functorch transform or forward-mode AD is active: only differentiable torch serves those."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def through_reference() -> bool:
    """Whether one of those or torch.jit.trace is active. A trace must be the same with and without gradients, and be
    saved."""
    tracing = not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None
    return tracing or transformed()


def nothing_active() -> bool:
    """Whether neither a functorch transform, forward-mode AD, a trace nor the CPU's autocast is active."""
    return (
        torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
    )


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)``, where Dynamo can trace it: it refuses a tensor that is passed twice."""
    if torch.compiler.is_compiling():
        tensors: list[Tensor] = []
        for at, value in enumerate(arguments):
            if not isinstance(value, Tensor):
                continue
            if any(value is other for other in tensors):
                arguments = (*arguments[:at], value.view_as(value), *arguments[at + 1 :])
            tensors.append(value)
    return function.apply(*arguments)


def float32_matmul_precision() -> str:
    """How exact float32 products on the CPU shall be: "highest", "high" or "medium", whichever way torch was told.

    ``torch.set_float32_matmul_precision`` writes the newer setting too, which inherits torch.backends.fp32_precision;
    the older one refuses to be read once the newer ones were written apart.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return _BY_TORCH_NAME[matmul.fp32_precision]


_BY_TORCH_NAME = {"none": "highest", "ieee": "highest", "tf32": "high", "bf16": "medium"}


def recomputing() -> bool:
    """Whether a backward must itself be differentiable, so that it goes through the reference."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiate(
    function: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)``, themselves differentiable; None where not needed.

    ``function`` returns a tensor or a tuple of tensors; ``gradients`` has one entry for each, None = zero.
    """
    with torch.enable_grad(), own_dtypes(next(t for t in inputs if t is not None)):
        # Aliases end the inner differentiation here: an input may depend on another one (a weight that
        # made x too), or, being an output of the node that is running, on all of them.
        inputs = [None if t is None else t.view_as(t) for t in inputs]
        outputs = function(*inputs)
        if isinstance(outputs, Tensor):
            outputs = (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            wanted,
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    rest = iter(found)
    return [
        next(rest) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
