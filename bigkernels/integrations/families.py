"""The one table of model families: which stock class gets which role."""

from __future__ import annotations

from bigkernels.integrations import backbone, bert, distilbert, torch_nn
from bigkernels.integrations.twins import Role

_MODELS = "transformers.models"


def _bert_like(module: str, prefix: str) -> dict[str, Role]:
    home = f"{_MODELS}.{module}.modeling_{module}.{prefix}"
    return {
        f"{home}Model": backbone.BACKBONE,
        f"{home}Embeddings": bert.EMBEDDINGS,
        f"{home}Layer": bert.LAYER,
    }


FAMILIES: dict[str, dict[str, Role]] = {
    "BERT": _bert_like("bert", "Bert"),
    "RoBERTa": _bert_like("roberta", "Roberta"),
    "XLM-RoBERTa": _bert_like("xlm_roberta", "XLMRoberta"),
    "ELECTRA": _bert_like("electra", "Electra"),
    "DistilBERT": {
        f"{_MODELS}.distilbert.modeling_distilbert.DistilBertModel": backbone.BACKBONE,
        f"{_MODELS}.distilbert.modeling_distilbert.Embeddings": distilbert.EMBEDDINGS,
        f"{_MODELS}.distilbert.modeling_distilbert.TransformerBlock": distilbert.BLOCK,
    },
    "torch.nn": torch_nn.ROLES,
}
"""Families by name; each maps a stock class's qualified name to its role. MiniLM, SentenceTransformer and
CrossEncoder models are made of these classes."""

ROLES: dict[str, Role] = {
    name: role for family in FAMILIES.values() for name, role in family.items()
}
FAMILY_OF: dict[str, str] = {name: family for family, roles in FAMILIES.items() for name in roles}
