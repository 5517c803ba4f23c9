"""The pseudo-inverse of W applied to responses, without a dense matrix (Shang et al. 2016, Algs. 1 and 2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float
from cnninv_jax._typing import Array, Code, Float, Int, Scalar, Signal
from cnninv_jax.operators import ConvOperator, analysis, synthesis


class PseudoInverseResult(NamedTuple):
    """A least-squares solution of smallest norm.

    Attributes:
        signal: x', [M, *D].
        residual: |W^T S (z - W x')| / |W^T S z|, of the normal equations; 0 where W^T S z = 0.
        num_steps: iterations taken.
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
) -> PseudoInverseResult:
    """Return x' = (S^(1/2) W)^+ S^(1/2) z: of the minimisers of sum S (z - W x)^2 the smallest.

    DRAFT: conjugate gradients on the normal equations.
    """
    dtype = jnp.promote_types(as_float(z).dtype, op.dtype)
    code: Code = jnp.asarray(z, dtype)
    scale = jnp.ones((), dtype) if weights is None else jnp.asarray(weights, dtype)

    def normal(x: Signal) -> Signal:
        return synthesis(op, scale * analysis(op, x))

    right = synthesis(op, scale * code)
    size = jnp.sqrt(jnp.sum(jnp.square(right)))
    safe = jnp.where(size == 0, 1, size)
    matrix = lx.FunctionLinearOperator(
        normal, jax.ShapeDtypeStruct(op.input_shape, dtype), tags=lx.positive_semidefinite_tag
    )
    solver = lx.CG(rtol=0.0, atol=tol, norm=_norm, max_steps=max_steps)
    found = lx.linear_solve(matrix, right / safe, solver, throw=False)
    signal = found.value * size
    residual = _norm(right - normal(signal)) / safe
    return PseudoInverseResult(signal, residual, found.stats["num_steps"], jnp.where(residual <= tol, 0, 1))


def _norm(array: Array) -> Scalar:
    return jnp.sqrt(jnp.sum(jnp.square(array)))
