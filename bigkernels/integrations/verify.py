"""verify(): whether an accelerated model still computes what stock computes, by the oracle's rule."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigkernels.integrations import packing
from bigkernels.integrations.accelerate import accelerate
from bigkernels.integrations.packing import Plan
from bigkernels.integrations.twins import role_of, stock_class
from bigkernels.testing import oracle


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


@dataclasses.dataclass(frozen=True)
class Verification:
    """What ``verify`` found; ``print`` it.

    Attributes:
        checks: end to end first, then the layers in the order they ran.
        path: "packed", or why the batch ran padded, per backbone.
    """

    checks: tuple[Check, ...]
    path: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether anything was accelerated and every check passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def largest_difference(self) -> float:
        """Largest difference from stock, end to end."""
        found = [c.difference for c in self.checks if c.name.startswith("end to end")]
        return max(found, default=0.0)

    def __str__(self) -> str:
        if not self.checks:
            return "verify: nothing in this model is accelerated, so there is nothing to verify"
        wrong = sum(not c.passed for c in self.checks)
        verdict = "passed" if not wrong else f"FAILED ({wrong} of {len(self.checks)})"
        lines = [f"verify: {verdict}; {'; '.join(self.path)}"]
        for c in self.checks:
            state = "ok" if c.passed else f"FAILED: {c.reason}"
            lines.append(f"  {c.name}: error {c.error:.2e}, allowed {c.bound:.2e}: {state}")
        return "\n".join(lines)


def verify(model: nn.Module, batch: Mapping[str, Any]) -> Verification:
    """Compares the accelerated model with stock on one batch, end to end and layer by layer.

    Each result of the fused path may be as far from stock's float64 result as the oracle allows beside stock's own
    error (see docs/design.md section 6). Runs in evaluation mode without gradients, on the path that a call would
    take; each layer is fed with stock's inputs. The model is left as it was found, after an exception too; one that
    is not accelerated is accelerated for the time being. Memory: a float64 copy of the model.

    Args:
        model: a model that ``accelerate`` knows, accelerated or not.
        batch: the keyword arguments of one call, for example a tokenizer's output.

    Returns:
        A report with ``passed``.

    Raises:
        TypeError: model is not a module or batch not a mapping.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch: expected a mapping of arguments, got {type(batch).__name__}")
    if not any(role_of(m) for m in model.modules()):
        with accelerate(model):
            if not any(role_of(m) for m in model.modules()):
                return Verification((), ())
            return verify(model, batch)
    with _evaluating(model), torch.no_grad(), _no_fast_path():
        fused = _tensors(_call(model, batch))
        path = _paths(model)
        exact = copy.deepcopy(model)
        _to_stock(exact)
        exact.double()
        truth = _tensors(_call(exact, batch, torch.float64))
        keep = _keep(batch)
        wholes = [m for m in model.modules() if (role := role_of(m)) is not None and role.layer]
        with _as_stock(model) as fused_classes:
            layers = _Layers(model, exact, wholes, fused_classes, keep, packed="packed" in path)
            with layers.watching():
                stock = _tensors(_call(model, batch))
        ends = [
            _judge(f"end to end: {name}", fused[name], truth[name], stock[name], keep)
            for name in stock
            if name in fused and name in truth
        ]
    return Verification((*ends, *layers.checks), path)


def _judge(name: str, got: Tensor, truth: Tensor, peer: Tensor, keep: Tensor | None) -> Check:
    for real in () if keep is None else (keep, keep.T):
        if got.shape[:2] == real.shape == truth.shape[:2]:
            # Padded positions hold zeros here and leftovers in stock.
            got, truth, peer = got[real], truth[real], peer[real]
            break
    verdict = oracle.judge(got, truth, [peer])
    difference = float((got.double() - peer.double()).abs().max()) if got.numel() else 0.0
    return Check(name, verdict.error, verdict.bound, difference, verdict.reason)


