"""FeedForward on the fused kernels, and which activations they have."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigkernels.nn import absorb
from bigkernels.ops.ffn.api import feed_forward
from bigkernels.ops.ffn.contract import ACTIVATIONS


def activation_name(activation: object) -> str | None:
    """The kernels' name of an activation: a function of torch, one of its modules, or the name itself."""
    if isinstance(activation, str):
        return activation if activation in ACTIVATIONS else None
    if activation is F.relu or activation is torch.relu:
        return "relu"
    if activation is F.gelu:
        return "gelu"
    if activation is F.silu:
        return "silu"
    if isinstance(activation, nn.Module):
        own = absorb.has_hooks(activation) or "forward" in activation.__dict__
        return None if own else _module_name(activation)
    if (
        isinstance(activation, functools.partial)
        and activation.func is F.gelu
        and not activation.args
    ):
        return _gelu_name(activation.keywords.get("approximate", "none"))
    return None


def _module_name(activation: nn.Module) -> str | None:
    kind = type(activation)
    if kind is nn.GELU:
        return _gelu_name(str(activation.approximate))
    return "relu" if kind is nn.ReLU else "silu" if kind is nn.SiLU else None


def _gelu_name(approximate: str) -> str | None:
    return {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate)


class FeedForward(nn.Module):
    """Linear, activation, dropout, Linear; gated: ``linear2(dropout(act(linear_gate(x)) * linear1(x)))``.

    The children ``linear1`` (d_model to dim_feedforward), ``linear2`` (back) and ``linear_gate`` hold the
    parameters under the names ``torch.nn.TransformerEncoderLayer`` uses. A child that is not a plain
    ``nn.Linear``, or has hooks, is called itself, unfused; so is an activation the kernels do not have.

    Args:
        d_model, dim_feedforward: features outside and inside.
        dropout: probability of dropping a hidden element during training.
        activation: "relu", "gelu" (exact), "gelu_tanh", "silu", or a callable.
        bias: whether the Linears have biases.
        gated: adds linear_gate: SwiGLU ("silu"), GeGLU ("gelu"), ReGLU ("relu").

    Raises:
        ValueError: an activation name the kernels do not have.
    """

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        bias: bool = True,
        gated: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(f"activation: {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        make = functools.partial(nn.Linear, bias=bias, device=device, dtype=dtype)
        self.linear1 = make(d_model, dim_feedforward)
        self.linear_gate = make(d_model, dim_feedforward) if gated else None
        self.dropout = nn.Dropout(dropout)
        self.linear2 = make(dim_feedforward, d_model)
        self.activation = activation

    def unfused_reasons(self) -> tuple[str, ...]:
        """Why a call runs its children one by one; empty if it is one fused call."""
        children = (
            ("linear1", self.linear1),
            ("linear2", self.linear2),
            ("linear_gate", self.linear_gate),
        )
        reasons = [absorb.why_not(name, c, nn.Linear) for name, c in children if c is not None]
        reasons.append(absorb.why_not("dropout", self.dropout, nn.Dropout))
        if activation_name(self.activation) is None:
            reasons.append(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        return tuple(reason for reason in reasons if reason)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_model). Raises what ``bigkernels.feed_forward`` raises."""
        if absorb.global_hooks() or self.unfused_reasons():
            return self._unfused(x)
        name = activation_name(self.activation)
        assert name is not None
        gate = self.linear_gate
        return feed_forward(
            x, self.linear1.weight, self.linear1.bias, self.linear2.weight, self.linear2.bias, name,
            self.dropout.p if self.dropout.training else 0.0,
            weight_gate=None if gate is None else gate.weight,
            bias_gate=None if gate is None else gate.bias,
        )  # fmt: skip

    def _unfused(self, x: Tensor) -> Tensor:
        act = _FUNCTIONS[self.activation] if isinstance(self.activation, str) else self.activation
        if self.linear_gate is None:
            hidden = act(self.linear1(x))
        else:
            hidden = act(self.linear_gate(x)) * self.linear1(x)
        return self.linear2(self.dropout(hidden))  # type: ignore[no-any-return]


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
