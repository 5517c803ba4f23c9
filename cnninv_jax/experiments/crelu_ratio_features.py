"""Algorithm 2 on real features: pooling regions and whole inputs of layers, with learned and with random filters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cnninv_jax import data
from cnninv_jax._typing import PRNGKeyArray, Signal
from cnninv_jax.experiments.crelu_ratio_draws import regions_outcome, whole_outcome
from cnninv_jax.experiments.crelu_ratio_inputs import Bank, Inputs, Layer, number_of
from cnninv_jax.experiments.rows import KeptRows, kept_rows
from cnninv_jax.experiments.studies import progress_bar
from cnninv_jax.montecarlo import mean_interval

if TYPE_CHECKING:
    import xarray as xr

#: Numbers per patch, in the order of a row; then those of the whole input.
PER_PATCH = ("ratio", "columns", "unselected", "not_converged")
WHOLE = ("ratio", "columns", "not_converged")
#: Filters, in the order in which they are shown.
KINDS = ("learned", "random")


@dataclasses.dataclass(frozen=True)
class Work:
    """How much is measured, and how.

    Attributes:
        num_networks: sets of random filters, and of patches, per picture.
        num_patches: pooling regions per picture and set.
        pool: side of a pooling window.
        step: from window to window, of whole inputs.
        tol: relative residual at which the least squares stop.
        max_steps: most iterations.
    """

    num_networks: int
    num_patches: int
    pool: int
    step: int
    tol: float
    max_steps: int


class Measured(NamedTuple):
    """Ratios by layer and kind of filters, see `measure`."""

    regions: dict[tuple[str, str], Float[np.ndarray, "pictures networks numbers patches"]]
    wholes: dict[tuple[str, str], Float[np.ndarray, "pictures networks numbers"]]


def measure(
    inputs: Inputs,
    pictures: data.Pictures,
    work: Work,
    key: PRNGKeyArray,
    path: Path,
    spec: Mapping[str, Any],
    *,
    dtype: jax.typing.DTypeLike,
    quiet: bool,
) -> Measured:
    """Measure every layer on every picture; rows that ``path`` holds under ``spec`` are not measured again.

    Random filters, the random layers below them and the places of the patches are drawn anew for every picture: means
    of different pictures are independent. Keys come from the pictures' names and the layers' names.
    """
    images = dict(zip(pictures.names, pictures.images, strict=True))
    with (
        kept_rows(path, spec) as rows,
        progress_bar("pictures through layers", len(images) * work.num_networks, quiet=quiet) as bar,
    ):
        for name, image in images.items():
            for number in range(work.num_networks):
                own = jax.random.fold_in(jax.random.fold_in(key, number_of(name)), number)
                note = _one(inputs, name, image, number, own, work, rows, dtype)
                bar.advance(1, note)
        regions, wholes = {}, {}
        for layer in inputs.layers:
            for kind in _kinds(layer):
                held = np.array(
                    [[rows.of(_row(layer, kind, name, i))[0] for i in range(work.num_networks)] for name in images]
                )
                cut = len(PER_PATCH) * work.num_patches
                shape = (*held.shape[:2], len(PER_PATCH), work.num_patches)
                regions[layer.name, kind] = held[..., :cut].reshape(shape)
                wholes[layer.name, kind] = held[..., cut:]
    return Measured(regions, wholes)


def _kinds(layer: Layer) -> tuple[str, ...]:
    return KINDS if layer.given is not None else ("random",)


def _row(layer: Layer, kind: str, picture: str, number: int) -> str:
    return f"{layer.name} | {kind} | {picture} | {number}"


def _one(
    inputs: Inputs, name: str, image: np.ndarray, number: int, key: PRNGKeyArray, work: Work, rows: KeptRows,
    dtype: jax.typing.DTypeLike,
) -> str:  # fmt: skip
    """Measure what one picture and one set of random filters lack; return a note for people."""
    pairs = [(layer, kind) for layer in inputs.layers for kind in _kinds(layer)]
    wanted = [pair for pair in pairs if not rows.of(_row(*pair, name, number))]
    if not wanted:
        return ""
    signal_key, bank_key, place_key = jax.random.split(key, 3)
    signals = inputs.signals(image, signal_key)
    banks = {layer.name: layer.banks(bank_key, dtype) for layer in inputs.layers}
    last = float("nan")
    for layer, kind in wanted:
        signal, bank = signals[layer.name], banks[layer.name][kind]
        layer.check(signal.shape, work.pool)
        regions = _regions(layer, bank, signal, jax.random.fold_in(place_key, number_of(layer.name)), work)
        first = rows.of(_row(layer, kind, name, 0))
        if kind == "learned" and first and not layer.enters.startswith("white"):
            whole = first[0][-len(WHOLE) :]  # the same filters on the same input
        else:
            whole = _whole(layer, bank, signal, work)
        rows.add(_row(layer, kind, name, number), [*regions, *whole])
        last = whole[0]
    return f"{wanted[-1][0].name}: {last:.3f}"


def _regions(layer: Layer, bank: Bank, signal: Signal, key: PRNGKeyArray, work: Work) -> list[float]:
    corner_key, shift_key = jax.random.split(key)
    seen = [(work.pool - 1) * layer.stride + ell for ell in layer.shape[2:]]
    room = np.array([size - side + 1 for size, side in zip(signal.shape[1:], seen, strict=True)], np.int32)
    corners = jax.random.randint(corner_key, (work.num_patches, len(room)), 0, jnp.asarray(room)[None], dtype=np.int32)
    found = regions_outcome(
        bank.filters, signal, shift_key, corners, bank.bias,
        pool=work.pool, stride=layer.stride, tol=work.tol, max_steps=work.max_steps,
    )  # fmt: skip
    return [float(value) for name in PER_PATCH for value in np.asarray(found[name])]


def _whole(layer: Layer, bank: Bank, signal: Signal, work: Work) -> list[float]:
    op, seen = layer.whole(bank.filters, signal)
    found = whole_outcome(
        op, seen, bank.bias, pool=work.pool, step=work.step, tol=work.tol, max_steps=work.max_steps
    )  # fmt: skip
    return [float(found[name]) for name in WHOLE]


def summarised(inputs: Inputs, measured: Measured) -> list[dict[str, Any]]:
    """Return every layer as the report holds it: means with 95% intervals over pictures, differences of filters."""
    found = []
    for layer in inputs.layers:
        kinds: dict[str, Any] = {}
        by_picture: dict[str, dict[str, np.ndarray]] = {}
        for kind in _kinds(layer):
            regions, wholes = measured.regions[layer.name, kind], measured.wholes[layer.name, kind]
            means = {name: _finite_mean(regions[:, :, at], (1, 2)) for at, name in enumerate(PER_PATCH[:3])}
            means |= {f"whole_{name}": _finite_mean(wholes[..., at], (1,)) for at, name in enumerate(WHOLE[:2])}
            by_picture[kind] = means
            kinds[kind] = {
                **{name: estimate(values) for name, values in means.items()},
                "by_picture": {name: means[name].tolist() for name in ("ratio", "whole_ratio")},
                "patches": int(regions[:, :, 0].size),
                "zero_patches": int(np.sum(np.isnan(regions[:, :, 0]))),
                "not_converged": int(np.sum(regions[:, :, -1]) + np.sum(wholes[..., -1])),
            }
        entry: dict[str, Any] = {
            "layer": layer.name,
            "enters": layer.enters,
            "shape": list(layer.shape),
            "kinds": kinds,
        }
        if set(KINDS) <= set(by_picture):
            entry["learned_less_random"] = {
                name: estimate(by_picture["learned"][name] - by_picture["random"][name])
                for name in ("ratio", "whole_ratio")
            }
        found.append(entry)
    return found


def estimate(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return the mean of independent numbers with Student's 95% interval, as ``mean``, ``low``, ``high``, ``count``."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "count": 0}
    variance = finite.var(ddof=1) if finite.size > 1 else np.nan
    low, high = mean_interval(finite.mean(), variance, finite.size)
    return {"mean": float(finite.mean()), "low": float(low), "high": float(high), "count": int(finite.size)}


def _finite_mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return means of what is finite, NaN where nothing is: the ratio of x = 0 is none."""
    there = np.isfinite(values)
    count = there.sum(axis=axes)
    return np.where(count, np.where(there, values, 0.0).sum(axis=axes) / np.maximum(count, 1), np.nan)


