"""Gilbert et al. 2017, Tables 4 and 6: coherence of a network's filters beside that of random filters of their sizes.

The paper draws one random bank a layer; here a hundred, so that a printed number can be told from chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from cnninv_jax import data
from cnninv_jax.experiments.random_coherence import (
    Method,
    coherence_distribution,
    simulate_coherence,
    simulated_two_sided,
    two_sided,
)
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, Table, progress_bar
from cnninv_jax.montecarlo import mean_interval
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.operators import coherence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Printed coherences of learned and of random filters, layer by layer.
TABLE4_LEARNED = (
    0.9427, 0.7340, 0.6435, 0.7465, 0.5838, 0.4844, 0.5194, 0.4596, 0.4574, 0.4043, 0.4099, 0.4099, 0.4046,
)  # fmt: skip
TABLE4_RANDOM = (
    0.6701, 0.1218, 0.1546, 0.1053, 0.1099, 0.0895, 0.0802, 0.0920, 0.0619, 0.0617, 0.0696, 0.0674, 0.0674,
)  # fmt: skip
TABLE6_LEARNED = (0.9172, 0.6643, 0.6200, 0.6382, 0.3390)
TABLE6_RANDOM = (0.1996, 0.1263, 0.0929, 0.1073, 0.1026)
#: Level of the whole table; each layer's p-value is compared with this divided by the number of layers.
LEVEL = 0.05
#: The printed numbers have four decimals.
ROUNDING = 5e-5


@dataclasses.dataclass(frozen=True)
class CoherenceParameters:
    """Parameters of Table 4."""

    num_draws: int = 100
    """Random banks drawn for every layer."""
    weights: str | None = None
    """Checkpoint (.npz, .safetensors, .h5, .caffemodel) with learned filters, or fetch:NAME."""
    method: Method = "bartlett"
    """How random banks are drawn: direct draws every entry, bartlett the Gram matrix's factor; one law."""


@dataclasses.dataclass(frozen=True)
class AlexNetCoherenceParameters(CoherenceParameters):
    """Parameters of Table 6."""

    network: Literal["alexnet-caffe", "alexnet"] = "alexnet-caffe"
    """Two halves, 96 filters first (Caffe's, which the printed numbers fit), or one tower, 64 first (torchvision's)."""


def _table4(parameters: CoherenceParameters, options: StudyOptions, folder: Path) -> Findings:
    return _compute("vgg16", "Table 4", parameters, options, folder, TABLE4_LEARNED, TABLE4_RANDOM)


def _table6(parameters: AlexNetCoherenceParameters, options: StudyOptions, folder: Path) -> Findings:
    return _compute(parameters.network, "Table 6", parameters, options, folder, TABLE6_LEARNED, TABLE6_RANDOM)


def _compute(
    name: str,
    table: str,
    parameters: CoherenceParameters,
    options: StudyOptions,
    folder: Path,
    learned_printed: Sequence[float],
    random_printed: Sequence[float],
) -> Findings:
    if parameters.num_draws < 2:
        raise ValueError(f"expected --num-draws of at least 2 for an interval, got {parameters.num_draws}")
    positive(parameters.num_draws, "--num-draws", 1 << 24)
    architecture = data.ARCHITECTURES[name]
    network = None
    if parameters.weights is not None:
        network = data.load_network(parameters.weights, architecture=name)
    layers = []
    root = jax.random.key(options.seed)
    count = len(architecture.layers)
    with progress_bar(f"coherence of random {architecture.title} banks", count, quiet=options.quiet) as bar:
        for index, spec in enumerate(architecture.layers):
            result = simulate_coherence(
                jax.random.fold_in(root, index),
                spec.shape,
                parameters.num_draws,
                groups=spec.groups,
                dtype=np.dtype(options.precision),
                method=parameters.method,
                out=folder / spec.name,
            )
            layer: dict[str, Any] = {
                "layer": spec.name, "shape": list(spec.shape), "groups": spec.groups,
                "random": {
                    reading: _random(result.draws[reading], random_printed[index], spec, groups)
                    for reading, groups in _readings(spec).items()
                },
                "random_printed": random_printed[index],
                "learned": _learned(network, spec),
                "learned_printed": learned_printed[index],
            }  # fmt: skip
            layers.append(layer)
            seen = layer["random"]["within"]
            bar.advance(1, note=f"{spec.name}: {seen['mean']:.4f} +- {seen['standard_deviation']:.4f}")
    content = {
        "network": name,
        "title": architecture.title,
        "num_draws": parameters.num_draws,
        "method": parameters.method,
        "weights": None if network is None else {"source": network.source, "notes": list(network.notes)},
        "layers": layers,
    }
    return Findings(content, (_readable(content, table),))


def _readings(spec: data.ConvSpec) -> dict[str, int]:
    """Return the readings of a layer, and into how many groups each lets its filters fall."""
    return {"within": 1} if spec.groups == 1 else {"within": spec.groups, "stored": 1}


