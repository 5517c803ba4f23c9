"""Appendix A of Gilbert et al. 2017: when random filters have the model-RIP (Lemma A.1, eq. (4), Theorem 3.1).

Theorem 3.1 in both printed versions, with its constant C as an argument; and, for Gaussian filters, the same statements
with numbers in place of constants. Every function is elementwise and works under jit; what lies outside its domain is
NaN. Probabilities come clipped to [0, 1] and as the formula gives them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_floats
from cnninv_jax._typing import Array, Float, PerAxis
from cnninv_jax.sparsity import SparseCode

#: The two texts of Theorem 3.1.
Version: TypeAlias = Literal["ijcai", "arxiv"]


class Clipped(NamedTuple):
    """A number inside its own range, and the formula's value as it stands."""

    value: Float[Array, " *batch"]
    unclipped: Float[Array, " *batch"]


def measurement_ratio(channels: int, length: PerAxis, signal_shape: PerAxis) -> float:
    """Return M l^2 / D, the left side of Theorem 3.1; in two dimensions with prod(ell) and prod(D).

    Args:
        channels: M.
        length: filter length ell, one integer (1-D) or one per axis.
        signal_shape: signal length D, likewise.
    """
    taps, size = (math.prod(n if isinstance(n, Sequence) else (n,)) for n in (length, signal_shape))
    return channels * taps * taps / size


def theorem_3_1(
    *,
    num_filters: ArrayLike,
    shifts: ArrayLike,
    k: ArrayLike | None = None,
    delta: ArrayLike | None = None,
    epsilon: ArrayLike | None = None,
    ratio: ArrayLike | None = None,
    constant: ArrayLike | None = None,
    version: Version = "ijcai",
) -> Clipped:
    """Solve Theorem 3.1 of Gilbert et al. 2017 for the one of its five quantities that is left out.

    Gaussian filters have the model-RIP over M_k with parameter delta, except with probability epsilon, if

        IJCAI:  M l^2 / D >= C / delta^2 (k (log K + log n) - log epsilon)
        arXiv:  M l^2 / D >= C / delta^2  k (log K + log n - log epsilon).

    The proof's union bound gives the first. The second asks for more where k > 1, so that it is true with any C with
    which the first is.

    Args:
        num_filters: K.
        shifts: n, in two dimensions their product.
        k: non-zeros of the code.
        delta: constant of eq. (1), between 0 and 1.
        epsilon: failure probability, above 0 and at most 1.
        ratio: M l^2 / D, see `measurement_ratio`.
        constant: C, which the paper leaves open; see `calibrate_C`.
        version: ``"ijcai"`` or ``"arxiv"``.

    Returns:
        The smallest ratio, delta or epsilon, the largest k or C for which the condition holds, elementwise. ``value``
        is in range: k a whole number from 0 to K, epsilon in [0, 1], delta infinite where it would have to be 1 or
        more. NaN where a given quantity is outside its domain.

    Raises:
        ValueError: not exactly one quantity is left out, or an unknown version.
    """
    given = {"k": k, "delta": delta, "epsilon": epsilon, "ratio": ratio, "constant": constant}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        raise ValueError(
            f"expected all but one of {', '.join(given)}, got {len(given) - len(missing)} of them; leave out the one "
            "to solve for"
        )
    if version not in ("ijcai", "arxiv"):
        raise ValueError(f"expected version to be 'ijcai' or 'arxiv', got {version!r}")
    names = [name for name in given if name not in missing]
    blocks, n, *rest = as_floats(num_filters, shifts, *(given[name] for name in names))  # type: ignore[arg-type]
    known = dict(zip(names, rest, strict=True))
    inside = (blocks >= 1) & (n >= 1)
    for name, value in known.items():
        most = {"delta": 1.0, "epsilon": 1.0}.get(name, np.inf)
        inside &= (value >= 1 if name == "k" else value > 0) & ((value < most) if name != "epsilon" else value <= most)
    # Outside the domain anything will do; NaN is put there in the end.
    known = {
        name: jnp.where(inside, value, 0.5 if name in ("delta", "epsilon") else 1.0) for name, value in known.items()
    }
    log_size = jnp.log(jnp.where(inside, blocks * n, 2.0))
    found = _solve_3_1(missing[0], log_size, version, **known)
    found = jnp.where(inside, found, jnp.nan)
    if missing[0] == "epsilon":
        return Clipped(jnp.clip(found, 0.0, 1.0), found)
    if missing[0] == "delta":
        return Clipped(jnp.where(found >= 1, jnp.inf, found), found)
    if missing[0] == "k":
        return Clipped(jnp.clip(jnp.floor(found), jnp.zeros_like(blocks), blocks), found)
    return Clipped(found, found)


