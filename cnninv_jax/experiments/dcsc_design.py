"""Design a dictionary for a small coherence over shifts, and see what recovery gains (Murray 2018, bounds (2) and (3)).

From random filters or those of a file, coherence falls towards Welch's bound; one-layer thresholding passes over random
signs, on the same supports, tell how much of it shows. The bounds are made of the largest correlation; random signs
also meet the sum of squares of an atom's correlations, on average at least K / (M prod(min(t, ell))) - 1: both are
shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data, dcsc, filters
from cnninv_jax import montecarlo as mc
from cnninv_jax._files import write_whole
from cnninv_jax.dcsc.bounds import probabilistic_bound
from cnninv_jax.dcsc.design import correlations, design
from cnninv_jax.dcsc.generate import generate
from cnninv_jax.dcsc.noise import noise
from cnninv_jax.experiments.dcsc_design_tables import BANKS, FILTERS, limits_of, tables_of
from cnninv_jax.experiments.dcsc_dictionaries import capacity_of, prepare
from cnninv_jax.experiments.files import results_folder, writing
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo import ResultError
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.intervals import wilson
from cnninv_jax.operators import coherence
from cnninv_jax.operators.angles import welch_bound

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from cnninv_jax._typing import FilterBank

#: Most draws of a block, the unit of the journals.
BLOCK = 1000
#: Bins of the correlations.
BINS = 60


@dataclasses.dataclass(frozen=True)
class DesignParameters:
    """The dictionary, its design, and the passes that try it."""

    start: Path | None = None
    """File of filters to begin with (.npy, .npz, .safetensors, .h5, .caffemodel); it brings its own sizes. By default
    random filters of the sizes below."""
    tensor: str | None = None
    """Entry of the file, where it has several."""
    layout: str | None = None
    """Order of its axes, KMll or llMK (1-D: KMl or lMK); guessed by default."""
    ensemble: str = "gaussian"
    """Distribution of the random start: gaussian, uniform, logistic, laplace, sphere."""
    num_filters: int = 32
    """Filters K of the random start."""
    M: int = 16
    """Channels of the random start."""
    ell: int = 8
    """Filter length of the random start, per axis."""
    rank: int = 1
    """Spatial axes of the random start, 1 or 2."""
    stride: int = 1
    """Stride t per axis; the shifts that count are its multiples."""
    num_steps: int = 1000
    """Steps of the design."""
    restarts: int = 1
    """Designs, of which the best is taken; all but the first begin near the start."""
    keep_zeros: bool = False
    """Entries of the start that are zero stay zero."""
    D: int | None = None
    """Signal length per axis, circular; by default 4 ell (1-D) or 3 ell (2-D), or the next multiple of t."""
    S: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
    """Most non-zeros of X^(1) in a stripe."""
    noise: float = 0.0
    """Patch norm zeta_0 of Gaussian noise on the signal, as part of the threshold |X^(1)| / 2."""
    supports: int = 3
    """Supports for every S."""
    num_draws: int = 1000
    """Draws of signs for every support."""
    chunk_size: int = BLOCK
    """Draws per block."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Passes of one dictionary at one S: draws that lost the support, of how many, by support.

    Attributes:
        bank: of `BANKS`.
        asked: S asked for.
        reached: |X^(1)|_{0,inf}^Q of every support.
        lost: draws that lost the support, of every support.
        draws: draws of each.
        bound: bound (3) at the largest S reached, as computed.
    """

    bank: str
    asked: int
    reached: tuple[int, ...]
    lost: tuple[int, ...]
    draws: int
    bound: float

    @property
    def sparsity(self) -> float:
        """S reached, on average over the supports."""
        return sum(self.reached) / len(self.reached)

    @property
    def rate(self) -> float:
        """Share of all draws that lost the support."""
        return sum(self.lost) / (self.draws * len(self.lost))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval over signs, for these supports."""
        low, high = wilson(sum(self.lost), self.draws * len(self.lost))
        return float(low), float(high)


