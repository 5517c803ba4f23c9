"""A whole checkpoint analysed: every convolution beside random filters of its size.

One row a layer: coherence at the same shift and over all shifts, the frame bound B with |W x|^2 <= B |x|^2, each beside
Gaussian banks; and, where the network is known, the share of non-zeros that pictures leave after the ReLU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data
from cnninv_jax._typing import FilterBank, PRNGKeyArray, Scalar
from cnninv_jax.experiments.network_pass import output_names
from cnninv_jax.experiments.options import Precision, checked_seed
from cnninv_jax.experiments.random_coherence import coherence_distribution, simulate_coherence
from cnninv_jax.experiments.sparsity_tables import count_shares
from cnninv_jax.experiments.studies import Findings, StudyOptions, Table, progress_bar
from cnninv_jax.filters import gaussian, normalize
from cnninv_jax.montecarlo import mean_interval
from cnninv_jax.operators import coherence, conv_operator, norm_squared

#: Signal size where the user names none: Gilbert et al. 2017, Fig. 2 (1-D) and Fig. 3 (2-D).
SIGNAL = {1: 32, 2: 15}
#: Lanczos steps of the frame bound.
STEPS = 32
#: Multiply-adds that one number of the table may cost; a layer that costs more has a dash.
LARGEST_WORK = 1e12


@dataclasses.dataclass(frozen=True)
class WalkOptions:
    """How a checkpoint is analysed."""

    signal: int | None = None
    """Side of the signal of the frame bound, same padding; by default 32 (1-D) or 15 (2-D), or the filter's length."""
    random_banks: int = 20
    """Random banks whose coherence is put beside a layer's."""
    random_bounds: int = 3
    """Random banks whose frame bound is put beside a layer's."""
    size: int | None = None
    """Side of the square that pictures are brought to; by default the network's own."""
    limit: int | None = None
    """Most pictures."""
    seed: int = 0
    """Seed of all that is random."""
    precision: Precision = "float32"
    """Arithmetic."""
    quiet: bool = False
    """No progress."""


