"""What a sweep returns: the results of its cells, and all of them as one labelled dataset."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax._files import write_whole
from cnninv_jax.montecarlo.errors import ResultError
from cnninv_jax.montecarlo.grid import Cell, Grid
from cnninv_jax.montecarlo.result import Result
from cnninv_jax.montecarlo.specification import canonical_json
from cnninv_jax.montecarlo.summary import Row, Summary

if TYPE_CHECKING:
    import xarray as xr

#: What a dataset holds beside the outputs' statistics.
VARIABLES = {
    "cell_done": "whether the cell is finished",
    "cell_level": "refinement level of the cell",
    "cell_draws": "draws of the cell",
    "cell_seconds": "time of the session that finished the cell",
    "until_low": "lower end of the interval at the last look",
    "until_high": "upper end of the interval at the last look",
    "until_reached": "whether the width asked for was reached",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SweepResult:
    """The outcome of `sweep`, or what there is of it so far.

    Attributes:
        grid: axes and cells.
        cells: the cells that were asked for, in the order in which they ran; with ``part`` not all of the grid.
        results: result of every finished cell, by the cell's identity.
        records: draws, seconds and devices of every finished cell, likewise.
        headline: the output shown first.
        provenance: specification, its hash, compilations and times of this session.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    results: Mapping[str, Result]
    records: Mapping[str, Mapping[str, Any]]
    headline: str | None
    provenance: Mapping[str, Any]

    def __getitem__(self, parameters: Mapping[str, Any]) -> Result:
        """Return the result of one cell, ``result[{"k": 2, "M": 8}]``."""
        cell = self.grid.find(parameters)
        if cell.identity not in self.results:
            raise ValueError(f"expected a finished cell, got {cell}; run the sweep to its end")
        return self.results[cell.identity]

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    @property
    def level(self) -> int:
        """The last refinement level that is complete, -1 before the first: up to it the cells are a full grid."""
        open_levels = [cell.level for cell in self.cells if cell.identity not in self.results]
        return min(open_levels, default=1 + max((cell.level for cell in self.cells), default=-1)) - 1

    def summary(self, level: float = 0.95, *, names: Sequence[str] | None = None) -> Summary:
        """Return a table with a row per finished cell and output.

        Args:
            level: confidence level of the intervals.
            names: outputs to show; the headline output by default.
        """
        chosen = tuple(names) if names is not None else ((self.headline,) if self.headline else ())
        rows, outputs = [], set()
        for cell in sorted(self.cells, key=lambda cell: cell.index):
            if cell.identity not in self.results:
                continue
            result = self.results[cell.identity]
            outputs |= set(result.statistics)
            unknown = [name for name in chosen if name not in result.statistics]
            if unknown:
                raise ValueError(f"expected names of outputs {sorted(result.statistics)}, got {unknown}")
            rows += [
                Row(f"{cell}: {row.name}", *dataclasses.astuple(row)[1:])
                for row in result.summary(level).rows
                if row.name.split("[")[0] in chosen
            ]
        title = f"{self.provenance['spec']['name']}: {len(self.results)} of {len(self.cells)} cells"
        others = sorted(outputs - set(chosen))
        notes = (f"other outputs: {', '.join(others)}",) if others else ()
        return Summary(title, level, tuple(rows), notes)

    def to_xarray(self, level: float = 0.95) -> xr.Dataset:
        """Return all cells as one dataset.

        Its dimensions are the parameters, with their values as coordinates (positions for array-valued ones), ahead
        of those that a single `Result` has; variables are ``<output>_<statistic>`` with ``_low`` and ``_high`` ends of
        intervals. Cells that are not finished hold NaN, counts zero; ``cell_done`` tells. Where the cells' histograms
        have different edges, ``<output>_bin_low`` and ``<output>_bin_high`` depend on the parameters and
        ``<output>_bin`` counts the bins.
        """
        import xarray as xr

        done = [cell for cell in self.grid.cells if cell.identity in self.results]
        results = {cell.index: self.results[cell.identity] for cell in done}
        records = {cell.index: self.records[cell.identity] for cell in done}
        datasets = {index: result.to_xarray(level) for index, result in results.items()}
        names, shape = self.grid.names, self.grid.shape
        variables: dict[Any, Any] = {}
        coordinates: dict[Any, Any] = {
            axis.name: (axis.name, axis.coordinate, {"long_name": axis.name}) for axis in self.grid.axes
        }
        for first in list(datasets.values())[:1]:
            for name, variable in first.variables.items():
                own = {index: data[name].to_numpy() for index, data in datasets.items()}
                if name not in first.coords:
                    variables[name] = ((*names, *variable.dims), _spread(shape, own), variable.attrs)
                elif all(data[name].equals(first[name]) for data in datasets.values()):
                    coordinates[name] = variable
                elif name in variable.dims:
                    coordinates[name] = (name, np.arange(variable.size), {"long_name": f"{name}, counted"})
                else:
                    coordinates[name] = ((*names, *variable.dims), _spread(shape, own), variable.attrs)
        facts = {
            "cell_done": dict.fromkeys(results, True),
            "cell_level": {cell.index: cell.level for cell in self.grid.cells},
            "cell_draws": {index: record["draws"] for index, record in records.items()},
            "cell_seconds": {index: record["seconds"] for index, record in records.items()},
        }
        stopped = {index: result.stopping for index, result in results.items() if result.stopping is not None}
        if stopped:
            facts |= {
                "until_low": {index: stopping.interval[0] for index, stopping in stopped.items()},
                "until_high": {index: stopping.interval[1] for index, stopping in stopped.items()},
                "until_reached": {index: stopping.reached for index, stopping in stopped.items()},
            }
        for name, values in facts.items():
            kind = bool if name in ("cell_done", "until_reached") else None
            attributes = {"long_name": VARIABLES[name], **({"units": "s"} if name == "cell_seconds" else {})}
            arrays = {index: np.asarray(value, kind) for index, value in values.items()}
            variables[name] = (names, _spread(shape, arrays, kind), attributes)
        session = {key: value for key, value in self.provenance.items() if key not in ("spec", "spec_sha256")}
        attributes = {
            "title": str(self.provenance["spec"]["name"]),
            "specification": canonical_json(self.provenance["spec"]),
            "specification_sha256": self.provenance["spec_sha256"],
            "provenance": canonical_json(session),
        }
        return xr.Dataset(variables, coordinates, attributes)

    def save_netcdf(
        self, path: str | os.PathLike[str], level: float = 0.95, coordinates: Mapping[str, Any] | None = None
    ) -> Path:
        """Write `to_xarray` to ``path`` in one piece, histograms compressed.

        Args:
            path: file.
            level: confidence level of the intervals.
            coordinates: further ones, such as a quantity that follows from a parameter, as `xarray` takes them.

        Raises:
            ResultError: the file cannot be written.
        """
        target, dataset = Path(path), self.to_xarray(level).assign_coords(coordinates or {})
        packed = {
            name: {"zlib": True, "complevel": 4}
            for name in dataset.variables
            if str(name).endswith(("_histogram", "_bin_low", "_bin_high"))
        }
        content = dataset.to_netcdf(None, engine="h5netcdf", encoding=packed)
        try:
            return write_whole(target, content)
        except OSError as error:
            why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise ResultError(f"{target} was not written ({why}); finished cells are safe, save again") from None


def _spread(shape: tuple[int, ...], values: Mapping[tuple[int, ...], np.ndarray], dtype: Any = None) -> np.ndarray:
    """Return one array over the grid; what is missing, or shorter than its neighbours, is NaN, zero or False."""
    first = next(iter(values.values()), np.zeros((), dtype or float))
    inner = np.max([value.shape for value in values.values()], axis=0, initial=0) if first.ndim else ()
    empty = np.nan if first.dtype.kind == "f" else np.zeros((), first.dtype)[()]
    whole = np.full((*shape, *(int(size) for size in inner)), empty, first.dtype)
    for index, value in values.items():
        whole[(*index, *map(slice, value.shape))] = value
    return whole
