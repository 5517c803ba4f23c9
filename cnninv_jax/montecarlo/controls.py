"""Control variates: the mean of an output, corrected by quantities whose expectation is known.

Where c has the known mean mu, ``y - beta (c - mu)`` has the mean of y for every beta, and for the best beta a variance
smaller by the factor 1 - R^2. The best beta is the regression coefficient of y on c, estimated from the same draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import PRECISION, as_float, wider
from cnninv_jax._typing import Array
from cnninv_jax.montecarlo.accumulators import Accumulator, HostState, Leaf, State, _compute_dtype, _counted, _integers

#: Controls by the output they correct: ``{"error": {"energy": 1.0}}``, each with its known expectation.
Controls: TypeAlias = Mapping[str, Mapping[str, float]]

#: A control that varies by less than this part of its mean is a constant up to float32 rounding: it is left out.
_CONSTANT = 1e-6
#: Directions of the controls' correlation matrix below this part of the largest are rounding: they are left out.
_COLLINEAR = 1e-6


@dataclasses.dataclass(frozen=True)
class ControlledMean(Accumulator):
    """Mean of y with control variates, for a leaf [..., 1 + p] whose last axis holds (y, c_1, .., c_p).

    With the sample means ybar, cbar, the co-moments S and beta = S_cc^-1 S_cy (Lavenberg and Welch 1981):
    ``mean = ybar - beta . (cbar - mu)``,
    ``standard_error^2 = (S_yy - beta . S_cy) / (n - p - 1) * (1 / n + (cbar - mu) . S_cc^-1 (cbar - mu))``,
    Student's t with n - p - 1 degrees of freedom; exact where (y, c) is jointly normal. Otherwise the mean has a bias
    of order 1 / n, against a standard error of order 1 / sqrt(n).

    The last axis is gone from what is finalised: ``mean``, ``standard_error``, ``variance`` (n times the squared
    standard error, what one draw is worth), ``degrees_of_freedom``, ``plain_mean`` and ``plain_standard_error``
    (without controls), ``variance_reduction`` (plain over controlled variance), and over the controls ``coefficients``
    (beta) and ``control_deviation``, (cbar - mu) in standard errors of cbar: one far beyond 3 says that the stated
    expectation is wrong, and with it the mean. ``count`` and ``non_finite`` count draws, one with any non-finite entry
    being left out; they take the place of the `Tally`'s. Such a leaf takes no other statistic (`with_controls` keeps y
    by itself).

    Float32 draws resolve reductions up to some 1e5. Constant and collinear controls are left out.

    Attributes:
        expectations: mu_1, .., mu_p, the known expectations of the controls.
    """

    expectations: tuple[float, ...]

    def __post_init__(self) -> None:
        given: Any = self.expectations
        values = tuple(float(value) for value in (given if isinstance(given, Sequence) else (given,)))
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"expected ControlledMean with one finite expectation per control, got {given!r}")
        object.__setattr__(self, "expectations", values)

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        return (
            "mean",
            "variance",
            "standard_error",
            "degrees_of_freedom",
            "plain_mean",
            "plain_standard_error",
            "variance_reduction",
            "coefficients",
            "control_deviation",
            "count",
            "non_finite",
        )

    def check(self, leaf: Leaf) -> None:
        """Ask for (y, c_1, .., c_p) on the last axis."""
        entries = 1 + len(self.expectations)
        if leaf.is_bool or leaf.shape[-1:] != (entries,):
            raise ValueError(
                f"expected leaf {leaf.name!r} to hold {entries} numbers (the output and {entries - 1} controls) on its "
                f"last axis, got {leaf.dtype}{list(leaf.shape)}; make it with with_controls(draw, ...)"
            )

    def init(self, leaf: Leaf) -> State:
        """Return the empty state."""
        dtype = _compute_dtype(leaf.dtype)
        zero, entries = jnp.zeros(leaf.shape, dtype), leaf.shape[-1]
        whole = jnp.zeros(leaf.shape[:-1], np.int32)
        comoment = jnp.zeros((*leaf.shape, entries), dtype)
        return {"comoment": comoment, "count": whole, "non_finite": whole, "offset": zero, "shift": zero}

    def update(self, state: State, values: Array, mask: Array) -> State:
        """Take one slice in two passes (means, then products of deviations) and merge it; see `Moments`."""
        x, finite = _counted(values, mask)
        whole = jnp.all(finite, axis=-1, keepdims=True)
        count = _integers(whole[..., 0])
        new, old = (number[..., None].astype(x.dtype) for number in (count, state["count"]))
        divisor = jnp.maximum(new, 1.0)
        first = jnp.where(whole, x / divisor[None], 0.0).sum(axis=0)
        shift = jnp.where(state["count"][..., None] == 0, first, state["shift"])
        d = jnp.where(whole, x - shift[None], 0.0)
        mean = d.sum(axis=0) / divisor
        d = jnp.where(whole, d - mean[None], 0.0)
        products = jnp.einsum("l...i,l...j->...ij", d, d, precision=PRECISION)
        delta = mean - state["offset"]
        weight = new / jnp.maximum(new + old, 1.0)
        return {
            "comoment": state["comoment"] + products + delta[..., None] * (delta * old * weight)[..., None, :],
            "count": state["count"] + count,
            "non_finite": state["non_finite"] + (mask.sum(dtype=np.int32) - count),
            "offset": state["offset"] + delta * weight,
            "shift": shift,
        }

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return the empty total."""
        return {
            "comoment": np.zeros((*shape, shape[-1])),
            "count": np.zeros(shape[:-1], np.int64),
            "mean": np.zeros(shape),
            "non_finite": np.zeros(shape[:-1], np.int64),
        }

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Join two samples in float64 (Chan, Golub and LeVeque 1983)."""
        count = total["count"] + block["count"]
        with np.errstate(over="ignore", invalid="ignore"):
            delta = np.add(block["shift"], block["offset"], dtype=np.float64) - total["mean"]
            weight = (block["count"] / np.maximum(count, 1))[..., None]
            joined = delta[..., :, None] * (delta * total["count"][..., None] * weight)[..., None, :]
            return {
                "comoment": total["comoment"] + block["comoment"] + joined,
                "count": count,
                "mean": total["mean"] + delta * weight,
                "non_finite": total["non_finite"] + block["non_finite"],
            }

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return the controlled mean and what it gained; NaN where there are too few draws."""
        count, comoment = total["count"], total["comoment"]
        n = np.maximum(count, 1).astype(np.float64)
        plain, controls = total["mean"][..., 0], total["mean"][..., 1:]
        own, cross, square = comoment[..., 0, 0], comoment[..., 0, 1:], comoment[..., 1:, 1:]
        deviation = controls - np.asarray(self.expectations)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inverse, rank = _inverse(square, controls, n)
            beta = np.einsum("...ij,...j->...i", inverse, cross)
            residual = np.maximum(own - np.sum(beta * cross, axis=-1), 0.0)
            freedom = count - 1 - rank
            enough = freedom > 0
            leverage = 1 / n + np.einsum("...i,...ij,...j->...", deviation, inverse, deviation)
            variance = residual / np.where(enough, freedom, 1) * leverage * n
            variance = np.where(enough, variance, np.nan)
            plain_variance = np.where(count > 1, own / np.maximum(n - 1, 1), np.nan)
            spread = np.sqrt(np.diagonal(square, axis1=-2, axis2=-1) / (np.maximum(n - 1, 1) * n)[..., None])
            mean = np.where(enough, plain - np.sum(beta * deviation, axis=-1), np.nan)
            return {
                "mean": mean,
                "variance": variance,
                "standard_error": np.sqrt(variance / n),
                "degrees_of_freedom": np.maximum(freedom, 0),
                "plain_mean": np.where(count > 0, plain, np.nan),
                "plain_standard_error": np.sqrt(plain_variance / n),
                "variance_reduction": plain_variance / variance,
                "coefficients": np.where(enough[..., None], beta, np.nan),
                "control_deviation": np.where((count > 1)[..., None], deviation / spread, np.nan),
                "count": count,
                "non_finite": total["non_finite"],
            }


