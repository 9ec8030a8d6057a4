"""Drop-in subclasses of torch's Transformer modules: same constructors, same state_dict, same results.

A subclass only brings a new ``forward``: a torch module becomes ours, and back, by setting its
``__class__``. Where torch gives NaN for a sample without any key, these give zeros.
"""

from bigkernels.nn.attention import MultiheadAttention
from bigkernels.nn.encoder import TransformerEncoder
from bigkernels.nn.feed_forward import FeedForward
from bigkernels.nn.layer_norm import LayerNorm, RMSNorm
from bigkernels.nn.transformer import TransformerEncoderLayer

__all__ = [
    "FeedForward",
    "LayerNorm",
    "MultiheadAttention",
    "RMSNorm",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
