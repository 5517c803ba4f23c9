"""When a layered thresholding pass recovers the activation path: uniform and probabilistic bounds (Murray 2018).

Notation: t = |X_min| / 2 is a layer's threshold, A = |X_max|^2 mu^2 S, zeta a bound on the patch norm of the noise
V = V^(l-1) that enters the layer, N = M n_l the number of its responses. With D = D^(l) the response at atom i is

    D_ii <a_i, X^(l-1) + V> = x_i + Z_i + N_i,   Z_i = sum_{k != i} D_ii D_kk x_k <a_i, a_k>,   N_i = D_ii <a_i, V>,

at most S (on the support S - 1) terms of Z_i being other than 0. A support can be lost only where |Z_i + N_i| >= t.

**Uniform.** |Z_i| <= mu S |X_max| off the support and mu (S - 1) |X_max| on it, |N_i| <= zeta. Some threshold keeps
responses on and off the support apart if the two together stay below |X_min|: eq. (2). The threshold t itself does so
for mu S |X_max| + zeta < t, half an S less.

**Probabilistic.** The signs D_ii D_kk, k != i, and D_ii are independent Rademacher signs. If V does not depend on
them, Z_i + N_i is a Rademacher sum whose squared coefficients add up to A + zeta^2 at most, and Hoeffding's inequality
gives P(|Z_i + N_i| >= t) <= 2 exp(-t^2 / (2 (A + zeta^2))). A union over N responses, d data points and L layers is
eq. (3).

**Noise that depends on the signs.** V^(0) does not depend on D^(1). For l >= 2, V^(l-1) does depend on D^(l): it is
made from X^(l-1) = A^(l) D^(l) X^(l). Where atoms do not overlap in X^(l-1), V^(l-1) = sum_k D_kk v_k with v_k on the
support of atom k and free of D^(l): on the support N_i = <a_i, v_i> has no random sign at all, and off it noise and
interference share their signs, Z_i + N_i = sum_k D_ii D_kk (x_k <a_i, a_k> + <a_i, v_k>). Eq. (3) holds all the same:

1. On the support, V^(l-1) before thresholding is sum_{k != j} D_jj D_kk x_k <a_j, a_k> + D_jj <a_j, V^(l-2)> with
   D = D^(l-1). Given D^(l), ..., D^(L) its mean is 0, by induction from V^(0). If |N_i| <= zeta in all draws,
   Hoeffding's lemma gives E[exp(u N_i) | D^(l)] <= exp(u^2 zeta^2 / 2), all that the proof needs of independence.
   (Soft thresholds add a mean of -beta. Where only draws whose lower layers succeed have |N_i| <= zeta, the mean over
   these need not be 0.)
2. Of any noise with |N_i| <= zeta: P(|Z_i| >= t - zeta) <= 2 exp(-(t - zeta)^2 / (2 A)), called adversarial here. By
   Cauchy-Schwarz t^2 / (A + zeta^2) <= (t - zeta)^2 / A + 1: that is at most sqrt(e) times what eq. (3) takes, and
   less than it where zeta (A + (t - zeta)^2) > 2 A t.
3. Single responses need the factor sqrt(e) if S is 1 or 2 (S = 1, A = zeta^2 = t^2 / 4 and noise of Z_i's sign fail
   surely, while 2 exp(-1) = 0.74), but no layer's term of eq. (3) does: let e = t^2 / (2 (A + zeta^2)) be its exponent
   and q = (t - zeta) / sqrt(A), so that q^2 >= 2 e - 1. If the term says anything, 2 N exp(-e) < 1, then
   q^2 > 2 ln(2 N) - 1. With a response off the support N >= S + 1: more than S, the largest q^2 at which Z_i can fail,
   for S <= 3, and more than 3.6 for S >= 4. With all N = S on it: more than (S - 1)^2 / S, the largest, for S <= 5, and
   more than 3.9 for S >= 6. From q = 1.7 on P(|Z_i| >= q sqrt(A)) <= 6.36 P(normal >= q) <= 2 exp(-(q^2 + 1) / 2), at
   most 2 exp(-e) (the first inequality: Bentkus and Dzindzalieta 2015, sharp).

Every function is elementwise over layers (the last axis, layer 1 first), works under jit and vmap, and follows the
dtype of its arguments, float32 at least; what lies outside its domain is NaN. Magnitudes matter by their ratios only,
and squares are taken of these: no unit of measurement under- or overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_floats
from cnninv_jax._typing import Array, Float, Int

#: What is known of the noise: independent of the layer's signs (or of mean 0 given them), or only its patch norm.
Noise: TypeAlias = Literal["independent", "adversarial"]
NOISES: tuple[Noise, ...] = get_args(Noise)
#: Thresholds that the uniform bound speaks of, see `uniform_bound`.
Threshold: TypeAlias = Literal["best", "half"]
THRESHOLDS: tuple[Threshold, ...] = get_args(Threshold)
#: How noise is followed from layer to layer, see `propagated_noise`.
Propagation: TypeAlias = Literal["uniform", "probabilistic", "recovered"]
PROPAGATIONS: tuple[Propagation, ...] = get_args(Propagation)


class UniformBound(NamedTuple):
    """Stripe sparsities under which every support is recovered, whatever the signs; see `uniform_bound`.

    Attributes:
        limit: S_l has to stay strictly below it, as computed: below 1 it allows no atom, below 0 not even the noise.
        clipped: the same, at least 0.
        largest_sparsity: the largest integer S_l that is allowed, also where rounding has lifted the limit over one.
    """

    limit: Float[Array, " *batch"]
    clipped: Float[Array, " *batch"]
    largest_sparsity: Int[Array, " *batch"]


class SparsityLimit(NamedTuple):
    """Stripe sparsities at which a layer fails with probability delta at most; see `sparsity_limit`.

    Attributes:
        limit: S_l may reach it, as computed: negative where the noise alone is too much.
        clipped: the same, at least 0.
        largest_sparsity: the largest integer S_l that is allowed.
    """

    limit: Float[Array, " *batch"]
    clipped: Float[Array, " *batch"]
    largest_sparsity: Int[Array, " *batch"]


class ProbabilisticBound(NamedTuple):
    """What bound (3) says of the probability that the path is lost; see `probabilistic_bound`.

    Attributes:
        probability: the bound, at most 1.
        unclipped: the sum as computed: from 1 on it says nothing.
        terms: the layers' shares of it, [*batch, L].
        log: natural logarithm of ``unclipped``, also where that is 0 to rounding.
    """

    probability: Float[Array, " *batch"]
    unclipped: Float[Array, " *batch"]
    terms: Float[Array, "*batch L"]
    log: Float[Array, " *batch"]


def uniform_bound(
    mu: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    zeta: ArrayLike = 0.0,
    *,
    threshold: Threshold = "best",
) -> UniformBound:
    """Return the uniform bound S_l < (1/mu_l) (|X_min| / 2 - zeta_{l-1}) / |X_max| + 1/2 (Murray 2018, eq. (2)).

    Papyan et al. 2017, Theorem 10, which the poster misprints (erratum E7). It holds for all signs and all noise of
    this patch norm, with a threshold between what responses on and off the support can be.

    Args:
        mu: coherence of the layer's atoms at all shifts, mu_l.
        smallest: |X_min^(l)|, the smallest magnitude on the support, positive.
        largest: |X_max^(l)|.
        zeta: patch norm |V^(l-1)|_{2,inf} of the noise that enters the layer, at least 0.
        threshold: ``"best"``, eq. (2): some threshold, (|X_min| + mu |X_max|) / 2, say. ``"half"``: the threshold
            |X_min| / 2 of eq. (3), which costs the 1/2 at the end.

    Returns:
        `UniformBound`; where mu is 0, inf if the noise is below |X_min| / 2, else -inf: already at |X_min| / 2 it may
        hide a response.

    Raises:
        ValueError: another kind of threshold.
    """
    _check(threshold, THRESHOLDS, "threshold")
    coherence, low, high, noise = as_floats(mu, smallest, largest, zeta, least=jnp.float32)
    valid = _valid(coherence, low, high, noise)
    low, noise = _ratios(valid, high, low, noise)
    gap = low / 2 - noise
    limit = _over(gap, coherence)
    limit = limit + 0.5 if threshold == "best" else limit
    limit = jnp.where(valid, limit, jnp.nan)
    lowered = _lowered(limit, _over(low / 2 + noise, coherence))
    return UniformBound(limit, jnp.maximum(limit, 0), _integer(jnp.ceil(lowered) - 1))


def probabilistic_bound(
    mu: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    sparsity: ArrayLike,
    zeta: ArrayLike,
    num_filters: ArrayLike,
    positions: ArrayLike,
    *,
    num_data: ArrayLike = 1,
    noise: Noise = "independent",
) -> ProbabilisticBound:
    """Return bound (3): P <= 2 d M sum_l n_l exp(-|X_min|^2 / (8 (|X_max|^2 mu_l^2 S_l + zeta_{l-1}^2))) (Murray 2018).

    Over the signs D^(1), ..., D^(L), of thresholding at |X_min^(l)| / 2. It needs the noise's patch norms and the
    sparsities in every draw; see the head of this module for noise that depends on the signs.

    Args:
        mu: coherence of each layer's atoms at all shifts, mu_l.
        smallest: |X_min^(l)|, positive.
        largest: |X_max^(l)|.
        sparsity: stripe sparsity S_l = |X^(l)|_{0,inf}^Q.
        zeta: zeta_{l-1}, patch norm of the noise that enters layer l.
        num_filters: n_l.
        positions: M, shifts of an atom. The theorem has one number for all layers, the largest; one per layer says
            more.
        num_data: d, signals that all have to succeed.
        noise: ``"independent"`` is eq. (3). ``"adversarial"`` lets the noise be anything of this patch norm:
            2 M n exp(-(|X_min| / 2 - zeta)_+^2 / (2 |X_max|^2 mu^2 S)), at most sqrt(e) times as much, often less.

    Returns:
        `ProbabilisticBound`, summed over the last axis (layers), numbers being one layer.

    Raises:
        ValueError: another kind of noise.
    """
    _check(noise, NOISES, "noise")
    given = as_floats(mu, smallest, largest, sparsity, zeta, num_filters, positions, num_data, least=jnp.float32)
    coherence, low, high, count, entering, filters, shifts, data = map(jnp.atleast_1d, given)
    valid = _valid(coherence, low, high, entering) & (count >= 0) & (filters >= 1) & (shifts >= 1) & (data >= 1)
    low, entering = _ratios(valid, high, low, entering)
    margin = low / 2 if noise == "independent" else jnp.maximum(low / 2 - entering, 0)
    unit = jnp.where(margin > 0, margin, 1)
    spread = jnp.square(coherence * jnp.sqrt(count) / unit)
    spread = spread + jnp.square(entering / unit) if noise == "independent" else spread
    # Without a margin a response fails surely; with one, where nothing disturbs it, never.
    exponent = jnp.where(margin > 0, 0.5 / spread, 0)
    logs = math.log(2) + jnp.log(data) + jnp.log(shifts) + jnp.log(filters) - exponent
    logs = jnp.where(valid, logs, jnp.nan)
    total = logsumexp(logs, axis=-1)
    return ProbabilisticBound(jnp.exp(jnp.minimum(total, 0)), jnp.exp(total), jnp.exp(logs), total)


def sparsity_limit(
    mu: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    zeta: ArrayLike,
    num_filters: ArrayLike,
    positions: ArrayLike,
    delta: ArrayLike,
    *,
    num_data: ArrayLike = 1,
    noise: Noise = "independent",
) -> SparsityLimit:
    """Return the largest S_l at which layer l fails with probability delta at most (Murray 2018, eq. (4)).

    S_l <= (|X_min|^2 / (8 |X_max|^2 ln(2 d M n_l / delta)) - zeta_{l-1}^2 / |X_max|^2) / mu_l^2, given that the layers
    before it succeed: the inverse of one layer's share of `probabilistic_bound`.

    Args:
        mu: coherence mu_l.
        smallest: |X_min^(l)|, positive.
        largest: |X_max^(l)|.
        zeta: zeta_{l-1}, patch norm of the noise that enters layer l.
        num_filters: n_l.
        positions: M.
        delta: probability in (0, 1].
        num_data: d, signals that all have to succeed.
        noise: see `probabilistic_bound`; adversarial: (|X_min| / 2 - zeta)^2 / (2 |X_max|^2 mu^2 ln(2 d M n / delta)).

    Returns:
        `SparsityLimit`; where mu is 0, inf if the noise is small enough, else -inf: also where it just reaches
        |X_min| / 2 (adversarial), or what is allowed to rounding.

    Raises:
        ValueError: another kind of noise.
    """
    _check(noise, NOISES, "noise")
    coherence, low, high, entering, filters, shifts, level, data = as_floats(
        mu, smallest, largest, zeta, num_filters, positions, delta, num_data, least=jnp.float32
    )
    valid = _valid(coherence, low, high, entering) & (filters >= 1) & (shifts >= 1) & (data >= 1)
    valid = valid & (level > 0) & (level <= 1)
    low, entering = _ratios(valid, high, low, entering)
    logs = 2 * (math.log(2) + jnp.log(data) + jnp.log(shifts) + jnp.log(filters) - jnp.log(level))
    if noise == "independent":
        # The difference of two squares.
        reach = low / (2 * jnp.sqrt(logs))
        gap, other, total = reach - entering, reach + entering, reach + entering
    else:
        gap, total = (low / 2 - entering) / jnp.sqrt(logs), (low / 2 + entering) / jnp.sqrt(logs)
        other = jnp.abs(gap)
    limit = jnp.where(gap == 0, _over(gap, coherence), _over(gap, coherence) * _over(other, coherence))
    limit = jnp.where(valid, limit, jnp.nan)
    lowered = _lowered(limit, jnp.square(_over(total, coherence)))
    return SparsityLimit(limit, jnp.maximum(limit, 0), _integer(jnp.floor(lowered)))


def propagated_noise(
    start: ArrayLike,
    mu: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    sparsity: ArrayLike,
    per_patch: ArrayLike,
    *,
    kind: Propagation = "uniform",
    noise: Noise = "adversarial",
    responses: ArrayLike = 1,
    delta: ArrayLike = 0.01,
    shrinkage: ArrayLike = 0.0,
) -> Float[Array, " L_plus_1"]:
    """Return zeta_0, ..., zeta_L, bounds on the patch norms: zeta_l = sqrt(|X^(l)|_{0,inf}^P) (e_l + shrinkage_l).

    e_l bounds the error of every response on the support of layer l. All but the last of the numbers enter
    `uniform_bound` and `probabilistic_bound`; each needs that the supports of layers 1 .. l are recovered. NaN from the
    first layer outside the domain on. A layer with X^(l) = 0 (per_patch 0) passes no noise on, whatever |X_min^(l)|.

    Args:
        start: zeta_0, patch norm of V^(0), a number, which does not depend on any sign.
        mu: coherences mu_l, [L].
        smallest: |X_min^(l)|, [L].
        largest: |X_max^(l)|, [L].
        sparsity: stripe sparsities S_l, [L].
        per_patch: |X^(l)|_{0,inf}^P, non-zeros of X^(l) under one atom of layer l + 1, [L]; 1 for the deepest layer.
        kind: ``"uniform"``, in all draws (Papyan et al. 2017, Theorems 8 and 10):
            e_l = zeta_{l-1} + mu_l (S_l - 1) |X_max^(l)|.
            ``"probabilistic"``, with probability 1 - delta_l at least where zeta_{l-1} holds: e_l = zeta_{l-1} + s_l,
            s_l^2 = 2 ln(2 N_l / delta_l) |X_max|^2 mu^2 (S - 1), or sqrt(s_l^2 + 2 ln(2 N_l / delta_l) zeta_{l-1}^2)
            where the noise is independent of the layer's signs, by Hoeffding's inequality and a union over N_l
            responses; never more than the uniform number. All hold together with probability 1 - sum_l delta_l.
            ``"recovered"``, wherever no response errs by |X_min^(l)| / 2: e_l is that. Bound (3) bounds the probability
            of all else, so that it costs nothing more. (That a support is recovered is not enough: a response on it
            may err outwards by more.)
        noise: whether zeta_1, ... are of noise independent of the signs of the layer they enter, which is not so in
            general; see `probabilistic_bound`. Of the probabilistic kind only. V^(0) always is.
        responses: N_l, entries of the support of X^(l), or all M n_l; of the probabilistic kind only.
        delta: delta_l in (0, 1], of the probabilistic kind only.
        shrinkage: what the projection takes off every entry: 0 for hard thresholds, beta_l for soft ones.

    Raises:
        ValueError: another kind of propagation or noise, more than one axis, a ``start`` that is no single number.
    """
    _check(kind, PROPAGATIONS, "kind")
    _check(noise, NOISES, "noise")
    if (shape := as_floats(start)[0].shape) != ():
        raise ValueError(f"expected start to be one number, got shape {shape}; use vmap for batches")
    columns = as_floats(
        mu, smallest, largest, sparsity, per_patch, responses, delta, shrinkage, start, least=jnp.float32
    )
    if columns[0].ndim > 1:
        raise ValueError(f"expected one number per layer, got shape {columns[0].shape}; use vmap for batches")
    coherence, low, high, count, patch, entries, level, taken, begin = map(jnp.atleast_1d, columns)
    # A layer that is 0 has no |X_min|, which is inf then, and no responses.
    zero = patch == 0
    valid = _valid(coherence, jnp.where(zero, 1, low), jnp.where(zero, 1, high), begin)
    valid = valid & (count >= 0) & (patch >= 0) & (taken >= 0)
    if kind == "probabilistic":
        valid = valid & (zero | (entries >= 1)) & (level > 0) & (level <= 1)
    others = jnp.maximum(count - 1, 0)
    worst = coherence * others * high
    factor = jnp.sqrt(2 * (math.log(2) + jnp.log(entries) - jnp.log(level)))
    likely = factor * jnp.sqrt(others) * coherence * high
    zetas = [jnp.where(begin[0] >= 0, begin[0], jnp.nan)]
    sound = True
    for layer in range(coherence.size):
        entering = zetas[-1]
        if kind == "recovered":
            error = low[layer] / 2
        else:
            error = entering + worst[layer]
            if kind == "probabilistic":
                together = jnp.hypot(likely[layer], factor[layer] * entering)
                apart = entering + likely[layer]
                error = jnp.minimum(error, apart)
                error = jnp.minimum(error, together) if noise == "independent" or not layer else error
        sound = sound & valid[layer]
        zeta = jnp.where(patch[layer] > 0, jnp.sqrt(patch[layer]) * (error + taken[layer]), 0)
        zetas.append(jnp.where(sound, zeta, jnp.nan))
    return jnp.stack(zetas)


def critical_sparsity(failure: Callable[[int], float], delta: float, most: int) -> int:
    """Return the largest S up to ``most`` with failure(S) <= delta, 0 if there is none, by bisection.

    Args:
        failure: probability of failure at stripe sparsity S >= 1, not falling in S: a bound, or an estimate.
        delta: probability that is put up with.
        most: largest S that is tried.

    Raises:
        ValueError: ``most`` below 1.

    Cost: log2(most) + 1 evaluations.
    """
    if most < 1:
        raise ValueError(f"expected most to be at least 1, got {most}")
    good, bad = 0, most + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if failure(middle) <= delta else (good, middle)
    return good


def _valid(coherence: Array, low: Array, high: Array, noise: Array) -> Array:
    return (coherence >= 0) & (low > 0) & (high >= low) & jnp.isfinite(high) & (noise >= 0)


def _ratios(valid: Array, high: Array, *magnitudes: Array) -> tuple[Array, ...]:
    """Return magnitudes as shares of |X_max|, where that can be one."""
    unit = jnp.where(valid, high, 1)
    return tuple(magnitude / unit for magnitude in magnitudes)


def _over(gap: Array, coherence: Array) -> Array:
    """Return gap / mu, infinite for orthogonal atoms, which leave all to the noise: inf only with a gap left."""
    alone = jnp.where(gap > 0, jnp.inf, -jnp.inf).astype(gap.dtype)
    return jnp.where(coherence > 0, gap / jnp.where(coherence > 0, coherence, 1), alone)


def _lowered(limit: Array, size: Array) -> Array:
    """Return the limit less what rounding may have added to it, a difference of numbers that add up to ``size``."""
    return jnp.where(jnp.isfinite(limit), limit - 8 * jnp.finfo(limit.dtype).eps * size, limit)


def _integer(limit: Array) -> Array:
    """Return a limit as an integer, 0 where there is none, the largest one where all are allowed."""
    # Integers up to the largest float32 below 2^31, so that the cast is exact in both precisions.
    most = 2.0**31 - 2.0**7
    return jnp.clip(jnp.nan_to_num(limit, nan=0.0, posinf=most, neginf=0.0), 0, most).astype(np.int32)


def _check(value: str, known: tuple[str, ...], name: str) -> None:
    if value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {value!r}")
