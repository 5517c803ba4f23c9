"""Streaming statistics: init / update on the device, merge / finalize on the host.

A *leaf* is one named output of a draw, of any shape; every statistic is elementwise. On the device an
accumulator sees one slice of ``lanes`` draws at a time and keeps a state of fixed size for one block. Block
states are merged in NumPy float64 (counts in int64), in block order, so that a run's result depends neither
on the number of devices nor on interruptions. Non-finite values are counted (`Tally`) and kept out of every
other statistic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import float_dtype
from cnninv_jax._typing import Array, Bool, Shaped

State: TypeAlias = dict[str, Array]
HostState: TypeAlias = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One named output of a draw."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def is_bool(self) -> bool:
        """Whether the leaf holds truth values."""
        return bool(self.dtype == np.bool_)


def _compute_dtype(dtype: np.dtype) -> np.dtype:
    """Floats of 32 bits or more stay, half precision becomes float32, the rest the default float."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(float_dtype(None))
    return np.dtype(np.float32) if dtype.itemsize < 4 else np.dtype(dtype)


def _counted(values: Shaped[Array, " lanes *leaf"], mask: Bool[Array, " lanes"]) -> tuple[Array, Array]:
    """Return float values with the uncounted ones set to zero, and which ones count (valid and finite)."""
    dtype = _compute_dtype(np.dtype(values.dtype))
    floats = values.astype(dtype)
    ok = jnp.isfinite(floats) & jax.lax.broadcast_in_dim(mask, values.shape, (0,))
    return jnp.where(ok, floats, 0.0), ok


