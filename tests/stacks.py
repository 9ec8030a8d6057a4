"""Tiny ViT, GPT-2 and torch.nn encoders with random weights, each with a batch."""

import torch
import transformers
from torch import nn

import bigkernels

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LENGTHS = (9, 4, 1, 6)


def moved(model):
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def vit(**changes):
    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 128, "image_size": 16, "patch_size": 4, **changes}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes))
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return moved(model), {"pixel_values": pixels}


def gpt2(padded=True, attention="sdpa", cls=transformers.GPT2Model, **changes):
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    sizes = {"vocab_size": 40, "n_positions": 24, "use_cache": False, **ends, **SIZES, **changes}
    model = cls(transformers.GPT2Config(**sizes, attn_implementation=attention))
    keep = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(2, 40, keep.shape, generator=torch.Generator().manual_seed(1))
    given = {"input_ids": torch.where(keep, ids, 0), "attention_mask": keep.long()}
    return moved(model), given if padded else {"input_ids": ids}


def torchs(batch_first=True, padding="right", mask=None, norm=True, cls=nn, **changes):
    torch.manual_seed(0)
    make = {"activation": "gelu", "batch_first": batch_first, "dropout": 0.1, **changes}
    layer = cls.TransformerEncoderLayer(64, 2, 128, **make)
    model = cls.TransformerEncoder(layer, 2, nn.LayerNorm(64) if norm else None)
    src = torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(1))
    given = {"src": src if batch_first else src.transpose(0, 1)}
    keep = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    if padding:
        given["src_key_padding_mask"] = ~keep if padding == "right" else ~keep.flip(1)
    if mask is not None:
        causal = torch.ones(9, 9, dtype=torch.bool).triu(1)
        additive = torch.zeros(9, 9).masked_fill(causal, -torch.inf)
        given["mask"] = causal if mask == "bool" else additive
    return moved(model), given


CASES = {
    "ViT": lambda: vit(),
    "ViT, no bias": lambda: vit(qkv_bias=False),
    "ViT, tanh": lambda: vit(hidden_act="gelu_pytorch_tanh"),
    "GPT-2": lambda: gpt2(),
    "GPT-2, full": lambda: gpt2(padded=False),
    "GPT-2, eager": lambda: gpt2(attention="eager"),
    "GPT-2, wide": lambda: gpt2(n_inner=96),
    "torch.nn": lambda: torchs(),
    "torch.nn, no padding": lambda: torchs(padding=None),
    "torch.nn, padding first": lambda: torchs(padding="left"),
    "torch.nn, sequence first": lambda: torchs(batch_first=False),
    "torch.nn, norm first": lambda: torchs(norm_first=True),
    "torch.nn, relu": lambda: torchs(activation="relu", norm=False),
    "torch.nn, no bias": lambda: torchs(bias=False, norm_first=True, batch_first=False),
    "torch.nn, causal": lambda: torchs(mask="bool", padding=None),
    "torch.nn, causal and padded": lambda: torchs(mask="bool"),
    "torch.nn, additive": lambda: torchs(mask="float", padding=None, norm_first=True),
    "bigkernels.nn": lambda: torchs(cls=bigkernels.nn, activation="relu"),
}
