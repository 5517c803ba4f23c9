"""What an experiment is: parameters, a draw, statistics, the paper's claims, a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax

from cnninv_jax.montecarlo import Accumulator

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

Parameters = TypeVar("Parameters")

#: Metadata of a parameter that an experiment got after its first runs were stored: at its default it stays out of a
#: run's specification, so that the journals and folders of those runs are found and continued.
NEW = {"new": True}


def describe_parameters(parameters: Any) -> dict[str, Any]:
    """Return a run's parameters as they stand in its specification; see `NEW`."""
    held = dataclasses.asdict(parameters)
    for field in dataclasses.fields(parameters):
        if "new" in field.metadata and held[field.name] == field.default:
            del held[field.name]
    return held


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says of one output.

    Attributes:
        text: its words, short.
        low: the mean should not lie below.
        high: nor above.
    """

    text: str
    low: float
    high: float

    def verdict(self, low: float, high: float) -> str:
        """Return "agrees", "differs", or "undecided" for a mean whose interval is [low, high]."""
        if self.low <= low and high <= self.high:
            return "agrees"
        return "differs" if high < self.low or low > self.high else "undecided"


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[Parameters]):
    """One figure or table of a paper, ready to be run.

    Attributes:
        name: what the command line calls it.
        title: one line for people.
        source: paper and figure.
        parameters: frozen dataclass of the parameters; its defaults are the paper's.
        num_draws: default number of draws.
        chunk_size: default draws per block.
        lanes: default draws side by side.
        headline: output whose interval the progress shows.
        labels: what every output is.
        draw: ``draw(parameters, dtype)`` returns the function of one key.
        statistics: ``statistics(parameters)`` returns the accumulators per output.
        claims: ``claims(parameters)`` returns what the paper says of these parameters; nothing for others than its own.
        describe: ``describe(parameters)`` returns facts that belong under the title (method, padding).
        figure: draws the figure from a saved result.
    """

    name: str
    title: str
    source: str
    parameters: type[Parameters]
    num_draws: int
    chunk_size: int
    lanes: int
    headline: str
    labels: Mapping[str, str]
    draw: Callable[[Parameters, jax.typing.DTypeLike], Callable[[jax.Array], Any]]
    statistics: Callable[[Parameters], Mapping[str, tuple[Accumulator, ...]]]
    claims: Callable[[Parameters], Mapping[str, Claim]]
    describe: Callable[[Parameters], str]
    figure: Callable[[xr.Dataset, Mapping[str, Claim], str], Figure]


def experiments() -> dict[str, Experiment[Any]]:
    """Return the experiments by name."""
    from cnninv_jax.experiments.gilbert2017 import FIG2

    return {experiment.name: experiment for experiment in (FIG2,)}


def find(name: str) -> Experiment[Any]:
    """Return one experiment, or say which there are."""
    import difflib

    known = experiments()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"expected an experiment out of {', '.join(known)}, got {name!r}{hint}; see `cnninv list`")
    return known[name]


def result_path(folder: Path) -> Path:
    """Where a run keeps its numbers."""
    return folder / "result.nc"
