"""Coherence of Gaussian random banks: drawn by way of the Gram matrix, and its law in closed form.

mu = max over i < j of |<w_i, w_j>| / (|w_i| |w_j|), filters at the same shift (Gilbert et al. 2017, Tables 4 and 6).
It depends on the K x K Gram matrix only. For K < N = M prod(ell) that is a Wishart matrix, A A^T with A lower
triangular, a_ij ~ N(0, 1) below the diagonal and a_ii^2 ~ chi^2 with N - i degrees of freedom, i = 0, 1, ...
(Bartlett 1933): K (K + 1) / 2 random numbers in place of K N, exactly the same law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cnninv_jax._numerics import matmul
from cnninv_jax._random import normal, random_words, uniform_from_words
from cnninv_jax._typing import Array, Float, Int, PRNGKeyArray, Scalar
from cnninv_jax.montecarlo import Extremes, Moments, Result, run

Method: TypeAlias = Literal["bartlett", "direct"]
#: Numbers that the draws side by side may hold at a time.
LANE_NUMBERS = 2**23
BLOCK = 32


def gram_coherence(factor: Float[Array, "K N"], groups: int = 1) -> Scalar:
    """Return the coherence of the rows of a matrix; with groups, of those within one group only.

    Filters of different groups see different channels, so their columns of W^T are orthogonal.
    """
    count = factor.shape[0]
    unit = factor / jnp.sqrt(jnp.sum(factor * factor, axis=1, keepdims=True))
    parts = unit.reshape(groups, count // groups, -1)
    product = jnp.abs(matmul(parts, jnp.swapaxes(parts, 1, 2)))
    own = jnp.eye(count // groups, dtype=bool)[None]
    return jnp.max(jnp.where(own, jnp.zeros((), factor.dtype), product))


def gaussian_factor(
    key: PRNGKeyArray, num_filters: int, size: int, dtype: jnp.dtype, method: Method = "bartlett"
) -> Float[Array, "K N"]:
    """Draw a matrix whose rows have the Gram matrix of K filters of N independent N(0, 1) entries.

    Args:
        key: random key.
        num_filters: K.
        size: N = M prod(ell).
        dtype: float32 or float64.
        method: ``"bartlett"`` gives the triangular factor [K, K] where K < N, ``"direct"`` the filters [K, N].
    """
    if method == "direct" or num_filters >= size:
        return normal(key, (num_filters, size), dtype)
    normal_key, chi_key = jax.random.split(key)
    below = jnp.tril(normal(normal_key, (num_filters, num_filters), dtype), -1)
    return below + jnp.diag(jnp.sqrt(_chi_squares(chi_key, size - np.arange(num_filters), dtype)))


def _chi_squares(key: PRNGKeyArray, freedom: Int[np.ndarray, " K"], dtype: jnp.dtype) -> Float[Array, " K"]:
    """Draw chi^2 numbers of two and more degrees of freedom by rejection (Marsaglia and Tsang 2000).

    All at once, until every one is accepted: one in a hundred or fewer is not. `jax.random.chisquare` has a loop of its
    own for every number, which XLA takes seconds to compile.
    """
    count = len(freedom)
    d = jnp.asarray(freedom / 2 - 1 / 3, dtype)
    c = 1 / jnp.sqrt(9 * d)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        attempts, values, accepted = state
        normal_key, uniform_key = jax.random.split(jax.random.fold_in(key, attempts))
        x = normal(normal_key, (count,), dtype)
        log_u = jnp.log(uniform_from_words(random_words(uniform_key, count + count % 2)[:count], dtype))
        v = (1 + c * x) ** 3
        safe = jnp.where(v > 0, v, 1)
        taken = (v > 0) & (log_u < 0.5 * x * x + d * (1 - safe + jnp.log(safe)))
        return attempts + 1, jnp.where(accepted, values, 2 * d * safe), accepted | taken

    state = (jnp.zeros((), jnp.int32), jnp.zeros(count, dtype), jnp.zeros(count, bool))
    return jax.lax.while_loop(lambda state: ~jnp.all(state[2]), attempt, state)[1]


def draw_coherence(
    key: PRNGKeyArray, *, num_filters: int, size: int, groups: int, dtype: jnp.dtype, method: Method
) -> dict[str, Scalar]:
    """Draw a bank's coherence within its groups and, where there are several, over all pairs of the stored kernel."""
    factor = gaussian_factor(key, num_filters, size, dtype, method)
    found = {"within": gram_coherence(factor, groups)}
    return found if groups == 1 else {**found, "stored": gram_coherence(factor)}


