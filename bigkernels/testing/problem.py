"""A differentiable computation stated so that it can be repeated: in float64, with permuted sums,
between NaN walls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor | None]
Function = Callable[[Tensors], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Problem:
    """Inputs, gradients of the outputs, and the reference that joins them.

    inputs: tensors by name, None for what is absent. Helper tensors that only the reference reads
    (a keep mask in
        place of a seed) may be among them.
    douts: gradient of each output that gets one, by the output's name. wrt: names of the inputs
    whose gradients are wanted, as `d` + name. reference: inputs to outputs by name, differentiable,
    any dtype. It must give the same whatever the order of a
        permuted axis: what depends on positions (causal, dropout) is passed to it as a tensor.
    axes: for every tensor one letter a dimension, inputs and outputs ("bhqd"), "." for a dimension
    never permuted.
        Dimensions of size 1 under a letter are broadcast.
    """

    inputs: dict[str, Tensor | None]
    douts: dict[str, Tensor]
    wrt: tuple[str, ...]
    reference: Function
    axes: dict[str, str]

    def mapped(self, transform: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with every tensor replaced by `transform` of it."""
        inputs = {name: None if t is None else transform(t) for name, t in self.inputs.items()}
        return replace(
            self, inputs=inputs, douts={name: transform(t) for name, t in self.douts.items()}
        )

    def promoted(self, dtype: torch.dtype) -> Problem:
        """The same problem with every floating tensor in `dtype`."""
        return self.mapped(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def solve(self, function: Function) -> dict[str, Tensor]:
        """Outputs by name and gradients by `d` + name of `function` on the inputs.

        Outputs without an entry in `douts` get no gradient. Strides of the inputs are kept.
        """
        leaves = {name: None if t is None else t.detach() for name, t in self.inputs.items()}
        sources = []
        for name in self.wrt:
            leaf = leaves[name]
            if leaf is None:
                raise ValueError(f"wrt: input {name!r} is absent")
            sources.append(leaf.requires_grad_())
        outputs = dict(function(leaves))
        results = {name: out.detach() for name, out in outputs.items()}
        if sources:
            roots = [outputs[name] for name in self.douts]
            gradients = torch.autograd.grad(
                roots, sources, list(self.douts.values()), materialize_grads=True
            )
            results.update(
                {f"d{name}": gradient for name, gradient in zip(self.wrt, gradients, strict=True)}
            )
        return results

    def permuted(
        self, seed: int
    ) -> tuple[Problem, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
        """The problem with every lettered axis in another order, and what puts its results back in
        order.

        Seed 0 is the order as it is.
        """
        generator = torch.Generator().manual_seed(seed)
        orders = {}
        for letter, size in sorted(self._sizes().items()):
            orders[letter] = (
                torch.randperm(size, generator=generator) if seed else torch.arange(size)
            )
        inverse = {letter: order.argsort() for letter, order in orders.items()}
        inputs = {
            n: None if t is None else _reorder(t, self.axes[n], orders)
            for n, t in self.inputs.items()
        }
        douts = {n: _reorder(t, self.axes[n], orders) for n, t in self.douts.items()}

        def undo(results: dict[str, Tensor]) -> dict[str, Tensor]:
            names = {f"d{name}": name for name in self.wrt}
            return {n: _reorder(t, self.axes[names.get(n, n)], inverse) for n, t in results.items()}

        return replace(self, inputs=inputs, douts=douts), undo

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, tensor in self.inputs.items():
            if tensor is None:
                continue
            if len(self.axes[name]) != tensor.dim():
                raise ValueError(
                    f"axes: {name} has {tensor.dim()} dimensions, letters are {self.axes[name]!r}"
                )
            for letter, size in zip(self.axes[name], tensor.shape, strict=True):
                if letter != ".":
                    sizes[letter] = max(size, sizes.get(letter, 0))
        return sizes


def _reorder(tensor: Tensor, letters: str, orders: Mapping[str, Tensor]) -> Tensor:
    for dim, letter in enumerate(letters):
        if letter != "." and tensor.shape[dim] == len(orders[letter]):
            tensor = tensor.index_select(dim, orders[letter].to(tensor.device))
    return tensor