def dataset_of(inputs: Inputs, measured: Measured, pictures: Sequence[str]) -> xr.Dataset:
    """Return the ratios of all patches and whole inputs, labelled; NaN where there are no such filters."""
    import xarray as xr

    layers = [layer.name for layer in inputs.layers]
    regions = np.full((len(layers), len(KINDS), *_shape(measured.regions, 2), _shape(measured.regions, 4)[3]), np.nan)
    wholes = np.full(regions.shape[:-1], np.nan)
    for place, layer in enumerate(inputs.layers):
        for kind in _kinds(layer):
            regions[place, KINDS.index(kind)] = measured.regions[layer.name, kind][:, :, 0]
            wholes[place, KINDS.index(kind)] = measured.wholes[layer.name, kind][..., 0]
    dims = ("layer", "filters", "picture", "set", "patch")
    return xr.Dataset(
        {
            "region": (dims, regions, {"long_name": "|x - x'| / |x| of what one pooling window sees", "units": "1"}),
            "whole": (dims[:-1], wholes, {"long_name": "|x - x'| / |x| of a layer's whole input", "units": "1"}),
        },
        {"layer": layers, "filters": list(KINDS), "picture": list(pictures)},
    )


def _shape(held: Mapping[Any, np.ndarray], axes: int) -> tuple[int, ...]:
    return next(iter(held.values())).shape[:axes]


__all__ = ["KINDS", "Measured", "Work", "dataset_of", "estimate", "measure", "summarised"]