def simulate_coherence(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    num_draws: int,
    *,
    groups: int = 1,
    dtype: jax.typing.DTypeLike = jnp.float32,
    method: Method = "bartlett",
    out: Path | None = None,
    progress: bool | Callable[[Any], object] = False,
) -> Result:
    """Draw the coherence of Gaussian banks of one size, draw i from fold_in(key, i); raw draws are kept.

    Args:
        key: random key.
        shape: of the bank, (K, M / groups, *ell).
        num_draws: how many banks.
        groups: into which filters fall.
        dtype: of the draws.
        method: see `gaussian_factor`.
        out: folder of the journal.
        progress: as `montecarlo.run` takes it.

    Returns:
        Outputs ``within`` and, with several groups, ``stored``.
    """
    num_filters, size = shape[0], math.prod(shape[1:])
    # A Partial's leaves are what programs are cached by: layers of one size share theirs.
    draw = jax.tree_util.Partial(
        draw_coherence, num_filters=num_filters, size=size, groups=groups, dtype=jnp.dtype(dtype), method=method
    )
    numbers = num_filters * (size if method == "direct" or num_filters >= size else 2 * num_filters)
    lanes = 1 << max(0, min(4, math.frexp(LANE_NUMBERS / numbers)[1] - 1))
    names = ("within",) if groups == 1 else ("within", "stored")
    return run(
        draw,
        key,
        num_draws,
        chunk_size=BLOCK,
        lanes=lanes,
        statistics=dict.fromkeys(names, (Moments(), Extremes())),
        keep=names,
        out=out,
        progress=progress,
        name=f"coherence of {num_filters} random filters of {size} numbers",
        headline="within",
    )


def coherence_distribution(mu: ArrayLike, num_filters: int, size: int, groups: int = 1) -> np.ndarray:
    """Return P(coherence <= mu) of a Gaussian bank: exp(-pairs P(|cos| > mu)).

    One pair's |cos| exceeds mu with probability I_{1 - mu^2}((N - 1) / 2, 1 / 2). Different pairs are independent two
    by two, so the number of pairs above mu is nearly Poisson (Arratia, Goldstein and Gordon 1989).

    Args:
        mu: coherence.
        num_filters: K.
        size: N = M prod(ell).
        groups: into which filters fall; pairs of different groups do not count.
    """
    from scipy.special import betainc

    mu = np.clip(np.asarray(mu, np.float64), 0.0, 1.0)
    each = num_filters // groups
    pairs = groups * each * (each - 1) / 2
    return np.exp(-pairs * betainc((size - 1) / 2, 0.5, 1.0 - mu * mu))


def two_sided(printed: float, num_filters: int, size: int, groups: int = 1) -> float:
    """Return the two-sided p-value of a coherence under the closed form."""
    below = float(coherence_distribution(printed, num_filters, size, groups))
    return min(1.0, 2 * min(below, 1 - below))


def simulated_two_sided(printed: float, draws: np.ndarray) -> float:
    """Return the two-sided Monte-Carlo p-value, at least 2 / (draws + 1)."""
    below, above = int(np.sum(draws <= printed)), int(np.sum(draws >= printed))
    return min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1))


__all__ = [
    "coherence_distribution",
    "draw_coherence",
    "gaussian_factor",
    "gram_coherence",
    "simulate_coherence",
    "simulated_two_sided",
    "two_sided",
]
