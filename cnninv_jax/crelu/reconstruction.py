"""Reconstruction of a signal from the CReLU features of one layer (Shang et al. 2016, Algs. 1 and 2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, wider
from cnninv_jax._typing import Array, Code, Float, Int
from cnninv_jax.crelu.activation import Pooled, inverse, winners
from cnninv_jax.operators import ConvOperator
from cnninv_jax.recovery.pseudo_inverse import PseudoInverseResult, check_tol, pseudo_inverse


def reconstruct(
    op: ConvOperator,
    features: Float[ArrayLike, " K2 *n"],
    *,
    bias: Float[ArrayLike, " K"] | None = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
    patchwise: bool = True,
) -> PseudoInverseResult:
    """Return x' = W^+ (rho_c^-1(f) - b), of f = rho_c(W x + b) the projection of x onto range(W^T) (Alg. 1).

    Args:
        op: the layer W, whose rows are the shifted filters; the paper's W is its transpose.
        features: both phases, [2 K, *n], of one example. Estimates that no CReLU gives are taken linearly, p - q.
        bias: b of the layer; None for none.
        tol: relative residual of the normal equations at which the iteration stops. The relative error of x' is at
            most c tol, c the condition number of W; tol=1e-12 in float64 gives the digits of a dense pseudo-inverse.
        max_steps: most iterations.
        patchwise: see `pseudo_inverse`.

    Returns:
        x' = the part of x that shifts of filters span, [M, *D]; the residual, iterations and how they ended: look at
        ``PseudoInverseStatus(result.status).message``. With features that are not finite x' is NaN.

    Raises:
        TypeError: op is no `ConvOperator`.
        ValueError: features of another shape than [2 K, *n], or a bias of another shape than [K].

    Cost: at most one `analysis` and one `synthesis` an iteration; no dense matrix. Compiled once for a geometry.
    """
    check_operator(op)
    check_tol(tol)
    offset = None if bias is None else as_float(bias)
    return _reconstruct(op, as_float(features), offset, tol, max_steps=max_steps, patchwise=patchwise)


@functools.partial(jax.jit, static_argnames=("max_steps", "patchwise"))
def _reconstruct(
    op: ConvOperator, features: Array, bias: Array | None, tol: float, *, max_steps: int, patchwise: bool
) -> PseudoInverseResult:
    expected = (2 * op.num_filters, *op.shifts)
    if features.shape != expected:
        raise ValueError(
            f"expected features of shape [2 K, *n] = {expected}, got {features.shape}; use jax.vmap for a batch"
        )
    known = _without_bias(inverse(features, axis=0), op, bias)
    return pseudo_inverse(op, known, tol=tol, max_steps=max_steps, patchwise=patchwise)


def reconstruct_pooled(
    op: ConvOperator,
    features: Float[ArrayLike, " K2 *regions"],
    switches: Int[Array, " K2 *regions"],
    *,
    bias: Float[ArrayLike, " K"] | None = None,
    tol: float = 1e-6,
    max_steps: int = 5000,
) -> PseudoInverseResult:
    """Return x' = (W^_x^T)^+ z from the winners of max-pooling alone, with their signs (Shang et al. 2016, Alg. 2).

    The columns of W^_x are the shifted filters w_i^j that won a window, one column a window, with the sign of the
    phase in which they won: z = W^_x^T x are the pooled features themselves, and x' is the projection of x onto
    range(W^_x).

    Example: ``reconstruct_pooled(op, *max_pool(analysis(op, x), 3, stride=2))``.

    Args:
        op: the layer W.
        features: pooled, [2 K, *regions], of one example.
        switches: flat index into n of every window's winner, -1 where nothing fired, see `max_pool`. Any
            switch outside [0, prod n) is taken as "nothing fired": values cannot be refused in a compiled program.
        bias: b of the layer; None for none.
        tol: relative residual of the normal equations at which the iteration stops. The relative error of x' is at
            most c tol, c the condition number of W^_x; tol=1e-12 in float64 gives the digits of a dense pseudo-inverse.
        max_steps: most iterations. Few winners a sample need many: over 1,000 with 3 x 3 windows, stride 2, and 16 to
            32 filters.

    Returns:
        x', [M, *D], zero where nothing fired; the residual, iterations and how they ended: look at
        ``PseudoInverseStatus(result.status).message``. With features that are not finite x' is NaN. A shift that won
        several windows counts that often, which matters only where the windows disagree on its response (features
        that are estimates).

    Raises:
        TypeError: op is no `ConvOperator`.
        ValueError: features and switches of different shapes, of another number of filters than the layer's, or a
            bias of another shape than [K].

    Cost: that of `reconstruct`.
    """
    check_operator(op)
    check_tol(tol)
    offset = None if bias is None else as_float(bias)
    return _reconstruct_pooled(op, as_float(features), jnp.asarray(switches), offset, tol, max_steps=max_steps)


@functools.partial(jax.jit, static_argnames="max_steps")
def _reconstruct_pooled(
    op: ConvOperator, features: Array, switches: Array, bias: Array | None, tol: float, *, max_steps: int
) -> PseudoInverseResult:
    responses, counts = winners(Pooled(features, switches), op.code_shape)
    responses = jnp.where(counts > 0, _without_bias(responses, op, bias), 0)
    return pseudo_inverse(op, responses, weights=counts, tol=tol, max_steps=max_steps)


def check_operator(op: object) -> None:
    """Refuse anything but an operator: filters alone do not say what they are convolved with.

    Raises:
        TypeError: op is no `ConvOperator`.
    """
    if not isinstance(op, ConvOperator):
        raise TypeError(f"expected a ConvOperator, as operators.conv_operator makes one, got {type(op).__name__}")


def _without_bias(responses: Code, op: ConvOperator, offset: Array | None) -> Code:
    if offset is None:
        return responses
    if offset.shape != (op.num_filters,):
        raise ValueError(f"expected a bias of shape [K] = ({op.num_filters},), got {offset.shape}")
    dtype = wider(responses.dtype, offset.dtype)
    return responses.astype(dtype) - offset.astype(dtype).reshape(-1, *(1,) * op.rank)
