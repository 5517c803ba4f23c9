"""How much of what enters a CReLU layer comes back from its pooled features: Table S1, Theorems A.5 and C.1.

Shang et al. 2016, appendix C, prints a mean ratio |x - x'| / |x| of 0.99 for random filters, and explains it by Theorem
C.1 with D = 48 x 5 x 5 and K = 48, which gives 0.98. The study settles what the printed number agrees with: it holds
the readings of D and of the number of columns beside Algorithm 2 itself, over white signals and over real features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data
from cnninv_jax._typing import PRNGKeyArray
from cnninv_jax.crelu.theorems import theorem_c1
from cnninv_jax.experiments.crelu_bound_draws import BoundDraw
from cnninv_jax.experiments.crelu_ratio_draws import RegionDraw, SubspaceDraw, SubspaceLaw
from cnninv_jax.experiments.crelu_ratio_features import Work, dataset_of, measure, summarised
from cnninv_jax.experiments.crelu_ratio_inputs import STEP, WINDOW, bring, number_of
from cnninv_jax.experiments.crelu_ratio_tables import tables
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions
from cnninv_jax.montecarlo import Result, clopper_pearson, mean_interval, run, sample_quantile, wilson
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: (D, K): appendix C's for conv2 and conv5; those of Table S3, where a CReLU has doubled the channels; and, with both
#: phases, 2 K columns in either D.
SIZES = ((1200, 48), (2400, 96), (2400, 48), (4800, 96), (1200, 96), (2400, 192), (4800, 192))
#: Sizes at which Theorem C.1 is simulated by Algorithm 1, and by how many times fewer draws.
PROJECTED = {(1200, 48): 1, (2400, 96): 4}
#: Single pooling regions on white signals: layer, K, M; M as in appendix C and as in Table S3.
REGIONS = (("conv2", 48, 48), ("conv2", 48, 96), ("conv5", 96, 96), ("conv5", 96, 192))
#: Draws of Theorem A.5, and which part of --num-bound each gets: two sizes that satisfy (S1), and two ways to break it.
BOUNDS: dict[str, tuple[float, dict[str, Any]]] = {
    "(S1): K = 4, l = 5, D = 20, 2 filters take part": (0.5, {}),
    "(S1): K = 8, l = 8, D = 64, 4 filters take part": (
        0.5,
        {"num_filters": 8, "length": 8, "signal_length": 64, "k": 4},
    ),
    "two shifts of every filter that takes part (K = 4)": (0.1, {"per_filter": 2}),
    "(S1) and white noise, 0.3 of the signal's norm (K = 4)": (0.1, {"noise": 0.3}),
}
#: Ratios up to this count as exact reconstruction.
EXACT = 1e-3
SMALLEST = {"num_filters": 4, "length": 5, "signal_length": 20, "k": 2}


@dataclasses.dataclass(frozen=True)
class RatioParameters:
    """Filters, pictures, and numbers of draws."""

    weights: str | None = None
    """File with a trained network's filters (.npz, .safetensors, .h5, .caffemodel), or fetch:vgg16; by default the
    CReLU (half) network of Table S3 with random filters. Known ReLU networks keep their ReLUs below the layer."""
    layers: tuple[str, ...] = ()
    """Layers; by default conv2 and conv5 of the random network, or a few of the file's first."""
    pool_after: tuple[str, ...] = ()
    """Layers that max-pooling (3 x 3, step 2) follows in a file whose network is not known by name."""
    pictures: str = "embedded"
    """Folder of pictures that pass through the network; by default the photographs inside scikit-image."""
    num_pictures: int = 16
    """Most pictures used."""
    picture_size: int = 32
    """Side the pictures are brought to; CIFAR's by default."""
    num_networks: int = 3
    """Sets of random filters per picture, with random layers below them where no file gives any."""
    num_patches: int = 8
    """Pooling regions per picture and set of filters."""
    num_draws: int = 1000
    """Draws of Theorem C.1 by Algorithm 1 at D = 1200, K = 48; a quarter as many at D = 2400, K = 96."""
    num_law: int = 40_000
    """Draws of Theorem C.1 by a uniform direction, for every size."""
    num_regions: int = 128
    """Draws of a pooling region's filters and white signal, per size."""
    num_bound: int = 100_000
    """Draws of Theorem A.5 on signals that satisfy (S1), over both sizes; a tenth as many for each way to break it."""
    tol: float = 1e-5
    """Relative residual at which every least squares stops."""
    max_steps: int = 500
    """Most iterations of a least squares."""