def _keep(batch: Mapping[str, Any]) -> Tensor | None:
    """The real tokens (B, L) of a batch by its padding mask, or None."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask != 0
    ignore = batch.get("src_key_padding_mask")
    if isinstance(ignore, Tensor) and ignore.dim() == 2 and ignore.dtype == torch.bool:
        return ~ignore
    return None


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Without torch's fast path, which hides the layers and has nested tensors between them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _tensors(output: Any) -> dict[str, Tensor]:
    """The floating-point tensors of a model's output, by name."""
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, Mapping):
        items = list(output.items())
    elif hasattr(output, "_asdict"):
        items = list(output._asdict().items())
    else:
        items = [(str(i), value) for i, value in enumerate(output)]
    return {
        str(name): value
        for name, value in items
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def _call(model: nn.Module, batch: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
    given = {
        name: value.to(dtype)
        if dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in batch.items()
    }
    if type(model).__module__.startswith("sentence_transformers"):
        return model(given)  # its forward takes the features as one dict
    return model(**given)


def _paths(model: nn.Module) -> tuple[str, ...]:
    from bigkernels.integrations import backbone

    found = []
    for name, module in model.named_modules():
        if role_of(module) is backbone.BACKBONE:
            why = backbone.why_padded(module)
            found.append("packed" if why is None else f"{name or 'the model'} ran padded: {why}")
    return tuple(found) or ("no backbone",)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _to_stock(model: nn.Module) -> list[tuple[nn.Module, type[nn.Module]]]:
    twins = [(m, type(m)) for m in model.modules() if role_of(m)]
    for module, _ in twins:
        module.__class__ = stock_class(module)
    return twins


@contextlib.contextmanager
def _as_stock(model: nn.Module) -> Iterator[dict[nn.Module, type[nn.Module]]]:
    twins = _to_stock(model)
    try:
        yield dict(twins)
    finally:
        for module, cls in twins:
            module.__class__ = cls


class _Layers:
    """Runs each fused layer on the inputs stock's layer gets, as stock's forward reaches it."""

    def __init__(
        self,
        model: nn.Module,
        exact: nn.Module,
        wholes: list[nn.Module],
        fused: Mapping[nn.Module, type[nn.Module]],
        keep: Tensor | None,
        packed: bool,
    ) -> None:
        self.checks: list[Check] = []
        self._fused, self._packed, self._keep = fused, packed, keep
        names = {module: name for name, module in model.named_modules()}
        doubles = dict(exact.named_modules())
        self._layers = {module: (names[module], doubles[names[module]]) for module in wholes}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [m.register_forward_hook(self._check, with_kwargs=True) for m in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _check(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        name, double = self._layers[module]
        hidden = args[0] if args else next(iter(kwargs.values()))
        peer = output[0] if isinstance(output, tuple) else output
        exact_args, exact_kwargs = _doubled((args, kwargs))
        truth = double(*exact_args, **exact_kwargs)
        truth = truth[0] if isinstance(truth, tuple) else truth
        with self._fused_again(module):
            plan = self._plan(hidden)
            if plan is None:
                got = module(*args, **kwargs)
            else:
                got = module(packing.unpad(hidden, plan)[None], bigkernels_plan=plan)
                got = packing.pad(got[0], plan)
        got = got[0] if isinstance(got, tuple) else got
        self.checks.append(_judge(name, got, truth, peer, self._keep))

    @contextlib.contextmanager
    def _fused_again(self, layer: nn.Module) -> Iterator[None]:
        """The layer and all inside it as accelerated, without the hook that is running."""
        inside = [(m, type(m)) for m in layer.modules() if m in self._fused]
        hooks, layer._forward_hooks = layer._forward_hooks, type(layer._forward_hooks)()
        for module, _ in inside:
            module.__class__ = self._fused[module]
        try:
            yield
        finally:
            for module, stock in inside:
                module.__class__ = stock
            layer._forward_hooks = hooks

    def _plan(self, hidden: Tensor) -> Plan | None:
        if not self._packed:
            return None
        if self._keep is None:
            return packing.full_plan(hidden.shape[0], hidden.shape[1], hidden.device)
        return packing.plan(self._keep)


def _doubled(value: Any) -> Any:
    """The same nest of arguments with its floating-point tensors in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_doubled(v) for v in value)
    if isinstance(value, dict):
        return {k: _doubled(v) for k, v in value.items()}
    return value
