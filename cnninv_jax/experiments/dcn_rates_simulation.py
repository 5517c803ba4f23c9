"""The simulation of `dcn-rates`: one Monte-Carlo run per kind of network and width, all depths from the same draws."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from cnninv_jax._typing import Array, Float
from cnninv_jax.experiments.dcn_rates_draws import RatesDraw, layers_of
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import StudyOptions
from cnninv_jax.limits.layers import Conv
from cnninv_jax.montecarlo import Moments, Result, sweep

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcn_rates import RatesParameters

#: Draws side by side on a CPU, and per block: what a killed study may lose.
LANES = 8
#: Up to this width every width has all the draws asked for.
FULL_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class Kind:
    """One network, but for its width.

    Attributes:
        depth: convolutions.
        length: filter length.
        one_route: windows side by side, see `layers_of`.
    """

    depth: int
    length: int
    one_route: bool

    @property
    def layers(self) -> tuple[Conv, ...]:
        """The description."""
        return layers_of(self.depth, self.length, one_route=self.one_route)

    @property
    def label(self) -> str:
        """What people read."""
        return f"{self.depth} conv {self.length}x{self.length}" + (f"/{self.length}" if self.one_route else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Simulated:
    """What was drawn of one network at all widths.

    Attributes:
        network: which one.
        images: the pictures.
        draws: draws per width.
        deviation: mean of |f - f*|^2 / |f*|^2 over draws and pictures, and its standard error, by width.
        sine_squared: the same of sin^2 Theta.
        by_picture: mean and standard error of the deviation, [widths, P] each.
        sines: sin Theta of every draw and picture, [draws, P] for each width.
    """

    network: Kind
    images: Float[Array, "P M *D"]
    draws: list[int]
    deviation: tuple[np.ndarray, np.ndarray]
    sine_squared: tuple[np.ndarray, np.ndarray]
    by_picture: tuple[np.ndarray, np.ndarray]
    sines: list[np.ndarray]


def draws_at(p: RatesParameters, width: int) -> int:
    """Return how many draws a width has: fewer where they are dear, by the root of their cost."""
    return math.ceil(p.num_draws * min(1.0, math.sqrt(FULL_WIDTH / width)))


def simulate(
    p: RatesParameters,
    options: StudyOptions,
    folder: Path,
    images: Float[Array, "P M *D"],
    *,
    one_route: bool,
    length: int,
) -> list[Simulated]:
    """Draw networks of one filter length, of all depths and widths.

    Args:
        p: the parameters, checked.
        options: of the study.
        folder: of the study; every width keeps a sweep of its own there, with its journal.
        images: pictures.
        one_route: windows side by side.
        length: filter length.
    """
    draw = RatesDraw(images, p.depths, p.law)
    traced = ["width"] if p.law == "gaussian" else []
    found: list[Result] = []
    for width in p.widths:
        cell = {"width": width, "length": length, "one_route": one_route}
        place = folder / "draws" / f"{'stride' if one_route else 'same'}-{length}-{width}"
        with results_folder(place) as out:
            result = sweep(
                draw,
                options.seed,
                {name: (value,) for name, value in cell.items()},
                draws_at(p, width),
                static=[name for name in cell if name not in traced],
                traced=traced,
                out=out,
                statistics={name: Moments() for name in ("mean_deviation", "mean_sine_squared", "deviation")},
                keep=("sine",),
                chunk_size=LANES if jax.default_backend() == "cpu" else None,
                lanes=LANES if jax.default_backend() == "cpu" else None,
                progress=not options.quiet,
                name=f"dcn-rates, {length} x {length}{', one route' if one_route else ''}, N = {width}",
            )
        found.append(result[cell])
    return [_of_depth(p, found, images, at, Kind(depth, length, one_route)) for at, depth in enumerate(p.depths)]


def _of_depth(p: RatesParameters, found: list[Result], images: Array, at: int, network: Kind) -> Simulated:
    def numbers(name: str) -> tuple[np.ndarray, np.ndarray]:
        both = ([result[name][kind][at] for result in found] for kind in ("mean", "standard_error"))
        mean, error = (np.array(part, float) for part in both)
        return mean, error

    return Simulated(
        network=network,
        images=images,
        draws=[draws_at(p, width) for width in p.widths],
        deviation=numbers("mean_deviation"),
        sine_squared=numbers("mean_sine_squared"),
        by_picture=numbers("deviation"),
        sines=[np.asarray(result.draws["sine"], float)[:, at] for result in found],
    )
