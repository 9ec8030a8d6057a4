"""Which drawer serves a call, and why the others do not.

A room offers drawers in a fixed order; the first whose ``limits(facts)`` is empty serves the call. A drawer
that was asked for by name never falls back: it serves, or ``Unsupported`` says why it cannot. Inside functorch's
transforms, forward-mode AD and torch.jit.trace calls are the differentiable reference's; a trace may hold an encoder.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import importlib
import inspect
import os
import types
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

from bigkernels import library
from bigkernels.ops import checks

ORDER = ("cuda", "triton", "cpu", "reference")
_DEVICES = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu"}


class Unsupported(RuntimeError):
    """A backend was asked for by name and cannot serve the call; the message gives its reasons."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What would serve a call and why not the others; ``print`` it.

    Attributes:
        room: the operation.
        facts: what the choice depends on.
        chosen: the backend that serves the call.
        refusals: for each other backend the reasons why it does not.
        notes: what else is worth knowing of the chosen path.
    """

    room: str
    facts: tuple[Any, ...]
    chosen: str
    refusals: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.room}: {self.chosen}"]
        lines += [f"  not {name}: {'; '.join(why)}" for name, why in self.refusals.items() if why]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Record:
    """One call seen by ``trace()``: the room, the backend that served it, the facts it was chosen by."""

    room: str
    backend: str
    facts: tuple[Any, ...]


def _environment_backend() -> str | None:
    name = os.environ.get("BIGKERNELS_BACKEND") or None
    if name is not None and name not in ORDER:
        raise ValueError(f"BIGKERNELS_BACKEND: {name!r} is not one of {', '.join(ORDER)}")
    return name


_FROM_ENVIRONMENT = _environment_backend()
# GPU backends that take CPU tensors when asked for: in Triton's interpreter, or on an emulated device.
_ON_CPU = frozenset({"triton"} if os.environ.get("TRITON_INTERPRET") == "1" else ())
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "bigkernels_backend", default=None
)
_records: contextvars.ContextVar[list[Record] | None] = contextvars.ContextVar(
    "bigkernels_records", default=None
)
_compiled_forced: str | None = None  # the same for compiled calls: they can guard on a global alone
_chosen: dict[tuple[Any, ...], str] = {}
_DRAWERS: dict[tuple[str, str], types.ModuleType] = {}
_ABSENT: dict[str, str | None] = {}  # why a room has no C++ kernels on the CPU


def register(room: str, backends: tuple[str, ...]) -> None:
    """Called once by each room's ``api.py``: imports its drawers (which must not import triton at their top)."""
    _ABSENT[room] = library.why_no_kernels(room)
    for name in (*backends, "reference"):
        _DRAWERS[room, name] = importlib.import_module(f"bigkernels.ops.{room}.{name}")


def undisturbed() -> bool:
    """Whether no backend is asked for and no record kept, so that a call may take the shortest way."""
    return _forced.get() is None and _records.get() is None and _FROM_ENVIRONMENT is None


_SCALARS = frozenset({int, float, bool, str, tuple, type(None)})
_DENSE = frozenset({torch.Tensor, torch.nn.Parameter})
_MOST_CALLS = 4096  # remembered of a function: lengths may be all different
_Known = TypeVar("_Known")
# Looked up once: these are asked at every call.
_is_compiling, _tracing = torch.compiler.is_compiling, torch._C._get_tracing_state
_transforms = torch._C._are_functorch_transforms_active
_grad, _autocasts = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
_strided = torch.strided


def call_key(scalars: tuple[Any, ...], *tensors: torch.Tensor | None) -> tuple[Any, ...] | None:
    """All that the checks of a call and the choice of its drawer look at; None where that is more than can be told.

    Not while anything records, transforms or casts what is called. The tuples among the scalars are the caller's care:
    True in one is taken for 1.
    """
    if (
        _is_compiling()
        or _records.get() is not None
        or _tracing() is not None
        or _transforms()
        or forward_ad._current_level >= 0
        or _autocasts()
    ):
        return None
    kinds = tuple(map(type, scalars))
    if not _SCALARS.issuperset(kinds):
        return None
    key: list[Any] = [scalars, kinds, _forced.get(), _grad()]
    for t in tensors:
        if t is None:
            key.append(None)
        elif t.__class__ in _DENSE and t.layout is _strided and not t.is_nested:
            key += (t.dtype, t.shape, t.device, t.requires_grad)
        else:
            return None
    return tuple(key)


class Remembered(collections.OrderedDict[tuple[Any, ...], _Known]):
    """What is known of earlier calls, of a bounded number. A room's, by ``call_key``: their checks passed and their
    drawers were chosen."""

    def keep(self, key: tuple[Any, ...], value: _Known) -> None:
        """Where there is no room left, the first one goes: all at once would take a millisecond."""
        if len(self) >= _MOST_CALLS:
            self.popitem(last=False)
        self[key] = value


