"""Nested draws: something expensive once (a filter bank), something cheap several times on it (codes).

A draw becomes a *cluster*: one outer state, ``count`` inner draws on it. What it returns are means over the cluster, so
every standard error and interval of the run is one by cluster, correct whatever the dependence inside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import as_float, float_dtype
from cnninv_jax._typing import Array

if TYPE_CHECKING:
    from cnninv_jax.montecarlo.result import Result


def within_name(name: str) -> str:
    """Return the name under which `nested` puts the variance of an output inside a cluster."""
    return f"{name}_within"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Nested:
    """The callable of `nested`: a pytree, so that the arrays of both draws stay traced arguments."""

    outer: Callable[[jax.Array], Any]
    inner: Callable[[jax.Array, Any], Any]
    count: int = dataclasses.field(metadata={"static": True})
    joint: bool = dataclasses.field(metadata={"static": True})

    @property
    def func(self) -> Callable[..., Any]:
        """The inner draw, by whose name a run is called."""
        return self.inner

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        outer_key, inner_key = jax.random.split(key)
        state = self.outer(outer_key)
        if self.joint:
            values = self.inner(inner_key, state)
        else:
            values = jax.vmap(self.inner, (0, None))(jax.random.split(inner_key, self.count), state)
        return cluster_means(values, self.count)


def nested(
    outer: Callable[[jax.Array], Any],
    inner: Callable[[jax.Array, Any], Any],
    count: int,
    *,
    joint: bool = False,
) -> Callable[[jax.Array], dict[str, Array]]:
    """Return the draw of a cluster: ``state = outer(key)``, then ``count`` times ``inner(key, state)``.

    Each output of ``inner`` becomes its mean over the cluster, under its own name ("a.b" for nested outputs, "value"
    for a bare array), and with ``count > 1`` its unbiased variance inside the cluster under "<name>_within". A bool
    output becomes the part of the cluster in which it holds.

    Args:
        outer: function of one key; what it returns is seen by every inner draw of the cluster.
        inner: function of (key, state) that returns a pytree of real or bool arrays.
        count: inner draws per cluster; `best_count` says how many pay.
        joint: ``inner`` draws all of them together from one key: its outputs have a leading axis ``count``. For
            designs with dependence (stratified, antithetic): their means stay right, but the within-cluster variance
            is then no longer that of independent draws.

    Raises:
        ValueError: count is no positive integer, or (when traced) an output without the leading axis.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"expected count to be a positive integer, got {count!r}")
    return _Nested(outer, inner, int(count), bool(joint))


def cluster_means(values: Any, count: int) -> dict[str, Array]:
    """Return mean and, for ``count > 1``, unbiased variance over the leading axis of every leaf, by name."""
    outputs: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(values)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        array = jnp.asarray(leaf)
        if array.shape[:1] != (count,):
            raise ValueError(
                f"expected output {name!r} of a joint inner draw with a leading axis of {count}, got {array.shape}; "
                "return one value per inner draw, or leave joint out"
            )
        array = array.astype(float_dtype(None)) if array.dtype == np.bool_ else as_float(array)
        named = {name: jnp.mean(array, axis=0)}
        if count > 1:
            named[within_name(name)] = jnp.var(array, axis=0, ddof=1)
        clash = set(named) & set(outputs)
        if clash:
            raise ValueError(f"expected distinct output names, got {sorted(clash)} twice; rename one of the equal ones")
        outputs |= named
    return outputs


@dataclasses.dataclass(frozen=True)
class VarianceComponents:
    """Where the variance of one inner draw comes from; arrays of the output's shape.

    Attributes:
        within: sigma_w^2, variance between inner draws of one cluster.
        between: sigma_b^2, variance of the cluster's expectation; the unbiased estimate, which may fall below zero.
        count: inner draws per cluster in the run it was estimated from.
    """

    within: np.ndarray
    between: np.ndarray
    count: int

    @property
    def total(self) -> np.ndarray:
        """sigma_b^2 + sigma_w^2, the variance of one inner draw on an outer state of its own."""
        return self.within + self.between

    @property
    def intraclass_correlation(self) -> np.ndarray:
        """The correlation rho = sigma_b^2 / (sigma_b^2 + sigma_w^2) of two inner draws of one cluster."""
        return self.between / self.total

    @property
    def design_effect(self) -> np.ndarray:
        """1 + (m - 1) rho: how much wider than under independence the variance of the mean of all inner draws is."""
        return 1.0 + (self.count - 1) * self.intraclass_correlation

    def variance(self, count: int) -> np.ndarray:
        """Return sigma_b^2 + sigma_w^2 / m, the variance of the mean of one cluster of m inner draws."""
        return self.between + self.within / count


def variance_components(result: Result, name: str, count: int) -> VarianceComponents:
    """Return the variance components of one output of a run of `nested` (one-way analysis of variance).

    ``within`` is the mean of the clusters' variances, ``between`` the variance of their means less within / m. Both are
    unbiased for independent inner draws; a joint design has no such components.

    Args:
        result: of a run of `nested` with ``count > 1``.
        name: an output of the inner draw.
        count: inner draws per cluster, m.

    Raises:
        ValueError: no "<name>_within" there, or no `Moments` of either.
    """
    means = result[name]
    if within_name(name) not in result.statistics:
        raise ValueError(f"expected an output {within_name(name)!r}, got {list(result.statistics)}; nest more than one")
    inside = result[within_name(name)]
    if "variance" not in means or "mean" not in inside:
        raise ValueError(f"expected Moments() for {name!r} and {within_name(name)!r}; ask for it in statistics")
    if count < 2:
        raise ValueError(f"expected count, the inner draws per cluster, to be at least 2, got {count}")
    within = np.asarray(inside["mean"])
    return VarianceComponents(within, np.asarray(means["variance"]) - within / count, count)


def best_count(components: VarianceComponents, cost_outer: float, cost_inner: float) -> np.ndarray:
    """Return m* = sqrt(c_o / c_i * sigma_w^2 / sigma_b^2), the inner draws per cluster that a fixed budget wants.

    m* minimises (sigma_b^2 + sigma_w^2 / m) (c_o + m c_i), variance times cost; the minimum is flat, so rounding costs
    little. At least 1; infinite where no variance between clusters was seen.

    Args:
        components: of a pilot run.
        cost_outer: cost of an outer state, in any unit.
        cost_inner: cost of one inner draw on it, in the same unit.

    Raises:
        ValueError: costs that are not positive.
    """
    for name, cost in (("cost_outer", cost_outer), ("cost_inner", cost_inner)):
        if not (math.isfinite(cost) and cost > 0):
            raise ValueError(f"expected {name} to be positive, got {cost}; it may be a time or any other unit")
    within, between = np.asarray(components.within), np.asarray(components.between)
    ratio = np.where(between > 0, within / np.where(between > 0, between, 1.0), np.inf)
    return np.maximum(np.sqrt(cost_outer / cost_inner * ratio), 1.0)
