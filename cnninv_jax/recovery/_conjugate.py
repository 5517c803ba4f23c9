"""Conjugate gradients for singular positive semidefinite systems, as a solver for lineax.

``lineax.CG`` takes a direction for one of the null space where p^T A p < 200 eps N p^T p, and returns NaN: in float32,
with N = 150,528 unknowns, that is wherever A is not much larger than 3.6. And it asks the last step, too, to be as
small as the tolerance, whatever the units of the unknowns. This one stops on the residual alone, recomputes it where
the recurrence says that it is reached, and goes on from there if that was wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax

from cnninv_jax._typing import Array, Bool, Int, Scalar

#: A restart must lower the residual by this factor, or rounding has the last word.
PROGRESS = 0.5


class _Run(NamedTuple):
    """An iterate; ``residual`` is b - A x by the recurrence, ``true`` its size when it was last recomputed."""

    x: Array
    residual: Array
    direction: Array
    gamma: Scalar
    true: Scalar
    steps: Int[Array, ""]
    recompute: Bool[Array, ""]
    done: Bool[Array, ""]


class ConjugateGradients(lx.AbstractLinearSolver[Any]):
    """Solve A x = b until |b - A x| <= tol |b|, from ``options["y0"]`` (0 if absent).

    From 0, without ``options["diagonal"]`` (D > 0, what residuals are multiplied by), all iterates lie in the range of
    A, and so does the limit: the solution of smallest norm. b must lie in the range of A; cotangents do not, and are
    projected onto it first (P b solves A y = A b) unless ``options["full"]`` says that A has full rank.

    Attributes:
        tol: relative to b, which of derivatives is another one; may be traced.
        max_steps: products by A, besides one for every recomputed residual.
    """

    tol: Array
    max_steps: int

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        """Keep the operator."""
        del options
        return lx.linearise(operator)

    def compute(self, state: Any, vector: Any, options: dict[str, Any]) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        """Iterate; steps and residual are in the statistics, and success is for the caller to judge by them."""
        if options.get("cotangent"):
            within = self._iterate(state, state.mv(vector), {}).x
            vector = jnp.where(options["full"], vector, within) if "full" in options else within
        found = self._iterate(state, vector, options)
        return found.x, lx.RESULTS.successful, {"num_steps": found.steps, "size": found.true}

    def _iterate(self, state: Any, vector: Any, options: dict[str, Any]) -> _Run:
        """Return the last iterate for a right side in the range of A."""
        diagonal = options.get("diagonal")
        zero = jnp.zeros((), vector.dtype)
        limit = self.tol * jnp.sqrt(_dot(vector, vector))

        def step(run: _Run) -> _Run:
            # One product for both kinds of step: compiled once, and lanes of a vmap need not agree.
            fresh = run.recompute
            image = state.mv(jnp.where(fresh, run.x, run.direction))
            curvature = _dot(run.direction, image)
            usable = (curvature > 0) & ~fresh
            rate = jnp.where(usable, run.gamma / jnp.where(usable, curvature, 1), zero)
            x = run.x + rate * run.direction
            residual = jnp.where(fresh, vector, run.residual) - jnp.where(fresh, zero + 1, rate) * image
            size = jnp.sqrt(_dot(residual, residual))
            scaled = residual if diagonal is None else diagonal * residual
            gamma = _dot(residual, scaled)
            follow = jnp.where(usable, gamma / jnp.where(usable, run.gamma, 1), zero)
            steps = run.steps + jnp.where(fresh, np.int32(0), np.int32(1))
            # NaN compares false.
            above = (size > limit) & (gamma > 0)
            more = steps < self.max_steps
            return _Run(
                x,
                residual,
                scaled + follow * run.direction,
                gamma,
                jnp.where(fresh, size, run.true),
                steps,
                ~fresh & ~(above & more & usable),
                fresh & ~(above & more & (size <= PROGRESS * run.true)),
            )

        begin = options.get("y0", jnp.zeros_like(vector))
        no, none = jnp.zeros((), bool), jnp.zeros_like(vector)
        start = _Run(begin, none, none, zero, zero + jnp.inf, jnp.zeros((), np.int32), ~no, no)
        return lax.while_loop(lambda run: ~run.done, step, start)

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the same, A being symmetric, for a right side that is anything, and from 0."""
        return state, {name: value for name, value in options.items() if name != "y0"} | {"cotangent": True}

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the same: A is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Return no: derivatives are those of a pseudo-inverse."""
        return False


def _dot(first: Array, second: Array) -> Scalar:
    return jnp.sum(first * second)
