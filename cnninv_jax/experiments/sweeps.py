"""Sweeping an experiment over its parameters: a folder with a journal per cell, one dataset, a table, a figure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cnninv_jax.experiments.axes import Derived, Swept, nearest_at_least_one, parse_over
from cnninv_jax.experiments.cluster import all_hosts, leads
from cnninv_jax.experiments.files import results_folder, save_json, writing
from cnninv_jax.experiments.options import RunOptions, as_flags, check_options, chosen_sizes
from cnninv_jax.experiments.registry import Experiment, describe_parameters, find, result_path
from cnninv_jax.experiments.runs import default_folder
from cnninv_jax.montecarlo import (
    JournalError,
    JournalLockedError,
    SweepResult,
    merge_sweeps,
    read_sweep,
    sweep,
)
from cnninv_jax.montecarlo.arguments import Statistics
from cnninv_jax.montecarlo.journal import WHOLE
from cnninv_jax.montecarlo.specification import differences
from cnninv_jax.montecarlo.sweep_folder import MANIFEST

#: Draws per cell where the user names no number.
NUM_DRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class SweepOptions(RunOptions):
    """How a sweep runs; none of this but seed, draws, precision, block, lanes and until changes its numbers."""

    num_draws: int | None = None
    """Number of draws per cell, 20,000 by default. With --until the most of them, by default 100 million."""
    out: Path | None = None
    """Folder for the cells' journals, result.nc, summary.json and figures; by default one of its own under runs/."""
    part: str | None = None
    """Run every N-th cell only, beginning with the i-th, such as 2/4, for a job array; the parts may share the folder,
    and `cnninv resume FOLDER` then shows the whole. `cnninv merge` joins separate folders."""
    common_random_numbers: bool = False
    """Draw the same random numbers in all cells: differences between cells vary less."""

    def parsed_part(self) -> tuple[int, int]:
        """Return --part as (i, N); a part of the cells goes with --until."""
        return dataclasses.replace(self, until=None).parsed_part() if self.until else super().parsed_part()


@dataclasses.dataclass(frozen=True)
class Sweepable:
    """What can be swept beside an experiment's parameters as they are.

    Attributes:
        count: a parameter whose values are data of one program where `traced` says so; compiled for the largest.
        traced: whether it is, for these parameters and swept names.
        draw: ``draw(experiment, parameters, precision, most, key, value)`` with the count as data.
        derived: quantities that stand for a parameter.
    """

    count: str
    traced: Callable[[Any, Sequence[str]], bool]
    draw: Callable[..., Any]
    derived: Mapping[str, Derived]


def _fig2_draw(experiment: Experiment[Any], parameters: Any, precision: str, most: int, key: Any, k: Any) -> Any:
    draw: Callable[..., Any] = experiment.draw(dataclasses.replace(parameters, k=most, sampling="plain"), precision)
    return draw(key, active=k)


SWEEPABLE: Mapping[str, Sweepable] = {
    "gilbert-fig2": Sweepable(
        count="k",
        # The conditional way of drawing has k compiled in.
        traced=lambda parameters, names: "sampling" not in names and parameters.sampling != "conditional",
        draw=_fig2_draw,
        derived={
            "Mll/D": Derived(
                parameter="M",
                label="$M \\ell^2 / D$",
                coordinate="Mll_over_D",
                needs=("ell", "D"),
                solve=lambda p, value: nearest_at_least_one(value * p.D / p.ell**2),
                value=lambda p, channels: channels * p.ell**2 / p.D,
            )
        },
    )
}


@dataclasses.dataclass(frozen=True)
class SweptDraw:
    """The draw of an experiment with the parameters of a cell as keywords; equal ones share their programs."""

    experiment: str
    parameters: Any
    precision: str
    most: int | None

    def __call__(self, key: jax.Array, **values: Any) -> Any:
        """Draw."""
        experiment, special = find(self.experiment), SWEEPABLE.get(self.experiment)
        if special is None or self.most is None:
            return experiment.draw(dataclasses.replace(self.parameters, **values), self.precision)(key)
        count = values.pop(special.count)
        parameters = dataclasses.replace(self.parameters, **values)
        return special.draw(experiment, parameters, self.precision, self.most, key, count)


