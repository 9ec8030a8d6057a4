"""TransformerEncoder: packed tokens through all layers, at inference in one native call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigkernels.nn import absorb, masks, native
from bigkernels.nn.layer_norm import LayerNorm
from bigkernels.nn.masks import Masks
from bigkernels.nn.transformer import Batch, adopt, check_tensors, on_nested, packable
from bigkernels.ops.packing import api as packing


class TransformerEncoder(torch.nn.TransformerEncoder):
    """``torch.nn.TransformerEncoder`` that does not compute on padding.

    A boolean ``src_key_padding_mask`` that pads every row on the right, or every row on the left, gives **zeros** in
    the rows of padding, in training too (torch: only in some evaluations). With no mask beside it but the causal one
    the tokens are packed once, run through all layers and ``norm``, and put back. In evaluation, on the CPU and without
    gradients, with no mask or those two alone, all layers are one native call. Where the mask cannot be read
    (torch.compile, vmap), or a layer is not fused whole (``unfused_reasons()``), or ``norm`` is not a plain
    LayerNorm, the layers run on the padded batch.
    ``enable_nested_tensor=False`` switches all of this off: rows of padding are computed like any other.

    Args:
        encoder_layer: a layer, ours or torch's; num_layers copies are made, ours where it was torch's.
        norm, enable_nested_tensor, mask_check: as in torch; no mask_check is needed here.
    """

    def __init__(
        self,
        encoder_layer: nn.TransformerEncoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        # torch would warn of what its own nested tensors cannot do.
        super().__init__(encoder_layer, num_layers, norm, False, mask_check)
        self.enable_nested_tensor = self.use_nested_tensor = enable_nested_tensor
        adopt(self.layers)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """All layers, then ``norm``.

        Args:
            src: (B, L, E) if the layers are batch_first else (L, B, E), or (L, E), or nested (L, E) sequences.
            mask: (L, L) or (B * H, L, L): bool (True = ignore) or additive.
            src_key_padding_mask: (B, L) or (L,): bool (True = ignore) or additive.
            is_causal: mask is the causal mask; None: found out where the mask can be read.

        Raises:
            TypeError, ValueError: an argument of the wrong type, dtype or shape.
        """
        ignore = src_key_padding_mask
        check_tensors(src, mask=mask, src_key_padding_mask=ignore)
        batch_first = self.layers[0].self_attn.batch_first
        if src.is_nested:
            return on_nested(self, batch_first, src, mask, ignore)
        causal = masks.is_causal(mask) if is_causal is None else is_causal
        found = native.run(self, src, mask, ignore, causal)
        if found is not None:
            return found
        if absorb.global_hooks() or not all(packable(layer) for layer in self.layers):
            out = src
            for layer in self.layers:
                out = layer(out, src_mask=mask, is_causal=causal, src_key_padding_mask=ignore)
            return self._zero_padding(self._norm(out), ignore, batch_first)
        keep = self._plain_tokens(src, mask, ignore, causal)
        if keep is None or not self._all_plain():
            batch = self.layers[0].batch(src, mask, ignore, causal)
            return self._zero_padding(self._norm(self._run(src, batch)), ignore, batch_first)
        self.layers[0].self_attn._check(src, src, src)
        plan = packing.plan(keep)
        batch = Batch(None, None, causal, Masks(), plan, plan.rows)
        packed = packing.unpad(src if batch_first else src.transpose(0, 1), plan)
        out = packing.pad(self._norm(self._run(packed, batch)), plan)
        return out if batch_first else out.transpose(0, 1).contiguous()

    def _run(self, x: Tensor, batch: Batch) -> Tensor:
        for layer in self.layers:
            x = layer.run(x, batch)
        return x

    def _all_plain(self) -> bool:
        """Whether every module takes each token alone, so that it may see (T, E) for (B, L, E)."""
        norm = self.norm
        if norm is not None and absorb.why_not("norm", norm, LayerNorm, nn.LayerNorm):
            return False
        return not any(layer.unfused_reasons() for layer in self.layers)

    def _norm(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _plain_tokens(
        self, src: Tensor, mask: Tensor | None, ignore: Tensor | None, causal: bool
    ) -> Tensor | None:
        """Which positions hold tokens, (B, L) bool, if packing them is possible and saves something."""
        if not self.enable_nested_tensor or src.dim() != 3 or ignore is None:
            return None
        batch, length = src.shape[:2] if self.layers[0].self_attn.batch_first else src.shape[1::-1]
        if (
            ignore.dtype != torch.bool
            or ignore.shape != (batch, length)
            or not masks.concrete(ignore)
        ):
            return None
        if causal if mask is None else not causal or mask.shape != (length, length):
            return None
        keep = ~ignore
        return keep if bool(packing.plain_padding(keep)) and not bool(keep.all()) else None

    def _zero_padding(self, out: Tensor, ignore: Tensor | None, batch_first: bool) -> Tensor:
        """out with zeros in the rows of plain padding; the mask is not read, so this compiles."""
        if (
            not self.enable_nested_tensor
            or out.dim() != 3
            or ignore is None
            or ignore.dtype != torch.bool
        ):
            return out
        padding = ignore & packing.plain_padding(~ignore)
        return out.masked_fill((padding if batch_first else padding.T)[..., None], 0.0)

    def train(self, mode: bool = True) -> TransformerEncoder:
        """As in torch; weights that are about to change lose their packed copies."""
        if mode:
            native.forget(self)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        native.forget(self)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        native.forget(self)
        super()._load_from_state_dict(*args, **kwargs)
