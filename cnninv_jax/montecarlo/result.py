"""What a run returns: finalised numbers, kept draws and where they come from."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax._files import write_whole
from cnninv_jax.montecarlo import intervals
from cnninv_jax.montecarlo.accumulators import Accumulator, HostState, Leaf, Moments, Proportion
from cnninv_jax.montecarlo.errors import ResultError
from cnninv_jax.montecarlo.importance import weight_note, weighted_interval
from cnninv_jax.montecarlo.specification import canonical_json
from cnninv_jax.montecarlo.summary import Row, Summary

if TYPE_CHECKING:
    import xarray as xr

    from cnninv_jax.montecarlo.stopping import Stopping

#: long_name of every statistic, "{}" being the leaf.
_LONG_NAMES = {
    "count": "finite draws of {}",
    "non_finite": "non-finite draws of {}, left out of all other statistics",
    "mean": "mean of {}",
    "variance": "unbiased variance of {}",
    "standard_deviation": "standard deviation of {}",
    "standard_error": "standard error of the mean of {}",
    "min": "smallest finite draw of {}",
    "max": "largest finite draw of {}",
    "histogram": "draws of {} per bin",
    "underflow": "draws of {} below the histogram",
    "overflow": "draws of {} above the histogram",
    "proportion": "proportion of draws in which {} holds",
    "proportion_standard_error": "standard error of the proportion of {}",
    "successes": "draws in which {} holds",
    "probability": "weighted probability: mean of exp({})",
    "probability_standard_error": "standard error of the weighted probability of {}",
    "hits": "draws of {} that contribute",
    "effective_hits": "effective number of contributing draws of {}",
    "largest_share": "largest contribution's share of the sum of {}",
    "probability_low": "lower end of the log-scale interval of the weighted probability of {}",
    "probability_high": "upper end of the log-scale interval of the weighted probability of {}",
    "mean_low": "lower end of Student's interval of the mean of {}",
    "mean_high": "upper end of Student's interval of the mean of {}",
    "proportion_low": "lower end of Wilson's interval of the proportion of {}",
    "proportion_high": "upper end of Wilson's interval of the proportion of {}",
    "draws": "raw draws of {}",
    "degrees_of_freedom": "degrees of freedom of the controlled mean of {}",
    "plain_mean": "mean of {} without its controls",
    "plain_standard_error": "standard error of the mean of {} without its controls",
    "variance_reduction": "variance of the plain mean over that of the controlled mean of {}",
    "coefficients": "regression coefficients of {} on its controls",
    "control_deviation": "controls of {} less their stated expectations, in standard errors",
}
#: Numbers with one entry per control, on an axis of their own.
_BY_CONTROL = {"coefficients", "control_deviation"}
_COUNTS = {
    "count",
    "non_finite",
    "histogram",
    "underflow",
    "overflow",
    "successes",
    "hits",
    "effective_hits",
    "largest_share",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The outcome of `run`.

    Attributes:
        statistics: finalised numbers, ``statistics[leaf][statistic]``: count and non_finite for every leaf,
            then mean, variance, standard_deviation, standard_error, min, max, histogram, bin_edges,
            underflow, overflow, proportion, proportion_standard_error, successes as far as they were asked
            for.
        draws: raw draws of the kept leaves in draw order, ``draws[leaf]: [num_draws, *shape]``.
        provenance: specification, its hash, device kind and count, times, speed.
        accumulators: what was collected per leaf.
        stopping: how a run with ``until`` ended: rule, looks, interval; None for others.
    """

    statistics: Mapping[str, Mapping[str, np.ndarray]]
    draws: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]
    accumulators: Mapping[str, tuple[Accumulator, ...]]
    stopping: Stopping | None = None

    @classmethod
    def build(
        cls,
        leaves: Sequence[Leaf],
        groups: Sequence[tuple[Accumulator, ...]],
        totals: Sequence[Sequence[HostState]],
        draws: Mapping[str, np.ndarray],
        provenance: Mapping[str, Any],
        stopping: Stopping | None = None,
    ) -> Result:
        """Finalise the totals of a run."""
        statistics = {
            leaf.name: {
                key: np.asarray(value)[()]
                for accumulator, total in zip(group, held, strict=True)
                for key, value in accumulator.finalize(total).items()
            }
            for leaf, group, held in zip(leaves, groups, totals, strict=True)
        }
        accumulators = {leaf.name: group for leaf, group in zip(leaves, groups, strict=True)}
        return cls(statistics, dict(draws), dict(provenance), accumulators, stopping)

    def __getitem__(self, name: str) -> Mapping[str, np.ndarray]:
        """Return the statistics of one leaf."""
        return self._of(name)

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def _of(self, name: str) -> Mapping[str, np.ndarray]:
        if name not in self.statistics:
            raise ValueError(f"expected one of the draw's outputs {list(self.statistics)}, got {name!r}")
        return self.statistics[name]

    def mean_interval(self, name: str, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return Student's interval of the mean of a leaf."""
        numbers = self._of(name)
        if "mean" not in numbers:
            raise ValueError(f"expected Moments() for {name!r}, got {list(numbers)}; ask for it in statistics")
        return _mean_interval(numbers, level)

    def proportion_interval(self, name: str, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return Wilson's interval of the proportion of a leaf."""
        numbers = self._of(name)
        if "proportion" not in numbers:
            raise ValueError(f"expected Proportion(...) for {name!r}, got {list(numbers)}; ask for it in statistics")
        return intervals.wilson(numbers["successes"], numbers["count"], level)

    def probability_interval(self, name: str, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-scale interval of a weighted probability, see `weighted_interval`."""
        numbers = self._of(name)
        if "probability" not in numbers:
            raise ValueError(
                f"expected WeightedProportion() for {name!r}, got {list(numbers)}; ask for it in statistics"
            )
        return _weighted_interval(numbers, level)

    def quantile(self, name: str, q: float, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (value, low, high) of the q-quantile of a leaf.

        From raw draws where kept, else from the leaf's histogram. The interval is the order statistics'
        binomial interval; from a histogram it is widened to whole bins.
        """
        numbers = self._of(name)
        if name in self.draws:
            value, low, high = intervals.sample_quantile(self.draws[name], q, level)
        elif "histogram" in numbers:
            counts, edges = numbers["histogram"], numbers["bin_edges"]
            under, over = numbers["underflow"], numbers["overflow"]
            value, low, high = intervals.histogram_quantile(counts, edges, under, over, q, level)
        else:
            raise ValueError(
                f"expected a Histogram or kept draws of {name!r} for a quantile, got {list(numbers)}; "
                "ask for one in statistics or name the output in keep"
            )
        return value[()], low[()], high[()]

    def interval(
        self, name: str, statistic: str = "mean", q: float | None = None, level: float = 0.95
    ) -> tuple[float, float, float]:
        """Return (estimate, low, high) of the mean, proportion or q-quantile of a scalar leaf."""
        if statistic == "quantile":
            if q is None:
                raise ValueError("expected q for statistic='quantile', got none")
            value, low, high = self.quantile(name, q, level)
        else:
            low, high = (self.mean_interval if statistic == "mean" else self.proportion_interval)(name, level)
            value = self._of(name)[statistic]
        if np.ndim(value):
            raise ValueError(f"expected a scalar output, got {name!r} of shape {np.shape(value)}")
        return float(value), float(low), float(high)

    def summary(self, level: float = 0.95, *, max_elements: int = 16) -> Summary:
        """Return a table of means and proportions with their intervals.

        Args:
            level: confidence level of the intervals.
            max_elements: how many elements of an array-valued leaf get a row of their own.
        """
        rows, notes = [], []
        for name, numbers in self.statistics.items():
            table = [part for part in self._tabulated(numbers, level) if part is not None]
            shape = np.shape(numbers["count"])
            indices = list(np.ndindex(*shape))
            if len(indices) > max_elements:
                notes.append(f"{name}: {len(indices) - max_elements} more elements of {shape}")
            for index in indices[:max_elements]:
                label = name + (f"[{','.join(map(str, index))}]" if index else "")
                for statistic, *columns in table:
                    value, error, low, high = (float(np.asarray(column)[index]) for column in columns)
                    count, lost = (int(np.asarray(numbers[key])[index]) for key in ("count", "non_finite"))
                    rows.append(Row(label, statistic, value, error, low, high, count, lost))
            far = np.max(np.abs(numbers.get("control_deviation", 0.0)), initial=0.0)
            if far > 5.0:
                notes.append(f"{name}: a control is {far:.1f} standard errors off its stated expectation: check that")
            lost = int(np.sum(numbers["non_finite"]))
            if lost:
                notes.append(f"{name}: {lost} non-finite values are left out")
            if "effective_hits" in numbers and (doubt := weight_note(numbers, name)):
                notes.append(doubt)
        spec = self.provenance["spec"]
        if self.stopping is not None:
            notes.append(str(self.stopping))
        part = self.provenance.get("part")
        title = f"{spec['name']}: {self.provenance['num_draws']:,} draws"
        if part:
            title += f" (part {part[0]}/{part[1]} of {spec['num_draws']:,})"
        return Summary(title, level, tuple(rows), tuple(notes))

    @staticmethod
    def _tabulated(numbers: Mapping[str, np.ndarray], level: float) -> list[tuple[Any, ...] | None]:
        mean = proportion = None
        if "mean" in numbers:
            low, high = _mean_interval(numbers, level)
            mean = ("mean", numbers["mean"], numbers["standard_error"], low, high)
        if "proportion" in numbers:
            low, high = intervals.wilson(numbers["successes"], numbers["count"], level)
            proportion = (
                "proportion",
                numbers["proportion"],
                numbers["proportion_standard_error"],
                low,
                high,
            )
        if "probability" in numbers:
            low, high = _weighted_interval(numbers, level)
            return [("probability", numbers["probability"], numbers["probability_standard_error"], low, high)]
        if mean is None and proportion is None:
            # A leaf with neither still shows how many draws of it there are.
            nothing = np.full(np.shape(numbers["count"]), np.nan)
            return [("count", numbers["count"], nothing, nothing, nothing)]
        return [mean, proportion]

    def to_xarray(self, level: float = 0.95) -> xr.Dataset:
        """Return everything as a dataset: variables ``<leaf>_<statistic>``, the specification in attributes.

        Histograms lie over ``<leaf>_bin`` with bin centres and edges as coordinates; kept draws over
        ``draw``; the axes of array-valued leaves are ``<leaf>_axis0`` and so on. The data variables depend on
        the specification only; times and the like stand in the attribute ``provenance``.
        """
        import xarray as xr

        variables, coordinates = {}, {}
        for name, numbers in self.statistics.items():
            axes = tuple(f"{name}_axis{axis}" for axis in range(np.ndim(numbers["count"])))
            entries = dict(numbers)
            edges = entries.pop("bin_edges", None)
            if "mean" in entries:
                entries["mean_low"], entries["mean_high"] = self.mean_interval(name, level)
            if "proportion" in entries:
                entries["proportion_low"], entries["proportion_high"] = self.proportion_interval(name, level)
            if "probability" in entries:
                entries["probability_low"], entries["probability_high"] = self.probability_interval(name, level)
            for key, value in entries.items():
                last = {"histogram": "bin"}.get(key, "control" if key in _BY_CONTROL else "")
                dims = (*axes, f"{name}_{last}") if last else axes
                variables[f"{name}_{key}"] = (dims, value, _attributes(name, key, level))
            if edges is not None:
                dim = f"{name}_bin"
                coordinates[dim] = (dim, (edges[:-1] + edges[1:]) / 2, {"long_name": f"bin centre of {name}"})
                coordinates[f"{name}_bin_low"] = (dim, edges[:-1], {"long_name": f"lower bin edge of {name}"})
                coordinates[f"{name}_bin_high"] = (dim, edges[1:], {"long_name": f"upper bin edge of {name}"})
            if name in self.draws:
                raw = self.draws[name]
                # netCDF has no half precision and no bfloat16.
                raw = raw.astype(np.float32) if raw.dtype.itemsize == 2 and raw.dtype.kind in "fV" else raw
                # Draws of an output with its controls have one axis more than its statistics.
                entry = (f"{name}_entry",) if raw.ndim > 1 + len(axes) else ()
                variables[f"{name}_draws"] = (("draw", *axes, *entry), raw, _attributes(name, "draws", level))
        session = {key: value for key, value in self.provenance.items() if key not in ("spec", "spec_sha256")}
        attributes = {
            "title": str(self.provenance["spec"]["name"]),
            "specification": canonical_json(self.provenance["spec"]),
            "specification_sha256": self.provenance["spec_sha256"],
            "provenance": canonical_json(session),
        }
        if self.stopping is not None:
            attributes["stopping"] = canonical_json(self.stopping.describe())
        return xr.Dataset(variables, coordinates, attributes)

    def save_netcdf(self, path: str | os.PathLike[str], level: float = 0.95) -> Path:
        """Write `to_xarray` to ``path`` in one piece: the file is there whole, or as it was before.

        Raises:
            ResultError: the file cannot be written.
        """
        target = Path(path)
        # Serialised in memory first: a full disk under an open HDF5 file can bring the whole process down.
        content = self.to_xarray(level).to_netcdf(None, engine="h5netcdf")
        try:
            return write_whole(target, content)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            raise ResultError(
                f"the disk is full: {target} was not written; make room, then save again or start the same run again"
                if full
                else f"expected to write {target}, got {error.strerror or error}; choose another place"
            ) from None


def _mean_interval(numbers: Mapping[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Student's interval; a controlled mean has spent some of its degrees of freedom on its coefficients."""
    if "degrees_of_freedom" not in numbers:
        return intervals.mean_interval(numbers["mean"], numbers["variance"], numbers["count"], level)
    size = np.asarray(numbers["degrees_of_freedom"]) + 1
    return intervals.mean_interval(numbers["mean"], np.square(numbers["standard_error"]) * size, size, level)


def _weighted_interval(numbers: Mapping[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
    error, effective = numbers["probability_standard_error"], numbers["effective_hits"]
    return weighted_interval(numbers["probability"], error, effective, level)


def _attributes(name: str, key: str, level: float) -> dict[str, Any]:
    attributes: dict[str, Any] = {"long_name": _LONG_NAMES[key].format(name)}
    if key in _COUNTS or "proportion" in key or "probability" in key:
        attributes["units"] = "1"
    if key.endswith(("_low", "_high")):
        attributes["level"] = level
    return attributes


def headline_text(group: Sequence[Accumulator], totals: Sequence[HostState], name: str, level: float = 0.95) -> str:
    """Return the current interval of one scalar leaf, "ratio: 0.1522 +- 0.0004 (95%)"."""
    for accumulator, total in zip(group, totals, strict=True):
        if isinstance(accumulator, Moments):
            numbers = accumulator.finalize(total)
            low, high = intervals.mean_interval(numbers["mean"], numbers["variance"], total["count"], level)
        elif isinstance(accumulator, Proportion):
            low, high = intervals.wilson(total["successes"], total["count"], level)
        else:
            continue
        return f"{name}: {(low + high) / 2:.6g} +- {(high - low) / 2:.2g} ({100 * level:g}%)"
    return ""