def _compute(parameters: DesignParameters, options: StudyOptions, folder: Path) -> Findings:
    p = dataclasses.replace(parameters, S=tuple(sorted(parameters.S)))
    check(p)
    start, origin = starting_filters(p, options)
    stride = (p.stride,) * (start.ndim - 2)
    signal = signal_shape(p, start.shape[2:])
    with progress_bar("designed dictionary", 1 + 2 * len(p.S), quiet=options.quiet) as bar:
        designed, history = _designed(p, start, stride, options, folder)
        banks = dict(zip(BANKS, (filters.normalize(start), designed), strict=True))
        facts = {name: facts_of(bank, stride) for name, bank in banks.items()}
        bar.advance(1, note=" to ".join(f"{facts[name]['coherence']:.4f}" for name in BANKS))
        cells = []
        for name, bank in banks.items():
            model = dcsc.layers([bank], signal, strides=[p.stride], padding="circular")
            capacity = capacity_of(model, max(p.S))
            for asked in p.S:
                cells.append(_cell(p, model, name, asked, facts[name]["coherence"], capacity, options, folder))
                bar.advance(1, note=f"{name}, S {asked}: P(lost) {cells[-1].rate:.3g}")
    count, channels, *length = start.shape
    welch = welch_bound(count, channels, length, stride=stride)
    content = {
        "shape": list(start.shape),
        "signal": list(signal),
        "stride": list(stride),
        "origin": origin,
        "welch": welch,
        "filters": FILTERS,
        "banks": {name: {**facts[name], **limits_of(p, facts[name]["coherence"], cells, name)} for name in BANKS},
        "cells": [
            {**dataclasses.asdict(cell), "S": cell.sparsity, "rate": cell.rate, "interval": list(cell.interval)}
            for cell in cells
        ],
    }  # fmt: skip
    return Findings(content, tables_of(p, content, cells), _dataset(p, history, facts, cells))


def check(p: DesignParameters) -> None:
    """Refuse parameters that do not fit, in the words of the command line.

    Raises:
        ValueError: see the messages.
    """
    for name in ("num_filters", "M", "ell", "stride", "num_steps", "restarts", "supports", "num_draws", "chunk_size"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31)
    if p.rank not in (1, 2):
        raise ValueError(f"expected --rank 1 or 2, got {p.rank}")
    if p.ensemble not in filters.ENSEMBLES:
        raise ValueError(f"expected --ensemble of {', '.join(filters.ENSEMBLES)}, got {p.ensemble!r}")
    if not p.S or len(set(p.S)) != len(p.S):
        raise ValueError(f"expected --S to be different values, at least one, got {p.S}")
    for value in p.S:
        positive(value, "--S", 1 << 20)
    if not 0 <= p.noise < 1:
        raise ValueError(f"expected --noise from 0 to below 1, the threshold, got {p.noise}")
    if p.start is None and (p.tensor or p.layout):
        raise ValueError("expected --start with --tensor and --layout, which belong to files; leave them out")
    if p.start is None and p.keep_zeros:
        raise ValueError("expected --start with --keep-zeros, since random filters have none; leave it out")


def starting_filters(p: DesignParameters, options: StudyOptions) -> tuple[FilterBank, str]:
    """Return the filters to begin with, [K, M, *ell], and where they come from."""
    dtype = np.dtype(options.precision)
    if p.start is not None:
        loaded = data.load_filters(p.start, tensor=p.tensor, layout=p.layout)
        bank = jnp.asarray(loaded.filters.astype(dtype))
        name = f"{Path(p.start).name}{f': {loaded.tensor}' if loaded.tensor else ''}"
    else:
        key = jax.random.fold_in(jax.random.key(options.seed), 1)
        bank = filters.ENSEMBLES[p.ensemble](key, p.num_filters, p.M, (p.ell,) * p.rank, normalize=True, dtype=dtype)
        name = f"{p.ensemble} filters"
    return bank, name