@dataclasses.dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep, or one part of it (without files of its own but the journals)."""

    experiment: Experiment[Any]
    parameters: Any
    swept: Swept
    result: SweepResult
    folder: Path
    files: tuple[Path, ...]


def sweep_experiment(
    experiment: Experiment[Any], parameters: Any, over: Sequence[str], options: SweepOptions
) -> SweepOutcome:
    """Sweep an experiment into a folder: journals, result.nc, summary.json, figure as PNG and SVG.

    A folder that holds the same sweep is continued, also with more values per axis. The figure is drawn anew after
    every refinement level.

    Raises:
        ValueError: parameters, axes or options that do not fit.
        MonteCarloError: the folder cannot be used, or holds another sweep.
    """
    special = SWEEPABLE.get(experiment.name)
    swept = parse_over(over, parameters, special.derived if special else {})
    return _sweep(experiment, parameters, swept, options)


def _sweep(experiment: Experiment[Any], parameters: Any, swept: Swept, options: SweepOptions) -> SweepOutcome:
    num_draws, part, until = options.most_draws(NUM_DRAWS), options.parsed_part(), options.parsed_until()
    memory_limit = check_options(options, num_draws)
    block, lanes = chosen_sizes(options, experiment.chunk_size, experiment.lanes)
    special = SWEEPABLE.get(experiment.name)
    names = list(swept.grid)
    count = special.count if special and special.count in names and special.traced(parameters, names) else None
    most = None if count is None else max(swept.grid[count])
    if count is not None and min(swept.grid[count]) < 1:
        raise ValueError(f"expected {count} of at least 1, got {min(swept.grid[count])}")
    held = describe_parameters(parameters)
    user = {
        "command": "sweep",
        "experiment": experiment.name,
        "parameters": {name: value for name, value in held.items() if name not in swept.grid},
        "seed": options.seed,
        "precision": options.precision,
        "block": options.block,
        "lanes": options.lanes,
        **({} if options.until is None else {"until": options.until}),
    }
    facts = {**user, "num_draws": num_draws, "over": sorted(swept.grid), "common": options.common_random_numbers}
    folder = options.out or default_folder(f"{experiment.name}-sweep", {**facts, "most": most})
    if most is not None and count is not None:
        # A grid that grows within what was compiled for keeps its programs and numbers.
        most = max(most, _held_largest(folder, count))
        user["largest"] = {count: most}
    drawn = -1

    def redraw(so_far: SweepResult) -> None:
        nonlocal drawn
        if so_far.level > drawn and len(so_far.results) < len(so_far.cells):
            drawn = so_far.level
            _draw(SweepOutcome(experiment, parameters, swept, so_far, folder, ()), formats=("png",))

    with results_folder(folder):
        try:
            result = sweep(
                SweptDraw(experiment.name, parameters, options.precision, most),
                options.seed,
                swept.grid,
                num_draws,
                static=[name for name in swept.grid if most is None or name != count],
                traced=[count] if most is not None and count is not None else None,
                common_random_numbers=options.common_random_numbers,
                out=folder,
                part=part,
                on_cell=redraw if part == WHOLE else None,
                statistics=lambda **values: _statistics(experiment, parameters, values),
                chunk_size=block,
                lanes=lanes,
                until=until,
                progress=not options.quiet,
                memory_limit=memory_limit,
                spec=user,
                name=experiment.name,
                headline=experiment.headline,
            )
        except JournalLockedError:
            raise
        except JournalError as error:
            raise _another_sweep(folder, {"num_draws": num_draws, **user}) or error from None
        except ValueError as error:
            raise ValueError(as_flags(str(error))) from None
        except OverflowError as error:
            raise ValueError(f"expected sizes that fit into 32 bits, got {dict(swept.grid)} ({error})") from None
    outcome = SweepOutcome(experiment, parameters, swept, result, folder, ())
    if part != WHOLE or not leads():
        return outcome
    pictures = _draw(outcome)
    with writing("summary.json"):
        summary = save_json(summarise(outcome), folder / "summary.json")
    return dataclasses.replace(outcome, files=(result_path(folder), summary, *pictures))


def _statistics(experiment: Experiment[Any], parameters: Any, values: Mapping[str, Any]) -> Statistics:
    return experiment.statistics(dataclasses.replace(parameters, **values))


def _draw(outcome: SweepOutcome, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write result.nc, and the figure from it; for more than two axes there is no figure."""
    import xarray as xr

    from cnninv_jax.experiments.render import save_figure
    from cnninv_jax.experiments.sweep_figure import sweep_figure

    experiment, result = outcome.experiment, outcome.result
    further = {
        quantity.coordinate: (name, list(numbers), {"long_name": quantity.label})
        for name, (quantity, numbers) in outcome.swept.derived.items()
    }
    path = result.save_netcdf(result_path(outcome.folder), coordinates=further)
    if len(result.grid.axes) > 2:
        return []
    with xr.open_dataset(path, engine="h5netcdf") as dataset, writing("the figure"):
        figure = sweep_figure(
            dataset,
            experiment.claims(experiment.parameters()),
            f"{experiment.source}, swept over {' and '.join(outcome.swept.grid)}",
            describe(outcome),
        )
        return save_figure(figure, outcome.folder, f"{experiment.name}-sweep", formats)


def describe(outcome: SweepOutcome) -> str:
    """Return what all cells have in common, and how far the sweep is."""
    result = outcome.result
    user = result.provenance["spec"]["user"]
    fixed = ", ".join(f"{name}={value}" for name, value in user["parameters"].items() if name != "sampling")
    sampling = "plain" if "largest" in user else user["parameters"].get("sampling", "swept")
    draws = {record["draws"] for record in result.records.values()} or {0}
    each = f"{min(draws):,}" if len(draws) == 1 else f"{min(draws):,} to {max(draws):,}"
    done = len(result.results)
    progress = "" if done == len(result.cells) else f"; {done} of {len(result.cells)} cells so far"
    return f"{fixed}; {sampling} sampling; {each} draws per cell, seed {user['seed']}{progress}"


