"""torch.nn's own Transformer modules: bigkernels.nn's take their place."""

from __future__ import annotations

from torch import nn

from bigkernels import nn as ours
from bigkernels.integrations import eligible
from bigkernels.integrations.twins import Role
from bigkernels.nn import native
from bigkernels.nn.transformer import overridden


def _refuse(module: nn.Module) -> str | None:
    for name, parameter in module.named_parameters():
        if type(parameter) is not nn.Parameter:
            return f"{name} is a {type(parameter).__name__}, not a plain Parameter"
    return None


def _refuse_norm(norm: nn.Module) -> str | None:
    return "it has hooks" if eligible.hooked(norm) else _refuse(norm)


def _refuse_layer(layer: nn.Module) -> str | None:
    assert isinstance(layer, nn.TransformerEncoderLayer)
    return overridden(layer) or _refuse(layer)


ROLES = {
    "torch.nn.modules.normalization.LayerNorm": Role(ours.LayerNorm, _refuse_norm),
    "torch.nn.modules.activation.MultiheadAttention": Role(ours.MultiheadAttention, _refuse),
    "torch.nn.modules.transformer.TransformerEncoderLayer": Role(
        ours.TransformerEncoderLayer, _refuse_layer, layer=True, parts=native.parts
    ),
    "torch.nn.modules.transformer.TransformerEncoder": Role(
        ours.TransformerEncoder, _refuse, stack=True
    ),
}