def _inverse(square: np.ndarray, means: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the controls' inverse co-moment matrix on its numerical range, and that range's dimension."""
    squares = np.diagonal(square, axis1=-2, axis2=-1)
    varies = (squares > n[..., None] * np.square(_CONSTANT * means)) & (squares > 0) & np.isfinite(squares)
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, squares, 1.0)), 0.0)
    correlation = np.nan_to_num(square, nan=0.0, posinf=0.0, neginf=0.0) * scale[..., :, None] * scale[..., None, :]
    values, vectors = np.linalg.eigh(correlation)
    usable = values > _COLLINEAR * np.maximum(values[..., -1:], _COLLINEAR)
    weights = np.where(usable, 1 / np.where(usable, values, 1.0), 0.0)
    inverse = np.einsum("...ia,...a,...ja->...ij", vectors, weights, vectors)
    return inverse * scale[..., :, None] * scale[..., None, :], usable.sum(axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _WithControls:
    """The callable of `with_controls`: a pytree, so that the arrays of the draw inside stay traced arguments."""

    draw: Callable[[jax.Array], Any]
    controls: tuple[tuple[str, tuple[str, ...]], ...] = dataclasses.field(metadata={"static": True})

    @property
    def func(self) -> Callable[[jax.Array], Any]:
        """The draw inside, by whose name a run is called."""
        return self.draw

    def __call__(self, key: jax.Array) -> dict[str, Any]:
        outputs = self.draw(key)
        if not isinstance(outputs, Mapping):
            raise ValueError(
                f"expected a draw that returns a dict of named outputs, got {type(outputs).__name__}; name the output"
            )
        asked = {name for target, names in self.controls for name in (target, *names)}
        missing = sorted(asked - set(outputs))
        if missing:
            raise ValueError(
                f"expected names of the draw's outputs in controls, got {missing}; there are {list(outputs)}"
            )
        added = {
            controlled_name(target): _stacked(target, outputs[target], {name: outputs[name] for name in names})
            for target, names in self.controls
        }
        taken = sorted(set(added) & set(outputs))
        if taken:
            raise ValueError(f"expected no outputs called {taken}, got them from the draw; rename them")
        return {**outputs, **added}


def _stacked(name: str, output: Array, controls: Mapping[str, Array]) -> Array:
    y = as_float(output)
    columns = [y]
    for control, value in controls.items():
        c = as_float(value)
        if c.shape not in ((), y.shape):
            raise ValueError(
                f"expected control {control!r} to be a scalar or of the shape {y.shape} of {name!r}, got {c.shape}"
            )
        columns.append(jnp.broadcast_to(c, y.shape))
    dtype = y.dtype
    for column in columns[1:]:
        dtype = wider(dtype, column.dtype)
    return jnp.stack([column.astype(dtype) for column in columns], axis=-1)


def controlled_name(name: str) -> str:
    """Return the name under which `with_controls` puts an output with its controls."""
    return f"{name}_controlled"


def with_controls(draw: Callable[[jax.Array], Any], controls: Controls) -> Callable[[jax.Array], dict[str, Any]]:
    """Return a draw that also returns "<output>_controlled": an output stacked with its controls, [..., 1 + p].

    Collect it with `controlled_statistics` of the same ``controls``::

        controls = {"error": {"energy": 1.0}}
        run(with_controls(draw, controls), key, num_draws, statistics=controlled_statistics(controls))

    Args:
        draw: function of one key that returns a dict; a pytree callable stays one.
        controls: the controls of every output to correct, each with its known expectation. A control is an output of
            the same draw, a scalar or of the output's shape.

    Raises:
        ValueError: no controls, or (when traced) outputs that do not exist or do not fit.
    """
    _check(controls)
    return _WithControls(draw, tuple((name, tuple(held)) for name, held in controls.items()))


def controlled_statistics(controls: Controls) -> dict[str, tuple[Accumulator, ...]]:
    """Return the accumulators of the outputs that `with_controls` adds, to go into ``run(..., statistics=...)``."""
    _check(controls)
    return {controlled_name(name): (ControlledMean(tuple(held.values())),) for name, held in controls.items()}


def _check(controls: Controls) -> None:
    shaped = isinstance(controls, Mapping) and all(isinstance(held, Mapping) and held for held in controls.values())
    if not shaped or not controls:
        raise ValueError(
            f"expected controls such as {{'output': {{'control': expectation}}}}, got {controls!r}; "
            "name at least one control per output"
        )
