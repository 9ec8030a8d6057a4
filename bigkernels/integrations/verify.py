"""verify(): whether an accelerated model still computes what stock computes, by the oracle's rule."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigkernels.integrations import backbone, outputs, stacks, whole
from bigkernels.integrations.accelerate import accelerate
from bigkernels.integrations.calls import Call, recorded
from bigkernels.integrations.outputs import Check
from bigkernels.integrations.permuted import Permuted
from bigkernels.integrations.twins import role_of, stock_class
from bigkernels.integrations.verify_layers import Layers, not_judged
from bigkernels.testing.precision import products_rounded_like


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
    error (see docs/design.md section 6), whose sums may be taken in other orders; every output stock returns must be
    there. Where ``accelerate(dtype=...)`` or torch's precision setting lets the native call lose precision, stock's
    products lose as much; int8 is judged by the cosines of section 6. Runs in evaluation mode without gradients, on
    the path that a call would take; each layer is fed with stock's inputs. The model is left as it was found, after an
    exception too; one that is not accelerated is accelerated for the time being. Memory: a float64 copy of the model.

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
        with recorded() as calls:
            fused = outputs.named(_call(model, batch))
        path = _paths(model)
        exact = copy.deepcopy(model)
        _to_stock(exact)
        exact.double()
        truth, why = _truth(exact, batch)
        wholes = _layers(model, calls)
        with _as_stock(model) as fused_classes:
            loss = _loss(calls)
            layers = Layers(model, exact, wholes, fused_classes, calls, loss)
            with _losing(loss):
                with layers.watching():
                    stock = outputs.named(_call(model, batch))
                ends = _ends(model, batch, fused, truth, stock, layers.masks, why, loss)
    return Verification((*ends, *layers.checks), path)


def _layers(model: nn.Module, calls: list[Call]) -> list[nn.Module]:
    """The layers to check: not those that are stock's but in a native call, if there was none."""
    served = {m for call in calls if call.precision is not None for m in call.backbone.modules()}
    return [
        m
        for m in model.modules()
        if (role := role_of(m)) is not None
        and role.layer
        and (role.forward is not stacks.as_stock or m in served)
    ]


def _loss(calls: list[Call]) -> str | None:
    """The most that a native call lost by the precision of its products."""
    found = set()
    for call in calls:
        dtypes = {p.dtype for p in call.backbone.parameters()}
        found |= {whole.loss(call.precision, dtype) for dtype in dtypes}
    return next((loss for loss in ("int8", "medium", "high") if loss in found), None)


@contextlib.contextmanager
def _losing(loss: str | None) -> Iterator[None]:
    """Stock's products lose as much, those inside its attention too."""
    if loss not in ("medium", "high"):
        yield
        return
    kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with kernel, products_rounded_like(loss):
        yield


def _truth(exact: nn.Module, batch: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What stock returns in float64, or why it cannot: a replaced method may hold on to the original's weights."""
    try:
        return outputs.named(_call(exact, batch, torch.float64)), ""
    except Exception as error:
        return {}, not_judged(error)


def _ends(
    model: nn.Module,
    batch: Mapping[str, Any],
    fused: dict[str, Any],
    truth: dict[str, Any],
    stock: dict[str, Any],
    masks: list[Tensor],
    why: str,
    loss: str | None,
) -> list[Check]:
    """The checks of every output end to end; model runs as stock."""
    keep = _keep(batch)
    masks = [m for m in (*masks, *([] if keep is None else [keep])) if not m.all()]
    short = _shorter(model, batch, masks)

    @functools.cache
    def permuted(seed: int) -> dict[str, Any]:
        with Permuted(seed):
            return outputs.named(_call(model, batch))

    found = []
    for output in dict.fromkeys((*stock, *fused)):
        name, got, theirs = f"end to end: {output}", fused.get(output), stock.get(output)
        if not (outputs.is_float(got) and outputs.is_float(theirs)):
            if reason := outputs.unlike(got, theirs):
                found.append(outputs.failed(name, reason))
            continue
        exact = truth.get(output)
        if not outputs.is_float(exact):
            found.append(outputs.failed(name, why or "not judged: float64 does not return it"))
            continue
        at = outputs.tokens(theirs, short.get(output), masks)
        # Padded positions hold zeros here and leftovers in stock.
        again = functools.partial(_named, permuted, output)
        found.append(outputs.judged(name, got, exact, theirs, again, at, loss))
    return found


def _named(results: Callable[[int], dict[str, Any]], name: str, seed: int) -> Tensor:
    return results(seed)[name]  # type: ignore[no-any-return]


def _shorter(model: nn.Module, batch: Mapping[str, Any], masks: list[Tensor]) -> dict[str, Any]:
    """Stock's results on the batch without its last position: what shrinks has a value for each position."""
    if not masks:
        return {}
    try:
        return outputs.named(_call(model, outputs.shortened(batch, masks[0])))
    except Exception:  # a model of one length: its results are told apart by their shape alone
        return {}


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
    found = []
    for name, module in model.named_modules():
        role = role_of(module)
        if role is None or not role.stack:
            continue
        why, call = backbone.why_padded(module), whole.known(module)
        if why is not None:
            found.append(f"{name or 'the model'} ran padded: {why}")
        elif role is backbone.BACKBONE or (call is not None and call.reason is None):
            found.append("packed")
        else:
            how = "" if call is None else call.story
            found.append(f"{name or 'the model'} ran its layers {how or 'padded'}")
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