def _compute(parameters: RatioParameters, options: StudyOptions, folder: Path) -> Findings:
    p = parameters
    _check(p)
    dtype = jnp.dtype(options.precision)
    inputs = bring(p.weights, p.layers, p.picture_size, p.pool_after, dtype)
    pictures = data.load_pictures(p.pictures, size=p.picture_size, limit=p.num_pictures)
    if len(pictures.names) < 2:
        raise ValueError(
            f"expected at least 2 --pictures for an interval, got {len(pictures.names)} from {p.pictures} with "
            f"--num-pictures {p.num_pictures}"
        )
    law_key, draw_key, region_key, feature_key, bound_key = jax.random.split(jax.random.key(options.seed), 5)
    with results_folder(folder):
        theorem = _theorem(p, options, folder, law_key, draw_key)
        regions = _regions(p, options, folder, region_key)
        bounds = _bounds(p, options, folder, bound_key)
        work = Work(p.num_networks, p.num_patches, WINDOW, STEP, p.tol, p.max_steps)
        spec = {"parameters": _feature_parameters(p), "seed": options.seed, "precision": options.precision}
        measured = measure(
            inputs, pictures, work, feature_key, folder / "features.json", spec, dtype=dtype, quiet=options.quiet
        )
    content = {
        "theorem": theorem,
        "regions": regions,
        "features": summarised(inputs, measured),
        "bounds": bounds,
        "pictures": list(pictures.names),
        "notes": [*inputs.notes, *pictures.notes],
    }
    return Findings(content, tables(dataclasses.asdict(p), content), dataset_of(inputs, measured, pictures.names))


def _feature_parameters(p: RatioParameters) -> dict[str, Any]:
    names = ("weights", "pool_after", "pictures", "picture_size", "num_patches", "tol", "max_steps")
    return {name: getattr(p, name) for name in names}


def _check(p: RatioParameters) -> None:
    """Refuse impossible parameters by the names of their flags."""
    for name in ("num_pictures", "picture_size", "num_networks", "num_patches", "max_steps"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 20)
    for name, least in (("num_draws", 8), ("num_law", 2), ("num_regions", 2), ("num_bound", 100)):
        if positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 31) < least:
            raise ValueError(f"expected --{name.replace('_', '-')} of at least {least}, got {getattr(p, name)}")
    for name in ("layers", "pool_after"):
        if len(set(getattr(p, name))) != len(getattr(p, name)):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"expected {flag} to be different layers, got {' '.join(getattr(p, name))}")
    if not (math.isfinite(p.tol) and 0 < p.tol < 1):
        raise ValueError(f"expected --tol between 0 and 1, got {p.tol}")


def _mean(result: Result, leaf: str, at: int | None = None) -> dict[str, float]:
    """Return the mean of a leaf, or of one of its entries, with Student's 95% interval."""
    mean, variance, count = (
        float(np.asarray(result[leaf][name])[() if at is None else at]) for name in ("mean", "variance", "count")
    )
    low, high = mean_interval(mean, variance, count)
    return {"mean": mean, "low": float(low), "high": float(high), "count": int(count)}


def _theorem(
    p: RatioParameters, options: StudyOptions, folder: Path, law_key: PRNGKeyArray, draw_key: PRNGKeyArray
) -> list[dict[str, Any]]:
    law = run(
        SubspaceLaw(SIZES, options.precision), law_key, p.num_law, out=folder / "law", progress=not options.quiet,
        name="Theorem C.1 by uniform directions",
    )  # fmt: skip
    found = []
    for place, (dimension, subspace) in enumerate(SIZES):
        exact = theorem_c1(np.float64(dimension), np.float64(subspace))
        entry: dict[str, Any] = {"D": dimension, "K": subspace}
        for part in ("kept", "lost"):
            held = getattr(exact, part)
            entry[part] = {
                "printed": float(held.printed),
                "exact": float(held.exact),
                "deviation": float(held.deviation),
                "direction": _mean(law, part, place),
            }
        if (dimension, subspace) in PROJECTED:
            draws = p.num_draws // PROJECTED[dimension, subspace]
            result = run(
                SubspaceDraw(dimension, subspace, p.tol, p.max_steps, options.precision),
                jax.random.fold_in(draw_key, dimension), draws, out=folder / f"projection_{dimension}", lanes=8,
                chunk_size=128, progress=not options.quiet, name=f"Theorem C.1 by Algorithm 1, D = {dimension}",
            )  # fmt: skip
            for part in ("kept", "lost"):
                entry[part]["projection"] = _mean(result, part)
            entry["not_converged"] = int(result["not_converged"]["successes"])
        found.append(entry)
    return found


