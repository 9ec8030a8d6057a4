"""A BERT encoder on bigkernels' functions, without padding inside; weights come and go by transformers' names.

Source: Devlin et al., "BERT", NAACL 2019; names and results as transformers' ``BertModel``. Every layer sees the
real tokens of the batch one after another, (T, E); padding exists only at the two ends.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bigkernels as bk
from bigkernels.integrations import whole
from bigkernels.nn import absorb
from bigkernels.ops import checks
from bigkernels.ops.packing import api as packing
from bigkernels.ops.packing.contract import Plan

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


@dataclasses.dataclass
class BertConfig:
    """Sizes and rates; field names and defaults are transformers'.

    Attributes:
        position_embedding: "learned", or "sinusoidal" for the fixed table of Vaswani et al., 2017.
        num_labels: outputs of the classification heads.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding: str = "learned"
    num_labels: int = 2

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act: {self.hidden_act!r} is not one of {known}")
        if self.position_embedding not in ("learned", "sinusoidal"):
            raise ValueError(
                f"position_embedding: {self.position_embedding!r} is not one of learned, sinusoidal"
            )
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} does not divide"
                f" hidden_size {self.hidden_size}"
            )

    @classmethod
    def from_transformers(cls, config: Any) -> BertConfig:
        """The same sizes as a transformers ``BertConfig``."""
        names = [f.name for f in dataclasses.fields(cls) if hasattr(config, f.name)]
        return cls(**{name: getattr(config, name) for name in names})


class Output(NamedTuple):
    """What the encoder returns: (B, L, E) with zeros at padding, and (B, E) if there is a pooler."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None


def sinusoidal_table(positions: int, size: int) -> Tensor:
    """(positions, size): sines of the position in even columns, cosines in odd ones."""
    rate = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
    angle = torch.arange(positions)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :size]


class BertEmbeddings(nn.Module):
    """Word + type + position, LayerNorm, dropout; (T,) ids to (T, E)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(
            config.vocab_size, size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.sinusoidal = config.position_embedding == "sinusoidal"
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, ids: Tensor, types: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        norm = self.LayerNorm
        return bk.embedding(
            ids,
            self.word_embeddings.weight,
            self.position_embeddings.weight,
            self.token_type_embeddings.weight,
            norm.weight,
            norm.bias,
            norm.eps,
            position_ids=positions,
            type_ids=types,
            padding_idx=self.word_embeddings.padding_idx,
            dropout_p=self.dropout_p if self.training else 0.0,
            rows=plan.rows,
        )


class BertSelfAttention(nn.Module):
    """Query, key and value products and attention within each sample."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_p = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1))  # (T, H, D)
            for linear in (self.query, self.key, self.value)
        )
        out = bk.varlen_attn(
            q,
            k,
            v,
            plan.cu_seq,
            plan.cu_seq,
            plan.max_length,
            plan.max_length,
            dropout_p=self.dropout_p if self.training else 0.0,
            rows=plan.rows,
        )
        return out.flatten(-2)  # type: ignore[no-any-return]


class ResidualNorm(nn.Module):
    """dense, dropout, + residual, LayerNorm. The dense bias is added inside the fused operation."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def finish(self, product: Tensor, residual: Tensor, plan: Plan) -> Tensor:
        """Everything after the product (T, E) without its bias."""
        norm = self.LayerNorm
        return bk.add_layer_norm(  # type: ignore[no-any-return]
            product,
            residual,
            norm.weight,
            norm.bias,
            norm.eps,
            x_bias=self.dense.bias,
            dropout_p=self.dropout_p if self.training else 0.0,
            rows=plan.rows,
        )

    def forward(self, x: Tensor, residual: Tensor, plan: Plan) -> Tensor:
        return self.finish(F.linear(x, self.dense.weight), residual, plan)


class BertAttention(nn.Module):
    """Self-attention and its output block."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = ResidualNorm(config.hidden_size, config)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        return self.output(self.self(x, plan), x, plan)  # type: ignore[no-any-return]


class BertIntermediate(nn.Module):
    """Holds the first product's parameters under transformers' name; BertLayer computes with them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)


