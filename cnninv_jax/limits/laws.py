"""The law of the filters of a random CNN, as its limit sees it: the moments k_1, k_2, k_4 (Random DCN, Definition 1).

Lemma 5 holds for isotropic laws. Of those that can be drawn here the Gaussian and the spherical one are; for another
isotropic law its `Moments` suffice. A law whose entries are independent and not Gaussian is not isotropic: it can be
drawn, and its moments be put into the formulas by hand (`Moments.of`) to see how far off they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax

from cnninv_jax import filters
from cnninv_jax._typing import FilterBank, PRNGKeyArray
from cnninv_jax.limits.layers import Conv, Step

#: Laws that no rotation changes.
ISOTROPIC = ("gaussian", "sphere")


@dataclass(frozen=True)
class Moments:
    """k_m = E|w_1|^m / 2 of an isotropic law, for m = 1, 2, 4.

    Attributes:
        k1: k_1.
        k2: k_2.
        k4: k_4.
    """

    k1: float
    k2: float
    k4: float

    def __post_init__(self) -> None:
        if not (self.k1 > 0 and self.k2 >= 2 * self.k1**2 * (1 - 1e-12) and self.k4 >= 2 * self.k2**2 * (1 - 1e-12)):
            raise ValueError(
                "expected moments k_m = E|w_1|^m / 2 of a law: k_1 > 0, k_2 >= 2 k_1^2 and k_4 >= 2 k_2^2, got "
                f"{self.k1:g}, {self.k2:g} and {self.k4:g}"
            )

    @property
    def K1(self) -> float:
        """K_1 = (k_2 - k_1^2) / k_1^2, the relative variance of a ReLU's answer."""
        return (self.k2 - self.k1**2) / self.k1**2

    @property
    def K2(self) -> float:
        """K_2 = (k_4 - k_2^2) / k_2^2, the relative variance of its square."""
        return (self.k4 - self.k2**2) / self.k2**2

    @classmethod
    def of(cls, name: str, *, scale: float = 1.0, dimension: int | None = None) -> Moments:
        """Return the moments of an ensemble of `cnninv_jax.filters`, isotropic or not; see `filters.moment`."""
        k1, k2, k4 = (filters.moment(name, m, scale=scale, dimension=dimension) for m in (1, 2, 4))
        return cls(k1, k2, k4)


@dataclass(frozen=True)
class FilterLaw:
    """A law that filters are drawn from.

    Attributes:
        name: an ensemble of `cnninv_jax.filters.ENSEMBLES`.
        deviation: standard deviation of one entry; on the sphere of n dimensions the norm is deviation * sqrt(n).
    """

    name: str = "gaussian"
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in filters.ENSEMBLES:
            raise ValueError(f"expected an ensemble among {', '.join(filters.ENSEMBLES)}, got {self.name!r}")
        if not self.deviation > 0:
            raise ValueError(f"expected a positive deviation, got {self.deviation}")

    def scale(self, dimension: int) -> float:
        """Return the ensemble's own parameter for filters of so many entries."""
        return filters.scale_of(self.name, self.deviation, dimension)

    def sample(
        self, key: PRNGKeyArray, num_filters: int, channels: int, length: Sequence[int], dtype: jax.typing.DTypeLike
    ) -> FilterBank:
        """Draw filters, [K, M, *ell]."""
        scale = self.scale(channels * math.prod(length))
        return filters.ENSEMBLES[self.name](key, num_filters, channels, length, scale=scale, dtype=dtype)

    def moments(self, dimension: int | None) -> Moments:
        """Return k_1, k_2, k_4 of a filter of so many entries; None is the limit of many, for the sphere a Gaussian.

        Raises:
            ValueError: the law is not isotropic, so that Lemma 5 does not hold.
        """
        if self.name not in ISOTROPIC:
            raise ValueError(
                f"expected an isotropic law ({', '.join(ISOTROPIC)}), got {self.name!r}, for which Lemma 5 does not "
                f"hold; simulate it with random_output, or pass Moments.of({self.name!r}, scale=...) to see how far "
                "off the formulas are"
            )
        if self.name == "sphere" and dimension is not None:
            return Moments.of("sphere", scale=self.scale(dimension), dimension=dimension)
        return Moments.of("gaussian", scale=self.deviation)


#: What `filters=` may be: a name (entries of deviation 1), a law, its moments, or one of these for every convolution.
Law: TypeAlias = str | FilterLaw | Moments
Laws: TypeAlias = Law | Sequence[Law]


def laws_of(filters: Laws, steps: Sequence[Step]) -> tuple[FilterLaw | Moments, ...]:
    """Return the law of every convolution of a planned network.

    Raises:
        ValueError: unknown, or not as many as there are convolutions.
    """
    count = sum(isinstance(step.layer, Conv) for step in steps)
    if not isinstance(filters, (str, FilterLaw, Moments, Sequence)):
        raise ValueError(f"expected a law of filters: a name, a FilterLaw or Moments, got {filters!r}; give one")
    each = (filters,) * count if isinstance(filters, (str, FilterLaw, Moments)) else tuple(filters)
    if len(each) != count:
        raise ValueError(
            f"expected one law of filters, or one for each of the {count} convolutions, got {len(each)}; give as many"
        )
    for law in each:
        if not isinstance(law, (str, FilterLaw, Moments)):
            raise ValueError(f"expected a law of filters: a name, a FilterLaw or Moments, got {law!r}")
    return tuple(FilterLaw(law) if isinstance(law, str) else law for law in each)


def moments_of(filters: Laws, steps: Sequence[Step], channels: int) -> tuple[Moments, ...]:
    """Return k_1, k_2, k_4 of every convolution where all have many channels.

    Args:
        filters: the laws.
        steps: the planned network.
        channels: of the picture; a filter of the first convolution has channels * prod(ell) entries, also in the limit.

    Raises:
        ValueError: unknown, not isotropic, or not as many as there are convolutions.
    """
    windows = [step.window for step in steps if isinstance(step.layer, Conv)]
    sizes = [channels * math.prod(windows[0]), *(None for _ in windows[1:])]
    found = laws_of(filters, steps)
    return tuple(law if isinstance(law, Moments) else law.moments(size) for law, size in zip(found, sizes, strict=True))


__all__ = ["ISOTROPIC", "FilterLaw", "Law", "Laws", "Moments", "laws_of", "moments_of"]
