"""Gilbert et al. 2017, Tables 2 and 7: the share of non-zeros after every ReLU and every max-pooling of a network.

The paper passes the 50,000 pictures of ILSVRC-2012's validation set through trained networks. Here pictures and weights
are the user's; what was counted so far is written down now and then, so that a long count goes on where it stood.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data
from cnninv_jax._files import write_whole
from cnninv_jax.experiments.files import writing
from cnninv_jax.experiments.network_pass import output_names, random_network, shares, weights
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, Table, progress_bar
from cnninv_jax.montecarlo import mean_interval
from cnninv_jax.montecarlo.specification import array_digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Printed percentages, in the order of the layers.
PRINTED2 = {
    "conv1_1": 49.1, "conv1_2": 69.7, "pool1": 80.8, "conv2_1": 67.4, "conv2_2": 49.7, "pool2": 70.7, "conv3_1": 53.4,
    "conv3_2": 51.9, "conv3_3": 28.7, "pool3": 45.9, "conv4_1": 35.6, "conv4_2": 29.6, "conv4_3": 12.6, "pool4": 23.1,
    "conv5_1": 23.9, "conv5_2": 20.6, "conv5_3": 7.3, "pool5": 13.1,
}  # fmt: skip
PRINTED7 = {
    "conv1": 49.41, "pool1": 87.79, "conv2": 18.97, "pool2": 44.13, "conv3": 31.08, "conv4": 30.95, "conv5": 9.78,
    "pool5": 28.15,
}  # fmt: skip
#: What was counted so far, and how often it is written down.
COUNTED, SECONDS = "counted.json", 30.0


@dataclasses.dataclass(frozen=True)
class SparsityParameters:
    """Parameters of Table 2."""

    weights: str | None = None
    """Checkpoint (.npz, .safetensors, .h5, .caffemodel) or fetch:NAME; by default the filters are random."""
    pictures: str = "embedded"
    """Folder of pictures; by default the five photographs inside scikit-image."""
    size: int | None = None
    """Side of the square that pictures are brought to; by default the network's own, 224 or 227."""
    limit: int | None = None
    """Most pictures; by default all."""


@dataclasses.dataclass(frozen=True)
class AlexNetSparsityParameters(SparsityParameters):
    """Parameters of Table 7."""

    network: Literal["alexnet-caffe", "alexnet"] = "alexnet-caffe"
    """Two halves, 96 filters in front (Caffe's, the paper's), or one tower with 64 (torchvision's)."""


def _table2(parameters: SparsityParameters, options: StudyOptions, folder: Path) -> Findings:
    return _compute("vgg16", "Table 2", PRINTED2, parameters, options, folder)


def _table7(parameters: AlexNetSparsityParameters, options: StudyOptions, folder: Path) -> Findings:
    return _compute(parameters.network, "Table 7", PRINTED7, parameters, options, folder)


def _compute(
    name: str,
    table: str,
    printed: Mapping[str, float],
    parameters: SparsityParameters,
    options: StudyOptions,
    folder: Path,
) -> Findings:
    for flag, value in (("--size", parameters.size), ("--limit", parameters.limit)):
        if value is not None and value < 1:
            raise ValueError(f"expected {flag} to be a positive number, got {value}")
    architecture = data.ARCHITECTURES[name]
    files = data.picture_files(parameters.pictures)[: parameters.limit]
    if parameters.weights is None:
        network = random_network(name, jax.random.key(options.seed))
    else:
        network = data.load_network(parameters.weights, architecture=name)
    layers = network.runnable
    size = parameters.size or architecture.size
    outputs = output_names(layers)
    counted = count_shares(network, files, size, options, folder)
    content = {
        "network": name,
        "title": architecture.title,
        "random": parameters.weights is None,
        "source": network.source,
        "notes": list(network.notes),
        "pictures": parameters.pictures,
        "num_pictures": len(files),
        "size": size,
        "outputs": {
            output: {**_summary(counted[:, index]), "printed": printed.get(output)}
            for index, output in enumerate(outputs)
        },
        "missing": {output: value for output, value in printed.items() if output not in outputs},
    }
    return Findings(content, (_readable(content, table),), _dataset(counted, outputs, [file.name for file in files]))


