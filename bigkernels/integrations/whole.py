"""All layers of an encoder in one native call: in evaluation, without gradients, where all layers are alike."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigkernels import backends, library
from bigkernels.integrations.packed import PackedCopy, parts
from bigkernels.ops import checks
from bigkernels.ops.encoder import contract, cpu
from bigkernels.ops.packing.contract import Plan

PRECISIONS: dict[object, str] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    "int8": "int8",
    "int8_weights": "int8_weights",
}
"""What accelerate(dtype=...) takes, and the precision of the products it stands for."""

_BY_SETTING = {"highest": "float32", "high": "high", "medium": "bfloat16"}
_ASKED = "_bigkernels_precision"  # of a module, where one was asked for: goes with its copies
_forward = library.kernels("encoder_forward", contract.BACKENDS)["cpu"]


class Layer(NamedTuple):
    """What a family's layer computes with: its parameters in the order of ``contract.PARTS``, and the constants.

    Attributes:
        form: "apart" if there is a parameter for each of those parts; "joined" if query, key and value are one (3E, E)
            weight and one bias; "transposed" if, besides, matrices are (in, out).
    """

    weights: tuple[Tensor | None, ...]
    heads: int
    scaling: float
    eps: tuple[float, float]
    activation: str
    dropout: float  # the largest rate that is applied now
    norm_first: bool = False
    causal: bool = False
    form: str = "apart"

    @classmethod
    def of(
        cls, modules: Sequence[Any], heads: int, scaling: float, activation: str, dropout: float
    ) -> Layer:
        """Of a layer's modules: query, key, value, output, LayerNorm, up, down, LayerNorm."""
        weights = tuple(tensor for m in modules for tensor in (m.weight, m.bias))
        eps = modules[4].eps, modules[7].eps
        return cls(weights, heads, scaling, eps, activation, dropout)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The arguments of the native call for one encoder.

    Attributes:
        reason: why there is no such call; the other fields then mean nothing.
        weights: of all layers, in ``layer.form``.
    """

    reason: str | None
    weights: tuple[Tensor, ...] = ()
    layer: Layer | None = None
    width: int = 0
    hidden: int = 0

    def facts(self, precision: str) -> contract.Facts:
        """What the choice of the kernels depends on."""
        assert self.layer is not None
        like, layer = self.weights[0], self.layer  # states have the weights' device and dtype
        return contract.Facts(
            like.device.type, like.dtype, precision, layer.activation, layer.norm_first,
            layer.causal, self.width, self.hidden, self.width // layer.heads, False,
        )  # fmt: skip

    def seeing(self, causal: bool) -> Recipe:
        """The same for tokens that see those before them alone, or all."""
        if self.layer is None or self.layer.causal == causal:
            return self
        return dataclasses.replace(self, layer=self.layer._replace(causal=causal))


def recipe(layers: list[Layer | None]) -> Recipe:
    """How to run these layers, None for one that is of no known family, by one call."""
    known = [layer for layer in layers if layer is not None]
    if not known or len(known) < len(layers):
        return Recipe("a layer is of no family that one call serves")
    first = known[0]
    none = torch.empty(0)
    weights = tuple(none if w is None else w for layer in known for w in layer.weights)
    shapes = [[None if w is None else w.shape for w in layer.weights] for layer in known]
    constants = [layer[1:] for layer in known]
    if constants.count(constants[0]) < len(known) or shapes.count(shapes[0]) < len(known):
        return Recipe("its layers differ")
    if first.dropout > 0.0:
        return Recipe("dropout is on")
    with torch.no_grad():
        one = parts([w.detach() for w in weights[: len(first.weights)]], first.form)
    query, up, down = one[0], one[10], one[12]
    if (
        first.eps[0] != first.eps[1]
        or abs(first.scaling * (query.shape[0] / first.heads) ** 0.5 - 1) > 1e-6
    ):
        return Recipe("its scale of attention or its two eps are unusual")
    if any(w.dtype != query.dtype for w in weights if w is not none):
        return Recipe("its weights have several dtypes")
    if query.shape[0] != query.shape[1] or query.shape[0] % first.heads:
        return Recipe(f"its attention is {query.shape[0]} wide, its states {query.shape[1]}")
    if down.shape[::-1] != up.shape:
        return Recipe(f"its feed-forward is {up.shape[0]} wide, then {down.shape[1]}")
    return Recipe(None, weights, first, query.shape[0], up.shape[0])


class Encoder:
    """The native call of one encoder, its packed weights and why it last did not run.

    Attributes:
        asked: the precision ``accelerate`` was asked for, or None: that of the model.
        reason: why the last call went layer by layer; None if it did not, or there was none.
        precision: of the last native call.
    """

    def __init__(self, asked: str | None = None) -> None:
        self.asked = asked
        self.reason: str | None = None
        self.precision: str | None = None
        self.copy = PackedCopy()
        self._tail = PackedCopy()  # of the last layers, where they have another precision

    @property
    def bytes(self) -> int:
        """Bytes of packed weights held now."""
        return self.copy.bytes + self._tail.bytes

    def drop(self) -> None:
        """Frees the packed weights."""
        self.copy.drop()
        self._tail.drop()

    @property
    def story(self) -> str:
        """How the layers last ran, or "" if they have not."""
        if self.reason is not None:
            return f"one after another: {self.reason}"
        return f"one native call, {self.precision}" if self.precision else ""

    def run(self, how: Recipe, x: Tensor, plan: Plan) -> Tensor | None:
        """The last hidden states (T, E) of packed x (T, E), or None: go layer by layer."""
        precision = self.asked or _own_precision(x.dtype)
        self.reason = how.reason or self._why_not(how, x, precision)
        if self.reason is not None:
            self.drop()
            return None
        layer = how.layer
        assert layer is not None
        backends.choose("encoder", how.facts(precision), traceable=True)
        self.precision = precision
        count = len(how.weights) // len(layer.weights)
        exact = count // 3 if precision == "int8" else 0
        if exact == 0:
            return self._call(self.copy, how.weights, layer, how.hidden, precision, x, plan)
        # What the last layers lose is damped by none after them: in bfloat16 they halve what all lose.
        split = (count - exact) * len(layer.weights)
        first, last = how.weights[:split], how.weights[split:]
        x = self._call(self.copy, first, layer, how.hidden, precision, x, plan)
        return self._call(self._tail, last, layer, how.hidden, "bfloat16", x, plan)

    @staticmethod
    def _call(
        copy: PackedCopy,
        weights: tuple[Tensor, ...],
        layer: Layer,
        hidden: int,
        precision: str,
        x: Tensor,
        plan: Plan,
    ) -> Tensor:
        packed = copy.of(weights, layer.heads, precision, x.shape[0], layer.form)
        longest = -1 if plan.max_length is None else plan.max_length
        return _forward(  # type: ignore[no-any-return]
            x, plan.cu_seq, longest, packed.data, packed.layers, layer.heads, hidden,
            layer.eps[0], layer.activation, layer.norm_first, layer.causal, precision,
        )  # fmt: skip

    def _why_not(self, how: Recipe, x: Tensor, precision: str) -> str | None:
        if reason := why_gradients(how.weights, x):
            return reason
        if not x.is_cpu or any(not w.is_cpu for w in how.weights[:1]):
            return "it is not on the CPU"
        if _autocast() not in (None, torch.bfloat16):
            return f"autocast is {_autocast()}"
        if x.dtype != how.weights[0].dtype:
            return f"its states are {x.dtype}, its weights {how.weights[0].dtype}"
        asked = backends.asked_for()
        if asked not in (None, "cpu"):
            return f"backend {asked} was asked for"
        reasons = backends.refusals("encoder", "cpu", how.facts(precision))
        return "; ".join(reasons) or self.why_slower(how)

    def why_slower(self, how: Recipe) -> str | None:
        """Why torch is faster than the native call, or None: it has AMX tiles for bfloat16 products of any size."""
        own = _own_precision(how.weights[0].dtype)
        precision = self.asked or own
        if own != "bfloat16" or precision == "float32":
            return None
        sizes = cpu.sizes_off_tiles(how.facts(precision))
        if not sizes:
            return None
        return "; ".join((*sizes, f"without tiles {precision} is slower than torch in bfloat16"))


def why_gradients(weights: Sequence[Tensor], x: Tensor | None = None) -> str | None:
    """Why results of these weights and x must be differentiable, or None."""
    if not torch.is_grad_enabled():
        return None
    wanted = (x is not None and x.requires_grad) or any(w.requires_grad for w in weights)
    return "gradients are wanted" if wanted else None


def _autocast() -> torch.dtype | None:
    """What autocast computes products in, None if it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def _own_precision(dtype: torch.dtype) -> str:
    """Products as the model's dtype, autocast and torch's setting have them."""
    if dtype != torch.float32 or _autocast() is not None:
        return "bfloat16"
    return _BY_SETTING[checks.float32_matmul_precision()]


