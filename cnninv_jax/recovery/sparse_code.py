"""Sparse codes of a given signal: Gilbert et al. 2017, Algorithm 2."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._typing import Array, Bool, Code, Int, PerAxis
from cnninv_jax.operators import ConvOperator
from cnninv_jax.recovery.lasso import LassoResult, lasso
from cnninv_jax.sparsity import num_blocks, project, switches_of


class SparseCodeResult(NamedTuple):
    """The three stages of Algorithm 2.

    Attributes:
        code: z, step 3: the solution on the support, a member of M_k, [K, *n].
        model: z_model = M(z_init, k), step 2, [K, *n].
        support: where z_model is non-zero, [K, *n] booleans.
        switches: where it is, per block, as flat indices into n and -1 where it is nowhere, [K, *regions].
        initial: step 1, the l1-regularised solution without a constraint, with its gap, steps and status.
        restricted: step 3 likewise; its code is ``code``.
    """

    code: Code
    model: Code
    support: Bool[Array, " K *n"]
    switches: Int[Array, " K *regions"]
    initial: LassoResult
    restricted: LassoResult


def sparse_code(
    op: ConvOperator,
    x: ArrayLike,
    k: float | Int[Array, ""] | None,
    lam: ArrayLike,
    *,
    pool: PerAxis | None = None,
    restricted_lam: ArrayLike | None = None,
    nonnegative: bool = False,
    tol: float | Array = 1e-4,
    max_steps: int = 10_000,
    check_every: int = 10,
) -> SparseCodeResult:
    """Return a code z in M_k with W^T z close to x (Gilbert et al. 2017, Algorithm 2).

    1. z_init = argmin_z |x - W^T z|^2 + lam |z|_1;
    2. z_model = M_known(z_init, k) at the max-pooling switches of z_init, which is M(z_init, k);
    3. z = argmin_z |x - W^T z|^2 + lam |z|_1 with z = 0 wherever z_model is, begun at z_model.

    Derivatives are those of step 3 with its support held, see `lasso`.

    Args:
        op: the layer W.
        x: signal, [M, *D].
        k: number of non-zeros: integer, fraction of the entries, or traced integer; None for one in every block.
        lam: weight of the l1 norm, at least 0; may be traced. `lam_max` gives its scale.
        pool: pooling window; None for the whole response of a filter.
        restricted_lam: lam of step 3; that of step 1 (the paper's) for None. A smaller one shrinks values less.
        nonnegative: restrict codes to values of at least 0.
        tol: relative duality gap to stop at, in both problems.
        max_steps: most steps in each.
        check_every: steps between two evaluations of the gap.

    Returns:
        Code, support, switches, and the results of both problems. An entry of the support that step 3 sets to zero
        is zero in ``code``.

    Raises:
        ValueError: x of another shape, a static k not between 1 and the number of blocks, or what `lasso` refuses.

    Cost: two lassos; the restricted one takes few steps.
    """
    options = {"nonnegative": nonnegative, "tol": tol, "max_steps": max_steps, "check_every": check_every}
    initial = lasso(op, x, lam, **options)
    count = num_blocks(op.code_shape, pool) if k is None else k
    model = project(jax.lax.stop_gradient(initial.code), count, pool=pool, nonnegative=nonnegative)
    # A code that is not a number has no support.
    support = jnp.abs(model) > 0
    restricted = lasso(
        op, x, lam if restricted_lam is None else restricted_lam, support=support, warm_start=model, **options
    )
    return SparseCodeResult(restricted.code, model, support, switches_of(model, pool), initial, restricted)


__all__ = ["SparseCodeResult", "sparse_code"]