def count_shares(
    network: data.Network, files: list[Path], size: int, options: StudyOptions, folder: Path
) -> np.ndarray:
    """Return the share of positive entries of every output of the network for every picture, [pictures, outputs].

    What was counted is kept in the folder; a later call with the same network, pictures and size goes on from there.
    """
    outputs = output_names(network.runnable)
    arrays = [array for layer in network.runnable for array in (layer.filters, layer.bias) if array is not None]
    spec = {
        "weights": array_digest(tuple(map(jnp.asarray, arrays))), "size": size, "precision": options.precision,
        "pictures": [[file.name, file.stat().st_size] for file in files],
    }  # fmt: skip
    rows = _held(folder / COUNTED, spec)
    last = time.monotonic()
    held = weights(network, options.precision)
    with progress_bar(f"share of non-zeros in {network.name}", len(files), quiet=options.quiet) as bar:
        if rows:
            bar.advance(len(rows), note="read back")
        for file in files[len(rows) :]:
            found = shares(network, data.read_picture(file, size).astype(options.precision), held)
            rows.append([float(found[output]) for output in outputs])
            bar.advance(1, note=f"{outputs[-1]}: {100 * np.mean([row[-1] for row in rows]):.1f}%")
            if time.monotonic() - last > SECONDS:
                _keep(folder / COUNTED, spec, rows)
                last = time.monotonic()
    if len(files) > 1:
        _keep(folder / COUNTED, spec, rows)
    return np.asarray(rows, np.float64)


def _keep(path: Path, spec: Mapping[str, Any], rows: list[list[float]]) -> None:
    with writing(path.name):
        write_whole(path, json.dumps({"spec": spec, "rows": rows}).encode())


def _held(path: Path, spec: Mapping[str, Any]) -> list[list[float]]:
    """Return what was counted for the same weights and pictures, or nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["rows"] if content["spec"] == json.loads(json.dumps(spec)) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _summary(values: np.ndarray) -> dict[str, float]:
    """Summarise shares over pictures, in percent."""
    percent = 100 * values
    count = len(percent)
    deviation = float(percent.std(ddof=1)) if count > 1 else float("nan")
    low, high = mean_interval(percent.mean(), deviation**2, count)
    return {"mean": float(percent.mean()), "low": float(low), "high": float(high), "standard_deviation": deviation}


def _dataset(counted: np.ndarray, outputs: tuple[str, ...], names: list[str]) -> Any:
    import xarray as xr

    attributes = {"long_name": "share of positive entries after ReLU or max-pooling", "units": "1"}
    return xr.Dataset(
        {"share": (("picture", "output"), counted, attributes)}, coords={"picture": names, "output": list(outputs)}
    )


def _readable(content: Mapping[str, Any], table: str) -> Table:
    which = "random filters" if content["random"] else "these weights"
    rows = []
    for output, seen in content["outputs"].items():
        known = seen["printed"] is not None
        rows.append(
            (
                output,
                f"{seen['mean']:.2f}" + ("" if np.isnan(seen["low"]) else f" ± {(seen['high'] - seen['low']) / 2:.2f}"),
                "-" if np.isnan(seen["standard_deviation"]) else f"{seen['standard_deviation']:.2f}",
                f"{seen['printed']:g}" if known else "-",
                f"{seen['mean'] - seen['printed']:+.1f}" if known else "-",
            )
        )
    rows += [(output, "not at hand", "-", f"{value:g}", "-") for output, value in content["missing"].items()]
    title = f"Gilbert et al. 2017, {table}: non-zeros (%) in {content['title']}, {which}"
    notes = [
        f"{content['num_pictures']} pictures ({content['pictures']}) at {content['size']} x {content['size']}; "
        "interval of the mean over pictures, 95%; deviation from picture to picture.",
        "Convolutions are counted after their ReLU, pools after pooling. Printed: trained weights and the 50,000 "
        "pictures of ILSVRC-2012's validation set, so other pictures may differ by more than the interval.",
    ]
    if content["random"]:
        notes.append(
            "One draw of random filters, not trained ones: they answer with either sign equally often, so about half "
            "of the entries are positive; give --weights to compare with the printed column."
        )
    else:
        notes += [f"{note[0].upper()}{note[1:]}." for note in content["notes"]]
    return Table(title, ("layer", which, "deviation", "printed", "difference"), tuple(rows), tuple(notes))


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.sparsity_figure import sparsity_figure

    return sparsity_figure(report, dataset)


TABLE2 = Study(
    name="gilbert-table2",
    title="Share of non-zeros after every layer of VGG-16",
    source="Gilbert et al. 2017, Table 2",
    parameters=SparsityParameters,
    compute=_table2,
    figure=_figure,
)
TABLE7 = Study(
    name="gilbert-table7",
    title="Share of non-zeros after every layer of AlexNet",
    source="Gilbert et al. 2017, Table 7",
    parameters=AlexNetSparsityParameters,
    compute=_table7,
    figure=_figure,
)

__all__ = ["TABLE2", "TABLE7", "AlexNetSparsityParameters", "SparsityParameters", "count_shares"]