def _integers(flags: Array) -> Array:
    return flags.sum(axis=0, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Accumulator:
    """A statistic that can be updated by slices and merged by blocks; subclasses are frozen and hashable."""

    def check(self, leaf: Leaf) -> None:
        """Raise ValueError where this statistic makes no sense for ``leaf``."""

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        raise NotImplementedError

    def init(self, leaf: Leaf) -> State:
        """Return the device state of an empty block."""
        raise NotImplementedError

    def update(self, state: State, values: Shaped[Array, " lanes *leaf"], mask: Bool[Array, " lanes"]) -> State:
        """Return the device state after one slice; lanes outside ``mask`` do not count."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return the host total of no draws at all."""
        raise NotImplementedError

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Return the host total after one more block."""
        raise NotImplementedError

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return the numbers that people read."""
        raise NotImplementedError

    def describe(self) -> dict[str, object]:
        """Return this accumulator as JSON-able data, for the run's specification."""
        return {"kind": type(self).__name__, **dataclasses.asdict(self)}


def _add(total: HostState, block: HostState) -> HostState:
    return {key: total[key] + block[key] for key in total}


@dataclasses.dataclass(frozen=True)
class Tally(Accumulator):
    """How many values are finite and how many are not; every leaf has one."""

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        return ("count", "non_finite")

    def init(self, leaf: Leaf) -> State:
        """Return zero counts."""
        zero = jnp.zeros(leaf.shape, np.int32)
        return {"count": zero, "non_finite": zero}

    def update(self, state: State, values: Array, mask: Array) -> State:
        """Count one slice."""
        _, ok = _counted(values, mask)
        finite = _integers(ok)
        return {
            "count": state["count"] + finite,
            "non_finite": state["non_finite"] + (mask.sum(dtype=np.int32) - finite),
        }

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return zero counts in int64."""
        return {"count": np.zeros(shape, np.int64), "non_finite": np.zeros(shape, np.int64)}

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Add counts."""
        return _add(total, block)

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return both counts."""
        return dict(total)


@dataclasses.dataclass(frozen=True)
class Moments(Accumulator):
    """Mean and variance by the Welford-Chan merge (Chan, Golub and LeVeque 1983).

    Two samples with (n, mean, M2) join as ``delta = mean_b - mean_a``, ``mean = mean_a + delta n_b / n``,
    ``M2 = M2_a + M2_b + delta^2 n_a n_b / n``. Inside a block everything is kept relative to the first
    slice's mean (``shift``), so that float32 draws of mean 1000 and deviation 1 lose nothing; shift and
    offset meet in float64.
    """

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        return ("mean", "variance", "standard_deviation", "standard_error")

    def init(self, leaf: Leaf) -> State:
        """Return the empty state."""
        zero = jnp.zeros(leaf.shape, _compute_dtype(leaf.dtype))
        return {"count": jnp.zeros(leaf.shape, np.int32), "m2": zero, "offset": zero, "shift": zero}

    def update(self, state: State, values: Array, mask: Array) -> State:
        """Take one slice in two passes (mean, then squared deviations) and merge it."""
        x, ok = _counted(values, mask)
        count = _integers(ok)
        new, old = count.astype(x.dtype), state["count"].astype(x.dtype)
        divisor = jnp.maximum(new, 1.0)
        shift = jnp.where(state["count"] == 0, (x / divisor[None]).sum(axis=0), state["shift"])
        d = jnp.where(ok, x - shift[None], 0.0)
        mean = d.sum(axis=0) / divisor
        m2 = jnp.square(jnp.where(ok, d - mean[None], 0.0)).sum(axis=0)
        delta = mean - state["offset"]
        weight = new / jnp.maximum(new + old, 1.0)
        return {
            "count": state["count"] + count,
            "m2": state["m2"] + m2 + jnp.square(delta) * old * weight,
            "offset": state["offset"] + delta * weight,
            "shift": shift,
        }

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return the empty total."""
        return {"count": np.zeros(shape, np.int64), "m2": np.zeros(shape), "mean": np.zeros(shape)}

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Join two samples in float64."""
        count = total["count"] + block["count"]
        # Overflow of finite but huge draws shows as an infinite variance, which is what the user should see.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.add(block["shift"], block["offset"], dtype=np.float64)
            delta = mean - total["mean"]
            weight = block["count"] / np.maximum(count, 1)
            m2 = total["m2"] + block["m2"] + np.square(delta) * total["count"] * weight
            return {"count": count, "m2": m2, "mean": total["mean"] + delta * weight}

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return mean, unbiased variance, its root, the mean's standard error; NaN where undefined."""
        count = total["count"]
        mean = np.where(count > 0, total["mean"], np.nan)
        variance = np.where(count > 1, total["m2"] / np.maximum(count - 1, 1), np.nan)
        deviation = np.sqrt(variance)
        error = deviation / np.sqrt(np.maximum(count, 1))
        return {"mean": mean, "variance": variance, "standard_deviation": deviation, "standard_error": error}


@dataclasses.dataclass(frozen=True)
class Extremes(Accumulator):
    """The smallest and the largest finite value; NaN where there was none."""

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        return ("min", "max")

    def init(self, leaf: Leaf) -> State:
        """Return an empty range."""
        dtype = _compute_dtype(leaf.dtype)
        return {"max": jnp.full(leaf.shape, -np.inf, dtype), "min": jnp.full(leaf.shape, np.inf, dtype)}

    def update(self, state: State, values: Array, mask: Array) -> State:
        """Widen the range by one slice."""
        x, ok = _counted(values, mask)
        return {
            "max": jnp.maximum(state["max"], jnp.where(ok, x, -np.inf).max(axis=0)),
            "min": jnp.minimum(state["min"], jnp.where(ok, x, np.inf).min(axis=0)),
        }

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return an empty range in float64."""
        return {"max": np.full(shape, -np.inf), "min": np.full(shape, np.inf)}

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Widen the range by one block."""
        return {
            "max": np.maximum(total["max"], block["max"], dtype=np.float64),
            "min": np.minimum(total["min"], block["min"], dtype=np.float64),
        }

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return both ends."""
        return {key: np.where(np.isfinite(total[key]), total[key], np.nan) for key in ("min", "max")}


@dataclasses.dataclass(frozen=True)
class Histogram(Accumulator):
    """Counts in ``bins`` equal bins of [low, high]; values outside are counted in underflow and overflow.

    Bins are half-open, the last one closed, as in `numpy.histogram`; edges are rounded to the leaf's dtype.
    """

    low: float
    high: float
    bins: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"expected Histogram with finite low < high, got {self.low} and {self.high}")
        if isinstance(self.bins, bool) or int(self.bins) != self.bins or self.bins < 1:
            raise ValueError(f"expected Histogram bins to be a positive integer, got {self.bins}")
        for field, kind in (("low", float), ("high", float), ("bins", int)):
            object.__setattr__(self, field, kind(getattr(self, field)))

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        return ("histogram", "bin_edges", "underflow", "overflow")

    @property
    def edges(self) -> np.ndarray:
        """The bin edges in float64."""
        return np.linspace(self.low, self.high, self.bins + 1)

    def check(self, leaf: Leaf) -> None:
        """Refuse bins narrower than the leaf's dtype resolves."""
        edges = self.edges.astype(_compute_dtype(leaf.dtype))
        if not np.all(np.diff(edges) > 0):
            raise ValueError(
                f"expected bins of leaf {leaf.name!r} wider than {edges.dtype} resolves, "
                f"got {self.bins} bins in [{self.low}, {self.high}]; take fewer bins or a wider range"
            )

    def init(self, leaf: Leaf) -> State:
        """Return empty bins; the first is the underflow, the last the overflow."""
        return {"counts": jnp.zeros((*leaf.shape, self.bins + 2), np.int32)}

    def update(self, state: State, values: Array, mask: Array) -> State:
        """Guess the bin by arithmetic, then correct the guess against the edges."""
        x, ok = _counted(values, mask)
        edges = jnp.asarray(self.edges, dtype=x.dtype)
        scaled = (x - edges[0]) * np.asarray(self.bins / (self.high - self.low), x.dtype)
        guess = jnp.clip(jnp.floor(scaled), 0.0, self.bins - 1.0).astype(np.int32)
        guess = jnp.where(x < edges[guess], guess - 1, guess)
        guess = jnp.clip(guess, 0, self.bins - 1)
        guess = jnp.clip(jnp.where(x >= edges[guess + 1], guess + 1, guess), 0, self.bins - 1)
        slot = jnp.where(x < edges[0], 0, jnp.where(x > edges[-1], self.bins + 1, guess + 1))
        # One row of bins per element of the leaf; uncounted lanes add zero.
        rows = math.prod(values.shape[1:])
        row = jnp.broadcast_to(jnp.arange(rows, dtype=np.int32)[None], (values.shape[0], rows))
        flat = state["counts"].reshape(rows, self.bins + 2)
        flat = flat.at[row, slot.reshape(row.shape)].add(ok.reshape(row.shape).astype(np.int32))
        return {"counts": flat.reshape(state["counts"].shape)}

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return empty bins in int64."""
        return {"counts": np.zeros((*shape, self.bins + 2), np.int64)}

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Add counts."""
        return _add(total, block)

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return counts inside the range, the edges, and what fell outside."""
        counts = total["counts"]
        return {
            "histogram": counts[..., 1:-1],
            "bin_edges": self.edges,
            "underflow": counts[..., 0],
            "overflow": counts[..., -1],
        }


@dataclasses.dataclass(frozen=True)
class Proportion(Accumulator):
    """How often a bool leaf is true, or a real leaf lies strictly ``above`` or ``below`` a threshold."""

    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        for field in ("above", "below"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, float(value))
                if math.isnan(float(value)):
                    raise ValueError(f"expected Proportion {field} to be a number, got nan")

    @property
    def produces(self) -> tuple[str, ...]:
        """The names of the finalised numbers."""
        return ("proportion", "proportion_standard_error", "successes")

    def check(self, leaf: Leaf) -> None:
        """Ask for a threshold exactly where the leaf holds numbers."""
        bare = self.above is None and self.below is None
        if leaf.is_bool != bare:
            wanted = "Proportion()" if leaf.is_bool else "Proportion(above=...) or Proportion(below=...)"
            raise ValueError(f"expected {wanted} for leaf {leaf.name!r} of dtype {leaf.dtype}, got {self}")

    def init(self, leaf: Leaf) -> State:
        """Return zero counts."""
        zero = jnp.zeros(leaf.shape, np.int32)
        return {"count": zero, "successes": zero}

    def update(self, state: State, values: Array, mask: Array) -> State:
        """Count one slice's successes."""
        x, ok = _counted(values, mask)
        success = ok & values if self.above is None and self.below is None else ok
        if self.above is not None:
            success = success & (x > self.above)
        if self.below is not None:
            success = success & (x < self.below)
        return {"count": state["count"] + _integers(ok), "successes": state["successes"] + _integers(success)}

    def empty(self, shape: tuple[int, ...]) -> HostState:
        """Return zero counts in int64."""
        return {"count": np.zeros(shape, np.int64), "successes": np.zeros(shape, np.int64)}

    def merge(self, total: HostState, block: HostState) -> HostState:
        """Add counts."""
        return _add(total, block)

    def finalize(self, total: HostState) -> dict[str, np.ndarray]:
        """Return the proportion, its standard error sqrt(p (1 - p) / n), and the number of successes."""
        count = np.maximum(total["count"], 1)
        p = np.where(total["count"] > 0, total["successes"] / count, np.nan)
        return {
            "proportion": p,
            "proportion_standard_error": np.sqrt(p * (1 - p) / count),
            "successes": total["successes"],
        }


def default_statistics(leaf: Leaf) -> tuple[Accumulator, ...]:
    """Return what is collected by default: a proportion for bools, moments and extremes for numbers."""
    return (Proportion(),) if leaf.is_bool else (Moments(), Extremes())


def of_kind(accumulators: tuple[Accumulator, ...], kind: type[Accumulator]) -> Iterator[Accumulator]:
    """Yield the accumulators of one class."""
    return (accumulator for accumulator in accumulators if isinstance(accumulator, kind))
