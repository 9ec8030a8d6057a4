"""Every public function with differentiable tensors to call it on, for tests of what torch does with functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nn_problems import random
from torch import Tensor

import bigkernels as bk


def _leaf(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return random(*shape, seed=seed, dtype=dtype).requires_grad_()


def _qkv(*lead: int, queries: int = 3, keys: int = 4) -> list[Tensor]:
    return [
        _leaf(*lead, queries, 4, seed=0),
        _leaf(*lead, keys, 4, seed=1),
        _leaf(*lead, keys, 3, seed=2),
    ]


def _rows(*lead: int) -> list[Tensor]:
    return [
        _leaf(*lead, 6, seed=0),
        _leaf(*lead, 6, seed=1),
        *(_leaf(6, seed=2 + i) for i in range(3)),
    ]


def _ffn(*lead: int) -> list[Tensor]:
    shapes = [(*lead, 3), (5, 3), (5,), (3, 5), (3,), (5, 3), (5,)]
    return [_leaf(*shape, seed=i) for i, shape in enumerate(shapes)]


_CU = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
_KEEP = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])

# name, function of differentiable tensors, those tensors
FUNCTIONS: list[tuple[str, Callable[..., Any], list[Tensor]]] = [
    ("layer_norm", lambda x, r, w, b, xb: bk.layer_norm(x, 6, w, b), _rows(2, 3)),
    (
        "add_layer_norm",
        lambda x, r, w, b, xb: bk.add_layer_norm(
            x, r, w, b, x_bias=xb, dropout_p=0.3, seed=3, return_sum=True
        ),
        _rows(2, 3),
    ),
    (
        "add_layer_norm without dropout",
        lambda x, r, w, b, xb: bk.add_layer_norm(x, r, w, b, x_bias=xb),
        _rows(2, 3),
    ),
    (
        "attention",
        lambda q, k, v: bk.scaled_dot_product_attention(q, k, v, _KEEP, return_lse=True)[0],
        _qkv(2, 1),
    ),
    (
        "attention with bias, dropout, lse",
        lambda q, k, v, m: bk.scaled_dot_product_attention(
            q, k, v, m, 0.3, True, seed=5, return_lse=True
        ),
        [*_qkv(2, 2), _leaf(2, 3, 4, seed=4)],
    ),
    (
        "attention of lengths and groups",
        lambda q, k, v: bk.scaled_dot_product_attention(
            q, k, v, enable_gqa=True, key_lengths=torch.tensor([4, 2]), window=2
        ),
        [_leaf(2, 2, 3, 4, seed=0), _leaf(2, 1, 4, 4, seed=1), _leaf(2, 1, 4, 3, seed=2)],
    ),
    (
        "varlen_attn",
        lambda q, k, v: bk.varlen_attn(q, k, v, _CU, _CU, is_causal=True, dropout_p=0.3, seed=5),
        [_leaf(5, 2, 4, seed=i) for i in range(3)],
    ),
    (
        "attention_weights",
        lambda q, k, v: bk.attention_weights(
            q, k, bk.scaled_dot_product_attention(q, k, v, return_lse=True)[1]
        ),
        _qkv(1, 2),
    ),
    ("rms_norm", lambda x, r, w, b, xb: bk.rms_norm(x * r, 6, w), _rows(2, 3)),
    (
        "cross_entropy",
        lambda x: bk.cross_entropy(x, torch.tensor([0, 6, -100]), label_smoothing=0.1),
        [_leaf(3, 7, seed=0)],
    ),
    (
        "embedding",
        lambda word, position, types, w, b: bk.embedding(
            torch.tensor([[0, 3], [3, 2]]), word, position, types, w, b, dropout_p=0.3, seed=5
        ),
        [_leaf(4, 6, seed=0), _leaf(3, 6, seed=1), _leaf(2, 6, seed=2), *_rows()[2:4]],
    ),
    (
        "feed_forward",
        lambda x, w1, b1, w2, b2, wg, bg: bk.feed_forward(x, w1, b1, w2, b2, dropout_p=0.3, seed=5),
        _ffn(2, 2),
    ),
    (
        "gated feed_forward",
        lambda x, w1, b1, w2, b2, wg, bg: bk.feed_forward(
            x, w1, b1, w2, b2, "silu", weight_gate=wg, bias_gate=bg, recompute=2
        ),
        _ffn(2, 2),
    ),
]

functions = pytest.mark.parametrize(
    ("function", "inputs"), [f[1:] for f in FUNCTIONS], ids=[f[0] for f in FUNCTIONS]
)
