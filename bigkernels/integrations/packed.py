"""Packed copies of weights, used only while they are surely fresh."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bigkernels.ops.encoder import api, contract, cpu

FEW_TOKENS = 64

_JOINED = len(contract.PARTS) - 4  # tensors of a layer whose query, key and value are one


def parts(weights: Sequence[Tensor], form: str) -> list[Tensor]:
    """Layers' weights of any form (``whole.Layer``) as ``contract.PARTS`` has them: the same tensors, or views."""
    if form == "apart":
        return list(weights)
    found: list[Tensor] = []
    for first in range(0, len(weights), _JOINED):
        layer = list(weights[first : first + _JOINED])
        if form == "transposed":
            layer = [w.t() if w.dim() == 2 else w for w in layer]
        joined, bias, *rest = layer
        biases = bias.chunk(3) if bias.numel() else (bias, bias, bias)
        for pair in zip(joined.chunk(3), biases, strict=True):
            found += pair
        found += rest
    return found


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version


def _identity(weights: Sequence[Tensor]) -> list[Any]:
    """What changes when a weight is another tensor, or is written by an operation that counts versions."""
    found: list[Any] = list(map(Tensor.data_ptr, weights))
    found += map(_DTYPE, weights)
    found += map(_SHAPE, weights)
    found += map(Tensor.is_contiguous, weights)
    try:
        found += list(map(_VERSION, weights))
    except RuntimeError:  # inference tensors count no versions
        found += map(_version, weights)
    return found


_VERSION, _DTYPE, _SHAPE = map(operator.attrgetter, ("_version", "dtype", "shape"))


class _Kept(NamedTuple):
    """A packed copy; places: of its weights, None if some are not contiguous. prints: by whether of all pages."""

    identity: list[Any]
    places: cpu.Places | None
    prints: tuple[int | list[int], int | list[int]]
    packed: api.Packed


def _fingerprint(weights: Sequence[Tensor], places: cpu.Places | None, pages: bool) -> Any:
    if places is not None:
        return places.fingerprint(pages)
    return api.fingerprint(weights, pages).tolist()


class PackedCopy:
    """The packed copy of one encoder's weights, made at need.

    Fresh means: the tensors have the addresses, dtypes, shapes and versions they were packed with, and their values
    the fingerprint (fused optimizers, ``.data`` and ``vector_to_parameters`` change values without a new version).
    Lives outside the model: nothing of it gets into a state_dict, a deepcopy or a pickle.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        kept = self._kept
        return 0 if kept is None else kept.packed.data.nbytes

    def drop(self) -> None:
        """Frees the copy; the next use packs again."""
        self._kept = None

    def of(
        self,
        weights: Sequence[Tensor],
        heads: int,
        precision: str,
        tokens: int,
        form: str = "apart",
    ) -> api.Packed:
        """The packed form of these weights as they are now.

        Args:
            weights: in ``form``.
            tokens: what the copy is needed for. For few of them reading a line of every page of the weights would cost
                as much as the layers do: a fingerprint of some lines then has to do.

        Raises:
            ValueError, Unsupported: what ``pack_encoder`` raises.
        """
        kept = self._kept  # another thread may drop it meanwhile
        identity = _identity(weights)
        pages = tokens >= FEW_TOKENS
        if kept is not None:
            packed = kept.packed
            asked = packed.heads == heads and packed.precision == precision
            # Only where they were may the weights' bytes be read.
            fits = asked and kept.identity == identity
            if fits and kept.prints[pages] == _fingerprint(weights, kept.places, pages):
                return packed
            self._kept = kept = None  # freed before the new one is made
            del packed
        contiguous = all(map(Tensor.is_contiguous, weights))
        places = cpu.Places(weights) if contiguous else None
        prints = _fingerprint(weights, places, False), _fingerprint(weights, places, True)
        made = api.pack_encoder(parts([w.detach() for w in weights], form), heads, precision)
        # Had another thread written in between, the fingerprint taken before would tell at the next use.
        self._kept = _Kept(identity, places, prints, made)
        return made
