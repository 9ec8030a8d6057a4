"""MultiheadAttention on the fused kernels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bigkernels.nn import masks
from bigkernels.nn.masks import Masks
from bigkernels.ops.attention.api import scaled_dot_product_attention, varlen_attn
from bigkernels.ops.attention.weights import attention_weights
from bigkernels.ops.packing.contract import Plan

Triple = tuple[Tensor, Tensor, Tensor]


class MultiheadAttention(torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` without ever storing the scores. Differences from torch:

    * A query that sees no key gets zeros from the attention, and weights of zero; never NaN.
    * ``need_weights=True`` recomputes the weights from the fused result. During training they are
      those before dropout; torch returns the dropped and rescaled ones, equal on average.
    * ``is_causal=True`` is trusted on every path: ``attn_mask`` is then not read, except with
      ``add_bias_kv`` or ``add_zero_attn``, whose keys every query sees.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of query over key and value.

        Args:
            query: (B, Lq, E) if batch_first else (Lq, B, E), or (Lq, E).
            key, value: laid out like query, with Lk positions and kdim, vdim features.
            key_padding_mask: (B, Lk) or (Lk,): bool (True = ignore) or additive.
            need_weights: also return the weights.
            attn_mask: (Lq, Lk) or (B * H, Lq, Lk): bool (True = ignore) or additive, differentiable.
            average_attn_weights: average the weights over the heads.
            is_causal: attn_mask is the causal mask.

        Returns:
            (out, weights): out like query; weights (B, Lq, Lk), or (B, H, Lq, Lk) if not averaged,
            without B for unbatched input; None unless asked for.

        Raises:
            TypeError, ValueError: an argument of the wrong type, dtype or shape; is_causal without
                attn_mask.
        """
        self._check(query, key, value)
        call = self.call_masks(query, key, key_padding_mask, attn_mask, is_causal)
        q, k, v = self._to_attention(query, key, value)
        out, lse = self._attention(q, k, v, call)
        batched = query.dim() == 3
        out = F.linear(self._merge_heads(out, batched), self.out_proj.weight, self.out_proj.bias)
        if not need_weights:
            return out, None
        weights = attention_weights(
            q, k, lse, call.mask, call.is_causal, key_lengths=call.key_lengths
        )
        # The kernel rounds its scores elsewhere than these; dividing by the sum takes that error out.
        weights = F.normalize(weights, p=1.0, dim=-1).to(out.dtype)
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights if batched else weights.squeeze(0)

    def attend(self, x: Tensor, call: Masks) -> Tensor:
        """Self-attention of x, laid out as in ``forward``, up to the output projection; call: ``call_masks``."""
        self._check(x, x, x)
        out, _ = self._attention(*self._to_attention(x, x, x), call)
        return self._merge_heads(out, x.dim() == 3)

    def attend_packed(self, x: Tensor, plan: Plan, is_causal: bool) -> Tensor:
        """Self-attention of packed tokens x (T, E) within their sequences, up to the output projection."""
        out = varlen_attn(
            *self._project(x, x, x), plan.cu_seq, plan.cu_seq, plan.max_length, plan.max_length,
            is_causal=is_causal, dropout_p=self.dropout if self.training else 0.0, rows=plan.rows,
        )  # fmt: skip
        return out.flatten(1)  # type: ignore[no-any-return]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, call: Masks) -> tuple[Tensor, Tensor]:
        return scaled_dot_product_attention(  # type: ignore[no-any-return]
            q, k, v, call.mask, self.dropout if self.training else 0.0, call.is_causal,
            key_lengths=call.key_lengths, return_lse=True,
        )  # fmt: skip

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        for name, x in (("query", query), ("key", key), ("value", value)):
            if not isinstance(x, Tensor) or not x.is_floating_point():
                kind = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(f"{name}: got {kind}, expected a floating point tensor")
        rank = query.dim()
        if query.is_nested or rank not in (2, 3) or query.shape[-1] != self.embed_dim:
            got = "a nested tensor" if query.is_nested else f"shape {tuple(query.shape)}"
            raise ValueError(
                f"query: {got}, expected 2 or 3 dimensions, the last of {self.embed_dim}"
            )
        for name, x, features in (("key", key, self.kdim), ("value", value, self.vdim)):
            if x.dim() != rank or x.shape[-1] != features:
                raise ValueError(
                    f"{name}: shape {tuple(x.shape)}, expected {rank} dimensions, the last of {features}"
                )
        batch_at = self._batch_at(rank)
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value: shape {tuple(value.shape)}, expected as many positions as key {tuple(key.shape)}"
            )
        if batch_at is not None and key.shape[batch_at] != query.shape[batch_at]:
            raise ValueError(
                f"key: shape {tuple(key.shape)}, expected the batch of query {tuple(query.shape)}"
            )

    def _batch_at(self, rank: int) -> int | None:
        """Which dimension of an input counts the samples."""
        return None if rank == 2 else 0 if self.batch_first else 1

    def call_masks(
        self,
        query: Tensor,
        key: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Masks:
        """The mask arguments of ``forward``, checked, in the kernels' terms."""
        if is_causal and attn_mask is None:
            raise ValueError(
                "attn_mask: None, but is_causal says that it is the causal mask; pass that mask "
                "(torch raises too, except on its inference path, which computes without a mask)"
            )
        if attn_mask is None and key_padding_mask is None:
            return Masks(None, None, False)
        batch_at = self._batch_at(query.dim())
        length_at = 1 if batch_at == 0 else 0
        batch = 1 if batch_at is None else query.shape[batch_at]
        queries, keys = query.shape[length_at], key.shape[length_at]
        masks.check(
            "attn_mask", attn_mask, (queries, keys), (batch * self.num_heads, queries, keys)
        )
        masks.check(
            "key_padding_mask", key_padding_mask, (keys,) if batch_at is None else (batch, keys)
        )
        if key_padding_mask is not None and batch_at is None:
            key_padding_mask = key_padding_mask[None]
        extra = (self.bias_k is not None) + bool(self.add_zero_attn)
        return masks.merge(attn_mask, key_padding_mask, is_causal, batch, self.num_heads, extra)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Triple:
        """Queries, keys and values (..., H, D), the other dimensions as the user passed them."""
        size, bias = self.embed_dim, self.in_proj_bias
        heads = (self.num_heads, self.head_dim)
        if self.in_proj_weight is None:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif query is key and key is value:
            qkv = F.linear(query, self.in_proj_weight, bias)
            return cast(Triple, qkv.unflatten(-1, (3, *heads)).unbind(-3))
        elif key is value:
            b_q, b_kv = (None, None) if bias is None else bias.split([size, 2 * size])
            w_q, w_kv = self.in_proj_weight.split([size, 2 * size])
            q = F.linear(query, w_q, b_q).unflatten(-1, heads)
            k, v = F.linear(key, w_kv, b_kv).unflatten(-1, (2, *heads)).unbind(-3)
            return q, k, v
        else:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            weights = self.in_proj_weight.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, heads) for x, w, b in inputs)
        return q, k, v

    def _to_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Triple:
        """q (B, H, Lq, D), k and v (B, H, Lk, D) with the keys that the module itself adds."""
        projected = self._project(query, key, value)
        if query.dim() == 2:
            q, k, v = (x[None].transpose(1, 2) for x in projected)
        elif self.batch_first:
            q, k, v = (x.transpose(1, 2) for x in projected)
        else:
            q, k, v = (x.permute(1, 2, 0, 3) for x in projected)
        if self.bias_k is not None:
            k, v = self._append(k, self.bias_k), self._append(v, self.bias_v)
        if self.add_zero_attn:
            zero = k.new_zeros((1, 1, self.embed_dim))
            k, v = self._append(k, zero), self._append(v, zero)
        return q, k, v

    def _append(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """x (B, H, L, D) with one more position, extra (1, 1, E)."""
        assert extra is not None
        one = extra.to(x.dtype).view(1, self.num_heads, 1, self.head_dim)
        return torch.cat([x, one.expand(x.shape[0], -1, -1, -1)], dim=2)

    def _merge_heads(self, out: Tensor, batched: bool) -> Tensor:
        """(..., E) in the user's layout from out (B, H, Lq, D)."""
        if not batched:
            return out[0].transpose(0, 1).flatten(1)
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        return out.permute(order).flatten(2)
