"""Tiny models of every family with random weights, batches for them, and the oracle's rule for whole models."""

from __future__ import annotations

import contextlib
import copy

import torch
import transformers
from torch import nn

import bigkernels
from bigkernels.testing import oracle

LENGTHS = (9, 4, 1, 6)
TOKENS = 40
_SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_ROBERTA = {**_SIZES, "pad_token_id": 1}
_DISTIL = {
    "vocab_size": TOKENS,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "max_position_embeddings": 24,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
FAMILIES = {
    "bert": (transformers.BertModel, transformers.BertConfig, _SIZES),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig, _ROBERTA),
    "xlm-roberta": (transformers.XLMRobertaModel, transformers.XLMRobertaConfig, _ROBERTA),
    "electra": (
        transformers.ElectraModel,
        transformers.ElectraConfig,
        {**_SIZES, "embedding_size": 16},
    ),
    "distilbert": (transformers.DistilBertModel, transformers.DistilBertConfig, _DISTIL),
}
SWAPPED = {
    "bert": {"BertModel": 1, "BertEmbeddings": 1, "BertLayer": 2},
    "roberta": {"RobertaModel": 1, "RobertaEmbeddings": 1, "RobertaLayer": 2},
    "xlm-roberta": {"XLMRobertaModel": 1, "XLMRobertaEmbeddings": 1, "XLMRobertaLayer": 2},
    "electra": {"ElectraModel": 1, "ElectraEmbeddings": 1, "ElectraLayer": 2},
    "distilbert": {"DistilBertModel": 1, "Embeddings": 1, "TransformerBlock": 2},
    "torch.nn": {"TransformerEncoder": 1, "TransformerEncoderLayer": 2, "MultiheadAttention": 2},
}


def tiny(family: str, attention: str = "sdpa", **changes: object) -> nn.Module:
    """A model of the family in eval mode, its biases and LayerNorm weights away from their first values."""
    torch.manual_seed(0)
    if family == "torch.nn":
        layer = nn.TransformerEncoderLayer(
            32, 2, 64, 0.0, activation="gelu", batch_first=True, **changes
        )
        model: nn.Module = nn.TransformerEncoder(layer, 2)
    else:
        cls, config, sizes = FAMILIES[family]
        model = cls(config(**{**sizes, **changes}, attn_implementation=attention))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@contextlib.contextmanager
def no_fast_path():
    """Without the fast path of torch's own encoder."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def batch(family: str, lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    """Right-padded random tokens, with the arguments the family takes."""
    draw = torch.Generator().manual_seed(1)
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if family == "torch.nn":
        src = torch.randn(len(lengths), max(lengths), 32, generator=draw)
        return {"src": src, "src_key_padding_mask": ~keep}
    ids = torch.randint(2, TOKENS, keep.shape, generator=draw)
    padding = FAMILIES[family][2].get("pad_token_id", 0)
    found = {"input_ids": torch.where(keep, ids, padding), "attention_mask": keep.long()}
    if family in ("bert", "electra"):
        found["token_type_ids"] = torch.randint(0, 2, keep.shape, generator=draw)
    return found


def tokens_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which positions of the batch hold tokens, (B, L) bool."""
    mask = inputs.get("attention_mask")
    return ~inputs["src_key_padding_mask"] if mask is None else mask.bool()


def tensors(output: object) -> dict[str, torch.Tensor]:
    """The tensors of a model's output by name."""
    if isinstance(output, torch.Tensor):
        return {"last_hidden_state": output}
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def assert_judged(
    got: torch.Tensor, truth: torch.Tensor, peer: torch.Tensor, grad: bool = False
) -> None:
    verdict = oracle.judge(got, truth, [peer], grad=grad)
    assert verdict, verdict.reason


def assert_like_stock(
    model: nn.Module, inputs: dict[str, torch.Tensor], zeros: bool = True
) -> bigkernels.integrations.accelerate.Report:
    """Asserts that the model accelerated gives what it gives now, and zeros at padding; returns the report."""
    exact = copy.deepcopy(model).double()
    double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        truth, peer = tensors(exact(**double)), tensors(model(**inputs))
        with bigkernels.accelerate(model) as handle:
            got = tensors(model(**inputs))
            report = handle.report()
    assert got.keys() == peer.keys()
    masked = "attention_mask" in inputs or "src_key_padding_mask" in inputs
    keep = tokens_of(inputs) if masked else None
    for name, value in got.items():
        whole = keep is None or value.shape[:2] != keep.shape
        at = ... if whole else keep
        assert_judged(value[at], truth[name][at], peer[name][at])
        if zeros and not whole:
            assert not value[~keep].any(), f"{name} is not zero at padding"
    return report
