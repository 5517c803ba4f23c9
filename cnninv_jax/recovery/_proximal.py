"""Accelerated proximal gradient for min |x - W^T z|^2 + lam |z|_1, with a step that fits the code's own curvature.

|W|^2 is the curvature along dense codes. Along differences of sparse ones it is several times smaller, and the number
of steps falls with its root if the step follows it: after a step from y to z the longest one that would have stayed
below its quadratic model is known exactly, |z - y|^2 / (2 |W^T (z - y)|^2). The next step grows towards it or shrinks
below it. What a step must do is lower the objective; one that does not is undone together with its momentum, and then
halved until it does, which a step below 1 / (2 |W|^2) must: none diverges, and no bound of |W|^2 is needed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from cnninv_jax._typing import Array, Bool, Code, Int, Scalar, Signal
from cnninv_jax.operators import ConvOperator, analysis, synthesis
from cnninv_jax.sparsity.thresholds import shifted_relu, soft_threshold

#: Growth of a step that was short enough; the most, and the least, that one too long shrinks.
_GROW, _SHRINK, _EASE = 1.05, 0.5, 0.99
#: On a CPU, lanes of a batch whose codes are this large run one after the other: each fills the cores and the cache,
#: and none waits for the slowest.
SEQUENTIAL_SIZE = 2**15


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
    """Iterate z, the one before, their images, and y = z + weight (z - before) with the gradient there."""

    z: Code
    before: Code
    image: Signal
    image_before: Signal
    weight: Scalar
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
        return restrict(problem, shifted_relu(code, threshold))
    return restrict(problem, soft_threshold(code, threshold))


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


def start(problem: Problem, code: Code | None) -> State:
    """Return the state at a code (None: zero), its step the one that fits the curvature along the gradient."""
    image = jnp.zeros_like(problem.x) if code is None else synthesis(problem.op, code)
    z = jnp.zeros(problem.op.code_shape, problem.x.dtype) if code is None else code
    gradient = 2 * analysis(problem.op, image - problem.x)
    slope = restrict(problem, gradient)
    step = _fitting(_square(slope), _square(synthesis(problem.op, slope)), jnp.ones_like(problem.lam))
    one = jnp.ones_like(step)
    return State(z, z, image, image, 0 * one, gradient, step, one, _objective(problem, z, image))


def advance(problem: Problem, state: State) -> State:
    """Make one step: one synthesis, one analysis."""
    z, before, image, image_before, weight, gradient, step, momentum, objective = state
    eps = float(jnp.finfo(z.dtype).eps)
    y = z + weight * (z - before)
    trial = shrink(problem, y - step * gradient, step * problem.lam)
    image_of_trial = synthesis(problem.op, trial)
    reached = _objective(problem, trial, image_of_trial)
    falls = reached <= objective * (1 + 16 * eps)

    back = y - trial
    length = _square(back)
    curved = _square(image + weight * (image - image_before) - image_of_trial)
    # Below the rounding of the images their difference says nothing about a step.
    heard = curved > jnp.square(16 * eps) * (_square(image_of_trial) + _square(problem.x))
    fitting = _fitting(length, curved, step)
    following = jnp.where(fitting < step, jnp.clip(fitting, _SHRINK * step, _EASE * step), _GROW * step)
    following = jnp.where(heard, following, step)
    following = jnp.where(falls | (weight > 0), following, jnp.minimum(following, _SHRINK * step))

    # O'Donoghue and Candes 2015: momentum that points uphill is dropped.
    onwards = falls & (jnp.sum(back * (trial - z)) <= 0)
    larger = (1 + jnp.sqrt(1 + 4 * (step / following) * jnp.square(momentum))) / 2
    following_weight = jnp.where(onwards, (momentum - 1) / larger, 0.0)
    new, new_image = jnp.where(falls, trial, z), jnp.where(falls, image_of_trial, image)
    return State(
        new,
        z,
        new_image,
        image,
        following_weight,
        2 * analysis(problem.op, new_image + following_weight * (new_image - image) - problem.x),
        following,
        jnp.where(onwards, larger, 1.0),
        jnp.where(falls, reached, objective),
    )


def _fitting(length: Scalar, curved: Scalar, otherwise: Scalar) -> Scalar:
    """Return |d|^2 / (2 |W^T d|^2), the longest step that stays below its quadratic model along d."""
    known = (curved > 0) & (length > 0)
    return jnp.where(known, length / (2 * jnp.where(known, curved, 1.0)), otherwise)


def _objective(problem: Problem, code: Code, image: Signal) -> Scalar:
    return _square(problem.x - image) + problem.lam * jnp.sum(jnp.abs(code))


def _square(array: Array) -> Scalar:
    return jnp.sum(array * array)


def solve(
    problem: Problem, code: Code | None, tol: Scalar, max_steps: int, check_every: int
) -> tuple[Code, Int[Array, ""], Gap]:
    """Step until the relative duality gap is at most ``tol``; lanes of a ``vmap`` that are done stand still.

    Args:
        problem: one lasso.
        code: what to begin with; zero for None.
        tol: relative duality gap.
        max_steps: most steps; rounded up to a multiple of ``check_every``.
        check_every: steps between two evaluations of the gap.

    Returns:
        Code, steps and gap.
    """
    fixed = problem.nonnegative

    def lane(arrays: tuple[Any, ...]) -> tuple[Code, Int[Array, ""], Gap]:
        op, x, lam, support, begin, bound = arrays
        return _iterate(Problem(op, x, lam, support, fixed), begin, bound, max_steps, check_every)

    arrays = (problem.op, problem.x, problem.lam, problem.support, code, tol)
    if jax.default_backend() == "cpu" and math.prod(problem.op.code_shape) >= SEQUENTIAL_SIZE:
        return sequential_vmap(lane)(arrays)
    return lane(arrays)


def _iterate(
    problem: Problem, code: Code | None, tol: Scalar, max_steps: int, check_every: int
) -> tuple[Code, Int[Array, ""], Gap]:
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

    carry = (begun, jnp.zeros((), np.int32), gap_at(problem, begun.z, begun.image))
    state, done, gap = jax.lax.while_loop(unfinished, turn, carry)
    return state.z, done * check_every, gap