def walk_checkpoint(network: data.Network, pictures: str | None, options: WalkOptions, folder: Path) -> Findings:
    """Analyse every convolution of a checkpoint.

    Args:
        network: see `data.load_network`; of an unknown one every kernel is taken, at stride 1.
        pictures: folder of pictures, or ``"embedded"``, for the share of non-zeros; None leaves it out.
        options: how.
        folder: journals of the random draws and what was counted over pictures are kept here.

    Returns:
        Findings with one row a layer. Filters are scaled to norm 1 for the frame bound, as the paper does.

    Raises:
        ValueError: options out of range; pictures for a network that is not known.

    Cost: a few seconds a layer on a CPU; VGG-16 takes one or two minutes.
    """
    for flag, value, least in (
        ("--random-banks", options.random_banks, 2), ("--random-bounds", options.random_bounds, 2),
        ("--signal", options.signal, 1), ("--size", options.size, 1), ("--limit", options.limit, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise ValueError(f"expected {flag} of at least {least}, got {value}")
    root = jax.random.key(checked_seed(options.seed))
    shares = {} if pictures is None else _shares(network, pictures, options, folder)
    layers = []
    with progress_bar(f"layers of {network.name}", len(network.layers), quiet=options.quiet) as bar:
        for index, layer in enumerate(network.layers):
            key = jax.random.fold_in(root, index)
            found = _layer(layer, key, options, folder / f"{index:03d}")
            found["non_zeros"] = shares.get(layer.name)
            if layer.pool is not None and layer.pool.name in shares:
                found["non_zeros_pooled"] = shares[layer.pool.name]
            layers.append(found)
            bar.advance(1, note=layer.name)
    content = {
        "network": network.name, "source": network.source, "notes": list(network.notes), "layers": layers,
        "random_banks": options.random_banks, "random_bounds": options.random_bounds, "pictures": pictures,
    }  # fmt: skip
    return Findings(content, (_readable(content),))


def _shares(network: data.Network, pictures: str, options: WalkOptions, folder: Path) -> dict[str, dict[str, float]]:
    outputs = output_names(network.runnable)
    size = options.size or (224 if network.architecture is None else network.architecture.size)
    files = data.picture_files(pictures)[: options.limit]
    counted = count_shares(network, files, size, StudyOptions(precision=options.precision, quiet=options.quiet), folder)
    return {output: _interval(100 * counted[:, index]) for index, output in enumerate(outputs)}


def _layer(layer: data.ConvLayer, key: PRNGKeyArray, options: WalkOptions, folder: Path) -> dict[str, Any]:
    """Return the numbers of one layer; None for what is not defined or costs too much."""
    dtype = np.dtype(options.precision)
    bank = layer.filters.astype(dtype)
    coherence_key, bound_key = jax.random.split(key)
    each, size = layer.num_filters // layer.groups, math.prod(bank.shape[1:])
    length = bank.shape[2:]
    signal = tuple(max(options.signal or SIGNAL[len(length)], ell) for ell in length)
    found: dict[str, Any] = {
        "layer": layer.name, "shape": list(bank.shape), "groups": layer.groups, "stride": list(layer.stride),
        "signal": list(signal), "zero_filters": int(np.sum(~np.any(bank.reshape(len(bank), -1), axis=1))),
        "coherence": None, "coherence_all_shifts": None, "bound": None, "random_coherence": None, "random_bound": None,
    }  # fmt: skip
    parts = np.split(bank, layer.groups)
    pair_work = layer.groups * each * each * size
    if each > 1 and pair_work < LARGEST_WORK and found["zero_filters"] < len(bank) - 1:
        found["coherence"] = max(float(_one_shift(part)) for part in parts)
        draws = simulate_coherence(
            coherence_key,
            bank.shape,
            options.random_banks,
            groups=layer.groups,
            dtype=dtype,
            method="direct",
            out=folder,
        ).draws["within"]
        found["random_coherence"] = {
            **_interval(draws),
            "p_not_larger": 1 - float(coherence_distribution(found["coherence"], len(bank), size, layer.groups)),
        }
    positions = math.prod(2 * (ell - 1) // step + 1 for ell, step in zip(length, layer.stride, strict=True)) / 2
    if pair_work * positions < LARGEST_WORK and (each > 1 or positions > 0.5):
        found["coherence_all_shifts"] = max(float(_all_shifts(part, layer.stride)) for part in parts)
    windows = math.prod(-(-side // step) for side, step in zip(signal, layer.stride, strict=True))
    if 2 * STEPS * each * size * windows * layer.groups < LARGEST_WORK:
        bound = partial(_bound, signal=signal, stride=layer.stride)
        found["bound"] = max(float(bound(part)) for part in map(jnp.asarray, parts))
        keys = jax.random.split(bound_key, (options.random_bounds, layer.groups))
        random = [max(float(bound(_draw(one, parts[0].shape, dtype))) for one in row) for row in keys]
        found["random_bound"] = _interval(np.asarray(random))
    return found


#: Compiled whole: operation by operation XLA compiles each one for every size.
_one_shift = jax.jit(partial(coherence, over="filters"))


@partial(jax.jit, static_argnums=1)
def _all_shifts(bank: FilterBank, stride: tuple[int, ...]) -> Scalar:
    return coherence(bank, over="shifts", stride=stride)


@partial(jax.jit, static_argnames=("signal", "stride"))
def _bound(bank: FilterBank, signal: tuple[int, ...], stride: tuple[int, ...]) -> Scalar:
    op = conv_operator(normalize(bank), signal, stride=stride, padding="same")
    return norm_squared(op, num_steps=STEPS)


@partial(jax.jit, static_argnums=(1, 2))
def _draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype) -> FilterBank:
    return gaussian(key, shape[0], shape[1], shape[2:], dtype=dtype)


def _interval(values: np.ndarray) -> dict[str, float]:
    """Return mean, 95% interval of the mean, and deviation."""
    values = np.asarray(values, np.float64)
    count = len(values)
    deviation = float(values.std(ddof=1)) if count > 1 else float("nan")
    low, high = mean_interval(values.mean(), deviation**2, count)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "standard_deviation": deviation}


def _readable(content: Mapping[str, Any]) -> Table:
    layers = content["layers"]
    columns = ["layer", "filters", "coherence", "random", "all shifts", "B", "random B"]
    with_pictures = content["pictures"] is not None
    if with_pictures:
        columns += ["non-zeros (%)", "pooled (%)"]
    rows = []
    for layer in layers:
        groups = f", {layer['groups']} groups" if layer["groups"] > 1 else ""
        cells = [
            layer["layer"],
            " x ".join(map(str, layer["shape"])) + groups,
            _number(layer["coherence"]),
            _spread(layer["random_coherence"]),
            _number(layer["coherence_all_shifts"]),
            _number(layer["bound"]),
            _spread(layer["random_bound"]),
        ]
        if with_pictures:
            cells += [_half(layer["non_zeros"]), _half(layer.get("non_zeros_pooled"))]
        rows.append(tuple(cells))
    notes = [
        f"Random: mean and deviation of {content['random_banks']} Gaussian banks of the layer's size "
        f"({content['random_bounds']} for B).",
        "Coherence: largest |cosine| between two filters at one shift; all shifts: between any two columns of W^T.",
        f"B: largest |W x|^2 / |x|^2, filters at norm 1, same padding, signals of {_signals(layers)}; an estimate from "
        f"below by {STEPS} Lanczos steps.",
    ]
    zero = {layer["layer"]: layer["zero_filters"] for layer in layers if layer["zero_filters"]}
    if zero:
        notes.append(
            f"Filters of zeros, left out of the coherence: {', '.join(f'{n} in {name}' for name, n in zero.items())}."
        )
    if any(layer[name] is None for layer in layers for name in ("coherence", "coherence_all_shifts", "bound")):
        notes.append("A dash: not defined for one filter, or too large to compute.")
    notes += [f"{note[0].upper()}{note[1:]}." for note in content["notes"]]
    return Table(f"Convolutions of {content['source']}", tuple(columns), tuple(rows), tuple(notes))


def _signals(layers: list[dict[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(" x ".join(map(str, layer["signal"])) for layer in layers))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _spread(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{entry['mean']:.4g} ± {entry['standard_deviation']:.2g}"


def _half(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "-"
    width = (entry["high"] - entry["low"]) / 2
    return f"{entry['mean']:.1f}" + ("" if math.isnan(width) else f" ± {width:.1f}")


__all__ = ["WalkOptions", "walk_checkpoint"]