def asked_for() -> str | None:
    """The backend that ``use_backend`` or the environment asks for, or None."""
    return _forced.get() or _FROM_ENVIRONMENT


def check_name(backend: str | None) -> None:
    """Raises ValueError unless ``backend`` is None or a backend's name."""
    if backend is not None and backend not in ORDER:
        raise ValueError(f"backend: {backend!r} is not one of {', '.join(ORDER)}")


def refusals(room: str, backend: str, facts: Any, forced: bool = False) -> tuple[str, ...]:
    """The reasons why ``backend`` does not serve a call with these facts; empty if it does."""
    if (room, backend) not in _DRAWERS:
        return (f"{room} has no {backend} kernels",)
    if backend == "reference":
        return ()
    if facts.device != _DEVICES[backend]:
        if facts.device != "cpu" or backend not in _ON_CPU:
            return (f"device {facts.device} is not {_DEVICES[backend]}",)
        if not forced:
            return ("on CPU tensors it runs only when asked for",)
    absent = _ABSENT[room] if backend == "cpu" else None
    if absent is not None:
        return (absent,)
    reasons: tuple[str, ...] = _DRAWERS[room, backend].limits(facts)
    return reasons


def _first(room: str, facts: Any, forced: str | None) -> str:
    if forced is not None:
        reasons = refusals(room, forced, facts, forced=True)
        if reasons:
            raise Unsupported(
                f"{room}: backend {forced} does not take this call: {'; '.join(reasons)}"
            )
        return forced
    for name in ORDER:
        if not refusals(room, name, facts):
            return name
    raise AssertionError("the reference has no limits")


def choose(room: str, facts: Any, backend: str | None = None, *, traceable: bool = False) -> str:
    """Name of the drawer that serves a call; ``backend`` forces one.

    traceable: torch.jit.trace may record the drawer's own operator.

    Raises:
        Unsupported: the forced backend cannot serve the call.
        ValueError: the forced backend does not exist.
    """
    if backend is not None:
        check_name(backend)
    if torch.compiler.is_compiling():  # pure while compiling: no cache, no record
        first = _first(room, facts, backend or _compiled_forced or _FROM_ENVIRONMENT)
        return "reference" if checks.transformed() else first
    forced = backend or _forced.get() or _FROM_ENVIRONMENT
    key = (room, facts, forced)
    name = _chosen.get(key)
    if name is None:
        name = _chosen[key] = _first(room, facts, forced)
    if checks.transformed() or (not traceable and _tracing() is not None):
        name = "reference"
    records = _records.get()
    if records is not None:
        records.append(Record(room, name, facts))
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces one backend for all calls inside the ``with`` block (this thread or task only).

    Calls inside functions that torch.compile compiled follow the block entered last in any thread, and
    are compiled again when it changes.

    Raises:
        ValueError: no such backend.
        Unsupported: from a call inside that the backend cannot serve.
    """
    if name not in ORDER:
        raise ValueError(f"name: {name!r} is not one of {', '.join(ORDER)}")
    global _compiled_forced
    compiling = torch.compiler.is_compiling()
    before, _compiled_forced = _compiled_forced, name
    token = None if compiling else _forced.set(name)
    try:
        yield
    finally:
        _compiled_forced = before
        if token is not None:
            _forced.reset(token)


@contextlib.contextmanager
def trace() -> Iterator[list[Record]]:
    """Records which backend served each call made inside the ``with`` block; yields the growing list."""
    records: list[Record] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def explain(room: str, *args: Any, **kwargs: Any) -> Explanation:
    """What would serve ``room``'s public function for these arguments, and why not the others.

    Args:
        room: "attention", "varlen_attn", "layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm", "ffn",
            "embedding", "cross_entropy", "packing.plan", "packing.unpad" or "packing.pad".
        args, kwargs: exactly the public function's arguments.

    Raises:
        ValueError, TypeError: unknown room, or what the public function would raise.
    """
    from bigkernels.ops import catalog

    if not isinstance(room, str) or room not in catalog.FACTS:
        raise ValueError(f"room: {room!r} is not one of {', '.join(catalog.FACTS)}")
    function, home, facts_of, notes_of = catalog.FACTS[room]
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{function.__name__}(): {error}") from None
    backend = kwargs.pop("backend", None)
    check_name(backend)
    forced = backend or _forced.get() or _FROM_ENVIRONMENT
    facts = facts_of(*args, **kwargs)
    why = {name: refusals(home, name, facts, forced=forced == name) for name in ORDER}
    chosen = _first(home, facts, forced)
    because = f"{chosen} comes first" if forced is None else f"{forced} was asked for"
    if checks.through_reference():
        chosen = "reference"
        because = "functorch's transforms, forward-mode AD and torch.jit.trace take the reference"
    others = {n: why[n] or (because,) for n in ORDER if n != chosen}
    return Explanation(room, facts, chosen, others, notes_of(facts, chosen))
