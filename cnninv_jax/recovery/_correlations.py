"""Cross-correlations of filters, computed as they are needed: the columns of W W^T for `_gram`.

The column of filter f at shift p is C[f, u, i] = sum over m, s of w[f, m, s + u t] w[i, m, s] moved by p.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Bool, Float, Int

#: Filters that enter at once from so many on are correlated in one product.
TOGETHER = 3


class Geometry(NamedTuple):
    """What is static: K filters of M channels and length l, a signal of length D, stride t; k, and the iteration."""

    num_filters: int
    channels: int
    length: int
    signal_length: int
    stride: int
    k: int
    num_steps: int
    nonnegative: bool
    divergence: float

    @property
    def shifts(self) -> int:
        """Shifts of a filter, n = (D - l) / t + 1."""
        return (self.signal_length - self.length) // self.stride + 1

    @property
    def reach(self) -> int:
        """Largest number of shifts at which two filters overlap."""
        return min((self.length - 1) // self.stride, self.shifts - 1)

    @property
    def lags(self) -> int:
        """Lags u at which two filters overlap."""
        return 2 * self.reach + 1


class Workspace(NamedTuple):
    """C[f, u, i], lags from -reach to reach, of the filters f met so far."""

    table: Float[Array, "K u K"]
    known: Bool[Array, " K"]


def empty(geo: Geometry, dtype: jnp.dtype) -> Workspace:
    table = jnp.zeros((geo.num_filters, geo.lags, geo.num_filters), dtype)
    return Workspace(table, jnp.zeros((geo.num_filters,), bool))


def correlate(geo: Geometry, bank: Float[Array, "K l*M"], workspace: Workspace, filters: Int[Array, " k"]) -> Workspace:
    """Fill in the rows of filters that are not known yet."""

    def rows_of(chosen: Float[Array, "q l*M"]) -> Float[Array, "q u K"]:
        margin = geo.reach * geo.stride
        taps = chosen.reshape(-1, geo.length, geo.channels)
        moved = windows(jnp.pad(taps, ((0, 0), (margin, margin), (0, 0))), geo.lags, geo.length, geo.stride)
        product = matmul(moved.reshape(-1, moved.shape[-1]), bank.T)
        return product.reshape(*moved.shape[:2], geo.num_filters)

    def all_of_them(workspace: Workspace) -> Workspace:
        # What is known already gives way to a missing one: a choice that changes with the workspace, else XLA would
        # take the product out of the loop, into every iteration.
        known = workspace.known[filters]
        chosen = jnp.where(known, filters[jnp.argmin(known)], filters)
        rows = rows_of(bank[chosen])

        def put(entry: Array, table: Array) -> Array:
            return lax.dynamic_update_index_in_dim(table, rows[entry], chosen[entry], 0)

        table = lax.fori_loop(0, geo.k, put, workspace.table)
        return Workspace(table, workspace.known.at[chosen].set(True))

    def the_first(workspace: Workspace) -> Workspace:
        number = filters[jnp.argmin(workspace.known[filters])]
        rows = rows_of(lax.dynamic_slice_in_dim(bank, number, 1))
        table = lax.dynamic_update_index_in_dim(workspace.table, rows[0], number, 0)
        return Workspace(table, workspace.known.at[number].set(True))

    def missing(workspace: Workspace) -> Int[Array, ""]:
        return jnp.sum(~workspace.known[filters], dtype=np.int32)

    # Loops in place of branches: a branch would copy the table.
    workspace = lax.while_loop(lambda workspace: missing(workspace) >= TOGETHER, all_of_them, workspace)
    return lax.while_loop(lambda workspace: missing(workspace) > 0, the_first, workspace)


def windows(x: Float[Array, "q d M"], count: int, length: int, stride: int) -> Float[Array, "q c l*M"]:
    """Return ``count`` windows of ``length`` samples; with time first each is contiguous."""
    parts = [x[:, at * stride : at * stride + length].reshape(x.shape[0], -1) for at in range(count)]
    return jnp.stack(parts, axis=1)


def minus_columns(
    geo: Geometry,
    table: Float[Array, "K u K"],
    start: Float[Array, "n K"],
    filters: Int[Array, " k"],
    places: Int[Array, " k"],
    values: Float[Array, " k"],
    *,
    absolute: bool = False,
) -> Float[Array, "n K"]:
    """Return ``start`` minus sum_s values[s] times column s of W W^T (of its magnitudes).

    A column is non-zero at 2 reach + 1 shifts, next to each other: its rows are added in place, one kernel each.
    """

    def add(entry: Array, total: Array) -> Array:
        number, place = filters[entry], places[entry]
        rows = lax.dynamic_index_in_dim(table, number, 0, keepdims=False)
        at = (place, jnp.zeros_like(place))
        before = lax.dynamic_slice(total, at, rows.shape)
        return lax.dynamic_update_slice(total, before - values[entry] * (jnp.abs(rows) if absolute else rows), at)

    margin = ((geo.reach, geo.reach), (0, 0))
    return lax.fori_loop(0, geo.k, add, jnp.pad(start, margin))[geo.reach : geo.reach + geo.shifts]


def gram_matrix(
    geo: Geometry, table: Float[Array, "K u K"], filters: Int[Array, " k"], places: Int[Array, " k"]
) -> Float[Array, "k k"]:
    """Return W_S W_S^T of the support S."""
    lag = places[:, None] - places[None]
    other = jnp.broadcast_to(filters[None], lag.shape)
    gram = table[other, jnp.clip(lag + geo.reach, 0, geo.lags - 1), other.T]
    return jnp.where(jnp.abs(lag) <= geo.reach, gram, 0.0)
