"""Random DCN, A.1.2: other laws than the Gaussian, their moments, and how far off the convergence value is with them.

Lemma 5, E relu(w y) = k_1 |y|, asks for an isotropic law. Uniform, logistic and Laplace entries are not isotropic; the
study simulates E relu(w y) and puts it over k_1 |y|, with the law's own k_1 and with that of a Gaussian of the same
variance. E relu(w y)^2 = k_2 |y|^2 holds for any symmetric law of uncorrelated entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data
from cnninv_jax.experiments import dcn_laws_draws as draws
from cnninv_jax.experiments.dcn_laws_tables import tables
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions
from cnninv_jax.images import to_grey
from cnninv_jax.limits.laws import FilterLaw
from cnninv_jax.limits.layers import Conv
from cnninv_jax.limits.routes import constant, weighted_norm
from cnninv_jax.limits.values import convergence_value
from cnninv_jax.montecarlo import mean_interval, run
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnninv_jax._typing import Float

LawName: TypeAlias = Literal["gaussian", "sphere", "uniform", "logistic", "laplace"]
#: The isotropic ones first.
LAWS: tuple[LawName, ...] = get_args(LawName)
#: What the filters see: part of a picture, and all light in one pixel, which no kernel size averages.
INPUTS = ("photograph", "one pixel")
#: Draws per block, the unit of the journals.
BLOCK = 32
#: Standard errors below this part of a number are rounding: no draw differs from another.
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class DcnLawsParameters:
    """Sizes; the laws and their scales are those of Random DCN, A.1.2, and the sphere."""

    laws: tuple[LawName, ...] = LAWS
    """Laws of the filters."""
    kernels: tuple[int, ...] = (1, 3, 5, 7, 11, 15)
    """Kernel sizes, the side of a filter."""
    picture: Path | None = None
    """Picture whose middle the filters see, in grey; by default a photograph inside scikit-image."""
    size: int = 224
    """Side that the picture is brought to."""
    num_draws: int = 1024
    """Draws, each with filters of its own and with a network of each kind."""
    filters: int = 512
    """Filters of every kernel size in a draw, each with its negative beside it."""
    width: int = 512
    """Filters of the first convolution in the networks of two."""


def _compute(p: DcnLawsParameters, options: StudyOptions, folder: Path) -> Findings:
    _check(p)
    dtype = jnp.dtype(options.precision)
    picture = p.picture or data.picture_files()[0]
    grey = np.asarray(to_grey(jnp.asarray(data.read_picture(picture, p.size), dtype)))
    patches = tuple(inputs_of(grey, side) for side in p.kernels)
    whole = inputs_of(grey, draws.NETWORK_SIDE)
    content: dict[str, Any] = {
        "picture": Path(picture).name, "laws": list(p.laws), "inputs": list(INPUTS), "kernels": list(p.kernels),
        "num_draws": p.num_draws, "num_filters": p.num_draws * p.filters, "width": p.width,
        "moments": {}, "answers": {}, "networks": {},
    }  # fmt: skip
    names = ("first", "second", "moments", *draws.networks())
    for name in p.laws:
        law = draws.paper_law(name)
        draw = jax.tree_util.Partial(
            draws.one_draw, patches=tuple(map(jnp.asarray, patches)), inputs=jnp.asarray(whole), law=law,
            num_filters=p.filters, width=p.width,
        )  # fmt: skip
        key = jax.random.fold_in(jax.random.key(options.seed), LAWS.index(name))
        result = run(
            draw, key, p.num_draws, chunk_size=BLOCK, lanes=1, keep=names, statistics={},
            out=folder / "draws" / name, progress=not options.quiet, name=f"{name} filters",
        )  # fmt: skip
        held = {leaf: np.asarray(values, np.float64) for leaf, values in result.draws.items()}
        content["moments"][name] = compare_moments(law, held["moments"])
        content["answers"][name] = _answers(law, patches, held)
        content["networks"][name] = _network_ratios(law, whole, held)
    content["summary"] = summary(content)
    return Findings(content, tables(content))


def _check(p: DcnLawsParameters) -> None:
    """Refuse impossible parameters by the names of their flags."""
    if p.picture is not None and not p.picture.is_file():
        raise ValueError(f"expected --picture to be the file of a picture, found none at {p.picture}; check the path")
    for name in ("size", "filters", "width"):
        positive(getattr(p, name), f"--{name}", 1 << 24)
    if not p.laws or len(set(p.laws)) < len(p.laws) or not set(p.laws) <= set(LAWS):
        raise ValueError(f"expected --laws to be different ones of {', '.join(LAWS)}, got {' '.join(p.laws) or 'none'}")
    if not p.kernels or len(set(p.kernels)) < len(p.kernels):
        raise ValueError(f"expected --kernels to be different sizes, got {' '.join(map(str, p.kernels)) or 'none'}")
    for side in p.kernels:
        positive(side, "--kernels", 1 << 16)
    if max(*p.kernels, draws.NETWORK_SIDE) > p.size:
        raise ValueError(
            f"expected --kernels of at most --size {p.size}, the picture's side, got {max(p.kernels)}; raise it"
        )
    if not 2 <= p.num_draws <= 1 << 32:
        raise ValueError(f"expected --num-draws of at least 2 for an interval, got {p.num_draws}")


def inputs_of(grey: np.ndarray, side: int) -> np.ndarray:
    """Return the middle of a picture, and one bright pixel in the middle of nothing, [inputs, 1, side, side]."""
    top, left = ((length - side) // 2 for length in grey.shape)
    alone = np.zeros((side, side), grey.dtype)
    # The pixel that the most windows of two convolutions see; for one filter any would do.
    alone[side // 2, side // 2] = 1
    return np.stack([grey[top : top + side, left : left + side], alone])[:, None]


def compare_moments(law: FilterLaw, means: Float[np.ndarray, "draws 3"]) -> dict[str, dict[str, float | None]]:
    """Return k_1, k_2, k_4, K_1, K_2 in closed form, simulated, the standard errors and how many of them lie between.

    Args:
        law: the law.
        means: of |w_1|^m / 2 in every draw.
    """
    closed = draws.own_moments(law, draws.ENTRY_LENGTH**2)
    found = {}
    for name in ("k1", "k2", "k4", "K1", "K2"):
        value, error = jackknife(means, lambda k, name=name: _number(name, *k))
        exact = getattr(closed, name)
        z = None if error < ROUNDING * exact else (value - exact) / error
        found[name] = {"closed": exact, "simulated": value, "error": error, "z": z}
    return found


def _number(name: str, k1: float, k2: float, k4: float) -> float:
    held = {"k1": k1, "k2": k2, "k4": k4, "K1": k2 / k1**2 - 1, "K2": k4 / k2**2 - 1}
    return held[name]


def jackknife(values: np.ndarray, function: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Return a smooth function of the mean of the rows, and its standard error (Tukey 1958).

    Args:
        values: independent rows.
        function: of one mean row.
    """
    count, total = len(values), values.sum(axis=0)
    without = np.array([function((total - row) / (count - 1)) for row in values])
    return function(total / count), float(np.sqrt((count - 1) * np.mean((without - without.mean()) ** 2)))