def lemma_a_1(code: SparseCode) -> Float[Array, ""]:
    """Return E |W^T z|^2 = |z|^2, over filters of independent entries with mean 0 and variance 1 / (M prod(ell)).

    Exact for valid padding and whole filter responses as blocks; with two entries of one filter the equality still
    holds, as shifted filters are uncorrelated. (The proof normalises rows by E |w| = 1; E |w|^2 = 1 is what it needs.)

    Args:
        code: z.
    """
    return jnp.sum(jnp.square(code.values))


def equation_4(
    delta: ArrayLike, *, ratio: ArrayLike, degrees: ArrayLike, constant: ArrayLike, norm: ArrayLike = 1.0
) -> Clipped:
    """Return eq. (4): for one z in M_k, P(| |W^T z|^2 - |z|^2 | > delta |z|^2) is at most

        2 exp(-c min(delta^2 M l^2 / (D |w|^4), delta M l / |w|^2)),    |w| the sub-Gaussian norm of an entry.

    The paper writes one C for two constants, inside and outside of the minimum; c is their product.

    Args:
        delta: deviation, positive.
        ratio: M l^2 / D, see `measurement_ratio`.
        degrees: M l.
        constant: c.
        norm: |w|, sup over p >= 1 of E(|w|^p)^(1/p) / sqrt(p): sqrt(2 / pi) = 0.80 for a standard normal w.

    Returns:
        The bound, clipped to [0, 1] and as it stands; NaN where an argument is not positive.
    """
    off, r, d, c, psi = as_floats(delta, ratio, degrees, constant, norm)
    inside = (off > 0) & (r > 0) & (d > 0) & (c > 0) & (psi > 0)
    exponent = jnp.minimum(jnp.square(off) * r / psi**4, off * d / jnp.square(psi))
    bound = jnp.where(inside, 2 * jnp.exp(-c * exponent), jnp.nan)
    return Clipped(jnp.minimum(bound, 1.0), bound)


def gaussian_concentration(delta: ArrayLike, degrees: ArrayLike) -> Clipped:
    """Return eq. (4) with numbers in place of constants, for Gaussian filters; D does not enter.

    exp(-M l (delta - log(1 + delta)) / 2) + exp(-M l (-delta - log(1 - delta)) / 2), the second only for delta < 1.

    |W^T z|^2 / |z|^2 is distributed as sum_p lambda_p chi2_M with lambda_p <= 1 / (M l) and M sum_p lambda_p = 1 (see
    `ratio_weights`); its moment generating function is largest where M l equal weights make it one chi-square. The
    paper bounds sum_p lambda_p^2 by D max_p lambda_p^2, which costs the factor l / D; max_p lambda_p sum_p lambda_p
    does not.

    Args:
        delta: deviation, positive.
        degrees: M prod(ell).

    Returns:
        A bound for every z in M_k, whole filter responses as blocks; clipped to [0, 1] and as it stands.
    """
    off, d = as_floats(delta, degrees)
    inside = (off > 0) & (d > 0)
    safe = jnp.where(inside, off, 0.5)
    upper = jnp.exp(-d / 2 * (safe - jnp.log1p(safe)))
    low = safe < 1
    below = jnp.where(low, safe, 0.5)
    lower = jnp.where(low, jnp.exp(-d / 2 * (-below - jnp.log1p(-below))), 0.0)
    bound = jnp.where(inside, upper + lower, jnp.nan)
    return Clipped(jnp.minimum(bound, 1.0), bound)


