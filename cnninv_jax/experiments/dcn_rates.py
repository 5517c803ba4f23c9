"""How fast do random CNNs meet their limit, and how near is the limit to the picture? Random DCN, 5.2, 5.3 and A.3.

Three parts. The mean square of f - f* and of sin(Theta) over the width N, with the slope and prefactor of its fall; the
variance bounds (Thms 2, 6, 8) beside what is observed; the angle Phi between f* and the picture beside Thm 9's bound,
which needs no draws at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np

from cnninv_jax import data
from cnninv_jax._typing import Array, Float
from cnninv_jax.experiments.dcn_rates_bounds import compare_angles, compare_bounds
from cnninv_jax.experiments.dcn_rates_fit import FEWEST, fit_rate, relative_errors, weighted_mean
from cnninv_jax.experiments.dcn_rates_prefactor import prefactors
from cnninv_jax.experiments.dcn_rates_simulation import Simulated, draws_at, simulate
from cnninv_jax.experiments.dcn_rates_tables import rates_tables
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions
from cnninv_jax.images import to_grey
from cnninv_jax.limits.laws import moments_of
from cnninv_jax.limits.layers import plan
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Draws of a width from which a standard error may pass for known.
FEWEST_DRAWS = 16


@dataclasses.dataclass(frozen=True)
class RatesParameters:
    """Networks, pictures and draws.

    The paper states the theorems and simulates none of them; its CNNs have 3 x 3 filters, up to 13 convolutions, and
    pictures of 224 x 224.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    """Filters N of every convolution; at least four values, which share one program per filter length."""
    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Convolutions; the paper's "two-layer" network has one, and the mean over its channels. All from one draw."""
    lengths: tuple[int, ...] = (3, 5)
    """Filter lengths of networks with stride 1 and zeros around the maps; each is compiled anew."""
    route_lengths: tuple[int, ...] = (2,)
    """Filter lengths of networks with stride = length, for which Thm 8 is proved; each is compiled anew."""
    route_output: int = 2
    """Side of the deepest such network's output; pictures have this side times length^depth."""
    num_draws: int = 128
    """Draws per width, up to N = 256; above, fewer by sqrt(256 / N). A draw has networks for every picture."""
    delta: float = 0.05
    """Probability with which the bounds of Thms 2, 6 and 8 may fail."""
    law: Literal["gaussian", "sphere"] = "gaussian"
    """Law of the filters. On the sphere every filter is drawn, N^2 of them a layer, and every N is compiled: ask for
    smaller widths."""
    pictures: str = "embedded"
    """Folder of pictures; by default the five photographs inside scikit-image."""
    limit: int | None = None
    """Most pictures; by default all."""
    colour: bool = False
    """Keep three channels in the simulation; Thm 9 is about grey pictures either way."""
    size: int = 12
    """Side that pictures are brought to in the simulation; its cost grows with the fourth to sixth power."""
    angle_lengths: tuple[int, ...] = (3, 5, 7, 9, 11, 13, 15)
    """Filter lengths for Thm 9, as in the paper's Fig. 7c; each is compiled anew. Even ones, whose windows have no
    centre, will do as well."""
    angle_depths: tuple[int, ...] = (1, 2, 3)
    """Convolutions for Thm 9 and its extension to several."""
    angle_size: int = 224
    """Side that pictures are brought to for Thm 9."""


def _compute(parameters: RatesParameters, options: StudyOptions, folder: Path) -> Findings:
    p = checked(parameters)
    pictures = _pictures(p, p.size, options.precision)
    settings = [(False, length, pictures) for length in p.lengths]
    for length in p.route_lengths:
        settings.append((True, length, _pictures(p, p.route_output * length ** max(p.depths), options.precision)))
    found = []
    for one_route, length, images in settings:
        found += simulate(p, options, folder, images, one_route=one_route, length=length)
    names = _names(p)
    rates = {one.network.label: _rates(p, one) for one in found}
    bounds = {one.network.label: compare_bounds(p, one) for one in found}
    angles = compare_angles(p, _grey(p, p.angle_size, options.precision))
    content: dict[str, Any] = {
        "pictures": names,
        "widths": p.widths,
        "draws": found[0].draws,
        "rates": rates,
        "bounds": bounds,
        "angles": angles,
    }
    return Findings(content, rates_tables(p, content), _dataset(p, found, names))


