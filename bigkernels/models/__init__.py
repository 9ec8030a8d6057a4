"""Reference models built on bigkernels' functions; readable in one sitting."""

from bigkernels.models.bert import BertConfig, BertModel
from bigkernels.models.heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
]
