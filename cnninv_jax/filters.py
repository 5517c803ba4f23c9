"""Random filter ensembles, their moments, and normalisation.

Random DCN, A.1.2, draws filters from four laws; Gilbert et al. 2017 uses the Gaussian one divided by
sqrt(M prod(ell)). Every sampler returns a bank [K, M, *ell] of independent filters. Only the Gaussian and the
spherical law are isotropic, which Lemma 5 of Random DCN asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, float_dtype, lengths, per_axis, wider
from cnninv_jax._random import normal
from cnninv_jax._typing import Array, FilterBank, PerAxis, PRNGKeyArray

#: Ensemble parameters of Random DCN, A.1.2: Gaussian and logistic scale 0.015, uniform on [-0.04, 0.04],
#: Laplace with variance 2 * 0.015^2.
RANDOM_DCN_SCALES = {"gaussian": 0.015, "uniform": 0.04, "logistic": 0.015, "laplace": 0.015}

#: Standard deviation of each law at scale 1, where its entries are independent.
_DEVIATIONS = {
    "gaussian": 1.0,
    "uniform": 1 / math.sqrt(3),
    "logistic": math.pi / math.sqrt(3),
    "laplace": math.sqrt(2),
}


class Sampler(Protocol):
    """What every ensemble of `ENSEMBLES` can be called with."""

    def __call__(
        self,
        key: PRNGKeyArray,
        num_filters: int,
        channels: int,
        length: PerAxis,
        *,
        scale: float | Array | None = None,
        normalize: bool = False,
        dtype: jax.typing.DTypeLike | None = None,
    ) -> FilterBank:
        """Draw a bank of filters, [K, M, *ell]."""
        ...


def gaussian(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    *,
    scale: float | Array | None = None,
    normalize: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Draw filters with independent N(0, scale^2) entries.

    Args:
        key: random key.
        num_filters: K.
        channels: M.
        length: ell; one integer for one spatial axis, a tuple for as many axes as it has entries.
        scale: standard deviation. None means 1/sqrt(M prod(ell)), so that the expected squared norm of a
            filter is one (Gilbert et al. 2017, Thm 3.1); Random DCN, A.1.2, takes 0.015.
        normalize: give every filter unit l2 norm afterwards.
        dtype: of the filters; JAX's default float for None.

    Returns:
        Filters, [K, M, *ell].

    Raises:
        ValueError: K, M or an entry of ell is no positive integer.
    """
    return _ensemble("gaussian", normal, key, num_filters, channels, length, scale, normalize, dtype)


