"""verify()'s second half: each fused layer beside stock's, on the inputs and the mask stock's layer gets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bigkernels.integrations import outputs
from bigkernels.integrations.calls import Call
from bigkernels.integrations.outputs import Check
from bigkernels.integrations.permuted import Permuted
from bigkernels.integrations.stacks import one_layer
from bigkernels.ops.packing import api as packing


class Layers:
    """Runs each fused layer, its float64 copy and stock on the same inputs, as stock's forward reaches it.

    All of them run without the layer's own hooks; those of the modules inside it run everywhere.

    Args:
        model: the model, about to run as stock.
        exact: its float64 copy.
        wholes: the layers to check.
        fused: the classes of the accelerated modules.
        calls: what each backbone did when the accelerated model ran, in order.
        loss: what the native calls among them lose by their precision, as ``whole.loss`` has it.
    """

    def __init__(
        self,
        model: nn.Module,
        exact: nn.Module,
        wholes: list[nn.Module],
        fused: Mapping[nn.Module, type[nn.Module]],
        calls: list[Call],
        loss: str | None = None,
    ) -> None:
        self.checks: list[Check] = []
        self.masks: list[Tensor] = []
        self._fused, self._calls, self._loss = fused, calls, loss
        names = {module: name for name, module in model.named_modules()}
        doubles = dict(exact.named_modules())
        self._layers = {module: (names[module], doubles[names[module]]) for module in wholes}
        self._current: dict[nn.Module, Call] = {}  # of each layer in a running backbone

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [m.register_forward_hook(self._check, with_kwargs=True) for m in self._layers]
        backbones = {call.backbone for call in self._calls}
        hooks += [m.register_forward_pre_hook(self._enter) for m in backbones]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, shell: nn.Module, args: Any) -> None:
        found = next((call for call in self._calls if call.backbone is shell), None)
        if found is None:
            return
        self._calls.remove(found)
        if found.keep is not None:
            self.masks.append(found.keep)
        self._current |= {m: found for m in shell.modules() if m in self._layers}

    def _check(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        name, double = self._layers[module]
        call = self._current.get(module)
        keep = _keep_of_torchs(args, kwargs) if call is None else call.keep
        if call is None and keep is not None:
            self.masks.append(keep)
        got = self._run_fused(module, call, args, kwargs)
        stock = _first(module.forward(*args, **kwargs))
        exact_args, exact_kwargs = doubled((args, kwargs))
        try:
            truth = _first(double.forward(*exact_args, **exact_kwargs))
        except Exception as error:
            self.checks.append(outputs.failed(name, not_judged(error)))
            return

        def again(seed: int) -> Tensor:
            with Permuted(seed):
                return _first(module.forward(*args, **kwargs))

        at = None if keep is None else _laid_out_like(keep, module, stock)
        self.checks.append(outputs.judged(name, got, truth, stock, again, at, self._loss))

    def _run_fused(
        self, module: nn.Module, call: Call | None, args: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        with self._fused_again(module):
            if call is None or call.plan is None:
                return _first(module.forward(*args, **kwargs))
            hidden = args[0] if args else next(iter(kwargs.values()))
            across = not _batch_first(module)
            packed = packing.unpad(hidden.transpose(0, 1) if across else hidden, call.plan)
            if call.precision is not None:
                out = one_layer(module, packed, call.plan, call.precision, call.causal)
            else:
                out = _first(module.forward(packed[None], bigkernels_plan=call.plan))[0]
            padded = packing.pad(out, call.plan)
            return padded.transpose(0, 1) if across else padded

    @contextlib.contextmanager
    def _fused_again(self, layer: nn.Module) -> Iterator[None]:
        """The layer and all inside it as accelerated."""
        inside = [(m, type(m)) for m in layer.modules() if m in self._fused]
        for module, _ in inside:
            module.__class__ = self._fused[module]
        try:
            yield
        finally:
            for module, stock in inside:
                module.__class__ = stock


def not_judged(error: Exception) -> str:
    """The reason of a check for which there is no truth."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"not judged: stock does not run in float64: {said}"


def doubled(value: Any) -> Any:
    """The same nest of arguments with its floating-point tensors in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(doubled(v) for v in value)
    if isinstance(value, dict):
        return {k: doubled(v) for k, v in value.items()}
    return value


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _keep_of_torchs(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The tokens (B, L) by the padding mask a layer of torch.nn got, bool (True = ignore) or additive."""
    ignore = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
    if not isinstance(ignore, Tensor) or ignore.dim() != 2:
        return None
    return ignore == 0


def _laid_out_like(keep: Tensor, layer: nn.Module, out: Tensor) -> Tensor | None:
    """keep (B, L) as an index of out: (B, L, E), or (L, B, E) of torch's layers that are not batch-first."""
    real = keep if _batch_first(layer) else keep.T
    return real if out.shape[:2] == real.shape else None


def _batch_first(layer: nn.Module) -> bool:
    """Whether a layer's hidden states are (B, L, E)."""
    return bool(getattr(getattr(layer, "self_attn", None), "batch_first", True))