def gaussian_failure(
    delta: ArrayLike, *, num_filters: ArrayLike, shifts: ArrayLike, k: ArrayLike, degrees: ArrayLike
) -> Clipped:
    """Return a bound on P(delta_k > delta) for Gaussian filters without an open constant.

    The paper's own proof, completed: |M_k| = n^k C(K, k) subspaces, each with a net of 9^k points on which eq. (4)
    with delta / 2 is asked for (a step that the printed proof leaves out), and `gaussian_concentration` for eq. (4).

    Args:
        delta: constant of eq. (1), positive.
        num_filters: K.
        shifts: n, in two dimensions their product.
        k: non-zeros, at most K; for k = 1 no net is needed and all shifts of a filter have one norm.
        degrees: M prod(ell).

    Returns:
        The bound, clipped to [0, 1] and as it stands.
    """
    off, blocks, n, size, d = as_floats(delta, num_filters, shifts, k, degrees)
    inside = (size >= 1) & (size <= blocks) & (n >= 1)
    single = size == 1
    binomial = gammaln(blocks + 1) - gammaln(size + 1) - gammaln(blocks - size + 1)
    log_count = jnp.where(single, jnp.log(blocks), binomial + size * (jnp.log(n) + math.log(9.0)))
    one = gaussian_concentration(jnp.where(single, off, off / 2), d).unclipped
    bound = jnp.where(inside, jnp.exp(log_count + jnp.log(one)), jnp.nan)
    return Clipped(jnp.minimum(bound, 1.0), bound)


def gaussian_constant(num_filters: ArrayLike, shifts: ArrayLike) -> Float[Array, " *batch"]:
    """Return a C with which Theorem 3.1 (IJCAI) is proved for Gaussian filters, whatever k, delta, M, l and D are.

    (1 + log 18 / log(K n)) / c with c = (1/2 - log(3/2)) / 2 = 0.047: `gaussian_failure` is at most
    exp(k log(18 K n) - c M l delta^2) as delta < 1, and k log(18 K n) <= (c C) k log(K n). With this C the theorem's
    epsilon, raised to the power c C >= 1, is no smaller than that. What simulation needs is some ten times less, see
    `calibrate_C`.

    Args:
        num_filters: K.
        shifts: n; K n must be at least 2.
    """
    blocks, n = as_floats(num_filters, shifts)
    inside = (blocks >= 1) & (n >= 1) & (blocks * n >= 2)
    log_size = jnp.log(jnp.where(inside, blocks * n, 2.0))
    return jnp.where(inside, (1 + math.log(18.0) / log_size) / ((0.5 - math.log(1.5)) / 2), jnp.nan)


def _solve_3_1(unknown: str, log_size: Array, version: Version, **known: Array) -> Array:
    """Return the unknown of C log_term / delta^2 = ratio; log_size = log K + log n."""
    if unknown in ("k", "epsilon"):
        term = known["ratio"] * jnp.square(known["delta"]) / known["constant"]
        if unknown == "epsilon":
            per_entry = term / known["k"] if version == "arxiv" else term
            return jnp.exp((1.0 if version == "arxiv" else known["k"]) * log_size - per_entry)
        log_epsilon = jnp.log(known["epsilon"])
        return term / (log_size - log_epsilon) if version == "arxiv" else (term + log_epsilon) / log_size
    log_epsilon = jnp.log(known["epsilon"])
    inner = known["k"] * log_size - (known["k"] if version == "arxiv" else 1.0) * log_epsilon
    if unknown == "ratio":
        return known["constant"] * inner / jnp.square(known["delta"])
    if unknown == "delta":
        return jnp.sqrt(known["constant"] * inner / known["ratio"])
    return known["ratio"] * jnp.square(known["delta"]) / inner