def _random(draws: np.ndarray, printed: float, spec: data.ConvSpec, groups: int) -> dict[str, Any]:
    """Summarise draws of one layer's coherence beside the printed number."""
    draws = np.asarray(draws, np.float64)
    size = math.prod(spec.shape[1:])
    mean, variance = float(draws.mean()), float(draws.var(ddof=1))
    low, high = mean_interval(mean, variance, len(draws))
    ordered = np.sort(coherence_distribution(draws, spec.shape[0], size, groups))
    steps = np.arange(len(draws) + 1) / len(draws)
    return {
        "mean": mean,
        "mean_low": float(low),
        "mean_high": float(high),
        "standard_deviation": math.sqrt(variance),
        "middle_low": float(np.quantile(draws, 0.025)),
        "middle_high": float(np.quantile(draws, 0.975)),
        "p_value": two_sided(printed, spec.shape[0], size, groups),
        "p_value_simulated": simulated_two_sided(printed, draws),
        # Kolmogorov and Smirnov's distance of the draws from the closed form.
        "distance": float(max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1]))),
    }


def _learned(network: data.Network | None, spec: data.ConvSpec) -> dict[str, float] | None:
    """Return the learned filters' coherence, in the readings of the random ones; None if they are not at hand."""
    if network is None or spec.name not in [layer.name for layer in network.layers]:
        return None
    bank = network.layer(spec.name).filters
    found = {"within": max(float(coherence(part)) for part in np.split(bank, spec.groups))}
    return found if spec.groups == 1 else {**found, "stored": float(coherence(bank))}


def _readable(content: Mapping[str, Any], table: str) -> Table:
    grouped = any(layer["groups"] > 1 for layer in content["layers"])
    columns = [
        "layer",
        "filters",
        "random: mean ± 95%",
        "deviation",
        "95% of draws",
        "printed",
        "p",
        "verdict",
        "learned",
        "learned, printed",
    ]
    if grouped:
        columns[2:2] = ["compared"]
    level = LEVEL / len(content["layers"])
    rows = []
    for layer in content["layers"]:
        for reading, random in sorted(layer["random"].items(), reverse=True):  # within, stored
            half = (random["mean_high"] - random["mean_low"]) / 2
            first = reading == "within"
            cells = [
                layer["layer"] if first else "",
                " x ".join(map(str, layer["shape"])) if first else "",
                f"{random['mean']:.4f} ± {half:.4f}",
                f"{random['standard_deviation']:.4f}",
                f"{random['middle_low']:.4f} to {random['middle_high']:.4f}",
                f"{layer['random_printed']:.4f}",
                f"{random['p_value']:.2g}",
                _verdict(layer["random_printed"], random, level),
                "not at hand" if layer["learned"] is None else f"{layer['learned'][reading]:.4f}",
                f"{layer['learned_printed']:.4f}",
            ]
            if grouped:
                compared = "all pairs" if layer["groups"] == 1 else "within a half" if first else "across halves too"
                cells[2:2] = [compared]
            rows.append(tuple(cells))
    title = f"Gilbert et al. 2017, {table}: coherence of {content['title']}, filters at the same shift"
    return Table(title, tuple(columns), tuple(rows), tuple(_notes(content, level, grouped)))


def _verdict(printed: float, random: Mapping[str, Any], level: float) -> str:
    if random["p_value"] >= level:
        return "agrees"
    return "printed is lower" if printed < random["mean"] else "printed is higher"


def _notes(content: Mapping[str, Any], level: float, grouped: bool) -> list[str]:
    layers = content["layers"]
    notes = [
        f"Random: {content['num_draws']} banks of independent N(0, 1) filters a layer; the paper draws one, which its "
        "printed number is.",
        "p: two-sided, of the printed number under the law of one bank, P(coherence <= c) = exp(-pairs P(|cos| > c)); "
        f"the draws are within {max(r['distance'] for layer in layers for r in layer['random'].values()):.2f} of it "
        f"(Kolmogorov-Smirnov). Below {level:.2g} (0.05 over {len(layers)} layers) the verdict is no longer chance.",
    ]
    if grouped:
        notes.append(
            "Layers of two halves are stored as one kernel. Across halves filters see different channels, so their "
            "columns of W^T are orthogonal and only pairs within a half count; a script that compares all filters of "
            "the stored kernel finds the second row, which the printed numbers fit as well or better."
        )
    if content["weights"] is None:
        return [*notes, "Learned: no weights at hand; give them with --weights."]
    held = [layer for layer in layers if layer["learned"] is not None]
    notes.append(f"Learned: {content['weights']['source']}, {len(held)} of {len(layers)} layers.")
    far = [
        layer["layer"]
        for layer in held
        if min(abs(value - layer["learned_printed"]) for value in layer["learned"].values()) > ROUNDING
    ]
    if far:
        notes.append(
            f"The printed coherence of learned filters is not that of these weights for {len(far)} of {len(held)} "
            f"layers ({', '.join(far)}), beyond rounding."
        )
    return notes


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.coherence_figure import coherence_figure

    return coherence_figure(report)


TABLE4 = Study(
    name="gilbert-table4",
    title="Coherence of VGG-16's filters and of random ones",
    source="Gilbert et al. 2017, Table 4",
    parameters=CoherenceParameters,
    compute=_table4,
    figure=_figure,
)
TABLE6 = Study(
    name="gilbert-table6",
    title="Coherence of AlexNet's filters and of random ones",
    source="Gilbert et al. 2017, Table 6",
    parameters=AlexNetCoherenceParameters,
    compute=_table6,
    figure=_figure,
)

__all__ = ["TABLE4", "TABLE6", "AlexNetCoherenceParameters", "CoherenceParameters"]
