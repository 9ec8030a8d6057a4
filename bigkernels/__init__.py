"""Fused Transformer kernels for PyTorch that make the models people already have faster. See README.md."""

from __future__ import annotations

import importlib
from typing import Any

from bigkernels.backends import Unsupported, explain, trace, use_backend
from bigkernels.ops.attention.api import scaled_dot_product_attention, varlen_attn
from bigkernels.ops.attention.weights import attention_weights
from bigkernels.ops.cross_entropy.api import cross_entropy
from bigkernels.ops.embedding.api import embedding
from bigkernels.ops.ffn.api import feed_forward
from bigkernels.ops.layer_norm.api import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from bigkernels.ops.packing import api as packing

__version__ = "0.1.0"

__all__ = [
    "Unsupported",
    "add_layer_norm",
    "add_rms_norm",
    "attention_weights",
    "cross_entropy",
    "embedding",
    "explain",
    "feed_forward",
    "layer_norm",
    "packing",
    "rms_norm",
    "scaled_dot_product_attention",
    "trace",
    "use_backend",
    "varlen_attn",
]

_LAZY_MODULES = ("integrations", "models", "nn", "testing", "training")
_LAZY_FUNCTIONS = {
    "accelerate": "bigkernels.integrations.accelerate",
    "restore": "bigkernels.integrations.accelerate",
    "verify": "bigkernels.integrations.verify",
}


def __getattr__(name: str) -> Any:  # what most programs never use is imported at first use
    if name in _LAZY_MODULES:
        return importlib.import_module(f"bigkernels.{name}")
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(_LAZY_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'bigkernels' has no attribute {name!r}")