def summarise(outcome: SweepOutcome) -> dict[str, Any]:
    """Return the content of summary.json."""
    result = outcome.result
    cells = []
    for cell in sorted(result.cells, key=lambda cell: cell.index):
        held = result[cell.parameters]
        outputs = {}
        for name in outcome.experiment.labels:
            numbers = held[name]
            outputs[name] = {
                "mean": float(numbers["mean"]),
                "interval_95": [float(end) for end in held.mean_interval(name)],
                "standard_deviation": float(numbers["standard_deviation"]),
                "min": float(numbers["min"]),
                "max": float(numbers["max"]),
                "draws": int(numbers["count"]),
                "non_finite": int(numbers["non_finite"]),
            }
            if "proportion" in numbers:
                outputs[name]["share_under_0.5"] = float(numbers["proportion"])
        cells.append({**result.records[cell.identity], "parameters": dict(cell.parameters), "outputs": outputs})
    return {
        "experiment": outcome.experiment.name,
        "title": outcome.experiment.title,
        "source": outcome.experiment.source,
        "parameters": result.provenance["spec"]["user"]["parameters"],
        "over": dict(outcome.swept.grid),
        "derived": {
            name: {"quantity": quantity.coordinate, "values": numbers}
            for name, (quantity, numbers) in outcome.swept.derived.items()
        },
        "labels": dict(outcome.experiment.labels),
        "cells": cells,
        "provenance": dict(result.provenance),
    }


def is_sweep(folder: Path) -> bool:
    """Return whether ``folder`` holds a sweep; with several processes the leader's disk says so."""
    return _shared(lambda: (folder / MANIFEST).is_file())


def sweep_precision(folder: Path) -> str:
    """Return the precision that a folder's sweep needs, so that 64-bit types can be switched on before it starts."""
    return _shared(lambda: read_sweep(folder))["sweep"].get("user", {}).get("precision", "float32")


def resume_sweep(folder: Path, *, quiet: bool = False) -> SweepOutcome:
    """Continue the sweep whose manifest lies in ``folder``, or join the parts that were computed there.

    Raises:
        MonteCarloError: there is no sweep, or it cannot be used.
        ValueError: the sweep was not begun by `sweep_experiment`.
    """
    manifest = _shared(lambda: read_sweep(folder))
    spec = manifest["sweep"]
    user = spec.get("user", {})
    if user.get("command") != "sweep":
        raise ValueError(
            f"expected a sweep of `cnninv sweep` in {folder}, got {spec.get('name')!r}; "
            "start it again from the program that made it, with out= set to this folder"
        )
    try:
        experiment = find(user["experiment"])
        options = SweepOptions(
            num_draws=spec["num_draws"],
            seed=user["seed"],
            out=folder,
            precision=user["precision"],
            until=user.get("until"),
            block=user["block"],
            lanes=user["lanes"],
            quiet=quiet,
            common_random_numbers=spec["common_random_numbers"],
        )
        parameters = experiment.parameters(**user["parameters"])
        over = [f"{name}={','.join(map(str, values))}" for name, values in manifest["grid"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected a sweep that this version of cnninv began in {folder}, got one with other entries ({error}); "
            "finish it with the version that began it, or choose another folder"
        ) from None
    return sweep_experiment(experiment, parameters, over, options)


def join_sweeps(folders: Sequence[Path], out: Path | None) -> Path:
    """Bring the cells of sweeps in several folders together; return the folder of the whole.

    Raises:
        ValueError: several folders and no ``out``.
        MonteCarloError: cells are missing or unfinished, or belong to different sweeps; each is named.
    """
    if out is None and len(folders) != 1:
        raise ValueError(f"expected --out for the sweeps of {len(folders)} folders, got none; name a folder")
    whole = out or folders[0]
    merge_sweeps(folders, whole)
    return whole


def _held_largest(folder: Path, name: str) -> int:
    def read() -> int:
        if not (folder / MANIFEST).is_file():
            return 0
        return int(read_sweep(folder)["sweep"].get("user", {}).get("largest", {}).get(name, 0))

    return _shared(read)


def _another_sweep(folder: Path, asked: Mapping[str, Any]) -> JournalError | None:
    """Return a refusal that names what the user chose differently, without the hashes that follow from it."""

    def compare() -> list[str]:
        spec = read_sweep(folder)["sweep"]
        held = {"num_draws": spec.get("num_draws"), **spec.get("user", {})}
        return differences(held, asked, names=("the folder", "this run"))

    try:
        found = _shared(compare)
    except JournalError:
        return None
    parts = [re.sub(r"^parameters\.", "", part).replace("largest.", "largest ") for part in found]
    if not parts:
        return None
    return JournalError(
        f"{folder} holds another sweep ({'; '.join(parts)}); ask for the same sweep (its grid may grow), "
        "or choose another --out"
    )


def _shared(read: Callable[[], Any]) -> Any:
    return all_hosts().share(read)
