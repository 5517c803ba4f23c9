"""Filters of opposite phase, and what the next layer makes of both phases (Shang et al. 2016, 2.1 and Table 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, matmul, wider
from cnninv_jax._typing import Array, Bool, Float, Int, Scalar
from cnninv_jax.filters import normalize

_Summary = TypeVar("_Summary")

#: Most inner products that are held at a time.
HELD_PRODUCTS = 2**22


class Pairing(NamedTuple):
    """The pairing filter of every filter.

    Attributes:
        index: j of the pairing filter, int32, [K]; -1 where there is none.
        cosine: mu_i, [K]; NaN where there is none.
    """

    index: Int[Array, " K"]  # type: ignore[assignment]  # hides tuple.index, which nobody asks of it
    cosine: Float[Array, " K"]


class Correlations(NamedTuple):
    """Mean and standard deviation of many correlations, signed and of their absolute values; NaN where there are none.

    Attributes:
        mean: of the correlations.
        standard_deviation: of the correlations (divided by their number).
        mean_absolute: of their absolute values.
        standard_deviation_absolute: of their absolute values.
        number: how many, as a float.
    """

    mean: Scalar
    standard_deviation: Scalar
    mean_absolute: Scalar
    standard_deviation_absolute: Scalar
    number: Scalar


class OutgoingCorrelation(NamedTuple):
    """Correlations between the outgoing weights of two channels.

    Attributes:
        pair: over the pairs.
        non_pair: over channels that are no pair.
        cosine: of every pair, [K]; NaN where there is none.
    """

    pair: Correlations
    non_pair: Correlations
    cosine: Float[Array, " K"]


def pairing(filters: Float[ArrayLike, " K *rest"]) -> Pairing:
    """Return every filter's pairing filter, argmin_j <phi_i, phi_j>, and its cosine mu_i (Shang et al. 2016, 2.1).

    The filters are brought to unit norm. j = i, which the paper's minimum does not exclude, is excluded here: it would
    tie, at cosine 1, only where all filters have one direction. A filter of zeros, or one that is not finite, has no
    angle: it has no pairing filter and is none. Among equals the lowest index is taken.

    Args:
        filters: [K, M, *ell]; whatever follows the first axis is one filter.

    Returns:
        Indices and cosines, [K], in float32 at least, otherwise in the filters' dtype. Filters of one bank share
        pairing filters, so that the mu_i are not independent of each other.

    Raises:
        ValueError: fewer than two filters.

    Cost: K^2 M prod(ell) multiply-adds; at most `HELD_PRODUCTS` of the K^2 cosines at a time, or K if that is more.
    """
    unit, alive = _directions(filters)
    count = len(unit)
    if count < 2:
        raise ValueError(f"expected at least two filters, got {count}: one has no pairing filter")

    def lowest(rows: Int[Array, " rows"], products: Float[Array, "rows K"]) -> tuple[Array, Array]:
        own = rows[:, None] == np.arange(count, dtype=np.int32)[None]
        others = jnp.where(own | ~alive[None], jnp.inf, products)
        return jnp.argmin(others, axis=1).astype(jnp.int32), jnp.min(others, axis=1)

    index, cosine = _by_rows(unit, lowest)
    index, cosine = index.reshape(-1)[:count], cosine.reshape(-1)[:count]
    paired = alive & jnp.isfinite(cosine)
    return Pairing(jnp.where(paired, index, -1), jnp.where(paired, jnp.clip(cosine, -1.0, 1.0), jnp.nan))


def outgoing_correlation(
    kernel: Float[ArrayLike, " K_next C *ell"],
    partner: Int[ArrayLike, " C"] | None = None,
    *,
    unmatched: Literal["any", "opposite"] = "any",
    centred: bool = False,
) -> OutgoingCorrelation:
    """Return how alike the next layer's weights on paired channels are, and on others (Shang et al. 2016, Table 6).

    The outgoing weights of channel c are kernel[:, c]; the correlation of two channels is the cosine between theirs,
    1 where the next layer sees the sum of both phases only (as after AVR), -1 where it sees their difference (as
    without an activation). The paper says neither whether its correlations are absolute values nor which channels an
    unmatched pair is made of: both means are returned, and `unmatched` chooses. Its standard deviations, about as
    large as the means for channels that have nothing to do with each other, fit absolute values.

    Args:
        kernel: of the next layer, [K', C, *ell]. Of a layer that follows a CReLU, C = 2 K: the positive phases of K
            filters, then the negative ones.
        partner: of every channel the channel that it is compared with, -1 for none; None for the phases of a CReLU. A
            ReLU network's are `pairing` of its own filters.
        unmatched: which channels that are no pair are compared: ``"any"`` two, or a positive phase and a negative one,
            ``"opposite"``.
        centred: subtract the mean of a channel's weights first (Pearson's correlation).

    Returns:
        Correlations over the pairs (all K, or every channel with a partner) and over the others. Channels whose
        weights are all zero or not finite are left out.

    Raises:
        ValueError: an odd number of channels without partners, partners of another number of channels, an unknown
            ``unmatched``, or one that needs phases where there are none.

    Cost: C^2 K' prod(ell) multiply-adds, memory as for `pairing`.
    """
    weights = as_float(kernel)
    if weights.ndim < 2:
        raise ValueError(f"expected a kernel of shape [K', C, *ell], got {weights.shape}")
    count = weights.shape[1]
    if unmatched not in ("any", "opposite"):
        raise ValueError(f"expected unmatched to be 'any' or 'opposite', got {unmatched!r}")
    if partner is None:
        if count % 2:
            raise ValueError(
                f"expected both phases of every filter, an even number of channels, got {count} of {weights.shape}; "
                "name the pairs by partner"
            )
        others = jnp.asarray(np.roll(np.arange(count, dtype=np.int32), count // 2))
    else:
        others = jnp.asarray(partner).astype(jnp.int32)
        if others.shape != (count,):
            raise ValueError(f"expected a partner of each of the {count} channels, got shape {others.shape}")
        if unmatched == "opposite":
            raise ValueError("expected unmatched='any' beside partners, which have no phases, got 'opposite'")
    columns = jnp.moveaxis(weights, 1, 0).reshape(count, -1)
    if centred:
        columns = columns - jnp.mean(columns, axis=1, keepdims=True)
    unit, alive = _directions(columns)
    places = np.arange(count, dtype=np.int32)

    def sums(rows: Int[Array, " rows"], products: Float[Array, "rows C"]) -> Float[Array, " 4"]:
        # Rows of a last block that is not full stand beyond the end, and count for nothing.
        inside = rows < count
        at = jnp.minimum(rows, count - 1)
        matched = (others[at][:, None] == places[None]) | (others[None] == rows[:, None])
        apart = ~matched & (rows[:, None] != places[None]) & (inside & alive[at])[:, None] & alive[None]
        if unmatched == "opposite":
            apart &= (rows < count // 2)[:, None] != jnp.asarray(places < count // 2)[None]
        values = jnp.where(apart, products, 0)
        counted = jnp.sum(apart.astype(values.dtype))
        return jnp.stack([counted, jnp.sum(values), jnp.sum(jnp.square(values)), jnp.sum(jnp.abs(values))])

    whole = jnp.sum(_by_rows(unit, sums), axis=0)
    compared = count // 2 if partner is None else count
    there = alive[:compared] & (others[:compared] >= 0) & alive[others[:compared]]
    cosine = jnp.sum(unit[:compared] * unit[others[:compared]], axis=1)
    values = jnp.where(there, cosine, 0)
    number = jnp.sum(there.astype(values.dtype))
    own = jnp.stack([number, jnp.sum(values), jnp.sum(jnp.square(values)), jnp.sum(jnp.abs(values))])
    return OutgoingCorrelation(_moments(own), _moments(whole), jnp.where(there, cosine, jnp.nan))


def _directions(filters: ArrayLike) -> tuple[Float[Array, "K N"], Bool[Array, " K"]]:
    """Return unit filters, zeros for those that have no angle, and which have one."""
    try:
        given = jnp.asarray(filters)
    except (TypeError, ValueError):  # its message would show every number of the object
        raise TypeError(f"expected filters as an array, got {type(filters).__name__}") from None
    bank = as_float(given)
    if bank.ndim < 2:
        raise ValueError(f"expected filters of shape [K, M, *ell], got {bank.shape}")
    flat = bank.reshape(bank.shape[0], -1).astype(wider(bank.dtype, np.float32))
    alive = jnp.all(jnp.isfinite(flat), axis=1) & jnp.any(flat != 0, axis=1)
    # Cleared first: what is not finite would be NaN in products with all others.
    return normalize(jnp.where(alive[:, None], flat, 0)), alive


def _by_rows(unit: Float[Array, "K N"], summarise: Callable[[Array, Array], _Summary]) -> _Summary:
    """Return ``summarise(rows, products)`` of blocks of rows of the Gram matrix, stacked; beyond row K all is 0."""
    count = len(unit)
    height = max(1, min(count, HELD_PRODUCTS // count))
    blocks = -(-count // height)
    padded = jnp.pad(unit, ((0, blocks * height - count), (0, 0)))

    def block(number: Array) -> _Summary:
        start = number * height
        rows = jax.lax.dynamic_slice_in_dim(padded, start, height)
        return summarise(start + np.arange(height, dtype=np.int32), matmul(rows, unit.T))

    return jax.lax.map(block, np.arange(blocks, dtype=np.int32))


def _moments(sums: Float[Array, " 4"]) -> Correlations:
    count, total, squares, absolute = sums
    number = jnp.where(count > 0, count, jnp.nan)
    mean, square, size = total / number, squares / number, absolute / number
    return Correlations(
        mean,
        jnp.sqrt(jnp.maximum(square - mean * mean, 0)),
        size,
        jnp.sqrt(jnp.maximum(square - size * size, 0)),
        count,
    )


__all__ = ["HELD_PRODUCTS", "Correlations", "OutgoingCorrelation", "Pairing", "outgoing_correlation", "pairing"]
