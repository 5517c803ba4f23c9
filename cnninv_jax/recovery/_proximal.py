"""Accelerated proximal gradient for min |x - W^T z|^2 + lam |z|_1, with a step that fits the code's own curvature.

|W|^2 is the curvature along dense codes. Along the differences of sparse ones it is many times smaller, and so is the
number of steps if the step size follows it (Scheinberg, Goldfarb and Bai 2014): a step t from y to z is accepted if

    |W^T (z - y)|^2 <= |z - y|^2 / (2 t),

for a quadratic the exact condition under which the step lies below its model, otherwise t shrinks and the step is
tried again. An accepted step that raises the objective is thrown away together with its momentum, and one without
momentum cannot raise it: divergence is impossible, and no bound of |W|^2 is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cnninv_jax._typing import Array, Bool, Code, Int, Scalar, Signal
from cnninv_jax.operators import ConvOperator, analysis, synthesis

#: Growth of the step after an accepted one, and the most that a rejected one shrinks.
_GROW, _SHRINK = 1.1, 0.5


class Problem(NamedTuple):
    """One lasso: operator, signal, lam, and where the code may be non-zero (None: everywhere)."""

    op: ConvOperator
    x: Signal
    lam: Scalar
    support: Bool[Array, " K *n"] | None
    nonnegative: Bool[Array, ""] | bool


class Gap(NamedTuple):
    """Objective, duality gap and their ratio."""

    objective: Scalar
    absolute: Scalar
    relative: Scalar


class State(NamedTuple):
    """Iterate z, point y from which the next step starts, their images, gradient at y, step and momentum."""

    z: Code
    image: Signal
    y: Code
    image_of_y: Signal
    gradient: Code
    step: Scalar
    momentum: Scalar
    objective: Scalar


def restrict(problem: Problem, code: Code) -> Code:
    """Return the code with zeros outside the support."""
    return code if problem.support is None else jnp.where(problem.support, code, 0.0)


def shrink(problem: Problem, code: Code, threshold: Scalar) -> Code:
    """Return the proximal point of threshold |z|_1 on the support: soft thresholding."""
    if problem.nonnegative:
        return restrict(problem, jnp.maximum(code - threshold, 0.0))
    return restrict(problem, jnp.sign(code) * jnp.maximum(jnp.abs(code) - threshold, 0.0))


def gap_at(problem: Problem, code: Code, image: Signal) -> Gap:
    """Return the duality gap of a code z with image W^T z, see `cnninv_jax.recovery.lasso.duality_gap`."""
    lam = problem.lam
    residual = problem.x - image
    responses = restrict(problem, analysis(problem.op, residual))
    fit, size = jnp.sum(residual * residual), jnp.sum(jnp.abs(code))
    objective = fit + lam * size
    reach = 2 * jnp.max(responses if problem.nonnegative else jnp.abs(responses))
    # The best multiple of the residual that is dual feasible: all of it where even that is too little.
    best = jnp.sum(residual * problem.x) / jnp.where(fit > 0, fit, 1.0)
    allowed = jnp.where(reach > 0, lam / jnp.where(reach > 0, reach, 1.0), jnp.inf)
    scale = jnp.clip(best, 0.0, allowed)
    slack = jnp.sum(lam * jnp.abs(code) - 2 * scale * responses * code)
    absolute = jnp.square(1 - scale) * fit + jnp.maximum(slack, 0.0)
    # maximum() would hide what is not a number; a negative lam has no minimum worth a code.
    absolute = jnp.where((lam >= 0) & jnp.isfinite(objective) & jnp.isfinite(slack), absolute, jnp.nan)
    relative = jnp.where(absolute == 0, 0.0, absolute / jnp.where(objective > 0, objective, 1.0))
    return Gap(objective, absolute, relative)


def start(problem: Problem, code: Code) -> State:
    """Return the state at a code, with the step of a gradient descent along its gradient."""
    image = synthesis(problem.op, code)
    gradient = 2 * analysis(problem.op, image - problem.x)
    slope = restrict(problem, gradient)
    curved = _square(synthesis(problem.op, slope))
    step = _square(slope) / (2 * jnp.where(curved > 0, curved, 1.0))
    step = jnp.where((curved > 0) & (step > 0), step, 1.0)
    objective = _square(problem.x - image) + problem.lam * jnp.sum(jnp.abs(code))
    return State(code, image, code, image, gradient, step, jnp.ones_like(step), objective)


def advance(problem: Problem, state: State) -> State:
    """Try one step: one synthesis, one analysis."""
    z, image, y, image_of_y, gradient, step, momentum, objective = state
    eps = float(jnp.finfo(z.dtype).eps)
    trial = shrink(problem, y - step * gradient, step * problem.lam)
    image_of_trial = synthesis(problem.op, trial)
    length, curved = _square(trial - y), _square(image_of_trial - image_of_y)
    # Below the rounding of an image its difference says nothing.
    noise = jnp.square(16 * eps) * (_square(image_of_trial) + _square(problem.x))
    fits = curved <= length / (2 * step) + noise
    reached = _square(problem.x - image_of_trial) + problem.lam * jnp.sum(jnp.abs(trial))
    falls = reached <= objective * (1 + 16 * eps)
    accepted = fits & falls

    # O'Donoghue and Candes 2015: momentum that points uphill is dropped.
    uphill = jnp.sum((y - trial) * (trial - z)) > 0
    # A difference lost in rounding is no evidence for a longer step.
    longer = jnp.where(curved > noise, step * _GROW, step)
    following = (1 + jnp.sqrt(1 + 4 * (step / longer) * jnp.square(momentum))) / 2
    weight = jnp.where(uphill, 0.0, (momentum - 1) / following)
    following = jnp.where(uphill, 1.0, following)
    shorter = jnp.clip(length / (2 * jnp.where(curved > 0, curved, 1.0)), step * _SHRINK, step * 0.8)

    # Too long a step is tried again from the same y; one that climbs goes back to z, without momentum.
    new_z, new_image = jnp.where(accepted, trial, z), jnp.where(accepted, image_of_trial, image)
    new_y = jnp.where(accepted, trial + weight * (trial - z), jnp.where(fits, z, y))
    new_image_of_y = jnp.where(
        accepted, image_of_trial + weight * (image_of_trial - image), jnp.where(fits, image, image_of_y)
    )
    return State(
        new_z,
        new_image,
        new_y,
        new_image_of_y,
        2 * analysis(problem.op, new_image_of_y - problem.x),
        jnp.where(accepted, longer, jnp.where(fits, step, shorter)),
        jnp.where(accepted, following, jnp.where(fits, 1.0, momentum)),
        jnp.where(accepted, reached, objective),
    )


def _square(array: Array) -> Scalar:
    return jnp.sum(array * array)


def solve(
    problem: Problem, code: Code, tol: Scalar, max_steps: int, check_every: int
) -> tuple[Code, Int[Array, ""], Gap]:
    """Step until the relative duality gap is at most ``tol``; lanes of a ``vmap`` that are done stand still."""
    rounds = -(-max_steps // check_every)
    begun = start(problem, code)

    def unfinished(carry: tuple[State, Int[Array, ""], Gap]) -> Bool[Array, ""]:
        _, done, gap = carry
        # A comparison with what is not a number is false: such a lane stops.
        return (gap.relative > tol) & (done < rounds)

    def turn(carry: tuple[State, Int[Array, ""], Gap]) -> tuple[State, Int[Array, ""], Gap]:
        state, done, _ = carry
        state = jax.lax.fori_loop(0, check_every, lambda _, inner: advance(problem, inner), state)
        return state, done + 1, gap_at(problem, state.z, state.image)

    carry = (begun, jnp.zeros((), jnp.int32), gap_at(problem, begun.z, begun.image))
    state, done, gap = jax.lax.while_loop(unfinished, turn, carry)
    return state.z, done * check_every, gap
