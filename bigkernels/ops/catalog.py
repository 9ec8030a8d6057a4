"""What explain knows of each public function: its room, what the choice depends on, remarks."""

from collections.abc import Callable
from typing import Any

from bigkernels.ops.attention import api as attention
from bigkernels.ops.ffn import api as ffn
from bigkernels.ops.layer_norm import api as layer_norm

FACTS: dict[str, tuple[str, Callable[..., Any], Callable[..., tuple[str, ...]]]] = {
    "layer_norm": ("layer_norm", layer_norm.layer_norm_facts, layer_norm.notes),
    "add_layer_norm": ("layer_norm", layer_norm.add_layer_norm_facts, layer_norm.notes),
    "attention": ("attention", attention.attention_facts, attention.notes),
    "varlen_attn": ("attention", attention.varlen_facts, attention.notes),
    "ffn": ("ffn", ffn.ffn_facts, ffn.notes),
}
