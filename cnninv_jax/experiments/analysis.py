"""The report on a filter bank that someone brings: how far from an isometry is it, and what does M recover from it?"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data, filters, rip
from cnninv_jax.crelu.filters import pairing
from cnninv_jax.experiments.analysis_constants import constants
from cnninv_jax.experiments.analysis_pairing import beside_random
from cnninv_jax.experiments.files import results_folder, save_json, writing
from cnninv_jax.experiments.options import Precision, checked_seed
from cnninv_jax.experiments.runs import another_run, default_folder
from cnninv_jax.experiments.studies import progress_bar
from cnninv_jax.montecarlo import JournalError, JournalLockedError, Result, mean_interval, run
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.operators import ConvOperator, coherence, conv_operator, frame_bounds
from cnninv_jax.sparsity import num_blocks, support_size

#: Signal size and pooling where the user names none: Gilbert et al. 2017, Fig. 2 (1-D) and Fig. 3 (2-D).
DEFAULT_SIGNAL = {1: 32, 2: 15}
#: Part of the blocks that are non-zero where the user names no k; the paper's Fig. 2 has 10 of 96.
DEFAULT_SHARE = 0.1
#: Lanczos steps of the frame bounds: enough for B by far; A converges only where M prod(D) is a few hundred.
LANCZOS_STEPS = 128
#: Multiply-adds that one device works on at a time, which bounds the lanes of wide layers.
LANE_WORK = 2**29


@dataclasses.dataclass(frozen=True)
class AnalysisOptions:
    """How a filter bank is analysed."""

    tensor: str | None = None
    """Entry of the file; may be left out where only one has 3 or 4 axes."""
    layout: Literal["KMll", "llMK", "KMl", "lMK"] | None = None
    """Order of axes in the file; by default llMK in HDF5 and KMll elsewhere."""
    signal: str | None = None
    """Signal length per axis, 32 or 15x15; by default 32 (1-D) or 15x15 (2-D)."""
    stride: int = 1
    """Stride of the convolution."""
    padding: Literal["valid", "same"] | None = None
    """By default valid for 1-D filters (the theory) and same for 2-D ones (networks)."""
    pool: int | None = None
    """Pooling window; 0 pools whole responses. By default 0 for 1-D filters and 2 for 2-D ones."""
    k: str | None = None
    """Non-zeros of the code: a number, or a fraction of its entries such as 0.05; by default a tenth of the blocks."""
    values: Literal["uniform", "gaussian", "signs"] = "uniform"
    """Law of the non-zeros."""
    normalize: bool = True
    """Scale every filter to norm 1 first, as the paper does."""
    num_draws: int = 2000
    """Codes drawn for these filters, and (filters, code) pairs for the random ones."""
    random_banks: int = 20
    """Random banks whose coherence and frame bounds are put beside those of these filters."""
    seed: int = 0
    """Seed of all that is random."""
    out: Path | None = None
    """Folder for report.json, figure and draws; by default a folder of its own under runs/."""
    precision: Precision = "float32"
    """Arithmetic."""
    pictures: str | None = None
    """With a whole network: folder of pictures, or embedded, whose share of non-zeros is counted layer by layer."""
    constants: bool = True
    """Bracket delta_k and delta_2k by certificates, and put Theorem 3.3's bound beside the errors observed."""
    quiet: bool = False
    """No progress."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `analyze` found; ``content`` is report.json."""

    content: Mapping[str, Any]
    folder: Path
    files: tuple[Path, ...]


def analyze(source: str, options: AnalysisOptions) -> Report:
    """Analyse a filter bank beside Gaussian random filters of the same size.

    Args:
        source: file (.npy, .npz, .safetensors, .h5), or a random ensemble such as gaussian:K=96,M=32,ell=5.
        options: how.

    Raises:
        ValueError: the file, the sizes or the names do not fit; one sentence.
        MonteCarloError: the folder cannot be used.
    """
    dtype = np.dtype(options.precision)
    checked_seed(options.seed)
    bank, origin = _bring(source, options, dtype)
    op, pool, k = _set_up(options, bank)
    if options.num_draws < 2 or options.random_banks < 2:
        raise ValueError(
            "expected at least 2 draws and 2 random banks for an interval, "
            f"got {options.num_draws} and {options.random_banks}"
        )
    positive(options.num_draws, "--num-draws", 1 << 32)
    user = {"command": "analyze", "source": source, "options": _plain(options), "bank": _digest(bank)}
    with results_folder(options.out or default_folder("analysis", user)) as folder:
        return _analyze(options, op, pool, k, bank, origin, user, folder)


