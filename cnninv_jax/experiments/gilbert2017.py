"""Gilbert et al. 2017, Fig. 2: model-RIP ratios and reconstruction errors of 1-D Gaussian random filters."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax

from cnninv_jax import rip
from cnninv_jax.experiments.registry import NEW, Claim, Experiment
from cnninv_jax.montecarlo import Accumulator, Extremes, Histogram, Moments, Proportion

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from matplotlib.figure import Figure

#: Bins of every histogram; the figure joins them.
BINS = 4000
#: The paper: the error is "concentrated at around 0.1-0.2 and bound under 0.5".
ERROR_BOUND = 0.5


@dataclasses.dataclass(frozen=True)
class Fig2Parameters:
    """Sizes and laws of the simulation; the defaults are the paper's."""

    K: int = 96
    """Number of filters."""
    M: int = 32
    """Input channels."""
    ell: int = 5
    """Filter length."""
    D: int = 32
    """Signal length."""
    k: int = 10
    """Non-zeros of the code z, at most one per filter."""
    stride: int = 1
    """Stride t of the convolution; (D - ell) / t must be an integer."""
    values: Literal["uniform", "gaussian", "signs"] = "uniform"
    """Law of the non-zeros: uniform on [-1, 1], N(0, 1), or +-1."""
    ensemble: Literal["gaussian", "uniform", "logistic", "laplace", "sphere"] = "gaussian"
    """Law of the filter entries, scaled so that a filter has norm 1 on average."""
    normalize: bool = False
    """Scale every filter to norm 1 exactly."""
    sampling: Literal["auto", "plain", "conditional"] = "auto"
    """plain draws every filter; conditional those outside the support through their responses only (same law)."""
    products: Literal["float32", "tf32", "bfloat16"] = dataclasses.field(default="float32", metadata=NEW)
    """What the inputs of products are rounded to: float32 rounds nothing; tf32 and bfloat16 run on tensor cores."""


def _draw(parameters: Fig2Parameters, dtype: jax.typing.DTypeLike) -> Callable[[jax.Array], Any]:
    p = parameters
    return functools.partial(
        rip.draw_ratios,
        num_filters=p.K,
        channels=p.M,
        length=p.ell,
        signal_shape=p.D,
        k=p.k,
        stride=p.stride,
        values=p.values,
        ensemble=p.ensemble,
        normalize=p.normalize,
        sampling=p.sampling,
        products=p.products,
        dtype=dtype,
    )


def _statistics(parameters: Fig2Parameters) -> Mapping[str, tuple[Accumulator, ...]]:
    # |W x|^2 / |x|^2 is about 1 + K / (M t): the histogram of the full ratio has to reach beyond its root.
    full = 3.0 * math.sqrt(1.0 + parameters.K / (parameters.M * parameters.stride))
    highs = {"model_rip": 3.0, "restricted_gram": 4.0, "full_gram": full}
    basic = (Moments(), Extremes())
    groups: dict[str, tuple[Accumulator, ...]] = {}
    for name in rip.READINGS:
        histogram = Histogram(0.0, highs.get(name, 4.0), BINS)
        bound = (Proportion(below=ERROR_BOUND),) if name.startswith("error") else ()
        groups[name] = (*basic, histogram, *bound)
    return groups


def _claims(parameters: Fig2Parameters) -> Mapping[str, Claim]:
    # The paper's parameters, whatever way they are computed.
    if dataclasses.replace(parameters, sampling="auto", products="float32") != Fig2Parameters():
        return {}
    centred = Claim("tightly centred around 1", 0.95, 1.05)
    error = Claim("around 0.1-0.2, under 0.5", 0.1, 0.2)
    return {name: error if name.startswith("error") else centred for name in rip.READINGS}


def _describe(parameters: Fig2Parameters) -> str:
    p = parameters
    n = (p.D - p.ell) // p.stride + 1
    rounding = "" if p.products == "float32" else f"; {p.products} products"
    law = f"{'unit-norm ' if p.normalize else ''}{p.ensemble} filters, {p.values} code"
    return f"K={p.K}, M={p.M}, l={p.ell}, D={p.D}, t={p.stride}, n={n}, k={p.k}; {law}; valid padding{rounding}"


def _figure(dataset: xr.Dataset, claims: Mapping[str, Claim], subtitle: str) -> Figure:
    from cnninv_jax.experiments.render import ratio_panels

    # Without the paper's claims, the parameters are not the paper's.
    title = "Gilbert et al. 2017, Fig. 2" + ("" if claims else ", at other parameters")
    return ratio_panels(dataset, claims, title, subtitle)


FIG2 = Experiment(
    name="gilbert-fig2",
    title="Model-RIP ratios and one-step reconstruction errors of 1-D random filters",
    source="Gilbert et al. 2017, Fig. 2",
    parameters=Fig2Parameters,
    num_draws=400_000,
    chunk_size=4096,
    lanes=64,
    headline="error_model",
    labels=rip.READINGS,
    draw=_draw,
    statistics=_statistics,
    claims=_claims,
    describe=_describe,
    figure=_figure,
)