def _regions(p: RatioParameters, options: StudyOptions, folder: Path, key: PRNGKeyArray) -> list[dict[str, Any]]:
    found = []
    for layer, num_filters, channels in REGIONS:
        name = f"{layer}_{channels}"
        result = run(
            RegionDraw(num_filters, channels, 3, WINDOW, p.tol, p.max_steps, options.precision),
            jax.random.fold_in(key, number_of(name)), p.num_regions, out=folder / f"region_{name}", lanes=8,
            chunk_size=64, progress=not options.quiet, name=f"pooling regions of {layer}, M = {channels}",
        )  # fmt: skip
        found.append(
            {
                "layer": layer, "K": num_filters, "M": channels, "D": channels * (WINDOW + 2) ** 2,
                **{leaf: _mean(result, leaf) for leaf in ("ratio", "columns", "unselected")},
                "not_converged": int(result["not_converged"]["successes"]),
            }
        )  # fmt: skip
    return found


def _bounds(p: RatioParameters, options: StudyOptions, folder: Path, key: PRNGKeyArray) -> list[dict[str, Any]]:
    found = []
    for number, (title, (part, changed)) in enumerate(BOUNDS.items()):
        draw = BoundDraw(**{**SMALLEST, **changed, "precision": options.precision})
        result = run(
            draw, jax.random.fold_in(key, number_of(title)), max(2, math.ceil(part * p.num_bound)),
            keep=("ratio", "bound"), out=folder / f"bound_{number}", progress=not options.quiet,
            name=f"Theorem A.5, {title}",
        )  # fmt: skip
        draws = len(result.draws["ratio"])
        ratio, bound = (np.asarray(result.draws[name], np.float64) for name in ("ratio", "bound"))
        # What is given back to rounding is infinitely far below its bound, and says nothing of how loose that is.
        inexact = ratio > EXACT
        loose = bound[inexact] / ratio[inexact]
        exact = int(np.sum(~inexact))
        violated = int(result["violated"]["successes"])
        found.append(
            {
                "title": title,
                "satisfies": title.startswith("(S1):"),
                "draws": draws,
                "violated": violated,
                "violated_limit": float(clopper_pearson(violated, draws, side="upper")[1]),
                "violated_refined": int(result["violated_refined"]["successes"]),
                "undefined": int(result["undefined"]["successes"]),
                "ratio": _mean(result, "ratio"),
                "bound": _quantile(bound, 0.5),
                "loose": _quantile(loose, 0.5),
                "tightest": float(np.min(loose, initial=np.inf)),
                "exact": _proportion(exact, draws),
                **{name: _share(result, name, draws) for name in ("wrong_sign", "step_fails", "informative")},
                "histogram": _histogram(loose[np.isfinite(loose)]),
            }
        )
    return found


def _quantile(values: np.ndarray, q: float) -> dict[str, float]:
    middle, low, high = (float(value) for value in sample_quantile(values, q))
    return {"value": middle, "low": low, "high": high}


def _share(result: Result, leaf: str, draws: int) -> dict[str, float]:
    return _proportion(int(result[leaf]["successes"]), draws)


def _proportion(count: int, draws: int) -> dict[str, float]:
    low, high = wilson(count, draws)
    return {"value": count / draws, "low": float(low), "high": float(high)}


def _histogram(loose: np.ndarray) -> dict[str, Any]:
    """Return counts over log10, and how many lie below (a bound of 0 among them) and above all bins."""
    edges = np.linspace(-0.5, 2.5, 61)
    below, *counts, above = np.bincount(np.searchsorted(10**edges, loose, side="right"), minlength=62).tolist()
    return {"counts": counts, "edges": edges.tolist(), "below": below, "above": above}


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.crelu_ratio_figure import ratio_figure

    return ratio_figure(report)


CRELU_RATIO = Study(
    name="crelu-ratio",
    title="Reconstruction ratio of conv + CReLU + max-pooling: Table S1 beside Theorems C.1 and A.5",
    source="Shang et al. 2016, Table S1, Theorems A.5 and C.1",
    parameters=RatioParameters,
    compute=_compute,
    figure=_figure,
)