class BertLayer(nn.Module):
    """Attention, then the feed-forward network, each followed by residual and LayerNorm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = ResidualNorm(config.intermediate_size, config)
        self.activation = ACTIVATIONS[config.hidden_act]

    def native(self) -> whole.Layer:
        """What the native call of all layers needs of this one."""
        inner, after, down = self.attention.self, self.attention.output, self.output
        modules = (
            inner.query, inner.key, inner.value, after.dense, after.LayerNorm,
            self.intermediate.dense, down.dense, down.LayerNorm,
        )  # fmt: skip
        rates = [m.dropout_p if m.training else 0.0 for m in (inner, after, down)]
        scaling = (inner.query.out_features // inner.heads) ** -0.5
        return whole.Layer.of(modules, inner.heads, scaling, self.activation, max(rates))

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        x = self.attention(x, plan)
        up, down = self.intermediate.dense, self.output.dense
        y = bk.feed_forward(x, up.weight, up.bias, down.weight, None, self.activation)
        return self.output.finish(y, x, plan)


class BertEncoder(nn.Module):
    """The layers one after another."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        # At inference all layers are one native call; hooks want to see every layer.
        eager = not (checks.recorded() or checks.through_reference())
        if eager and not (torch.is_grad_enabled() or self.training or self._hooked()):
            how = whole.recipe([layer.native() for layer in self.layer])  # type: ignore[operator]
            out = whole.encoder_of(self).run(how, x, plan)
            if out is not None:
                return out
        for layer in self.layer:
            x = layer(x, plan)
        return x

    def _hooked(self) -> bool:
        return absorb.global_hooks() or any(absorb.has_hooks(m) for m in self.layer.modules())


class BertPooler(nn.Module):
    """tanh of a product of each sample's first token; (B, E) to (B, E)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


def _plan(input_ids: Tensor, attention_mask: Tensor | None) -> Plan:
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids: shape {tuple(input_ids.shape)}, expected (B, L)")
    if attention_mask is None:
        return packing.full_plan(input_ids.shape[0], input_ids.shape[1], input_ids.device)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: shape {tuple(attention_mask.shape)}, expected {tuple(input_ids.shape)}"
        )
    return packing.plan(attention_mask)


def initialize(model: nn.Module, config: BertConfig) -> None:
    """Normal weights, zero biases, the fixed table for sinusoidal positions."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            elif module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx].detach())
    for module in model.modules():
        if isinstance(module, BertEmbeddings) and module.sinusoidal:
            table = module.position_embeddings.weight.requires_grad_(False)
            table.copy_(sinusoidal_table(*table.shape))


class BertModel(nn.Module):
    """Embeddings, encoder and pooler. From transformers' ``stock``: ``model =
    BertModel(BertConfig.from_transformers(stock.config)); model.load_state_dict(stock.state_dict())``.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        initialize(self, config)

    def packed(
        self,
        input_ids: Tensor,  # (B, L)
        plan: Plan,
        token_type_ids: Tensor | None = None,  # (B, L)
        position_ids: Tensor | None = None,  # (B, L) or (1, L)
    ) -> Tensor:
        """Hidden states of the real tokens alone, (T, E)."""
        if plan.length > self.config.max_position_embeddings and position_ids is None:
            raise ValueError(
                f"input_ids: {plan.length} positions, at most {self.config.max_position_embeddings}"
            )
        ids = packing.unpad(input_ids, plan)
        types = torch.zeros_like(ids)
        if token_type_ids is not None:
            types = packing.unpad(token_type_ids, plan)
        positions = plan.rows & 0xFFFFFFFF
        if position_ids is not None:
            positions = packing.unpad(position_ids.expand(plan.batch, plan.length), plan)
        x = self.embeddings(ids, types, positions, plan)
        return self.encoder(x, plan)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Output:
        """
        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), nonzero = token; any pattern.
            token_type_ids: (B, L) int64, default 0.
            position_ids: (B, L) or (1, L) int64, default the column.

        Raises:
            ValueError: shapes that do not fit, or more positions than the model has.
        """
        plan = _plan(input_ids, attention_mask)
        hidden = packing.pad(self.packed(input_ids, plan, token_type_ids, position_ids), plan)
        pooled = None if self.pooler is None else self.pooler(hidden[:, 0])
        return Output(hidden, pooled)
