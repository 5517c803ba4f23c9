"""What a network holds: filters that never learn, and how many numbers of which kind."""

from __future__ import annotations

import dataclasses
import math

from flax import nnx


class Frozen(nnx.Variable):
    """A random filter that never learns: it is no `nnx.Param`, so that no optimiser and no weight decay sees it."""


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """Numbers of a network, by what they are for.

    Attributes:
        weights: of kernels that learn.
        biases: of convolutions and dense layers.
        norm: scales and biases of batch norm that learn.
        frozen: of random filters that never learn.
    """

    weights: int
    biases: int = 0
    norm: int = 0
    frozen: int = 0

    @property
    def learned(self) -> int:
        """All that learns."""
        return self.weights + self.biases + self.norm

    @property
    def total(self) -> int:
        """All that is stored but running statistics."""
        return self.learned + self.frozen


def count_parameters(model: nnx.Module) -> ParameterCounts:
    """Return the numbers of a network, abstract ones (`nnx.eval_shape`) included."""
    counts = {"weights": 0, "biases": 0, "norm": 0, "frozen": 0}
    normalising = {
        id(variable)
        for _, module in nnx.iter_modules(model)
        if isinstance(module, nnx.BatchNorm)
        for variable in (module.scale, module.bias)
    }
    seen = set()
    for path, node in nnx.iter_graph(model):
        if not isinstance(node, nnx.Param | Frozen) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Frozen):
            name = "frozen"
        elif id(node) in normalising:
            name = "norm"
        else:
            name = "biases" if path[-1] == "bias" else "weights"
        counts[name] += math.prod(node.get_value().shape)
    return ParameterCounts(**counts)


__all__ = ["Frozen", "ParameterCounts", "count_parameters"]
