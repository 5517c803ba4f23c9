"""How does the S at which a layer loses its support scale with mu? Random signs against worst-case signs.

The inverse of bound (3) of Murray 2018 has S ~ mu^-2, the uniform bound (2) S ~ mu^-1. Both are sufficient. The study
finds the critical S itself, over dictionaries of different coherence: with random signs by simulation, with the worst
signs exactly, and puts S = c mu^b to each family of dictionaries.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import montecarlo as mc
from cnninv_jax.dcsc.bounds import sparsity_limit, uniform_bound
from cnninv_jax.experiments.dcsc_scaling_draws import (
    NestedDraw,
    coherence_of,
    correlations_of,
    offsets_of,
    positions_of,
)
from cnninv_jax.experiments.dcsc_scaling_families import FAMILIES
from cnninv_jax.experiments.dcsc_scaling_fit import Crossing, critical, fit_power, spread
from cnninv_jax.experiments.dcsc_scaling_tables import scaling_tables
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from cnninv_jax._typing import PRNGKeyArray

#: What critical S is fitted over: mu, the root mean square, and for equal correlations mu / (1 - 2 mu).
SIZES = ("mu", "rms", "own")
#: Fewest non-zeros of a first run, and by how much it exceeds what Gaussian sums let expect.
FEWEST, MARGIN = 32, 2.0
BLOCK = 500


@dataclasses.dataclass(frozen=True)
class ScalingParameters:
    """Families of dictionaries, their levels, and how critical S is found."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """Of equal (all atoms have the same product mu), gaussian (Gaussian filters of more and more channels), mixture
    (designed filters mixed to a given mu), pairs (Gaussian, and every filter has one partner with product mu)."""
    num_filters: int = 32
    """Filters K."""
    ell: int = 8
    """Filter length; the signal is circular and so short that every two atoms overlap: a code is one stripe."""
    stride: int = 1
    """Stride t."""
    M: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    """Channels of the Gaussian filters, a level each."""
    equal_mu: tuple[float, ...] = (0.1429, 0.1111, 0.0769, 0.0526, 0.037)
    """mu of equal correlations. A support is lost where a sum of signs, an integer, reaches 1/(2 mu): with mu of about
    1/7, 1/9, ... that is half way between two integers, and critical S does not jump."""
    mixture_mu: tuple[float, ...] = (0.18, 0.14, 0.11, 0.085, 0.065)
    """mu of the mixtures: of Gaussian filters and filters orthogonal over shifts, while mu is below that of the former
    (0.2 for 40 channels of length 8); above it of Gaussian filters and one filter."""
    pair_mu: tuple[float, ...] = (0.07, 0.1, 0.14, 0.18, 0.22)
    """mu of the pairs; where it is smaller than that of the Gaussian filters around them, theirs counts."""
    channels: int = 40
    """Channels of equal correlations and mixtures."""
    pair_channels: int = 512
    """Channels of the pairs."""
    least: float = 4.0
    """Smallest critical S that is fitted: a smaller one is hardly a sum of many terms, which the exponents speak of. A
    level with such a dictionary is left out whole."""
    dictionaries: int = 2
    """Dictionaries of every level."""
    num_draws: int = 1000
    """Draws of places and signs for each dictionary."""
    p: tuple[float, ...] = (0.5, 0.01)
    """Probabilities of losing the support at which S is critical; the first is drawn and fitted first."""
    noise: float = 0.0
    """Level zeta_0 of Gaussian noise on the signal: its norm on the patch where it is largest; X has magnitudes 1."""
    noises: int = 64
    """Noises for every dictionary, of which a draw takes one."""

    @property
    def positions(self) -> int:
        """Positions n of an atom."""
        return positions_of(self.ell, self.stride)


@dataclasses.dataclass(frozen=True)
class Point:
    """One dictionary: the size of its correlations, and its critical S by probability."""

    family: str
    level: float
    dictionary: int
    mu: float
    rms: float
    random: tuple[Crossing, ...]
    worst: tuple[Crossing, ...]
    any_support: float
    uniform: float
    bound: tuple[float, ...]
    error: tuple[float, ...]
    worst_error: tuple[float, ...]


def _compute(parameters: ScalingParameters, options: StudyOptions, folder: Path) -> Findings:
    check(parameters)
    p, points = parameters, []
    root = jax.random.key(options.seed)
    cells = [(name, level) for name in p.families for level in levels_of(p, name)]
    with progress_bar("critical S", len(cells) * p.dictionaries, quiet=options.quiet) as bar:
        for name, level in cells:
            for number in range(p.dictionaries):
                place = folder / f"{name}-{level!r}-{number}"
                key = _fold(root, list(FAMILIES).index(name), bits_of(level), number)
                points.append(_point(key, p, name, level, number, options, place))
                bar.advance(1, note=f"{name}: mu {points[-1].mu:.3f}, S {points[-1].random[0][0]:.3g}")
    fits = {name: fits_of([point for point in points if point.family == name], p) for name in p.families}
    content = {
        "positions": p.positions,
        "atoms": p.positions * p.num_filters,
        "points": [dataclasses.asdict(point) for point in points],
        "fits": fits,
    }
    return Findings(content, scaling_tables(p, points, fits), _dataset(points, p))


def check(p: ScalingParameters) -> None:
    """Refuse sizes that do not fit, in the words of the command line.

    Raises:
        ValueError: see the messages.
    """
    for name in ("num_filters", "ell", "stride", "channels", "pair_channels", "dictionaries", "num_draws", "noises"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31)
    for number in p.M:
        positive(number, "--M", 1 << 31)
    if not p.families or len(set(p.families)) != len(p.families) or not set(p.families) <= set(FAMILIES):
        raise ValueError(f"expected --families of {', '.join(FAMILIES)}, each at most once, got {p.families}")
    for name in p.families:
        values = levels_of(p, name)
        flag = "--" + FAMILIES[name].flag.replace("_", "-")
        if not values or len(set(values)) != len(values):
            raise ValueError(f"expected {flag} to be different values, at least one, got {values}")
        if FAMILIES[name].level == "mu" and not all(0 < value < 1 for value in values):
            raise ValueError(f"expected {flag} between 0 and 1, got {values}")
    if not p.p or len(set(p.p)) != len(p.p) or not all(0 < level < 1 for level in p.p):
        raise ValueError(f"expected --p to be different numbers between 0 and 1, at least one, got {p.p}")
    if not 0 <= p.noise < 0.5:
        raise ValueError(
            f"expected --noise from 0 to below 0.5, got {p.noise}; half of X is the threshold, and noise of its size "
            "loses any support"
        )
    if not p.least > 0:
        raise ValueError(f"expected --least to be a positive number, got {p.least}")
    if p.num_filters * p.positions < 4:
        raise ValueError(
            f"expected at least 4 atoms, got {p.num_filters} --num-filters at {p.positions} positions; take more"
        )
    if "equal" in p.families and p.num_filters >= p.channels:
        raise ValueError(
            f"expected more --channels than the {p.num_filters} --num-filters of equal correlations, got {p.channels}"
        )


def levels_of(p: ScalingParameters, name: str) -> tuple[float, ...]:
    """Return the levels of a family."""
    return tuple(getattr(p, FAMILIES[name].flag))


def bounds_of(p: ScalingParameters, mu: float) -> tuple[float, tuple[float, ...]]:
    """Return the S below which the uniform bound (2) promises the support, and up to which bound (3) does with 1 - p.

    One column (d = 1), X_min = X_max = 1.
    """
    one = np.ones(1)
    limits = [
        sparsity_limit(mu * one, one, one, p.noise * one, p.num_filters * one, p.positions * one, chance)
        for chance in p.p
    ]
    uniform = uniform_bound(mu * one, one, one, p.noise * one)
    return float(uniform.limit[0]), tuple(max(float(limit.clipped[0]), 0.0) for limit in limits)


def bits_of(level: float) -> int:
    """Return what stands for a level in keys: an integer itself, of other numbers the bits of their float32."""
    return level if isinstance(level, int) else int(np.float32(level).view(np.uint32))


def _fold(key: PRNGKeyArray, *numbers: int) -> PRNGKeyArray:
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def _point(
    key: PRNGKeyArray, p: ScalingParameters, name: str, level: float, number: int, options: StudyOptions, place: Path
) -> Point:
    """Find the critical S of one dictionary."""
    bank_key, noise_key, draw_key = jax.random.split(key, 3)
    filters = np.array(FAMILIES[name].bank(bank_key, level, p), np.float64)
    filters /= np.sqrt(np.square(filters).sum(axis=(1, 2), keepdims=True))
    correlations = correlations_of(filters, p.positions, p.stride)
    sizes = coherence_of(correlations)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(noise_key)))
    offsets = offsets_of(generator, filters, p.positions, p.stride, p.noise, p.noises)
    counts = _counts(draw_key, p, correlations, offsets, sizes.root_mean_square, options, place)
    random, worst = ([critical(counts[kind], p.num_draws, chance) for chance in p.p] for kind in ("random", "worst"))
    uniform, bound = bounds_of(p, sizes.largest)
    return Point(
        name, level, number, sizes.largest, sizes.root_mean_square,
        tuple(random), tuple(worst), float(sizes.any_support), uniform, bound,
        tuple(map(spread, random)), tuple(map(spread, worst)),
    )  # fmt: skip


def _counts(
    key: PRNGKeyArray,
    p: ScalingParameters,
    correlations: np.ndarray,
    offsets: np.ndarray,
    rms: float,
    options: StudyOptions,
    place: Path,
) -> Mapping[str, np.ndarray]:
    """Return in how many draws the support of 1, 2, ... non-zeros was lost, up to an S at which most were."""
    total = len(correlations)
    expected = MARGIN * (0.5 - p.noise) ** 2 / (2 * rms**2 * math.log(2 * total / min(max(p.p), 0.5)))
    most = min(1 << max(math.ceil(math.log2(expected)), int(math.log2(FEWEST))), total)
    tables = [jnp.asarray(array, options.precision) for array in (correlations, offsets)]
    block = BLOCK if jax.default_backend() == "cpu" else None
    while True:
        with results_folder(place / f"S{most}") as journal:
            result = mc.run(
                NestedDraw(tables[0], tables[1], most), key, p.num_draws, chunk_size=block, out=journal, progress=False,
                name="dcsc-scaling",
            )  # fmt: skip
        found = {kind: np.asarray(result[kind]["proportion"]) * p.num_draws for kind in ("random", "worst")}
        if most == total or found["random"][-1] >= max(p.p) * p.num_draws:
            return {kind: np.rint(values) for kind, values in found.items()}
        most = min(2 * most, total)


def fits_of(points: Sequence[Point], p: ScalingParameters) -> dict[str, Any]:
    """Return the fitted exponents of one family: by kind of S, over mu and over the root mean square.

    A level is fitted where all of its dictionaries have S >= ``least``, and none of them otherwise: to leave out single
    ones by what came out would keep the large S of a level only.
    """
    groups = [point.level for point in points]
    found: dict[str, Any] = {}
    across = {size: [getattr(point, size) for point in points] for size in SIZES if size != "own"}
    if points and points[0].family == "equal":
        across["own"] = [own_share(point.mu) for point in points]
    for label, sizes, errors in series(points, p):
        left_out = {
            level for level, size in zip(groups, sizes, strict=True) if not (math.isfinite(size) and size >= p.least)
        }
        sizes = [math.nan if level in left_out else size for level, size in zip(groups, sizes, strict=True)]
        found[label] = {size: dataclasses.asdict(fit_power(x, sizes, errors, groups)) for size, x in across.items()}
    return found


def own_share(mu: float) -> float:
    """Return mu / (1 - 2 mu), in which equal correlations have S ~ x^-2 from small S on.

    All responses share the sum s of the signs. An active atom of the other sign takes its own out of it and fails at
    mu (|s| + 1) >= 1/2, before any other: S is critical where |s| >= 1 / (2 mu) - 1 has probability p, near
    S = ((1 / (2 mu) - 1) / z)^2 with P(|normal| >= z) = p.
    """
    return mu / (1 - 2 * mu) if mu < 0.5 else math.inf


def series(points: Sequence[Point], p: ScalingParameters) -> Iterator[tuple[str, list[float], list[float]]]:
    """Yield what is fitted: a label, critical S of every dictionary, and standard errors of its logarithm."""
    for at, chance in enumerate(p.p):
        yield f"random {chance!r}", [point.random[at][0] for point in points], [point.error[at] for point in points]
    for at, chance in enumerate(p.p):
        yield (
            f"worst {chance!r}", [point.worst[at][0] for point in points], [point.worst_error[at] for point in points]
        )  # fmt: skip
    yield "any support", [point.any_support for point in points], [0.0] * len(points)


def _dataset(points: Sequence[Point], p: ScalingParameters) -> xr.Dataset:
    import xarray as xr

    def column(name: str) -> np.ndarray:
        return np.asarray([getattr(point, name) for point in points])

    arrays: dict[str, Any] = {
        name: ("point", column(name))
        for name in ("family", "level", "dictionary", "mu", "rms", "any_support", "uniform")
    }
    for kind in ("random", "worst"):
        for at, end in enumerate(("", "_low", "_high")):
            arrays[kind + end] = (("point", "p"), column(kind)[:, :, at])
    arrays["bound"] = (("point", "p"), column("bound"))
    return xr.Dataset(arrays, coords={"p": np.asarray(p.p)})


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.dcsc_scaling_figure import scaling_figure

    return scaling_figure(report, dataset)


DCSC_SCALING = Study(
    name="dcsc-scaling",
    title="Critical S against coherence: random signs, worst-case signs, and both bounds",
    source="Murray & Tanner 2018, bounds (2) and (3)",
    parameters=ScalingParameters,
    compute=_compute,
    figure=_figure,
)