def _analyze(
    options: AnalysisOptions,
    op: ConvOperator,
    pool: tuple[int, ...] | None,
    k: int,
    bank: np.ndarray,
    origin: Mapping[str, Any],
    user: Mapping[str, Any],
    folder: Path,
) -> Report:
    dtype, seed = np.dtype(options.precision), options.seed
    bank_key, code_key, random_key = jax.random.split(jax.random.key(seed), 3)
    structure = _structure(options, op, bank, bank_key)

    # A Partial: the filters are data, another bank of this shape would compile nothing anew.
    draws = jax.tree_util.Partial(_ratios, op=op, k=k, pool=pool, values=options.values)
    own = _run(draws, code_key, options, op, folder / "filters", {**user, "of": "filters"}, "these filters")
    random = functools.partial(
        rip.draw_ratios, num_filters=op.num_filters, channels=op.channels, length=op.length,
        signal_shape=op.signal_shape, k=k, stride=op.stride, padding=op.padding, pool=pool, normalize=options.normalize,
        values=options.values, dtype=dtype,
    )  # fmt: skip
    beside = _run(random, random_key, options, op, folder / "random", {**user, "of": "random"}, "random filters")

    setting = {
        "signal": list(op.signal_shape), "stride": list(op.stride), "padding": op.padding,
        "pool": None if pool is None else list(pool), "shifts": list(op.shifts), "k": k,
        "blocks": num_blocks(op.code_shape, pool), "values": options.values, "normalize": options.normalize,
        "num_draws": options.num_draws, "random_banks": options.random_banks, "seed": seed,
        "precision": options.precision,
    }  # fmt: skip
    ratios = {"filters": _numbers(own), "random": _numbers(beside)}
    certified = {}
    if options.constants:
        search_key = jax.random.fold_in(jax.random.key(seed), 2)
        certified["constants"] = constants(op, k, pool, search_key, ratios["filters"], quiet=options.quiet)
    content = {
        "origin": origin,
        "setting": setting,
        **structure,
        "ratios": ratios,
        **certified,
        "provenance": {"filters": dict(own.provenance), "random": dict(beside.provenance)},
    }
    return Report(content, folder, tuple(_save(content, own, beside, folder)))