def signal_shape(p: DesignParameters, length: Sequence[int]) -> tuple[int, ...]:
    """Return the signal length per axis.

    Raises:
        ValueError: a length that is no multiple of the stride, or so short that atoms overlap on both sides.
    """
    sizes = []
    for ell in length:
        default = -(-(4 if len(length) == 1 else 3) * ell // p.stride) * p.stride
        sizes.append(default if p.D is None else p.D)
        if sizes[-1] % p.stride or sizes[-1] < 2 * ell - 1:
            least = -(-(2 * ell - 1) // p.stride) * p.stride
            raise ValueError(
                f"expected --D to be a multiple of --stride {p.stride} and at least {least}, where no two filters of "
                f"length {ell} overlap on both sides, got {sizes[-1]}"
            )
    return tuple(sizes)


def facts_of(bank: FilterBank, stride: tuple[int, ...]) -> dict[str, Any]:
    """Return the coherence of a bank over shifts, and how its correlations are distributed."""
    found = np.asarray(correlations(filters.normalize(bank), stride), float)
    count, middle = found.shape[0], [size // 2 for size in found.shape[2:-1]]
    lags = found.reshape(count, -1, count)
    # Of the first axis only lags from 0: those above it stand for their opposites too, in every direction.
    own = int(np.ravel_multi_index((0, *middle), found.shape[1:-1]))
    weight = np.full(lags.shape[1], 2.0)
    weight[: math.prod(found.shape[2:-1])] = 1.0
    sizes = np.abs(lags)
    sizes[np.arange(count), own, np.arange(count)] = np.nan
    weights = np.broadcast_to(weight[None, :, None], sizes.shape)
    kept = ~np.isnan(sizes)
    counts, edges = np.histogram(sizes[kept], BINS, range=(0.0, float(np.nanmax(sizes))), weights=weights[kept])
    energy = float(np.sum(weights[kept] * np.square(sizes[kept])))
    return {
        "coherence": float(coherence(bank, over="shifts", stride=stride)),
        "rms": math.sqrt(energy / float(np.sum(weights[kept]))),
        "energy": energy / count,
        "edges": edges,
        "density": counts / np.sum(counts) / np.diff(edges),
    }


def _designed(
    p: DesignParameters, start: FilterBank, stride: tuple[int, ...], options: StudyOptions, folder: Path
) -> tuple[FilterBank, np.ndarray]:
    """Return the designed filters and the history of mu; those that the folder holds already are read."""
    file = folder / FILTERS
    settings = [p.num_steps, p.restarts, p.keep_zeros, options.seed, start.shape, stride, str(start.dtype)]
    whole = hashlib.sha256(json.dumps(settings).encode() + np.asarray(start).tobytes())
    digest = np.frombuffer(whole.digest(), np.uint8)
    if not file.is_file():
        key = jax.random.fold_in(jax.random.key(options.seed), 2)
        found = design(
            key, start.shape[0], start.shape[1], start.shape[2:], stride=stride, num_steps=p.num_steps,
            restarts=p.restarts, start=start, keep_zeros=p.keep_zeros,
        )  # fmt: skip
        held = io.BytesIO()
        np.savez(held, filters=np.asarray(found.filters), history=np.asarray(found.history), design=digest)
        with writing(FILTERS):
            write_whole(file, held.getvalue())
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if np.array_equal(arrays["design"], digest):
                return jnp.asarray(arrays["filters"]), np.asarray(arrays["history"], float)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        pass  # nothing that was written here
    raise ResultError(
        f"expected {file} to hold filters designed from this start with these settings, got a file of something else; "
        "choose another --out"
    )


def _cell(
    p: DesignParameters, model: dcsc.Layers, name: str, asked: int, mu: float, capacity: Sequence[int],
    options: StudyOptions, folder: Path,
) -> Cell:  # fmt: skip
    """Draw signs on every support of one S."""
    op = model[0].op
    root = jax.random.fold_in(jax.random.key(options.seed), 3)
    reached, lost = [], []
    for number in range(p.supports):
        code_key, noise_key, sign_key = jax.random.split(jax.random.fold_in(root, number), 3)
        sample = generate(code_key, model, sparsity=asked, coherence=jnp.full(1, mu, op.dtype))
        added = None
        if p.noise:
            added = noise(noise_key, op.input_shape, op.length, patch_norm=p.noise / 2, stride=op.stride,
                          padding=op.padding, dtype=op.dtype)  # fmt: skip
        ready = prepare(model, sample.path[-1], added, capacity, measured=sample.measured)
        with results_folder(folder / "cells" / f"{name}-S{asked}-{number}") as place:
            result = mc.run(
                ready.draw(), sign_key, p.num_draws, chunk_size=min(p.num_draws, p.chunk_size), out=place,
                progress=False, spec={"bank": name, "S": asked, "support": number}, name="dcsc-design",
            )  # fmt: skip
        reached.append(int(sample.measured.sparsity[0]))
        lost.append(int(result["lost"]["successes"]))
    bound = probabilistic_bound(mu, 1.0, 1.0, float(max(reached)), p.noise / 2, op.num_filters, math.prod(op.shifts))
    return Cell(name, asked, tuple(reached), tuple(lost), p.num_draws, float(bound.unclipped))


def _dataset(
    p: DesignParameters, history: np.ndarray, facts: Mapping[str, Any], cells: Sequence[Cell]
) -> xr.Dataset:  # fmt: skip
    import xarray as xr

    shape = (len(BANKS), len(p.S))
    return xr.Dataset(
        {
            "coherence": ("step", history),
            "lost": (("bank", "S", "support"), np.asarray([cell.lost for cell in cells]).reshape(*shape, -1)),
            "reached": (("bank", "S", "support"), np.asarray([cell.reached for cell in cells]).reshape(*shape, -1)),
            "bound": (("bank", "S"), np.asarray([cell.bound for cell in cells]).reshape(shape)),
            "edges": (("bank", "edge"), np.stack([facts[name].pop("edges") for name in BANKS])),
            "density": (("bank", "bin"), np.stack([facts[name].pop("density") for name in BANKS])),
        },
        coords={"bank": list(BANKS), "S": list(p.S), "step": np.arange(len(history))},
        attrs={"draws": p.num_draws},
    )


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcsc_design_figure import design_figure

    return design_figure(report, dataset)


DCSC_DESIGN = Study(
    "dcsc-design",
    "A dictionary designed for small coherence, and what recovery gains",
    "Murray 2018, bounds (2) and (3); Papyan, Sulam, Elad 2017",
    DesignParameters,
    _compute,
    _figure,
)
