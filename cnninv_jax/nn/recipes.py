"""How a network is trained: optimiser, schedule, batch; frozen, so that it can be part of a compiled step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import jax
import optax

Optimizer: TypeAlias = Literal["sgd", "adam"]


@dataclass(frozen=True)
class Recipe:
    """A training's numbers.

    Attributes:
        num_steps: optimiser steps.
        batch_size: examples a step.
        optimizer: ``"sgd"`` with Nesterov momentum, or ``"adam"`` (beta 0.9 and 0.999, as Random DCN, A.2).
        rate: learning rate at the beginning.
        milestones: steps after which the rate is multiplied by ``factor`` ("multistep").
        factor: of the schedule.
        warmup: steps over which the rate grows linearly from nothing.
        momentum: of SGD.
        weight_decay: lambda of the penalty (lambda / 2) |w|^2, whose gradient is added to that of every kernel before
            the optimiser sees it, as Caffe does (Adam then rescales it, other than in AdamW); scales and biases are
            not decayed.
    """

    num_steps: int
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    rate: float = 0.1
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    warmup: int = 0
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that train nothing."""
        for name in ("num_steps", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"expected {name} to be a positive whole number, got {value!r}")
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(f"expected optimizer to be 'sgd' or 'adam', got {self.optimizer!r}")
        for name in ("rate", "factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"expected {name} to be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"expected weight_decay of at least 0, got {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected momentum from 0 to below 1, got {self.momentum}")
        if not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"expected warmup to be a number of steps, got {self.warmup!r}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(step < 1 for step in self.milestones):
            raise ValueError(f"expected milestones to be rising numbers of steps, got {self.milestones}")

    def schedule(self) -> optax.Schedule:
        """Return the learning rate as a function of the step."""
        steps = optax.piecewise_constant_schedule(self.rate, dict.fromkeys(self.milestones, self.factor))
        if not self.warmup:
            return steps
        warm = optax.linear_schedule(self.rate / (self.warmup + 1), self.rate, self.warmup)
        late = {step - self.warmup: self.factor for step in self.milestones if step > self.warmup}
        return optax.join_schedules([warm, optax.piecewise_constant_schedule(self.rate, late)], [self.warmup])

    def transformation(self) -> optax.GradientTransformation:
        """Return the optimiser."""
        schedule = self.schedule()
        if self.optimizer == "adam":
            step = optax.adam(schedule)
        else:
            step = optax.sgd(schedule, momentum=self.momentum or None, nesterov=self.momentum > 0)
        if not self.weight_decay:
            return step
        return optax.chain(optax.add_decayed_weights(self.weight_decay, mask=_kernels), step)


def _kernels(params: Any) -> Any:
    """Return which parameters are kernels: those with two axes or more."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


__all__ = ["Optimizer", "Recipe"]
