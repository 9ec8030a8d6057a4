"""The hallway's only door to native code: loads ``_C.so``, defines every op's schema, registers every fake.

Schemas live in the rooms' ``contract.py`` and nowhere else. An op is named
``bigkernels::<room>_<direction>_<backend>``; it exists for the backends its room lists.
"""

from __future__ import annotations

import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch

ROOMS = ("layer_norm", "attention", "ffn", "encoder", "embedding", "cross_entropy", "packing")

LIBRARY = torch.library.Library("bigkernels", "FRAGMENT")


def _build_reason() -> str:
    """Why setup.py left the C++ extension out, as it wrote down."""
    try:
        info = json.loads(pathlib.Path(__file__).with_name("_build_info.json").read_text())
    except OSError:
        return "`make build` or `pip install .` builds it"
    return str(info["not_built"].get("_C.so", "it was removed after the build"))


def _load_extension() -> str | None:
    """Loads the compiled front ends; returns why they could not be loaded, or None."""
    path = pathlib.Path(__file__).with_name("_C.so")
    if not path.exists():
        return f"the C++ extension is not built: {_build_reason()}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the C++ extension does not load: {str(error).splitlines()[0]}"
    return None


def _philox_seed(like: torch.Tensor) -> torch.Tensor:
    # random_() with these bounds draws all 63 non-negative bits from the device's own generator,
    # so torch.manual_seed, checkpointing and torch.compile see one and the same stream.
    return torch.empty((), dtype=torch.int64, device=like.device).random_()


def _define() -> None:
    # Tagged as random so that compilers and checkpointing neither drop, merge nor replay it blindly.
    LIBRARY.define("philox_seed(Tensor like) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
    LIBRARY.impl("philox_seed", _philox_seed, "CompositeExplicitAutograd")
    torch.library.register_fake(
        "bigkernels::philox_seed",
        lambda like: torch.empty((), dtype=torch.int64, device=like.device),
        lib=LIBRARY,
    )
    for room in ROOMS:
        contract = importlib.import_module(f"bigkernels.ops.{room}.contract")
        for name, schema in contract.SCHEMAS.items():
            for backend in contract.BACKENDS:
                LIBRARY.define(f"{name}_{backend}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
                torch.library.register_fake(
                    f"bigkernels::{name}_{backend}", contract.FAKES[name], lib=LIBRARY
                )


def kernels(name: str, backends: tuple[str, ...]) -> dict[str, Any]:
    """The op ``name`` (for example "layer_norm_forward") of each backend, ready to call."""
    ops = {b: getattr(torch.ops.bigkernels, f"{name}_{b}").default for b in backends}
    return {b: _direct(f"{name}_{b}", op) if b == "triton" else op for b, op in ops.items()}


# Of the ops that Python implements, by name: what is registered for a GPU's tensors.
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_is_neg, _is_batched = torch.Tensor.is_neg, torch._C._functorch.is_legacy_batchedtensor
_is_compiling, _transforms = torch.compiler.is_compiling, torch._C._are_functorch_transforms_active
_dispatch_modes, _function_modes = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
)
_is_profiled = torch._C._autograd._profiler_enabled


def _direct(name: str, op: torch._ops.OpOverload) -> Callable[..., Any]:
    """``op``, but its implementation is called itself where nobody between could tell: torch's dispatcher takes 2 to 6
    microseconds to hand the arguments of one Python function to another.

    Tensors must be torch's own, with their values in their memory: x.conj().imag has the negative there, and the
    gradients of is_grads_batched, which come first, have none.
    """
    places = [i for i, a in enumerate(op._schema.arguments) if "Tensor" in str(a.type)]
    gradients = 2 if "_backward" in name else 0

    def call(*arguments: Any) -> Any:
        if (
            _is_compiling()
            or _dispatch_modes()
            or _function_modes()
            or _is_profiled()
            or _transforms()
        ):
            return op(*arguments)
        for i in places:
            x = arguments[i]
            if x is not None and (
                x.__class__ not in _TENSORS or _is_neg(x) or (i < gradients and _is_batched(x))
            ):
                return op(*arguments)
        implementation = IMPLEMENTATIONS.get(name)
        return op(*arguments) if implementation is None else implementation(*arguments)

    return call


def why_no_kernels(room: str) -> str | None:
    """Why the C++ extension does not serve a room on the CPU, or None if it does."""
    contract = importlib.import_module(f"bigkernels.ops.{room}.contract")
    if "cpu" not in contract.BACKENDS:
        return None  # nobody asks
    if extension_error is not None:
        return extension_error
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"bigkernels::{room}_forward_cpu", "CPU"):
        return None
    return f"the C++ extension holds no {room} kernels"


extension_error: str | None = _load_extension()
"""Why the C++ kernels are missing, or None when they are loaded."""

_define()
