"""One step of W^T M(W f, k) on real activations, in every reading of Gilbert et al. 2017, Table 3."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import norm
from cnninv_jax._typing import FilterBank, PRNGKeyArray, Scalar, Signal
from cnninv_jax.montecarlo import mean_interval
from cnninv_jax.operators import analysis, conv_operator, synthesis
from cnninv_jax.sparsity import num_blocks, project

#: What M keeps: the entry of largest magnitude of every region (2.3), or the largest one after a ReLU.
PROJECTIONS = ("magnitude", "relu")
#: What Table 2's share is a share of: all entries of h (at most one per region), or the regions.
COUNTS = ("entries", "regions")
#: How f_hat is compared with f: brought to f's norm, as it is, or its positive part brought to f's norm.
SCALINGS = ("scaled", "unscaled", "rectified")
#: All readings by name, and that of the table's columns.
READINGS = tuple(".".join(parts) for parts in itertools.product(PROJECTIONS, COUNTS, SCALINGS))
MAIN = "magnitude.entries.scaled"


def above(layer: int) -> str:
    """Return the name of the layer that reconstructs the output of pool(i): conv(i+1, 1)."""
    return f"conv{layer + 1}_1"


def mean_of(values: np.ndarray) -> dict[str, Any]:
    """Return the mean over pictures with its interval; pictures whose f or f_hat is zero have no error."""
    finite = values[np.isfinite(values)]
    mean, variance = finite.mean(), finite.var(ddof=1) if len(finite) > 1 else np.nan
    low, high = mean_interval(mean, variance, len(finite))
    return {
        "mean": float(mean), "interval_95": [float(low), float(high)], "standard_deviation": float(np.sqrt(variance)),
        "pictures": len(finite), "non_finite": len(values) - len(finite),
    }  # fmt: skip


def sizes(code_shape: tuple[int, ...], share: float, pool: int) -> tuple[int, int]:
    """Return k in both readings of a share of non-zeros, see `COUNTS`."""
    blocks = num_blocks(code_shape, pool)
    entries = round(share * math.prod(code_shape))
    return max(1, min(entries, blocks)), max(1, round(share * blocks))


@functools.partial(jax.jit, static_argnames=("share", "pool"))
def reconstruction_errors(f: Signal, bank: FilterBank, *, share: float, pool: int) -> dict[str, Scalar]:
    """Return |f - f_hat| / |f| for f_hat = W^T M(W f, k) (Gilbert et al. 2017, 4.5).

    Args:
        f: activations after pooling, [M, D, D].
        bank: filters of the layer above, [K, M, ell, ell]; W has same padding and stride 1.
        share: Table 2's share of non-zeros of the layer above; static.
        pool: side of the pooling regions of M; static.

    Returns:
        One error for each of `READINGS`. The scaled ones do not depend on the filters' scale. NaN where f or f_hat
        is zero.

    Cost: one analysis, and one synthesis for each of four codes.
    """
    op = conv_operator(bank, f.shape[1:], padding="same")
    h = analysis(op, f)
    size = norm(f)
    counts = dict(zip(COUNTS, sizes(op.code_shape, share, pool), strict=True))
    found = {}
    for projection in PROJECTIONS:
        for count, k in counts.items():
            code = project(h, k, pool=pool, nonnegative=projection == "relu")
            estimate = synthesis(op, code)
            positive = jnp.maximum(estimate, 0.0)
            compared = (estimate * (size / norm(estimate)), estimate, positive * (size / norm(positive)))
            for scaling, value in zip(SCALINGS, compared, strict=True):
                found[f"{projection}.{count}.{scaling}"] = norm(f - value) / size
    return found


@functools.partial(jax.jit, static_argnames=("share", "pool"))
def reconstruction(f: Signal, bank: FilterBank, *, share: float, pool: int) -> Signal:
    """Return f_hat = W^T M(W f, k) brought to f's norm, in the reading `MAIN`; see `reconstruction_errors`."""
    op = conv_operator(bank, f.shape[1:], padding="same")
    k = sizes(op.code_shape, share, pool)[COUNTS.index("entries")]
    return _of_norm(norm(f), synthesis(op, project(analysis(op, f), k, pool=pool)))


def random_activation(key: PRNGKeyArray, f: Signal) -> Signal:
    """Return Gaussian activations, negative ones among them, of f's norm (footnote 13)."""
    return _of_norm(norm(f), jax.random.normal(key, f.shape, f.dtype))


@jax.jit
def random_activation_error(key: PRNGKeyArray, f: Signal) -> Scalar:
    """Return |f - g| / |f| for Gaussian g of f's norm: sqrt(2 - 2 cos), sqrt 2 but for chance (footnote 13)."""
    return norm(f - random_activation(key, f)) / norm(f)


def _of_norm(size: Scalar, value: Signal) -> Signal:
    return value * (size / norm(value))
