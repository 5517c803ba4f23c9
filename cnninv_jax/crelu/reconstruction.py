"""Reconstruction of a signal from the CReLU features of one layer (Shang et al. 2016, Algs. 1 and 2)."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, wider
from cnninv_jax._typing import Array, Code, Float, Int
from cnninv_jax.crelu.activation import Pooled, inverse, winners
from cnninv_jax.operators import ConvOperator
from cnninv_jax.recovery.pseudo_inverse import PseudoInverseResult, pseudo_inverse


def reconstruct(
    op: ConvOperator,
    features: Float[ArrayLike, " K2 *n"],
    *,
    bias: Float[ArrayLike, " K"] | None = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> PseudoInverseResult:
    """Return x' = W^+ (rho_c^-1(f) - b), of f = rho_c(W x + b) the projection of x onto range(W^T) (Alg. 1).

    Args:
        op: the layer W, whose rows are the shifted filters; the paper's W is its transpose.
        features: both phases, [2 K, *n], of one example. Estimates that no CReLU gives are taken linearly, p - q.
        bias: b of the layer; None for none.
        tol: relative residual of the normal equations at which the iteration stops, see `pseudo_inverse`.
        max_steps: most iterations.

    Returns:
        x' = the part of x that shifts of filters span, [M, *D]; the residual, iterations and how they ended.

    Raises:
        ValueError: features of another shape than [2 K, *n], or a bias of another shape than [K].

    Cost: one `analysis` and one `synthesis` an iteration; no dense matrix.
    """
    responses = inverse(features, axis=0)
    if responses.shape != op.code_shape:
        raise ValueError(
            f"expected features of shape [2 K, *n] = {(2 * op.num_filters, *op.shifts)}, got {jnp.shape(features)}; "
            "use jax.vmap for a batch"
        )
    return pseudo_inverse(op, _without_bias(responses, op, bias), tol=tol, max_steps=max_steps)


def reconstruct_pooled(
    op: ConvOperator,
    features: Float[ArrayLike, " K2 *regions"],
    switches: Int[Array, " K2 *regions"],
    *,
    bias: Float[ArrayLike, " K"] | None = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> PseudoInverseResult:
    """Return x' = (W^_x^T)^+ z from the winners of max-pooling alone, with their signs (Shang et al. 2016, Alg. 2).

    The columns of W^_x are the shifted filters w_i^j that won a window, one column a window, with the sign of the
    phase in which they won: z = W^_x^T x are the pooled features themselves, and x' is the projection of x onto
    range(W^_x).

    Args:
        op: the layer W.
        features: pooled, [2 K, *regions], of one example.
        switches: flat index into n of every window's winner, -1 where nothing fired, see `max_pool`.
        bias: b of the layer; None for none.
        tol: relative residual of the normal equations at which the iteration stops, see `pseudo_inverse`.
        max_steps: most iterations.

    Returns:
        x', [M, *D], zero where nothing fired; the residual, iterations and how they ended. A shift that won several
        windows counts that often, which matters only where the windows disagree on its response (features that are
        estimates).

    Raises:
        ValueError: features and switches of different shapes, of another number of filters than the layer's, or a
            bias of another shape than [K].

    Cost: that of `reconstruct`.
    """
    values = as_float(features)
    responses, counts = winners(Pooled(values, jnp.asarray(switches)), op.code_shape)
    responses = jnp.where(counts > 0, _without_bias(responses, op, bias), 0)
    return pseudo_inverse(op, responses, weights=counts, tol=tol, max_steps=max_steps)


def _without_bias(responses: Code, op: ConvOperator, bias: Float[ArrayLike, " K"] | None) -> Code:
    if bias is None:
        return responses
    offset = as_float(bias)
    if offset.shape != (op.num_filters,):
        raise ValueError(f"expected a bias of shape [K] = ({op.num_filters},), got {offset.shape}")
    dtype = wider(responses.dtype, offset.dtype)
    return responses.astype(dtype) - offset.astype(dtype).reshape(-1, *(1,) * op.rank)
