"""What explain knows of each public function: its room, what the choice depends on, remarks."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bigkernels.ops.attention import api as attention
from bigkernels.ops.cross_entropy import api as cross_entropy
from bigkernels.ops.embedding import api as embedding
from bigkernels.ops.ffn import api as ffn
from bigkernels.ops.layer_norm import api as layer_norm
from bigkernels.ops.packing import api as packing


class Entry(NamedTuple):
    """One public function."""

    function: Callable[..., Any]
    room: str
    facts: Callable[..., Any]
    notes: Callable[..., tuple[str, ...]]


FACTS = {
    "layer_norm": Entry(
        layer_norm.layer_norm, "layer_norm", layer_norm.layer_norm_facts, layer_norm.notes
    ),
    "add_layer_norm": Entry(
        layer_norm.add_layer_norm, "layer_norm", layer_norm.add_layer_norm_facts, layer_norm.notes
    ),
    "rms_norm": Entry(
        layer_norm.rms_norm, "layer_norm", layer_norm.rms_norm_facts, layer_norm.notes
    ),
    "add_rms_norm": Entry(
        layer_norm.add_rms_norm, "layer_norm", layer_norm.add_rms_norm_facts, layer_norm.notes
    ),
    "attention": Entry(
        attention.scaled_dot_product_attention,
        "attention",
        attention.attention_facts,
        attention.notes,
    ),
    "varlen_attn": Entry(
        attention.varlen_attn, "attention", attention.varlen_facts, attention.notes
    ),
    "cross_entropy": Entry(
        cross_entropy.cross_entropy,
        "cross_entropy",
        cross_entropy.cross_entropy_facts,
        cross_entropy.notes,
    ),
    "embedding": Entry(
        embedding.embedding, "embedding", embedding.embedding_facts, embedding.notes
    ),
    "packing.plan": Entry(packing.plan, "packing", packing.plan_facts, packing.notes),
    "packing.unpad": Entry(packing.unpad, "packing", packing.unpad_facts, packing.notes),
    "packing.pad": Entry(packing.pad, "packing", packing.pad_facts, packing.notes),
    "ffn": Entry(ffn.feed_forward, "ffn", ffn.ffn_facts, ffn.notes),
}
