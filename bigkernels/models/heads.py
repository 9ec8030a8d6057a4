"""The heads on BERT: masked language model, sequence and token classification."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

import bigkernels as bk
from bigkernels.models.bert import ACTIVATIONS, BertConfig, BertModel, initialize
from bigkernels.ops.ffn.reference import activate


class HeadOutput(NamedTuple):
    """What a model with a head returns; loss only if labels were given."""

    loss: Tensor | None
    logits: Tensor


class PredictionTransform(nn.Module):
    """dense, activation, LayerNorm in front of the vocabulary product."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        norm = self.LayerNorm
        x = activate(self.dense(x), self.activation)
        return bk.layer_norm(x, x.shape[-1], norm.weight, norm.bias, norm.eps)


class Predictions(nn.Module):
    """The masked-language-model head; its product shares the word embeddings' weight."""

    def __init__(self, config: BertConfig, words: nn.Embedding) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(Tensor(config.vocab_size).zero_())
        self.decoder.weight, self.decoder.bias = words.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))  # type: ignore[no-any-return]


class BertForMaskedLM(nn.Module):
    """BERT with the masked-language-model head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        predictions = Predictions(config, self.bert.embeddings.word_embeddings)
        initialize(predictions.transform, config)
        self.cls = nn.ModuleDict({"predictions": predictions})

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Logits (B, L, V) and, with labels (B, L), -100 = not asked for, the mean cross-entropy."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids, position_ids)[0]
        logits = self.cls["predictions"](hidden)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return HeadOutput(loss, logits)


class BertForSequenceClassification(nn.Module):
    """BERT with dropout and a product on the pooled output."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        initialize(self.classifier, config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Logits (B, num_labels); with labels (B,) the cross-entropy, or the squared error of one output."""
        pooled = self.bert(input_ids, attention_mask, token_type_ids, position_ids)[1]
        logits = self.classifier(self.dropout(pooled))
        if labels is None:
            return HeadOutput(None, logits)
        if logits.shape[-1] == 1:
            return HeadOutput(F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype)), logits)
        return HeadOutput(F.cross_entropy(logits, labels), logits)


class BertForTokenClassification(nn.Module):
    """BERT with dropout and a product on every token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        initialize(self.classifier, config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> HeadOutput:
        """Logits (B, L, num_labels); with labels (B, L), -100 = not asked for, the mean cross-entropy."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids, position_ids)[0]
        logits = self.classifier(self.dropout(hidden))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return HeadOutput(loss, logits)