def uniform(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    *,
    scale: float | Array | None = None,
    normalize: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Draw filters with independent entries, uniform on [-scale, scale].

    Args, returns and errors are those of `gaussian`; ``scale=None`` means entries of standard deviation
    1/sqrt(M prod(ell)). Random DCN, A.1.2, takes the scale 0.04.
    """

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0)

    return _ensemble("uniform", draw, key, num_filters, channels, length, scale, normalize, dtype)


def logistic(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    *,
    scale: float | Array | None = None,
    normalize: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Draw filters with independent logistic entries of mean 0 and variance scale^2 pi^2 / 3.

    Args, returns and errors are those of `gaussian`; ``scale=None`` means entries of standard deviation
    1/sqrt(M prod(ell)). Random DCN, A.1.2, takes the scale 0.015.
    """

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        # jax.random.logistic takes the logarithm of the smallest positive number where the uniform one is 0: in
        # float32 one entry in 2^23 is then -87 where the next extreme is -16, which adds 15% to the fourth moment.
        lowest = -1.0 + float(jnp.finfo(dtype).epsneg)
        return 2 * jnp.arctanh(jax.random.uniform(key, shape, dtype, lowest, 1.0))

    return _ensemble("logistic", draw, key, num_filters, channels, length, scale, normalize, dtype)


def laplace(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    *,
    scale: float | Array | None = None,
    normalize: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Draw filters with independent Laplace entries of mean 0 and the given scale b (variance 2 b^2).

    Args, returns and errors are those of `gaussian`; ``scale=None`` means entries of standard deviation
    1/sqrt(M prod(ell)). Random DCN, A.1.2, takes the scale 0.015.
    """
    return _ensemble("laplace", jax.random.laplace, key, num_filters, channels, length, scale, normalize, dtype)


def sphere(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    *,
    scale: float | Array | None = None,
    normalize: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
) -> FilterBank:
    """Draw filters uniformly from the sphere of radius ``scale`` in M prod(ell) dimensions.

    Args, returns and errors are those of `gaussian`; ``scale=None`` means radius 1, again entries of standard
    deviation 1/sqrt(M prod(ell)).
    """

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return _unit(normal(key, shape, dtype))

    return _ensemble("sphere", draw, key, num_filters, channels, length, scale, normalize, dtype)


#: The samplers by name.
ENSEMBLES: dict[str, Sampler] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "logistic": logistic,
    "laplace": laplace,
    "sphere": sphere,
}


def normalize(filters: ArrayLike) -> FilterBank:
    """Give every filter unit l2 norm over channels and taps (Gilbert et al. 2017, 2.2).

    A filter of zeros has no direction: it stays zero, and no NaN appears.

    Args:
        filters: [K, M, *ell].

    Returns:
        Filters of the same shape and dtype.
    """
    return _unit(as_float(filters))


def unit_scale(name: str, size: int) -> float:
    """Return the scale at which a filter of ``size`` = M prod(ell) entries has expected squared norm one.

    Args:
        name: an ensemble of `ENSEMBLES`.
        size: entries of a filter.

    Raises:
        ValueError: unknown ensemble.
    """
    _known(name)
    return 1.0 if name == "sphere" else 1 / (_DEVIATIONS[name] * math.sqrt(size))


@overload
def scale_of(name: str, deviation: float, size: int) -> float: ...
@overload
def scale_of(name: str, deviation: float | Array, size: int) -> float | Array: ...
def scale_of(name: str, deviation: float | Array, size: int) -> float | Array:
    """Return the scale at which the entries of a filter of ``size`` = M prod(ell) have this standard deviation.

    Args:
        name: an ensemble of `ENSEMBLES`.
        deviation: of an entry; on the sphere the norm is deviation * sqrt(size).
        size: entries of a filter.

    Raises:
        ValueError: unknown ensemble.
    """
    return unit_scale(name, size) * math.sqrt(size) * deviation


def moment(name: str, m: float, *, scale: float = 1.0, dimension: int | None = None) -> float:
    """Return k_m = E|w_1|^m / 2, which gives E relu(w y)^m = k_m |y|^m for isotropic w (Random DCN, Lemma 5).

    Args:
        name: an ensemble of `ENSEMBLES`; w_1 is one entry of a filter.
        m: order, at least 0.
        scale: the ensemble's parameter (standard deviation, half-width, logistic or Laplace scale, radius).
        dimension: entries of a filter, M prod(ell); for the sphere only, where it is required.

    Raises:
        ValueError: unknown ensemble, negative order, or a sphere without its dimension.
    """
    _known(name)
    if m < 0:
        raise ValueError(f"expected an order m of at least 0, got {m}")
    if name == "sphere":
        if dimension is None or dimension < 1:
            raise ValueError(f"expected the sphere's dimension M * prod(ell), got {dimension}; pass dimension=...")
        log = math.lgamma((m + 1) / 2) + math.lgamma(dimension / 2) - math.lgamma((dimension + m) / 2)
        absolute = math.exp(log) / math.sqrt(math.pi)
    elif name == "gaussian":
        absolute = 2 ** (m / 2) * math.gamma((m + 1) / 2) / math.sqrt(math.pi)
    elif name == "uniform":
        absolute = 1 / (m + 1)
    elif name == "logistic":
        absolute = 2 * math.gamma(m + 1) * _dirichlet_eta(m)
    else:
        absolute = math.gamma(m + 1)
    return absolute * scale**m / 2


def moment_ratio(name: str, *, dimension: int | None = None) -> tuple[float, float]:
    """Return (K_1, K_2), K_m = (k_2m - k_m^2) / k_m^2, which no scale changes (Random DCN, Thms 2 and 8).

    Args:
        name: an ensemble of `ENSEMBLES`; the Gaussian gives (pi - 1, 5).
        dimension: entries of a filter, for the sphere.

    Raises:
        ValueError: unknown ensemble, or a sphere without its dimension.
    """
    k1, k2, k4 = (moment(name, m, dimension=dimension) for m in (1, 2, 4))
    return (k2 - k1**2) / k1**2, (k4 - k2**2) / k2**2


def _known(name: str) -> None:
    if name not in ENSEMBLES:
        raise ValueError(f"expected an ensemble among {', '.join(ENSEMBLES)}, got {name!r}")


def _ensemble(
    name: str,
    draw: Callable[[PRNGKeyArray, tuple[int, ...], jnp.dtype], Array],
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    scale: float | Array | None,
    unit: bool,
    dtype: jax.typing.DTypeLike | None,
) -> FilterBank:
    """Draw at scale 1, then scale: the filters of one key differ by a factor only from scale to scale."""
    (k,) = per_axis(num_filters, 1, "num_filters")
    (m,) = per_axis(channels, 1, "channels")
    ell = lengths(length)
    if not ell:
        raise ValueError("expected a length for at least one spatial axis, got an empty one")
    kind = float_dtype(dtype)
    chosen = unit_scale(name, m * math.prod(ell)) if scale is None else scale
    filters = draw(key, (k, m, *ell), kind) * jnp.asarray(chosen, kind)
    return normalize(filters) if unit else filters


def _unit(filters: FilterBank) -> FilterBank:
    """Divide by the norm, taken relative to the largest entry so that it neither over- nor underflows."""
    axes = tuple(range(1, filters.ndim))
    # Constant for the gradient too: the result does not depend on it.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(filters), axis=axes, keepdims=True))
    # In half precision a sum of squares needs more digits than its terms have.
    scaled = (filters / jnp.where(largest == 0, 1.0, largest)).astype(wider(filters.dtype, np.float32))
    squared = jnp.sum(scaled * scaled, axis=axes, keepdims=True)
    # The guard stands inside the root, whose slope at zero would make gradients NaN.
    return (scaled / jnp.sqrt(jnp.where(squared == 0, 1.0, squared))).astype(filters.dtype)


def _dirichlet_eta(m: float, terms: int = 24) -> float:
    """Return the sum over j >= 1 of (-1)^(j-1) j^-m (Cohen, Rodriguez Villegas, Zagier 2000, Algorithm 1)."""
    d = (3 + math.sqrt(8)) ** terms
    d = (d + 1 / d) / 2
    b, c, total = -1.0, -d, 0.0
    for j in range(terms):
        c = b - c
        total += c * (j + 1) ** -m
        b *= (j + terms) * (j - terms) / ((j + 0.5) * (j + 1))
    return total / d


__all__ = [
    "ENSEMBLES",
    "RANDOM_DCN_SCALES",
    "Sampler",
    "gaussian",
    "laplace",
    "logistic",
    "moment",
    "moment_ratio",
    "normalize",
    "scale_of",
    "sphere",
    "uniform",
    "unit_scale",
]