def checked(p: RatesParameters) -> RatesParameters:
    """Return the parameters, lists in ascending order.

    Raises:
        ValueError: sizes or numbers that do not fit, in the words of the command line.
    """
    lists = ("widths", "depths", "lengths", "route_lengths", "angle_lengths", "angle_depths")
    for name in lists:
        values = getattr(p, name)
        flag = "--" + name.replace("_", "-")
        if not values and name != "route_lengths":
            raise ValueError(f"expected at least one value of {flag}, got none")
        for value in values:
            positive(value, flag, 1 << 24)
        if len(set(values)) < len(values):
            raise ValueError(f"expected every value of {flag} once, got {values}")
    for name in ("num_draws", "size", "route_output", "angle_size"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 24)
    if p.limit is not None:
        positive(p.limit, "--limit", 1 << 24)
    if len(p.widths) < FEWEST:
        raise ValueError(
            f"expected at least {FEWEST} values of --widths, for a slope with a bend and a degree of freedom, "
            f"got {p.widths}"
        )
    fewest = min(p.num_draws, draws_at(p, max(p.widths)))
    if fewest < FEWEST_DRAWS:
        raise ValueError(
            f"expected --num-draws to leave {FEWEST_DRAWS} draws at every width, since intervals take their errors as "
            f"known, got {fewest} at N = {max(p.widths)} with --num-draws {p.num_draws}; ask for more"
        )
    if not 0 < p.delta < 1:
        raise ValueError(f"expected --delta between 0 and 1, got {p.delta}")
    if p.law not in ("gaussian", "sphere"):
        raise ValueError(f"expected --law to be gaussian or sphere, got {p.law!r}")
    if min((p.route_output, *p.route_lengths)) < 2 and p.route_lengths:
        raise ValueError(
            "expected --route-output and --route-lengths of at least 2 (an output of one entry has no angle, a window "
            f"of one entry no sum), got {p.route_output} and {p.route_lengths}"
        )
    return dataclasses.replace(p, **{name: tuple(sorted(getattr(p, name))) for name in lists})


def _pictures(p: RatesParameters, size: int, dtype: str) -> Float[Array, "P M side side"]:
    images = jnp.asarray(data.load_pictures(p.pictures, size=size, limit=p.limit).images, dtype)
    return images if p.colour else to_grey(images)[:, None]


def _grey(p: RatesParameters, size: int, dtype: str) -> Float[Array, "P 1 side side"]:
    return _pictures(dataclasses.replace(p, colour=False), size, dtype)


def _names(p: RatesParameters) -> list[str]:
    return [file.name for file in data.picture_files(p.pictures)[: p.limit]]


def _rates(p: RatesParameters, one: Simulated) -> dict[str, Any]:
    """Return slopes and prefactors of one network, beside what theory says."""
    shape = one.images.shape[1:]
    moments = moments_of(p.law, plan(one.network.layers, shape), shape[0])
    theory = np.mean([prefactors(np.asarray(image), one.network.layers, moments) for image in one.images], axis=0)
    errors = {
        name: relative_errors(p.widths, mean, error, one.draws)
        for name, (mean, error) in (("deviation", one.deviation), ("sine_squared", one.sine_squared))
    }
    found: dict[str, Any] = {
        **dataclasses.asdict(one.network),
        "theorem_sum": moments[-1].K1 + sum(k.K2 for k in moments[:-1]),
        "deviation": dataclasses.asdict(fit_rate(p.widths, one.deviation[0], errors["deviation"])),
        "sine_squared": dataclasses.asdict(fit_rate(p.widths, one.sine_squared[0], errors["sine_squared"])),
        "first_order": {"deviation": float(theory[0]), "sine_squared": float(theory[1])},
    }
    if one.network.depth == 1:
        # Exact at every N (Thm 6's proof): all widths say the same number.
        mean, error = weighted_mean(one.deviation[0] * np.array(p.widths) / moments[0].K1, errors["deviation"])
        found["theorem_6"] = {"ratio": mean, "standard_error": error}
    return found


def _dataset(p: RatesParameters, found: list[Simulated], names: list[str]) -> xr.Dataset:
    import xarray as xr

    over = ("network", "width")

    def stacked(name: str, at: int) -> np.ndarray:
        return np.stack([getattr(one, name)[at] for one in found])

    means = {
        name + suffix: (over, stacked(name, at), {"long_name": f"{text}{of}"})
        for name, text in (("deviation", "|f - f*|^2 / |f*|^2"), ("sine_squared", "sin^2 Theta"))
        for at, (suffix, of) in enumerate((("", ", mean"), ("_error", ", standard error of the mean")))
    }
    by_picture = {
        "picture_deviation": ((*over, "picture"), np.stack([one.by_picture[0] for one in found])),
        "picture_deviation_error": ((*over, "picture"), np.stack([one.by_picture[1] for one in found])),
    }
    levels = (0.5, 1 - p.delta)
    quantiles = np.stack([
        [[np.quantile(sines, q) for q in levels] for sines in one.sines] for one in found
    ])  # fmt: skip
    return xr.Dataset(
        {
            **means,
            **by_picture,
            "sine_quantile": ((*over, "level"), quantiles, {"long_name": "quantile of sin Theta over draws, pictures"}),
            "draws": ("width", np.array(found[0].draws), {"long_name": "draws, each of networks for every picture"}),
        },
        {
            "network": [one.network.label for one in found],
            "depth": ("network", [one.network.depth for one in found]),
            "length": ("network", [one.network.length for one in found]),
            "one_route": ("network", [one.network.one_route for one in found]),
            "width": list(p.widths),
            "picture": names,
            "level": list(levels),
        },
    )


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.dcn_rates_figure import rates_figure

    return rates_figure(report, dataset)


DCN_RATES = Study(
    name="dcn-rates",
    title="Random CNNs on their way to their limit, and the limit beside the picture",
    source="Random DCN, Thms 2, 3, 6, 8 and 9",
    parameters=RatesParameters,
    compute=_compute,
    figure=_figure,
)
