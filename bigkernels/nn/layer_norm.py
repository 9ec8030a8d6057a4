"""LayerNorm and RMSNorm on the fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from bigkernels.ops.layer_norm.api import layer_norm, rms_norm


class LayerNorm(torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` on the fused kernels; statistics are float32 for 16-bit inputs too."""

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., *normalized_shape). Raises what ``bigkernels.layer_norm`` raises."""
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` on the fused kernels; statistics are float32 for 16-bit inputs too."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., *normalized_shape). Raises what ``bigkernels.rms_norm`` raises."""
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)
