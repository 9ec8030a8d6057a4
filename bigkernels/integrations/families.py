"""The one table of model families: which stock class gets which role."""

from __future__ import annotations

from bigkernels.integrations import backbone, bert, distilbert, gpt2, heads, torch_nn, vit
from bigkernels.integrations.twins import Role, qualified_name

_MODELS = "transformers.models"
_GPT2 = f"{_MODELS}.gpt2.modeling_gpt2.GPT2"


# Those whose result or loss may depend on padded positions.
_HEADS = ("QuestionAnswering", "MultipleChoice", "TokenClassification", "MaskedLM", "PreTraining")


def _heads(module: str, prefix: str) -> dict[str, Role]:
    home = f"{_MODELS}.{module}.modeling_{module}.{prefix}"
    return {f"{home}For{name}": heads.HEAD for name in _HEADS}


def _bert_like(module: str, prefix: str) -> dict[str, Role]:
    home = f"{_MODELS}.{module}.modeling_{module}.{prefix}"
    return {
        f"{home}Model": backbone.BACKBONE,
        f"{home}Embeddings": bert.EMBEDDINGS,
        f"{home}Layer": bert.LAYER,
        **_heads(module, prefix),
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
        **_heads("distilbert", "DistilBert"),
    },
    "ViT": {
        f"{_MODELS}.vit.modeling_vit.ViTModel": vit.MODEL,
        f"{_MODELS}.vit.modeling_vit.ViTLayer": vit.LAYER,
    },
    "GPT-2": {
        f"{_GPT2}Model": gpt2.MODEL,
        f"{_GPT2}Block": gpt2.LAYER,
        f"{_GPT2}LMHeadModel": heads.HEAD,
        f"{_GPT2}DoubleHeadsModel": heads.HEAD,
        f"{_GPT2}ForTokenClassification": heads.HEAD,
        f"{_GPT2}ForQuestionAnswering": heads.HEAD,
    },
    "torch.nn": torch_nn.ROLES,
}
"""Families by name; each maps a stock class's qualified name to its role. MiniLM, SentenceTransformer and
CrossEncoder models are made of these classes."""

ROLES: dict[str, Role] = {
    name: role for family in FAMILIES.values() for name, role in family.items()
}
FAMILY_OF: dict[str, str] = {name: family for family, roles in FAMILIES.items() for name in roles}


def role_for(cls: type) -> Role | None:
    """The role of a stock class, or None; a user's own subclass of a head reads what the head reads."""
    found = ROLES.get(qualified_name(cls))
    if found is not None:
        return found
    bases = (ROLES.get(qualified_name(base)) for base in cls.__mro__[1:])
    return next((role for role in bases if role is not None and role.head), None)