def _ratio(values: np.ndarray, expected: float, exact: float | None = None) -> dict[str, float]:
    """Return the mean over what was expected, with a 95% interval and, where known, what it should be."""
    ratios = values / expected
    mean, variance = float(ratios.mean()), float(ratios.var(ddof=1))
    low, high = mean_interval(mean, variance, len(ratios))
    error = float(np.sqrt(variance / len(ratios)))
    found = {"ratio": mean, "low": float(low), "high": float(high), "error": error}
    return found if exact is None else {**found, "exact": exact / expected}


def _answers(law: FilterLaw, patches: tuple[np.ndarray, ...], held: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return, for both inputs and every kernel size, mean outputs over f* and mean squares over k_2 |y|^2."""
    found: dict[str, Any] = {name: {"own": [], "gaussian": [], "square": []} for name in INPUTS}
    for place, both in enumerate(patches):
        own = draws.own_moments(law, both[0].size)
        for column, name in enumerate(INPUTS):
            image, values = both[column], held["first"][:, place, column]
            exact = draws.expected_answer(law, image)
            layers = (Conv(image.shape[-1]),)
            norm = float(weighted_norm(image, layers).sum())
            for reading, moments in (("own", own), ("gaussian", draws.gaussian_moments(law))):
                limit = constant(layers, image.shape, filters=moments) * norm
                found[name][reading].append(_ratio(values, limit, exact))
            square = own.k2 * float(np.sum(np.square(image, dtype=np.float64)))
            found[name]["square"].append(_ratio(held["second"][:, place, column], square, square))
    return found


def _network_ratios(law: FilterLaw, inputs: np.ndarray, held: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return mean outputs of the networks of two convolutions over f*, in both readings."""
    entries = (draws.NETWORK_SIDE - 1) ** 2
    gaussian = draws.gaussian_moments(law)
    # A filter of the second convolution has as many entries as the first has filters: on the sphere, a Gaussian's.
    own = [draws.own_moments(law, entries), gaussian if law.name == "sphere" else draws.own_moments(law, 1)]
    found: dict[str, Any] = {}
    for kind, layers in draws.networks().items():
        found[kind] = {name: {} for name in INPUTS}
        limits = {
            reading: jax.vmap(
                lambda image, layers=layers, moments=moments: convergence_value(image, layers, filters=moments)
            )(jnp.asarray(inputs)).ravel()
            for reading, moments in (("own", own), ("gaussian", gaussian))
        }
        for column, name in enumerate(INPUTS):
            known = draws.expected_network_ratio(law, kind, name)
            exact = None if known is None else known * float(limits["gaussian"][column])
            for reading, limit in limits.items():
                found[kind][name][reading] = _ratio(held[kind][:, column], float(limit[column]), exact)
    return found


def summary(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest |z| of the simulated moments, and of the ratios against what they should be."""
    z = [abs(entry["z"]) for law in content["moments"].values() for entry in law.values() if entry["z"] is not None]
    off = [
        abs(entry["ratio"] - entry["exact"]) / entry["error"]
        for law in content["answers"].values()
        for readings in law.values()
        for entry in readings["gaussian"] + readings["square"]
        if entry["error"] > ROUNDING
    ]
    largest = {"moments_z": max(z, default=0.0), "answers_z": max(off, default=0.0)}
    return {**largest, "moments": len(z), "answers": len(off)}


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcn_laws_figure import laws_figure

    return laws_figure(report)


DCN_LAWS = Study(
    name="dcn-laws",
    title="Laws of the filters: their moments, and how far off f* is where Lemma 5 does not hold",
    source="Random DCN, A.1.2 and Lemma 5",
    parameters=DcnLawsParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_LAWS", "LAWS", "DcnLawsParameters"]
