"""l1-regularised least squares on a convolutional dictionary: min |x - W^T z|^2 + lam |z|_1, with its duality gap.

The problem of steps 1 and 3 of Gilbert et al. 2017, Algorithm 2, without a factor 1/2: libraries that minimise
|x - W^T z|^2 / 2 + a |z|_1 mean a = lam / 2, scikit-learn's ``Lasso(alpha)`` means alpha = lam / (2 M prod(D)).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis, wider
from cnninv_jax._typing import Array, Bool, Code, Int, Scalar, Signal
from cnninv_jax.operators import ConvOperator, analysis, synthesis
from cnninv_jax.recovery import _proximal

#: Conjugate-gradient steps of a derivative, at most.
_CG_STEPS = 1000


class LassoStatus(enum.IntEnum):
    """How a `lasso` ended."""

    CONVERGED = 0
    """The relative duality gap is at most ``tol``."""
    STEP_LIMIT = 1
    """``max_steps`` steps did not suffice: allow more, or ask for a ``tol`` that this dtype reaches."""
    NOT_FINITE = 2
    """The signal, filters or start are not finite, they overflow, or lam is negative or NaN: the code is not valid."""


class DualityGap(NamedTuple):
    """How far a code can be from the minimum: P(z) - P* <= ``absolute``, and the same over P(z).

    Attributes:
        objective: P(z) = |x - W^T z|^2 + lam |z|_1.
        absolute: P(z) - D, with D the largest dual value on the line of the residual.
        relative: absolute / objective; 0 where both are 0.
    """

    objective: Scalar
    absolute: Scalar
    relative: Scalar


class LassoResult(NamedTuple):
    """A code, how good it is, and what it took.

    Attributes:
        code: z, [K, *n], exact zeros where it is zero.
        objective: P(z) = |x - W^T z|^2 + lam |z|_1.
        duality_gap: P(z) exceeds the minimum by no more than this.
        relative_gap: duality_gap / objective.
        steps: proximal steps, each one analysis and one synthesis.
        status: a `LassoStatus`, int32.
    """

    code: Code
    objective: Scalar
    duality_gap: Scalar
    relative_gap: Scalar
    steps: Int[Array, ""]
    status: Int[Array, ""]


def lam_max(
    op: ConvOperator, x: ArrayLike, *, support: Bool[ArrayLike, " K *n"] | None = None, nonnegative: bool = False
) -> Scalar:
    """Return 2 |W x|_inf, the smallest lam whose solution is zero; useful ones lie below, as fractions of it.

    Args:
        op: the layer W.
        x: signal, [M, *D].
        support: where the code may be non-zero, [K, *n] booleans; None for everywhere.
        nonnegative: whether codes are at least 0; then 2 max(0, max W x).

    Raises:
        ValueError: x or support of another shape.
    """
    op, signal = _prepare(op, x)
    responses = analysis(op, signal)
    responses = jnp.where(_mask(op, support), responses, 0.0) if support is not None else responses
    return 2 * jnp.max(jnp.maximum(responses, 0.0) if nonnegative else jnp.abs(responses))


def duality_gap(
    op: ConvOperator,
    x: ArrayLike,
    code: ArrayLike,
    lam: ArrayLike,
    support: Bool[ArrayLike, " K *n"] | None = None,
    *,
    nonnegative: bool = False,
) -> DualityGap:
    """Return how far a code can be from the minimum of P(z) = |x - W^T z|^2 + lam |z|_1.

    The dual is D(u) = |x|^2 - |x - u|^2 for |2 W u|_inf <= lam (on the support; 2 W u <= lam for non-negative codes).
    With r = x - W^T z and u = a r, a the best feasible factor, the gap is summed from non-negative terms,

        P(z) - D(a r) = (1 - a)^2 |r|^2 + sum_i (lam |z_i| - 2 a (W r)_i z_i),

    so that nothing the size of P cancels. What remains is the rounding of W r: relative gaps of float32 mean
    something down to about 1e-6 at lam = 0.1 lam_max and 1e-5 at lam = 0.01 lam_max.

    Args:
        op: the layer W.
        x: signal, [M, *D].
        code: z, [K, *n].
        lam: weight of the l1 norm, at least 0; may be traced.
        support: where the code may be non-zero, [K, *n] booleans; None for everywhere.
        nonnegative: whether codes are at least 0.

    Returns:
        Objective and gap; infinite for a code that is not allowed (non-zero off the support, or negative).

    Raises:
        ValueError: x, code or support of another shape, or lam no scalar.

    Cost: one synthesis and one analysis.
    """
    op, signal = _prepare(op, x, code)
    problem = _problem(op, signal, lam, support, nonnegative)
    given = _code(op, code)
    gap = _proximal.gap_at(problem, given, synthesis(op, given))
    allowed = jnp.all(_proximal.restrict(problem, given) == given) & jnp.all((given >= 0) | (not nonnegative))
    allowed |= ~jnp.all(jnp.isfinite(given))
    return DualityGap(*(jnp.where(allowed, value, jnp.inf) for value in gap))


def lasso(
    op: ConvOperator,
    x: ArrayLike,
    lam: ArrayLike,
    *,
    support: Bool[ArrayLike, " K *n"] | None = None,
    nonnegative: bool = False,
    warm_start: ArrayLike | None = None,
    tol: float | Array = 1e-4,
    max_steps: int = 10_000,
    check_every: int = 10,
) -> LassoResult:
    """Return argmin_z |x - W^T z|^2 + lam |z|_1 (Gilbert et al. 2017, Algorithm 2, steps 1 and 3).

    Accelerated proximal gradient (Beck and Teboulle 2009) with adaptive restart (O'Donoghue and Candes 2015) and a
    step that follows the curvature between sparse codes, several times below |W|^2; a step that does not lower the
    objective is undone, so that none can diverge and no bound of |W|^2 enters. It stops on the relative duality gap, a
    bound of (P(z) - P*) / P(z); the objective itself is usually closer by one to two digits.

    `jax.vmap` makes batches of signals, layers and lams: lanes that are done stand still, and on a CPU large problems
    run one after the other. Products are taken in full
    precision whatever ``op.products`` says, half precision is widened to float32.

    Derivatives with respect to x, lam and the filters: those of the code are implicit, with its support and signs held
    (they are constant around almost every x); they solve one linear system on the support by conjugate
    gradients. Those of the objective are dP/dx = 2 r, dP/dlam = |z|_1. Steps, gap and status have none.

    Args:
        op: the layer W.
        x: signal, [M, *D].
        lam: weight of the l1 norm, at least 0; may be traced. See `lam_max` for its scale.
        support: where the code may be non-zero, [K, *n] booleans; None for everywhere.
        nonnegative: restrict the code to values of at least 0.
        warm_start: code to begin with, [K, *n], such as the solution for another lam; zero for None.
        tol: relative duality gap to stop at.
        max_steps: most steps, rounded up to a multiple of ``check_every``.
        check_every: steps between two evaluations of the gap (half a step's cost each).

    Returns:
        The code with its objective, duality gap, steps and status.

    Raises:
        ValueError: x, support or warm_start of another shape, lam or tol no scalar, or no positive number of steps.

    Cost: per step one synthesis and one analysis, 2 K prod(n) M prod(ell) multiply-adds; in memory some eight codes.
    """
    (most,) = per_axis(max_steps, 1, "max_steps")
    (every,) = per_axis(check_every, 1, "check_every")
    op, signal = _prepare(op, x, *([] if warm_start is None else [warm_start]))
    problem = _problem(op, signal, lam, support, nonnegative)
    bound = _scalar(tol, "tol", signal.dtype)
    begin = None
    if warm_start is not None:
        begin = _code(op, warm_start)
        begin = _proximal.restrict(problem, jnp.maximum(begin, 0.0) if nonnegative else begin)
    fixed, begin, bound = jax.lax.stop_gradient(((problem.op, problem.x, problem.lam), begin, bound))
    found, steps, gap = _search(*fixed, problem.support, begin, bound, problem.nonnegative, most, every)
    residual = problem.x - synthesis(problem.op, found)
    objective = jnp.sum(residual * residual) + problem.lam * jnp.sum(jnp.abs(found))
    status = jnp.where(
        jnp.isfinite(gap.absolute),
        jnp.where(gap.relative <= bound, LassoStatus.CONVERGED, LassoStatus.STEP_LIMIT),
        LassoStatus.NOT_FINITE,
    )
    return LassoResult(
        _differentiable(problem.op, problem.x, problem.lam, found),
        objective,
        gap.absolute,
        gap.relative,
        steps,
        status.astype(np.int32),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(6, 7, 8))
def _search(
    op: ConvOperator,
    x: Signal,
    lam: Scalar,
    support: Bool[Array, " K *n"] | None,
    begin: Code | None,
    tol: Scalar,
    nonnegative: bool,
    max_steps: int,
    check_every: int,
) -> tuple[Code, Int[Array, ""], _proximal.Gap]:
    """Iterate; nothing is differentiated along the path."""
    problem = _proximal.Problem(op, x, lam, support, nonnegative)
    return _proximal.solve(problem, begin, tol, max_steps, check_every)


@_search.defjvp
def _(nonnegative: bool, max_steps: int, check_every: int, primals: tuple[Any, ...], _: Any) -> tuple[Any, Any]:
    found = _search(*primals, nonnegative, max_steps, check_every)
    return found, jax.tree.map(_no_tangent, found)


def _no_tangent(array: Array) -> Any:
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


@jax.custom_jvp
def _differentiable(op: ConvOperator, x: Signal, lam: Scalar, found: Code) -> Code:
    """Return the code with the derivatives of the solution: 2 W_S (W^T z - x) + lam sign(z) = 0 on its support S."""
    return found


@_differentiable.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Code, Code]:
    found = primals[-1]
    active = found != 0

    def stationarity(op: ConvOperator, x: Signal, lam: Scalar) -> Code:
        gradient = 2 * analysis(op, synthesis(op, found) - x) + lam * jnp.sign(found)
        return jnp.where(active, gradient, 0.0)

    def curvature(code: Code) -> Code:
        op = primals[0]
        return jnp.where(active, 2 * analysis(op, synthesis(op, jnp.where(active, code, 0.0))), code)

    _, change = jax.jvp(stationarity, primals[:-1], tangents[:-1])
    return found, -jax.lax.custom_linear_solve(curvature, change, _conjugate_gradients, symmetric=True)


def _conjugate_gradients(matrix: Callable[[Code], Code], right: Code) -> Code:
    """Solve a symmetric positive semidefinite system; a consistent one also where it is singular."""
    enough = jnp.square(10 * float(jnp.finfo(right.dtype).eps)) * jnp.sum(right * right)

    def unfinished(carry: tuple[Array, ...]) -> Bool[Array, ""]:
        *_, square, steps = carry
        return (square > enough) & (steps < _CG_STEPS)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, residual, direction, square, steps = carry
        image = matrix(direction)
        length = square / jnp.sum(direction * image)
        residual = residual - length * image
        following = jnp.sum(residual * residual)
        direction = residual + following / square * direction
        return solution + length * (carry[2]), residual, direction, following, steps + 1

    begun = (jnp.zeros_like(right), right, right, jnp.sum(right * right), jnp.zeros((), np.int32))
    return jax.lax.while_loop(unfinished, step, begun)[0]


def _prepare(op: ConvOperator, x: ArrayLike, *others: ArrayLike) -> tuple[ConvOperator, Array]:
    """Return operator and signal in one dtype of at least float32, products unrounded."""
    signal = jnp.asarray(x)
    dtype = wider(op.dtype, np.float32)
    for array in (signal, *map(jnp.asarray, others)):
        if jnp.issubdtype(array.dtype, jnp.inexact):
            dtype = wider(dtype, as_float(array).dtype)
    _check(signal, op.input_shape, "x", "(M, *D)")
    # Inside a loop, XLA's convolutions run many times slower on a CPU than outside; products of patches do not.
    method = "patches" if jax.default_backend() == "cpu" else op.method
    filters = op.filters.astype(dtype)
    return dataclasses.replace(op, filters=filters, products="float32", method=method), signal.astype(dtype)


def _problem(
    op: ConvOperator, x: Array, lam: ArrayLike, support: Bool[ArrayLike, " K *n"] | None, nonnegative: bool
) -> _proximal.Problem:
    mask = None if support is None else _mask(op, support)
    return _proximal.Problem(op, x, _scalar(lam, "lam", x.dtype), mask, bool(nonnegative))


def _scalar(value: ArrayLike, name: str, dtype: jnp.dtype) -> Scalar:
    number = jnp.asarray(value)
    if number.ndim:
        raise ValueError(f"expected {name} to be a scalar, got shape {number.shape}; use jax.vmap for several")
    return number.astype(dtype)


def _mask(op: ConvOperator, support: Bool[ArrayLike, " K *n"]) -> Bool[Array, " K *n"]:
    mask = jnp.asarray(support)
    _check(mask, op.code_shape, "support", "(K, *n)")
    if mask.dtype != jnp.bool_:
        raise ValueError(f"expected support to be booleans, got dtype {mask.dtype}; pass code != 0")
    return mask


def _code(op: ConvOperator, code: ArrayLike) -> Code:
    array = jnp.asarray(code).astype(op.dtype)
    _check(array, op.code_shape, "a code", "(K, *n)")
    return array


def _check(array: Array, expected: tuple[int, ...], name: str, axes: str) -> None:
    if array.shape != expected:
        raise ValueError(
            f"expected {name} of shape {axes} = {expected}, got {array.shape}; the solver takes one example, "
            "use jax.vmap for a batch"
        )


__all__ = ["DualityGap", "LassoResult", "LassoStatus", "duality_gap", "lam_max", "lasso"]
