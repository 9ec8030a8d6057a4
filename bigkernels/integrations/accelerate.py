"""accelerate(): puts fused blocks into a model in place, says what it did, and takes it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import nn

from bigkernels.integrations import backbone, families, heads, stacks, whole
from bigkernels.integrations.twins import fused_class, role_of, stock_class


@dataclasses.dataclass(frozen=True)
class Report:
    """What ``accelerate`` did to a model; ``print`` it.

    Attributes:
        swapped: dotted name of each replaced block and its stock class's name.
        skipped: dotted name of each block that could have been replaced, and why it was not.
        padded: dotted name of each backbone that ran its last batch padded, or will run every padded batch so, and
            why.
        encoders: dotted name of each backbone that has run, and how its layers last ran: in one native call, of which
            precision, or layer by layer, and why.
        packed_bytes: bytes held in packed copies of weights.
        advice: what to do if nothing was replaced.
    """

    swapped: dict[str, str]
    skipped: dict[str, str]
    padded: dict[str, str]
    encoders: dict[str, str] = dataclasses.field(default_factory=dict)
    packed_bytes: int = 0
    advice: str = ""

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for name in self.swapped.values():
            counts[name] = counts.get(name, 0) + 1
        total = ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing"
        lines = [f"accelerated: {total}; {self.packed_bytes} bytes of packed weights"]
        lines += [f"  skipped {name or 'the model'}: {why}" for name, why in self.skipped.items()]
        lines += [f"  ran padded {name or 'the model'}: {why}" for name, why in self.padded.items()]
        lines += [
            f"  layers of {name or 'the model'}: {how}" for name, how in self.encoders.items()
        ]
        return "\n".join([*lines, self.advice] if self.advice else lines)


class Handle:
    """What ``accelerate`` returns; usable as a context manager that restores at its end."""

    def __init__(
        self,
        model: nn.Module,
        swaps: list[nn.Module],
        skipped: dict[str, str],
        precision: str | None,
    ) -> None:
        self._model = model
        self._precision = precision
        self._before = [(m, whole.encoder_of(m).asked) for m in _backbones(model)]
        self._ask()
        self._swaps = swaps
        self._skipped = skipped

    def report(self) -> Report:
        """What was replaced, what was not and why, and which backbone ran padded."""
        mine = {id(m) for m in self._swaps}
        names = dict(self._model.named_modules())
        swapped = {
            n: stock_class(m).__name__
            for n, m in names.items()
            if id(m) in mine and (role := role_of(m)) is not None and not role.head
        }
        padded = _readers(self._model)
        padded |= {n: why for n, m in names.items() if (why := backbone.why_padded(m)) is not None}
        calls = {n: call for n, m in names.items() if (call := whole.known(m)) is not None}
        encoders = {n: call.story for n, call in calls.items() if call.story}
        held = sum(call.bytes for call in calls.values())
        return Report(
            swapped, dict(self._skipped), padded, encoders, held, advice=_advice(self._model)
        )

    def _ask(self) -> None:
        for module in _backbones(self._model):
            whole.ask(module, self._precision)

    def refresh(self) -> None:
        """Replaces what has been added to the model since; weights are packed anew at the next call."""
        swaps, self._skipped = _swap(self._model)
        self._swaps += swaps
        self._ask()
        for module in _backbones(self._model):
            stacks.forget(module)

    def restore(self) -> None:
        """Puts the stock classes back; the modules and parameters are the same objects throughout."""
        _restore(self._swaps)
        for module, asked in self._before:
            if role_of(module) is not None:
                whole.ask(module, asked)
        self._swaps, self._before = [], []

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()


def _backbones(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if (role := role_of(m)) is not None and role.stack]


def _restore(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if role_of(module) is not None:
            stacks.forget(module)
            whole.forget(module)
            module.__class__ = stock_class(module)


def _advice(model: nn.Module) -> str:
    """What to do about a model of which nothing, or next to nothing, could be replaced."""
    found = {stock_class(m).__name__ for m in model.modules() if role_of(m) is not None}
    if found - {"LayerNorm"}:
        return ""
    rest = "but LayerNorm " if found else ""
    known = ", ".join(families.FAMILIES)
    return f"No block of a known family {rest}was found ({known}). Build with bigkernels.nn or the functions."


def _readers(model: nn.Module) -> dict[str, str]:
    """Dotted names of the backbones in heads that read padded positions, and why."""
    found = {}
    for head_name, head in model.named_modules():
        role = role_of(head)
        why = heads.why_reads_padding(head) if role is not None and role.head else None
        for name, module in head.named_modules(prefix=head_name) if why else ():
            inner = role_of(module)
            if inner is not None and inner.stack and why:
                found[name] = why
    return found


def _swap(model: nn.Module) -> tuple[list[nn.Module], dict[str, str]]:
    """Swaps what can be swapped, all of it or, after an exception, nothing."""
    chosen: list[tuple[nn.Module, type[nn.Module]]] = []
    skipped: dict[str, str] = {}
    unguarded: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        cls = type(module)
        role = families.role_for(cls) if role_of(module) is None else None
        if role is None:
            continue
        own = "forward" in module.__dict__
        reason = "it has a forward of its own" if own else role.refuse(module)
        if role.head and reason is not None:  # its forward cannot tell the backbone what is read
            unguarded |= dict.fromkeys(module.modules(), f"it is in a {cls.__name__}: {reason}")
        if role.stack:
            reason = reason or unguarded.get(module)
        if reason is None:
            chosen.append((module, fused_class(cls, role)))
        else:
            skipped[name] = reason
    for module, fused in chosen:
        module.__class__ = fused
    return [module for module, _ in chosen], skipped


def accelerate(model: nn.Module, dtype: torch.dtype | str | None = None) -> Handle:
    """Replaces a model's blocks by fused ones, in place: same parameters, same state_dict, same results.

    Works on BERT, RoBERTa, XLM-RoBERTa, ELECTRA, DistilBERT, ViT and GPT-2 of transformers and on torch.nn's
    Transformer encoders, MultiheadAttention and LayerNorm, wherever they sit inside ``model`` (SentenceTransformer,
    CrossEncoder, a task head, your own module). ViT and GPT-2 (without a cache: use_cache=False) change only where all
    layers can be one native call: on the CPU, in evaluation mode, without gradients. Padded batches run without their
    padding; padded positions of the last hidden state are zeros: mask them before you pool over positions. Left-padded
    batches run padded, in stock's precision, as do some others (the report says why). In
    transformers' heads that read padded positions (question answering; labels other than -100 there) padded batches run
    padded. In a model without known blocks at most LayerNorms change, and the report says so.

    Args:
        model: any module; only the blocks of known families in it change.
        dtype: what encoders compute their products in when all their layers run in one native call (on the CPU, in
            evaluation mode, without gradients); everything else runs in the model's own dtype, and the weights stay
            as they are. torch.float32, torch.bfloat16, "int8" (weights and activations; the last third of the layers in
            bfloat16, for accuracy) or "int8_weights" (they alone; fastest at one short sample, slower
            than bfloat16 for large batches), as far as the kernels here serve them; None: the model's dtype, float32 as
            torch.set_float32_matmul_precision has it.

    Returns:
        A handle with ``report()``, ``refresh()`` and ``restore()``; as a context manager it restores at its end.

    Raises:
        TypeError: model is not a module.
        ValueError: an unknown dtype, or one this machine's kernels do not serve.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    precision = _precision(dtype)
    swaps, skipped = _swap(model)
    return Handle(model, swaps, skipped, precision)


def _precision(dtype: object) -> str | None:
    if dtype is None:
        return None
    precision = whole.PRECISIONS.get(dtype) if isinstance(dtype, (torch.dtype, str)) else None
    if precision is None:
        known = ", ".join(map(str, whole.PRECISIONS))
        raise ValueError(f"dtype: got {dtype!r}, expected None or one of {known}")
    if reason := whole.why_not_served(precision):
        raise ValueError(f"dtype: {dtype} is not served here: {reason}")
    return precision


def restore(model: nn.Module) -> None:
    """Puts the stock classes back in a model whose handle is gone, for example a deepcopy of an accelerated one.

    Modules built from bigkernels.nn become torch.nn's too: nothing tells them from swapped ones.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    _restore(model.modules())
