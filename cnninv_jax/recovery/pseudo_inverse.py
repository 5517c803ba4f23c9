"""The pseudo-inverse of W applied to responses, without a dense matrix (Shang et al. 2016, Algs. 1 and 2)."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, norm, per_axis, wider
from cnninv_jax._typing import Array, Bool, Code, Float, Int, Scalar, Signal
from cnninv_jax.operators import ConvOperator, synthesis
from cnninv_jax.recovery._conjugate import ConjugateGradients
from cnninv_jax.recovery._normal import normal_operator
from cnninv_jax.recovery._patchwise import coverage, left_inverse, may_span

#: Numbers of a signal's patches up to which `for_loops` takes them: a gibibyte in float32.
MOST_PATCHES = 2**28


class PseudoInverseStatus(enum.IntEnum):
    """How a `pseudo_inverse` ended; each has a message."""

    CONVERGED = 0
    CAP = 1
    ZERO = 2
    NOT_FINITE = 3
    ROUNDING = 4

    @property
    def message(self) -> str:
        """What happened and what to do."""
        return _MESSAGES[self]


_MESSAGES = {
    PseudoInverseStatus.CONVERGED: "the relative residual of the normal equations is at most tol",
    PseudoInverseStatus.CAP: "the relative residual is above tol after max_steps iterations: raise max_steps or tol",
    PseudoInverseStatus.ZERO: "W^T S z is zero: z holds nothing that W could have made, and x' = 0 is exact",
    PseudoInverseStatus.NOT_FINITE: (
        "z, the filters or the weights are not finite, they overflow, or a weight is negative: the signal is NaN"
    ),
    PseudoInverseStatus.ROUNDING: (
        "iterations no longer lower the residual, which is above tol: tol is less than this dtype reaches with these "
        "filters; raise tol or compute in float64"
    ),
}


class PseudoInverseResult(NamedTuple):
    """A least-squares solution of smallest norm.

    Attributes:
        signal: x', [M, *D]; NaN where the status is NOT_FINITE.
        residual: |W^T S (z - W x')| / |W^T S z|, of the normal equations, computed from x'; 0 where W^T S z = 0.
        num_steps: iterations taken, each one product by W^T S W; 0 where the patchwise solution sufficed.
        status: how it ended, a `PseudoInverseStatus`.
    """

    signal: Signal
    residual: Scalar
    num_steps: Int[Array, ""]
    status: Int[Array, ""]


def pseudo_inverse(
    op: ConvOperator,
    z: ArrayLike,
    *,
    weights: Float[ArrayLike, " K *n"] | None = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
    patchwise: bool = True,
) -> PseudoInverseResult:
    """Return x' = (S^(1/2) W)^+ S^(1/2) z: of the minimisers of sum S (z - W x)^2 the smallest (Algs. 1 and 2).

    Conjugate gradients on W^T S W x = W^T S z, from 0: every iterate lies in the range of W^T, so the limit is the
    pseudo-inverse's, for banks of any rank. Banks whose filters span every patch (K >= M prod(l), and of full rank
    beyond doubt of rounding, which is looked at in every call) begin at N^-1 E^T F^+ z, the patches that F^+ gives,
    averaged: for z = W x this is x but for rounding, at any condition number; and their directions are divided by N,
    which undoes how few shifts see the border. There the solution is unique but for samples that no shift sees, which
    stay 0.

    Args:
        op: the layer W. Its products are never rounded here, whatever ``op.products``.
        z: responses, [K, *n]; of a CReLU those of `crelu.inverse`.
        weights: S, [K, *n], at least 0: 0 leaves a response out (Alg. 2); None for ones.
        tol: relative residual of the normal equations to stop at. |W (x' - x)| / |W x| is that of z; with
            condition number c of W it is at most c tol.
        max_steps: iterations, at most.
        patchwise: whether to begin at the patchwise solution, where there is one. With noise in z and ill-conditioned
            filters beginning at 0 can take fewer iterations.

    Returns:
        The signal and what it took, in the wider dtype of filters and z (computed in float32 at least).
        Differentiable once in z, filters and weights, at any rank in reverse mode; in forward mode only if W has full
        column rank or z is some W x.

    Raises:
        ValueError: z or weights of another shape, a negative tol, or max_steps below 1.

    Cost: one synthesis of 2 M channels (M without a patchwise start) and, for every iteration, M^2 prod(2 l - 1)
    multiply-adds a sample with stride 1 and no weights, or an analysis and a synthesis, whichever is less. Memory: a
    few signals, and codes only for the latter.
    """
    (limit,) = per_axis(max_steps, 1, "max_steps")
    check_tol(tol)
    given = as_float(z)
    dtype = wider(given.dtype, op.dtype)
    work = wider(dtype, np.float32)
    code, scale = _checked(op, given, work, weights)
    # Filters of about unit size: squares of squares neither overflow nor vanish.
    filters = op.filters.astype(work)
    unit = jax.lax.stop_gradient(jnp.max(jnp.abs(filters)))
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    op = dataclasses.replace(for_loops(op), filters=filters / unit, products="float32")

    normal = normal_operator(op, scale)
    right, start, diagonal, full = _begin(op, code, scale, patchwise)
    size = _size(right)
    right, start = right / size, None if start is None else jax.lax.stop_gradient(start / size)
    matrix = lx.FunctionLinearOperator(
        normal, jax.ShapeDtypeStruct(op.input_shape, work), tags=lx.positive_semidefinite_tag
    )
    whole = jax.lax.stop_gradient(norm(right))
    solver = ConjugateGradients(jnp.asarray(tol, work), limit)
    options = {} if start is None else {"y0": start, "diagonal": diagonal, "full": full}
    found = lx.linear_solve(matrix, right, solver, options=options, throw=False)

    steps = found.stats["num_steps"]
    residual = found.stats["size"] / jnp.where(whole > 0, whole, 1)
    negative = jnp.zeros((), bool) if scale is None else jnp.any(scale < 0)
    signal = found.value * (size / unit)
    finite = jnp.isfinite(residual) & jnp.isfinite(jnp.sum(jnp.abs(signal))) & ~negative
    status = jnp.where(
        ~finite,
        PseudoInverseStatus.NOT_FINITE,
        jnp.where(
            whole == 0,
            PseudoInverseStatus.ZERO,
            jnp.where(
                residual <= tol,
                PseudoInverseStatus.CONVERGED,
                jnp.where(steps >= limit, PseudoInverseStatus.CAP, PseudoInverseStatus.ROUNDING),
            ),
        ),
    ).astype(np.int32)
    signal = jnp.where(finite, signal, jnp.nan)
    return PseudoInverseResult(signal.astype(dtype), residual.astype(dtype), steps, status)


def check_tol(tol: float) -> None:
    """Refuse a negative tolerance, which no compiled program could.

    Raises:
        ValueError: tol is a number below 0.
    """
    if isinstance(tol, int | float) and not tol >= 0:
        raise ValueError(f"expected a tolerance of at least 0, got {tol}")


def for_loops(op: ConvOperator) -> ConvOperator:
    """Return the operator as iterations are to apply it: on a CPU by patches, if they take at most `MOST_PATCHES`.

    Inside a loop XLA's convolutions on a CPU are slow: 24 steps on 48 filters of 96 x 3 x 3 at 32 x 32 took 10 s by
    convolution and 0.08 s by patches (2 cores, under load).
    """
    patches = op.channels * math.prod(op.length) * math.prod(op.shifts)
    if jax.default_backend() != "cpu" or patches > MOST_PATCHES:
        return op
    return dataclasses.replace(op, method="patches")


def _checked(
    op: ConvOperator, code: Code, dtype: jnp.dtype, weights: Float[ArrayLike, " K *n"] | None
) -> tuple[Code, Code | None]:
    """Refuse responses and weights of another shape; return both in one dtype."""
    if code.shape != op.code_shape:
        raise ValueError(
            f"expected responses of shape (K, *n) = {op.code_shape}, got {code.shape}; operators take one example, use "
            "jax.vmap for a batch"
        )
    if weights is None:
        return code.astype(dtype), None
    scale = as_float(weights)
    if scale.shape != op.code_shape:
        raise ValueError(f"expected weights of shape (K, *n) = {op.code_shape}, got {scale.shape}")
    return code.astype(dtype), scale.astype(dtype)


def _begin(
    op: ConvOperator, code: Code, scale: Code | None, patchwise: bool
) -> tuple[Signal, Signal | None, Float[Array, " #M *D"] | None, Bool[Array, ""] | None]:
    """Return W^T S z, where to begin (None: at 0), what residuals are multiplied by, whether W has full rank."""
    if scale is not None or not patchwise or not may_span(op):
        right = synthesis(op, code if scale is None else scale * code)
        return right, None, None, None
    inverse, full = left_inverse(jax.lax.stop_gradient(op.filters.reshape(op.num_filters, -1)))
    patches = inverse.T.reshape(op.filters.shape)
    # Both in one pass over z, which is by far the largest array.
    both = synthesis(dataclasses.replace(op, filters=jnp.concatenate([op.filters, patches], axis=1)), code)
    seen = coverage(op)
    share = jnp.asarray(1 / np.maximum(seen, 1), op.dtype)[None]
    start = both[op.channels :] * share
    return both[: op.channels], start, jnp.where(full, share, 1), full


def _size(right: Signal) -> Scalar:
    """Return the largest entry's size, 1 where that is nothing to divide by."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(right)))
    return jnp.where((size > 0) & jnp.isfinite(size), size, 1)
