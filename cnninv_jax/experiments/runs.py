"""From an experiment's name to a folder with its numbers, table and figure; and back to a stopped run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cnninv_jax.experiments.cluster import all_hosts, leads
from cnninv_jax.experiments.files import results_folder, save_json, writing
from cnninv_jax.experiments.options import Precision, RunOptions, as_flags, check_options, chosen_sizes
from cnninv_jax.experiments.registry import Experiment, describe_parameters, find, result_path
from cnninv_jax.montecarlo import (
    JournalError,
    JournalLockedError,
    Result,
    find_parts,
    merge,
    read_part,
    read_spec,
    run,
)
from cnninv_jax.montecarlo.journal import FILE_NAME, WHOLE
from cnninv_jax.montecarlo.specification import differences

#: Quantiles in summary.json.
QUANTILES = (0.001, 0.025, 0.5, 0.975, 0.999, 0.9999)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One line of the table: an output beside what the paper says of it."""

    name: str
    label: str
    mean: float
    deviation: float
    low: float
    high: float
    paper: str
    verdict: str
    non_finite: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished reproduction, or one part of it (without files of its own but the journal)."""

    experiment: Experiment[Any]
    parameters: Any
    result: Result
    readings: tuple[Reading, ...]
    folder: Path
    files: tuple[Path, ...]


def reproduce(experiment: Experiment[Any], parameters: Any, options: RunOptions, folder: Path | None = None) -> Outcome:
    """Run an experiment into a folder: journal, result.nc, summary.json, figure as PNG and SVG.

    A folder that holds the journal of the same run is continued; a finished one is only read.

    Args:
        experiment: what to run.
        parameters: its sizes and laws.
        options: how; a part (--part) goes into a folder of its own below the run's.
        folder: this very folder instead.

    Raises:
        ValueError: parameters that do not fit.
        MonteCarloError: the folder cannot be used, or belongs to another run.
    """
    num_draws, part, until = options.most_draws(experiment.num_draws), options.parsed_part(), options.parsed_until()
    user = {
        "command": "reproduce",
        "experiment": experiment.name,
        "parameters": describe_parameters(parameters),
        "seed": options.seed,
        "precision": options.precision,
        **({} if options.until is None else {"until": options.until}),
    }
    memory_limit = check_options(options, num_draws)
    block, lanes = chosen_sizes(options, experiment.chunk_size, experiment.lanes)
    draw = experiment.draw(parameters, options.precision)
    try:
        jax.eval_shape(draw, jax.random.key(0))  # refuse impossible parameters before a folder is made
    except ValueError as error:
        raise ValueError(as_flags(str(error))) from None
    except OverflowError as error:
        raise ValueError(f"expected sizes that fit into 32 bits, got {user['parameters']} ({error})") from None
    content = {**user, "num_draws": num_draws, "block": options.block}
    folder = folder or part_folder(options.out or default_folder(experiment.name, content), part)
    with results_folder(folder):
        try:
            result = run(
                draw,
                options.seed,
                num_draws,
                chunk_size=block,
                lanes=lanes,
                statistics=experiment.statistics(parameters),
                out=folder,
                part=part,
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
            sizes = {} if block is None else {"block": block}
            raise another_run(folder, {"num_draws": num_draws, **sizes, **user}) or error from None
        except ValueError as error:
            raise ValueError(as_flags(str(error))) from None
    readings = compare(experiment, parameters, result)
    if part != WHOLE or not leads():
        return Outcome(experiment, parameters, result, readings, folder, ())
    files = save(experiment, parameters, result, readings, folder)
    return Outcome(experiment, parameters, result, readings, folder, tuple(files))


def another_run(folder: Path, asked: Mapping[str, Any]) -> JournalError | None:
    """Return a refusal that names what the user chose differently, without the hashes that follow from it."""
    try:
        spec = read_spec(folder)
    except JournalError:
        return None
    held = {**{name: spec.get(name) for name in ("num_draws", "block") if name in asked}, **spec.get("user", {})}
    parts = [re.sub(r"^(parameters|options)\.", "", difference) for difference in differences(held, asked)]
    if not parts:
        return None
    return JournalError(
        f"{folder} holds another run ({'; '.join(parts)}); ask for the same run, or choose another --out"
    )


def resume(folder: Path, *, quiet: bool = False) -> Outcome:
    """Continue the run whose journal lies in ``folder``; what it was is read from there.

    Raises:
        MonteCarloError: there is no journal, or it cannot be used.
        ValueError: the journal was not written by `reproduce`.
    """
    spec, part = _shared(folder, read_spec), tuple(_shared(folder, read_part))
    user = spec.get("user", {})
    if user.get("command") != "reproduce":
        raise ValueError(
            f"expected a run of `cnninv reproduce` in {folder}, got {spec.get('name')!r}; "
            "start it again from the program that made it, with out= set to this folder"
        )
    try:
        experiment = find(user["experiment"])
        options = RunOptions(
            num_draws=spec["num_draws"],
            seed=user["seed"],
            precision=user["precision"],
            until=user.get("until"),
            part=None if part == WHOLE else f"{part[0]}/{part[1]}",
            block=spec["block"],
            lanes=spec["lanes"],
            quiet=quiet,
        )
        parameters = experiment.parameters(**user["parameters"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected a run that this version of cnninv began in {folder}, got one with other entries ({error}); "
            "finish it with the version that began it, or choose another folder"
        ) from None
    return reproduce(experiment, parameters, options, folder)


def _shared(folder: Path, read: Callable[[Path], Any]) -> Any:
    """Return what the leader reads in its folder; other hosts need not see that disk."""
    return all_hosts().share(lambda: read(folder))


def join_parts(folders: Sequence[Path], out: Path | None) -> Path:
    """Merge the journals of the parts of one run into ``out``; return that folder.

    Args:
        folders: the parts' folders, or one folder that holds them.
        out: where the joined journal goes; by default into the one folder, or beside the parts.

    Raises:
        MonteCarloError: a part is missing, unfinished or of another run.
    """
    if not folders:
        raise ValueError("expected the folders of the parts to merge, got none; see cnninv merge --help")
    if len(folders) == 1 and not (folders[0] / FILE_NAME).exists():
        held = find_parts(folders[0])
        if not held:
            raise JournalError(f"expected folders of parts in {folders[0]}, found none; run them with --part i/N")
        merge(held, out or folders[0])
        return out or folders[0]
    parents = {folder.absolute().parent for folder in folders}
    if out is None and len(parents) > 1:
        raise ValueError(f"expected --out for parts of {len(parents)} different folders, got none; name a folder")
    merge(folders, out or folders[0].parent)
    return out or folders[0].parent


def precision_of(folder: Path) -> Precision:
    """Return the precision that a folder's run needs, so that 64-bit types can be switched on before it starts."""
    return _shared(folder, read_spec).get("user", {}).get("precision", "float32")


