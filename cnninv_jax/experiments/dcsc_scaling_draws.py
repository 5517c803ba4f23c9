"""One draw of `dcsc-scaling`: non-zeros added one by one until the support is lost, and the correlations it needs.

The signal is circular and just as long as the atoms that overlap one of them, so that every two atoms overlap: the
whole code is one stripe, and S is its number of non-zeros. Non-zeros of random place and sign come one at a time. So
one draw says for every S whether the support of S non-zeros would be lost, and their share over draws is P(lost).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cnninv_jax._typing import Array, Float


@functools.partial(jax.tree_util.register_dataclass, data_fields=["correlations", "offsets"], meta_fields=["most"])
@dataclasses.dataclass(frozen=True)
class NestedDraw:
    """Whether one layer loses the support of S = 1 .. most non-zeros of magnitude 1; beta = 1/2 (Murray 2018, eq. (1)).

    Attributes:
        correlations: <a_j, a_k> of all atoms at all positions, ones on the diagonal, [N, N].
        offsets: A^T V of some noises V, of which a draw takes one, [Q, N]; a row of zeros without noise.
        most: largest S (static).
    """

    correlations: Float[Array, "N N"]
    offsets: Float[Array, "Q N"]
    most: int

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        """Return ``random`` and ``worst`` [most]: lost with these signs; lost with some signs of these places.

        The worst signs need no search: of all of them the largest response off the support is sum_k |<a_j, a_k>|, and
        on it the smallest is 1 less the same sum over the others (noise apart, which then has its own sign).
        """
        size, dtype = self.correlations.shape[0], self.correlations.dtype
        places_key, signs_key, noise_key = jax.random.split(key, 3)
        places = jax.random.choice(places_key, size, (self.most,), replace=False)
        signs = jax.random.rademacher(signs_key, (self.most,), dtype)
        offset = self.offsets[jax.random.randint(noise_key, (), 0, self.offsets.shape[0])]

        def add(carry: tuple[Array, Array, Array], non_zero: tuple[Array, Array]) -> tuple[tuple, tuple]:
            response, sums, active = carry
            place, sign = non_zero
            row = self.correlations[place]
            response, sums, active = response + sign * row, sums + jnp.abs(row), active.at[place].set(1)
            level = jnp.abs(response)
            random = jnp.max(jnp.where(active > 0, 1 - level, level)) >= 0.5
            return (response, sums, active), (random, jnp.max(sums - active) >= 0.5)

        nothing = jnp.zeros(size, dtype)
        _, (random, worst) = jax.lax.scan(add, (offset, jnp.abs(offset), nothing), (places, signs))
        return {"random": random, "worst": worst}


class Coherence(NamedTuple):
    """Sizes of the correlations of different atoms at all positions.

    Attributes:
        largest: mu.
        root_mean_square: sqrt of the mean of <a_j, a_k>^2 over k, where it is largest over j.
        any_support: largest S that no support and no signs lose: for every atom its S largest |<a_j, a_k>| add up to
            less than 1/2 (the cumulative coherence; 0 where mu >= 1/2).
    """

    largest: float
    root_mean_square: float
    any_support: int


def positions_of(length: int, stride: int = 1) -> int:
    """Return the positions of a circular code of which every two atoms overlap: 2 floor((ell - 1) / t) + 1."""
    return 2 * ((length - 1) // stride) + 1


def correlations_of(filters: ArrayLike, positions: int, stride: int = 1) -> Float[np.ndarray, "N N"]:
    """Return <a_j, a_k> of unit-norm filters at all positions of a circular signal, in the order of a code's entries.

    Args:
        filters: [K, M, ell] of unit norm.
        positions: n; the signal has n t samples.
        stride: t.
    """
    bank = np.asarray(filters, np.float64)
    spectrum = np.fft.rfft(bank, positions * stride, axis=-1)
    # [i, j, s]: filter i at position p with filter j at position p + s
    table = np.fft.irfft(np.einsum("imf,jmf->ijf", spectrum, spectrum.conj()), positions * stride, axis=-1)
    steps = np.arange(positions)
    shifted = table[:, :, (steps - steps[:, None]) % positions * stride]
    return np.moveaxis(shifted, 2, 1).reshape(len(bank) * positions, -1)


def coherence_of(correlations: Float[np.ndarray, "N N"]) -> Coherence:
    """Return the sizes of the correlations off the diagonal."""
    off = np.abs(correlations) * (1 - np.eye(len(correlations)))
    squares = np.square(off).sum(axis=1) / (len(off) - 1)
    # S non-zeros off the place under test are the worst case: on the support one of them is the place itself.
    sums = np.cumsum(-np.sort(-off, axis=1), axis=1).max(axis=0)
    return Coherence(float(off.max()), float(np.sqrt(squares.max())), int(np.sum(sums < 0.5)))


def offsets_of(
    generator: np.random.Generator, filters: ArrayLike, positions: int, stride: int, level: float, count: int
) -> Float[np.ndarray, "Q N"]:
    """Return A^T V of Gaussian noises, each scaled to |V|_{2,inf} = level over the patches that atoms see.

    Args:
        generator: of the noises.
        filters: [K, M, ell].
        positions: n; the signal has n t samples.
        stride: t.
        level: zeta_0.
        count: Q.
    """
    bank = np.asarray(filters, np.float64)
    if level == 0:
        return np.zeros((1, len(bank) * positions))
    samples = positions * stride
    noise = generator.standard_normal((count, bank.shape[1], samples))
    energy = np.square(noise).sum(axis=1)
    windows = (np.arange(positions)[:, None] * stride + np.arange(bank.shape[2])) % samples
    noise *= (level / np.sqrt(energy[:, windows].sum(axis=2).max(axis=1)))[:, None, None]
    spectra = np.fft.rfft(noise, axis=-1), np.fft.rfft(bank, samples, axis=-1).conj()
    responses = np.fft.irfft(np.einsum("qmf,kmf->qkf", *spectra), samples, axis=-1)[:, :, ::stride]
    return responses.reshape(count, -1)
