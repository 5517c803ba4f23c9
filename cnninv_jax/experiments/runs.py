"""From an experiment's name to a folder with its numbers, table and figure; and back to a stopped run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from cnninv_jax.experiments.files import results_folder, save_json, writing
from cnninv_jax.experiments.registry import Experiment, describe_parameters, find, result_path
from cnninv_jax.montecarlo import JournalError, JournalLockedError, Result, read_spec, run
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.specification import differences

#: Quantiles in summary.json.
QUANTILES = (0.001, 0.025, 0.5, 0.975, 0.999, 0.9999)
Precision = Literal["float32", "float64"]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a simulation runs; none of this but seed, draws, precision and block changes its numbers."""

    num_draws: int | None = None
    """Number of draws; the experiment's own by default."""
    seed: int = 0
    """Seed of the root key; draw i uses fold_in(key(seed), i)."""
    out: Path | None = None
    """Folder for journal, result.nc, summary.json and figures; by default a folder of its own under runs/."""
    precision: Precision = "float32"
    """Arithmetic of the draws."""
    block: int | None = None
    """Draws per block, the unit of the journal; the experiment's own by default."""
    lanes: int | None = None
    """Draws computed side by side inside a block; the experiment's own by default."""
    memory_limit: float | None = None
    """Gibibytes per device that a run may take; block and lanes chosen by the library are lowered to fit."""
    quiet: bool = False
    """No progress."""


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
    """A finished reproduction."""

    experiment: Experiment[Any]
    parameters: Any
    result: Result
    readings: tuple[Reading, ...]
    folder: Path
    files: tuple[Path, ...]


def reproduce(experiment: Experiment[Any], parameters: Any, options: RunOptions) -> Outcome:
    """Run an experiment into a folder: journal, result.nc, summary.json, figure as PNG and SVG.

    A folder that holds the journal of the same run is continued; a finished one is only read.

    Raises:
        ValueError: parameters that do not fit.
        MonteCarloError: the folder cannot be used, or belongs to another run.
    """
    num_draws = experiment.num_draws if options.num_draws is None else options.num_draws
    user = {
        "command": "reproduce",
        "experiment": experiment.name,
        "parameters": describe_parameters(parameters),
        "seed": options.seed,
        "precision": options.precision,
    }
    block = experiment.chunk_size if options.block is None else options.block
    memory_limit = _check(options, num_draws, block)
    draw = experiment.draw(parameters, options.precision)
    try:
        jax.eval_shape(draw, jax.random.key(0))  # refuse impossible parameters before a folder is made
    except ValueError as error:
        raise ValueError(_as_flags(str(error))) from None
    except OverflowError as error:
        raise ValueError(f"expected sizes that fit into 32 bits, got {user['parameters']} ({error})") from None
    folder = options.out or default_folder(experiment.name, {**user, "num_draws": num_draws, "block": options.block})
    with results_folder(folder):
        try:
            result = run(
                draw,
                options.seed,
                num_draws,
                chunk_size=block,
                lanes=experiment.lanes if options.lanes is None else options.lanes,
                statistics=experiment.statistics(parameters),
                out=folder,
                progress=not options.quiet,
                memory_limit=memory_limit,
                spec=user,
                name=experiment.name,
                headline=experiment.headline,
            )
        except JournalLockedError:
            raise
        except JournalError as error:
            raise another_run(folder, {"num_draws": num_draws, "block": block, **user}) or error from None
        except ValueError as error:
            raise ValueError(_as_flags(str(error))) from None
    readings = compare(experiment, parameters, result)
    files = save(experiment, parameters, result, readings, folder)
    return Outcome(experiment, parameters, result, readings, folder, tuple(files))


def _check(options: RunOptions, num_draws: int, block: int) -> int | None:
    """Refuse impossible options by the names of their flags; return the memory limit in bytes."""
    checked_seed(options.seed)
    positive(num_draws, "--num-draws", 1 << 32)
    positive(block, "--block", 1 << 30)
    if options.lanes is not None:
        positive(options.lanes, "--lanes", 1 << 30)
    if options.memory_limit is None:
        return None
    if not (math.isfinite(options.memory_limit) and options.memory_limit > 0):
        raise ValueError(f"expected --memory-limit to be a positive number of gibibytes, got {options.memory_limit}")
    return int(options.memory_limit * 2**30)


def _as_flags(message: str) -> str:
    """Return the library's sentence in the words of the command line."""
    flags = {"chunk_size": "--block", "lanes": "--lanes", "memory_limit": "--memory-limit"}
    message = message.replace(" or padding='same'", "").replace("sampling='plain'", "--sampling plain")
    message = re.sub(r"products='(\w+)'", r"--products \1", message).replace("dtype float32", "--precision float32")
    return re.sub(r"(?<![\w./-])(chunk_size|lanes|memory_limit)\b", lambda found: flags[found[0]], message)


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
    spec = read_spec(folder)
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
            out=folder,
            precision=user["precision"],
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
    return reproduce(experiment, parameters, options)


def precision_of(folder: Path) -> Precision:
    """Return the precision that a folder's run needs, so that 64-bit types can be switched on before it starts."""
    return read_spec(folder).get("user", {}).get("precision", "float32")


def checked_seed(seed: int) -> int:
    """Return a seed that `jax.random.key` takes whatever the width of integers is."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected a seed from 0 to 2^32 - 1, got {seed}")
    return seed


def default_folder(name: str, content: Mapping[str, Any]) -> Path:
    """Return runs/<name>-<digest>: the same command finds its folder again, another one gets its own."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return Path("runs") / f"{name}-{digest[:8]}"


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
        draws = f"{int(result.provenance['spec']['num_draws']):,} draws"
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
        "provenance": dict(result.provenance),
    }