def default_folder(name: str, content: Mapping[str, Any]) -> Path:
    """Return runs/<name>-<digest>: the same command finds its folder again, another one gets its own."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return Path("runs") / f"{name}-{digest[:8]}"


def part_folder(folder: Path, part: tuple[int, int]) -> Path:
    """Return where a part of the run of ``folder`` goes: below it, so that `cnninv merge FOLDER` finds them all."""
    return folder if part == WHOLE else folder / f"part-{part[0]}-of-{part[1]}"


def compare(experiment: Experiment[Any], parameters: Any, result: Result) -> tuple[Reading, ...]:
    """Return the table's lines: ours beside the paper's."""
    claims = experiment.claims(parameters)
    readings = []
    for name, label in experiment.labels.items():
        numbers = result[name]
        low, high = (float(end) for end in result.mean_interval(name))
        claim = claims.get(name)
        readings.append(
            Reading(
                name=name,
                label=label,
                mean=float(numbers["mean"]),
                deviation=float(numbers["standard_deviation"]),
                low=low,
                high=high,
                paper="no claim at this size" if claim is None else claim.text,
                verdict="-" if claim is None else claim.verdict(low, high),
                non_finite=int(numbers["non_finite"]),
            )
        )
    return tuple(readings)


def save(
    experiment: Experiment[Any], parameters: Any, result: Result, readings: tuple[Reading, ...], folder: Path
) -> list[Path]:
    """Write result.nc, summary.json and the figure; the figure is drawn from the file just written."""
    import xarray as xr

    from cnninv_jax.experiments.render import save_figure

    path = result.save_netcdf(result_path(folder))
    with writing("summary.json"):
        summary = save_json(summarise(experiment, parameters, result, readings), folder / "summary.json")
    with xr.open_dataset(path, engine="h5netcdf") as dataset, writing("the figure"):
        draws = f"{int(result.provenance['num_draws']):,} draws"
        subtitle = f"{experiment.describe(parameters)}; {draws}, seed {result.provenance['spec']['user']['seed']}"
        figure = experiment.figure(dataset, experiment.claims(parameters), subtitle)
        pictures = save_figure(figure, folder, experiment.name)
    return [path, summary, *pictures]


def summarise(
    experiment: Experiment[Any], parameters: Any, result: Result, readings: tuple[Reading, ...]
) -> dict[str, Any]:
    """Return the content of summary.json."""
    outputs = {}
    for reading in readings:
        numbers = result[reading.name]
        quantiles = {str(q): [float(x) for x in result.quantile(reading.name, q)] for q in QUANTILES}
        entry = {
            "label": reading.label,
            "mean": reading.mean,
            "standard_error": float(numbers["standard_error"]),
            "interval_95": [reading.low, reading.high],
            "standard_deviation": reading.deviation,
            "min": float(numbers["min"]),
            "max": float(numbers["max"]),
            "quantiles_value_low_high": quantiles,
            "paper": reading.paper,
            "verdict": reading.verdict,
            "draws": int(numbers["count"]),
            "non_finite": reading.non_finite,
        }
        if "proportion" in numbers:
            low, high = result.proportion_interval(reading.name)
            entry["share_under_0.5"] = float(numbers["proportion"])
            entry["share_under_0.5_interval_95"] = [float(low), float(high)]
        outputs[reading.name] = entry
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "parameters": dataclasses.asdict(parameters),
        "outputs": outputs,
        **({} if result.stopping is None else {"stopping": result.stopping.describe()}),
        "provenance": dict(result.provenance),
    }
