"""Reconstruction of a signal from the CReLU features of one layer (Shang et al. 2016, Algs. 1 and 2)."""

from __future__ import annotations

from jax.typing import ArrayLike

from cnninv_jax._typing import Array, Float, Int
from cnninv_jax.crelu.activation import Pooled, inverse, winners
from cnninv_jax.operators import ConvOperator
from cnninv_jax.recovery.pseudo_inverse import PseudoInverseResult, pseudo_inverse


def reconstruct(
    op: ConvOperator, features: Float[ArrayLike, " K2 *n"], *, tol: float = 1e-6, max_steps: int = 1000
) -> PseudoInverseResult:
    """Return x' = (W^T)^+ rho_c^-1(features): the projection of x onto range(W) (Shang et al. 2016, Alg. 1)."""
    return pseudo_inverse(op, inverse(features, axis=0), tol=tol, max_steps=max_steps)


def reconstruct_pooled(
    op: ConvOperator,
    features: Float[ArrayLike, " K2 *regions"],
    switches: Int[Array, " K2 *regions"],
    *,
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> PseudoInverseResult:
    """Return x' = (W^_x^T)^+ z from the winners of max-pooling alone, with their signs (Shang et al. 2016, Alg. 2)."""
    responses, counts = winners(Pooled(features, switches), op.code_shape)  # type: ignore[arg-type]
    return pseudo_inverse(op, responses, weights=counts, tol=tol, max_steps=max_steps)
