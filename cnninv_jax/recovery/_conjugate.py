"""Conjugate gradients for singular positive semidefinite systems, as a solver for lineax.

``lineax.CG`` takes a direction for one of the null space where p^T A p < 200 eps N p^T p, and returns NaN: in float32,
with N = 150,528 unknowns, that is wherever A is not much larger than 3.6; and it asks the last step, too, to be as small
as the tolerance, whatever the units of the unknowns. This one stops on the residual alone, recomputes it where the
recurrence says that it is reached, and goes on from there if that was wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
from jax import lax

from cnninv_jax._typing import Array, Bool, Int, Scalar

#: A restart must lower the residual by this factor, or rounding has the last word.
PROGRESS = 0.5


class _Run(NamedTuple):
    """An iterate, its residual b - A x as recomputed, and whether going on is of use."""

    x: Array
    residual: Array
    size: Scalar
    steps: Int[Array, ""]
    stalled: Bool[Array, ""]


class ConjugateGradients(lx.AbstractLinearSolver[Any]):
    """Solve A x = b from x = 0 until |b - A x| <= limit.

    All iterates lie in the range of D A (D = ``options["diagonal"]``, of positive entries; the identity if absent), so
    without D the solution found has the smallest norm; b must lie in the range of A.

    Attributes:
        limit: absolute; may be traced.
        max_steps: products by A, besides one for every recomputed residual.
    """

    limit: Array
    max_steps: int

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        """Keep the operator and the diagonal."""
        return lx.linearise(operator), options.get("diagonal")

    def compute(self, state: Any, vector: Any, options: dict[str, Any]) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """Iterate; ``num_steps`` is in the statistics, and success is for the caller to judge by the residual."""
        operator, diagonal = state

        def scaled(residual: Array) -> Array:
            return residual if diagonal is None else diagonal * residual

        def inner(run: _Run) -> _Run:
            first = scaled(run.residual)
            start = (run.x, run.residual, first, _dot(run.residual, first), run.size, run.steps)

            def going(carry: tuple[Array, ...]) -> Array:
                *_, gamma, size, steps = carry
                # NaN compares false.
                return (size > self.limit) & (gamma > 0) & (steps < self.max_steps)

            def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
                x, residual, direction, gamma, _, steps = carry
                image = operator.mv(direction)
                curvature = _dot(direction, image)
                # Without curvature there is nothing left to gain: gamma = 0 ends the loop.
                usable = curvature > 0
                rate = jnp.where(usable, gamma / jnp.where(usable, curvature, 1), 0)
                x = x + rate * direction
                residual = residual - rate * image
                next_one = scaled(residual)
                size = jnp.sqrt(_dot(residual, residual))
                fresh = jnp.square(size) if diagonal is None else _dot(residual, next_one)
                direction = next_one + fresh / gamma * direction
                return x, residual, direction, jnp.where(usable, fresh, 0), size, steps + 1

            x, *_, steps = lax.while_loop(going, step, start)
            residual = vector - operator.mv(x)
            size = jnp.sqrt(_dot(residual, residual))
            better = size < run.size
            return _Run(
                jnp.where(better, x, run.x),
                jnp.where(better, residual, run.residual),
                jnp.where(better, size, run.size),
                steps,
                ~(size <= PROGRESS * run.size),
            )

        def unfinished(run: _Run) -> Array:
            return (run.size > self.limit) & (run.steps < self.max_steps) & ~run.stalled

        none = jnp.zeros((), jnp.int32)
        begin = _Run(jnp.zeros_like(vector), vector, jnp.sqrt(_dot(vector, vector)), none, none > 0)
        found = lax.while_loop(unfinished, inner, begin)
        return found.x, lx.RESULTS.successful, {"num_steps": found.steps, "size": found.size}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A is symmetric."""
        return state, options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """No: derivatives are those of a pseudo-inverse."""
        return False


def _dot(first: Array, second: Array) -> Scalar:
    return jnp.sum(first * second)