def _bring(source: str, options: AnalysisOptions, dtype: np.dtype) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the bank [K, M, *ell] and where it comes from."""
    name = source.partition(":")[0]
    if name in data.ENSEMBLES or (re.match(r"[a-z_]{3,}:", source) and not Path(source).exists()):
        spec = data.parse_ensemble(source)
        if options.tensor or options.layout:
            raise ValueError(f"--tensor and --layout belong to files; {spec} is drawn, leave them out")
        sampler = filters.ENSEMBLES[spec.name]
        key = jax.random.fold_in(jax.random.key(checked_seed(options.seed)), 1)
        settings: dict[str, Any] = dict(spec.options)
        drawn = sampler(key, spec.num_filters, spec.channels, spec.length, **settings, dtype=dtype)
        return np.asarray(drawn), {
            "source": str(spec),
            "tensor": None,
            "layout": "drawn",
            "dtype": str(dtype),
            "notes": [],
        }
    loaded = data.load_filters(source, tensor=options.tensor, layout=options.layout)
    origin = {
        "source": loaded.source,
        "tensor": loaded.tensor,
        "layout": loaded.layout,
        "dtype": str(loaded.filters.dtype),
        "notes": list(loaded.notes),
    }
    return loaded.filters.astype(dtype), origin


def _set_up(options: AnalysisOptions, bank: np.ndarray) -> tuple[ConvOperator, tuple[int, ...] | None, int]:
    """Return the operator, the pooling window and k."""
    rank = bank.ndim - 2
    padding = options.padding or ("valid" if rank == 1 else "same")
    positive(options.stride, "--stride", 1 << 30)
    if options.signal is None:
        least = (max(DEFAULT_SIGNAL[rank], ell) for ell in bank.shape[2:])
        # The next longer signal with an integer number of shifts.
        signal = tuple(
            ell + math.ceil((size - ell) / options.stride) * options.stride if padding == "valid" else size
            for size, ell in zip(least, bank.shape[2:], strict=True)
        )
    else:
        parts = options.signal.lower().split("x")
        if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts) or len(parts) not in (1, rank):
            example = "32" if rank == 1 else "15 or 15x15"
            raise ValueError(f"expected --signal to be {example} for {rank}-D filters, got {options.signal!r}")
        signal = tuple(int(part) for part in parts) * (rank if len(parts) == 1 else 1)
    array = jnp.asarray(bank)
    op = conv_operator(
        filters.normalize(array) if options.normalize else array, signal, stride=options.stride, padding=padding
    )
    window = (0 if rank == 1 else 2) if options.pool is None else options.pool
    if window < 0:
        raise ValueError(f"expected --pool to be 0 (whole responses) or a positive window, got {window}")
    pool = None if window == 0 else (window,) * rank
    if options.k is None:
        k: float = max(1, round(DEFAULT_SHARE * num_blocks(op.code_shape, pool)))
    else:
        try:
            k = int(options.k) if re.fullmatch(r"[+-]?[0-9]+", options.k) else float(options.k)
        except ValueError:
            raise ValueError(f"expected --k to be a number or a fraction such as 0.05, got {options.k!r}") from None
    return op, pool, support_size(k, op.code_shape, pool)


def _ratios(key: jax.Array, *, op: ConvOperator, k: int, pool: tuple[int, ...] | None, values: str) -> rip.Ratios:
    return rip.ratios(key, op, k, pool=pool, values=values)


@jax.jit
def _described(op: ConvOperator) -> dict[str, jax.Array]:
    bounds = frame_bounds(op, num_steps=LANCZOS_STEPS)
    numbers = {
        "coherence_shifts": coherence(op, over="shifts"),
        "frame_lower": bounds.lower,
        "frame_upper": bounds.upper,
    }
    if op.num_filters > 1:
        numbers["coherence_filters"] = coherence(op, over="filters")
        numbers["pairing"] = pairing(op.filters).cosine
    return {**numbers, "lower_residual": bounds.lower_residual, "upper_residual": bounds.upper_residual}


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _drawn(
    key: jax.Array, num_filters: int, channels: int, length: tuple[int, ...], normalize: bool, dtype: np.dtype
) -> jax.Array:
    return filters.gaussian(key, num_filters, channels, length, normalize=normalize, dtype=dtype)


def _structure(options: AnalysisOptions, op: ConvOperator, bank: np.ndarray, key: jax.Array) -> dict[str, Any]:
    """Return shapes, norms, coherence and frame bounds, beside those of random banks with their intervals."""
    own = jax.device_get(_described(op))
    found = []
    # One after the other, and outside of the engine: the small eigenproblems call LAPACK.
    with progress_bar("coherence and frame bounds of random banks", options.random_banks, quiet=options.quiet) as bar:
        for one in jax.random.split(key, options.random_banks):
            drawn = _drawn(one, op.num_filters, op.channels, op.length, options.normalize, op.dtype)
            found.append(jax.device_get(_described(dataclasses.replace(op, filters=drawn))))
            bar.advance(1)
    beside = {name: np.stack([numbers[name] for numbers in found]) for name in own}
    compared = {}
    for name in ("coherence_filters", "coherence_shifts", "frame_lower", "frame_upper"):
        if name in own:
            sample = np.asarray(beside[name], float)
            mean, variance = sample.mean(), sample.var(ddof=1)
            low, high = mean_interval(mean, variance, len(sample))
            compared[name] = {
                "filters": float(own[name]),
                "random_mean": float(mean),
                "random_standard_deviation": float(np.sqrt(variance)),
                "random_interval_95": [float(low), float(high)],
            }
    norms = np.sqrt(np.sum(np.square(bank.astype(float)), axis=tuple(range(1, bank.ndim))))
    return {
        "shape": {"K": op.num_filters, "M": op.channels, "ell": list(op.length)},
        "norms": {
            "min": norms.min(), "mean": norms.mean(), "max": norms.max(), "standard_deviation": norms.std(),
            "values": norms,
        },
        "compared": compared,
        "frame_residuals": {"lower": float(own["lower_residual"]), "upper": float(own["upper_residual"])},
        "cosines": _cosines(bank, key),
        "pairing": beside_random(own["pairing"], beside["pairing"]) if op.num_filters > 1 else None,
    }  # fmt: skip


def _cosines(bank: np.ndarray, key: jax.Array) -> dict[str, Any]:
    """Return histograms of |cos| over pairs of filters, for these and for one random bank."""
    edges = np.linspace(0.0, 1.0, 101)

    def histogram(rows: np.ndarray) -> np.ndarray:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = np.abs(unit @ unit.T)[np.triu_indices(len(unit), 1)]
        return np.histogram(np.clip(cosines, 0.0, 1.0), edges)[0]

    random = np.asarray(filters.gaussian(jax.random.fold_in(key, 0), bank.shape[0], bank.shape[1], bank.shape[2:]))
    flat = (len(bank), -1)
    return {
        "edges": edges,
        "filters": histogram(bank.reshape(flat).astype(float)),
        "random": histogram(random.reshape(flat).astype(float)),
    }


def _run(
    draw: Any,
    key: jax.Array,
    options: AnalysisOptions,
    op: ConvOperator,
    folder: Path,
    user: Mapping[str, Any],
    name: str,
) -> Result:
    work = math.prod(op.code_shape) * op.channels * math.prod(op.length)
    lanes = 2 ** max(0, min(6, int(math.log2(max(1, LANE_WORK // work)))))
    with results_folder(folder):
        try:
            return run(
                draw, key, options.num_draws, chunk_size=max(lanes, 64), lanes=lanes, keep=tuple(rip.READINGS),
                out=folder, progress=not options.quiet, spec=user, name=name, headline="error_model",
            )  # fmt: skip
        except JournalLockedError:
            raise
        except JournalError as error:
            raise another_run(folder, user) or error from None


def _numbers(result: Result) -> dict[str, Any]:
    numbers = {}
    for name, label in rip.READINGS.items():
        low, high = result.mean_interval(name)
        numbers[name] = {
            "label": label,
            "mean": float(result[name]["mean"]),
            "standard_error": float(result[name]["standard_error"]),
            "interval_95": [float(low), float(high)],
            "standard_deviation": float(result[name]["standard_deviation"]),
            "median_low_high": [float(x) for x in result.quantile(name, 0.5)],
            "min": float(result[name]["min"]),
            "max": float(result[name]["max"]),
            "draws": int(result[name]["count"]),
            "non_finite": int(result[name]["non_finite"]),
        }
    return numbers


def _save(content: Mapping[str, Any], own: Result, beside: Result, folder: Path) -> list[Path]:
    import xarray as xr

    from cnninv_jax.experiments.panels import analysis_figure
    from cnninv_jax.experiments.render import save_figure

    written = [own.save_netcdf(folder / "filters.nc"), beside.save_netcdf(folder / "random.nc")]
    with writing("report.json"):
        written.append(save_json(content, folder / "report.json"))
    saved = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    with (
        xr.open_dataset(written[0], engine="h5netcdf") as mine,
        xr.open_dataset(written[1], engine="h5netcdf") as random,
        writing("the figure"),
    ):
        return [*written, *save_figure(analysis_figure(saved, mine, random), folder, "analysis")]


def _plain(options: AnalysisOptions) -> dict[str, Any]:
    """Return the options that change the draws."""
    silent = ("out", "quiet", "constants", "pictures")
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in silent}


def _digest(bank: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(bank).tobytes()).hexdigest()[:16]
