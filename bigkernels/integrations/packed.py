"""Packed copies of weights, used only while they are surely fresh."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from bigkernels.ops.encoder import api, contract

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


def _identity(weights: Sequence[Tensor]) -> list[int]:
    """What changes when a weight is another tensor, or is written by an operation that counts versions; dtypes and
    shapes are the fingerprint's."""
    places = list(map(Tensor.data_ptr, weights))
    try:
        return places + list(map(_VERSION, weights))
    except RuntimeError:  # inference tensors count no versions
        return places + list(map(_version, weights))


_VERSION = operator.attrgetter("_version")


class PackedCopy:
    """The packed copy of one encoder's weights, made at need.

    Fresh means: the tensors have the addresses and versions they were packed at, and their dtypes, shapes and values
    the fingerprint (fused optimizers, ``.data`` and ``vector_to_parameters`` change values without a new version).
    Lives outside the model: nothing of it gets into a state_dict, a deepcopy or a pickle.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[int], tuple[Tensor, Tensor], api.Packed] | None = None

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        kept = self._kept
        return 0 if kept is None else kept[2].data.nbytes

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
            packed = kept[2]
            asked = packed.heads == heads and packed.precision == precision
            fits = asked and kept[0] == identity
            if fits and torch.equal(kept[1][pages], api.fingerprint(weights, pages)):
                return packed
            self._kept = kept = None  # freed before the new one is made
            del packed
        prints = api.fingerprint(weights, False), api.fingerprint(weights, True)
        made = api.pack_encoder(parts([w.detach() for w in weights], form), heads, precision)
        # Had another thread written in between, the fingerprint taken before would tell at the next use.
        self._kept = (identity, prints, made)
        return made