def loss(precision: str | None, dtype: torch.dtype) -> str | None:
    """What products of that precision lose beside the dtype's own: "high", "medium" (as torch has the words), "int8"
    or None."""
    if precision in ("int8", "int8_weights"):
        return "int8"
    if dtype != torch.float32:
        return None
    return {"high": "high", "bfloat16": "medium"}.get(precision or "float32")


_encoders: weakref.WeakKeyDictionary[nn.Module, Encoder] = weakref.WeakKeyDictionary()


def encoder_of(module: nn.Module) -> Encoder:
    """The native call that belongs to a module, made at the first call; kept beside the model, not in it."""
    found = _encoders.get(module)
    if found is None:
        found = _encoders[module] = Encoder(module.__dict__.get(_ASKED))
    return found


def ask(module: nn.Module, precision: str | None) -> None:
    """Sets the precision of the module's native call and of its copies'; None: that of the model."""
    encoder_of(module).asked = precision
    module.__dict__.pop(_ASKED, None)
    if precision is not None:
        module.__dict__[_ASKED] = precision


def forget(module: nn.Module) -> None:
    """Drops the module's packed weights and what ``accelerate`` asked of it."""
    _encoders.pop(module, None)
    module.__dict__.pop(_ASKED, None)


def drop(module: nn.Module) -> None:
    """Drops the module's packed weights: they are about to change."""
    found = _encoders.get(module)
    if found is not None:
        found.drop()


def known(module: nn.Module) -> Encoder | None:
    """The module's native call if it has ever had one."""
    return _encoders.get(module)


def why_not_served(precision: str) -> str | None:
    """Why no encoder at all gets products of this precision here, or None."""
    facts = contract.Facts(
        "cpu", torch.float32, precision, "gelu", False, False, 768, 3072, 64, False
    )
    return "; ".join(backends.refusals("encoder", "cpu", facts)) or None
