"""How often does a layered pass recover the whole activation path? Simulation beside both bounds (Murray 2018).

Draws are signs of all atoms; supports, filters and noise stand still. S is what stripes of X^(1) hold at most, at any
depth: it is the first layer that fails first, and both bounds there fall with S_1. Generic dictionaries show what bound
(3) leaves open, benign ones where it says something.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import montecarlo as mc
from cnninv_jax._typing import Signal
from cnninv_jax.dcsc.bounds import critical_sparsity
from cnninv_jax.dcsc.generate import Sample, coherences, generate
from cnninv_jax.dcsc.noise import aligned_noise, noise
from cnninv_jax.experiments.dcsc_dictionaries import (
    Dictionaries,
    allowed,
    bound_of,
    build,
    capacity_of,
    check,
    entering_noise,
    prepare,
)
from cnninv_jax.experiments.dcsc_recovery_tables import LEVEL, content_of, dataset_of, recovery_tables
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.intervals import clopper_pearson, wilson

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import xarray as xr
    from matplotlib.figure import Figure

#: Most draws of a block, the unit of the journals.
BLOCK = 1000


@dataclasses.dataclass(frozen=True)
class RecoveryParameters:
    """Dictionaries, sparsities and noise; flags of two numbers are for rank 1 and for rank 2."""

    dictionaries: tuple[Literal["generic", "benign"], ...] = ("generic", "benign")
    """Of generic (Gaussian filters next to the signal, deep atoms with taps anywhere) and benign (filters mixed to
    --coherence over all shifts, deep atoms in channels of their own: mu_l = 0)."""
    ranks: tuple[int, ...] = (1, 2)
    """Spatial axes, 1 and 2."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Numbers of layers L."""
    S: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 32, 48, 64)
    """Most non-zeros of X^(1) in a stripe, at every depth; what a single atom of layer L exceeds is left out."""
    noise: tuple[float, ...] = (0.0, 0.1, 0.5)
    """Patch norm zeta_0 of the noise, as part of the threshold |X_min^(1)| / 2."""
    noise_law: Literal["aligned", "gaussian"] = "aligned"
    """Noise in the direction of single atoms, the worst case of the proofs, or Gaussian noise."""
    num_draws: int = 2000
    """Draws of signs per cell."""
    delta: float = 0.01
    """Probability of failure at which the largest S is sought."""
    D: tuple[int, int] = (48, 9)
    """Signal length per axis."""
    ell: tuple[int, int] = (8, 3)
    """Filter length per axis, in every layer."""
    M: int = 64
    """Channels of the signal."""
    num_filters: tuple[int, ...] = (32, 10, 3)
    """Filters n_1, n_2, ... of the layers, the one next to the signal first."""
    nonzeros: int = 3
    """Non-zero entries of a deep atom, +-1/sqrt(nonzeros)."""
    coherence: float = 0.015
    """mu_1 of the benign dictionaries."""
    stride: int = 1
    """Stride t per axis, in every layer."""
    padding: Literal["valid", "circular"] = "circular"
    """Atoms inside of the signal (valid), or wrapping around its border (circular)."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Cells of one dictionary."""

    dictionary: str
    rank: int
    depth: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.dictionary}-{self.rank}d-{self.depth}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One support under one noise: what was drawn, and what the bounds say.

    Attributes:
        family: its dictionary.
        asked: S asked of layer 1.
        noise: zeta_0 as part of |X_min^(1)| / 2.
        draws: number of draws.
        failed: draws in which layer l was the first to lose its support, [L].
        sparsity: S_l, [L].
        zeta: largest patch norm of the noise that entered layer l, [L].
        log_bound: natural logarithm of bound (3).
        promised: whether the uniform bound (2) promises every draw.
        on_grid: whether S was asked for, or sought.
    """

    family: Family
    asked: int
    noise: float
    draws: int
    failed: tuple[int, ...]
    sparsity: tuple[int, ...]
    zeta: tuple[float, ...]
    log_bound: float
    promised: bool
    on_grid: bool

    @property
    def lost(self) -> int:
        """Draws that lost the path."""
        return sum(self.failed)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the probability of failure."""
        low, high = wilson(self.lost, self.draws)
        return float(low), float(high)

    @property
    def bound(self) -> float:
        """Bound (3), at most 1."""
        return math.exp(min(self.log_bound, 0.0))

    @property
    def vacuous(self) -> bool:
        """Whether bound (3) says nothing."""
        return self.log_bound >= 0

    @property
    def holds(self) -> bool:
        """Whether the probability of failure is not above the bound: its lower limit, of confidence `LEVEL`, is not."""
        return float(clopper_pearson(self.lost, self.draws, LEVEL, side="lower")[0]) <= self.bound


def _compute(parameters: RecoveryParameters, options: StudyOptions, folder: Path) -> Findings:
    p = dataclasses.replace(parameters, S=tuple(sorted(parameters.S)), noise=tuple(sorted(parameters.noise)))
    families = checked(p)
    cells: list[Cell] = []
    critical = []
    facts = []
    with progress_bar("P(path lost)", len(families) * len(p.noise) * (len(p.S) + 1), quiet=options.quiet) as bar:
        for family in families:
            held = Explorer(p, family, options, folder)
            for asked in p.S:
                for level in p.noise:
                    cell = held.cell(asked, level, on_grid=True)
                    bar.advance(1, note="" if cell is None else _note(cell))
            for level in p.noise:
                critical.append(largest_sparsities(held, level))
                bar.advance(1, note=f"{family.name}, noise {level:g}: largest S with P(path lost) < {p.delta:g}")
            cells += held.cells
            facts.append(held.facts())
    return Findings(
        content_of(p, cells, critical, facts), recovery_tables(p, cells, critical, facts), dataset_of(p, cells)
    )


def checked(p: RecoveryParameters) -> tuple[Family, ...]:
    """Return the families of these parameters.

    Raises:
        ValueError: sizes or numbers that do not fit, in the words of the command line.
    """
    for name in ("dictionaries", "ranks", "depths", "S", "noise"):
        values = getattr(p, name)
        if not values or len(set(values)) != len(values):
            raise ValueError(f"expected --{name} to be different values, at least one, got {values}")
    if not set(p.dictionaries) <= {"generic", "benign"}:
        raise ValueError(f"expected --dictionaries of generic and benign, got {p.dictionaries}")
    if not set(p.ranks) <= {1, 2}:
        raise ValueError(f"expected --ranks of 1 and 2, got {p.ranks}")
    for name in ("depths", "S"):
        for value in getattr(p, name):
            positive(value, f"--{name}", 1 << 20)
    for level in p.noise:
        if not (math.isfinite(level) and level >= 0):
            raise ValueError(f"expected --noise of at least 0, got {level}")
    if p.noise_law not in ("aligned", "gaussian"):
        raise ValueError(f"expected --noise-law aligned or gaussian, got {p.noise_law!r}")
    positive(p.num_draws, "--num-draws", 1 << 32)
    if not 0 < p.delta < 1:
        raise ValueError(f"expected --delta between 0 and 1, got {p.delta}")
    for name in ("D", "ell"):
        if len(getattr(p, name)) != 2:
            raise ValueError(f"expected --{name} for rank 1 and for rank 2, got {getattr(p, name)}")
    families = tuple(
        Family(dictionary, rank, depth) for dictionary in p.dictionaries for rank in p.ranks for depth in p.depths
    )
    for family in families:
        check(sizes_of(p, family), family.depth)
    return families


def sizes_of(p: RecoveryParameters, family: Family) -> Dictionaries:
    """Return the dictionaries of a family."""
    generic = family.dictionary == "generic"
    return Dictionaries(
        rank=family.rank,
        D=p.D[family.rank - 1],
        M=p.M,
        num_filters=p.num_filters,
        ell=p.ell[family.rank - 1],
        stride=p.stride,
        nonzeros=p.nonzeros,
        padding=p.padding,
        coherence=None if generic else p.coherence,
        places="random" if generic else "spread",
    )


class Explorer:
    """Simulates the cells of one family, each once; of one rank and depth all share one compiled program."""

    def __init__(self, p: RecoveryParameters, family: Family, options: StudyOptions, folder: Path) -> None:
        """Build the dictionary and the direction of the noise."""
        self.p, self.family, self.options, self.folder = p, family, options, folder
        root = jax.random.fold_in(jax.random.key(options.seed), family.rank)
        root = jax.random.fold_in(root, int(family.dictionary == "benign"))
        names = ("filters", "noise", "code", "signs")
        keys = dict(zip(names, jax.random.split(root, len(names)), strict=True))
        self.model = build(keys["filters"], sizes_of(p, family), family.depth, options.precision)
        self.coherence = coherences(self.model)
        self.capacity = capacity_of(self.model, max(p.S))
        self.direction = self._noise(keys["noise"])
        # Nearly nested supports: places are visited in the same order, whatever S.
        self.code_key, self.sign_key = keys["code"], jax.random.fold_in(keys["signs"], family.depth)
        self._samples: dict[int, Sample | None] = {}
        self._cells: dict[tuple[int, float], Cell | None] = {}
        one = generate(self.code_key, self.model, num_nonzeros=1, coherence=self.coherence)
        self.least = next(asked for asked in range(1, int(one.measured.sparsity[0]) + 1) if self.sample(asked))

    @property
    def cells(self) -> list[Cell]:
        """The cells simulated so far."""
        return [cell for cell in self._cells.values() if cell is not None]

    def sample(self, asked: int) -> Sample | None:
        """Return a signal whose X^(1) has at most ``asked`` non-zeros in a stripe; None if a single atom has more."""
        if asked not in self._samples:
            limits = [asked] + [None] * (self.family.depth - 1)
            try:
                found = generate(self.code_key, self.model, sparsity=limits, coherence=self.coherence)
            except ValueError:  # of this model only because one atom is too much
                found = None
            self._samples[asked] = found
        return self._samples[asked]

    def promised(self, asked: int, level: float) -> bool:
        """Return whether the uniform bound (2) promises this cell."""
        sample = self.sample(asked)
        return sample is not None and allowed(sample.measured, self._zeta(sample, level))

    def cell(self, asked: int, level: float, *, on_grid: bool = False) -> Cell | None:
        """Return a cell, simulated where it is new; None if there is no such signal."""
        if (asked, level) not in self._cells:
            sample = self.sample(asked)
            self._cells[asked, level] = None if sample is None else self._simulate(sample, asked, level, on_grid)
        return self._cells[asked, level]

    def facts(self) -> dict[str, Any]:
        """Return what holds of all cells."""
        return {
            **dataclasses.asdict(self.family),
            "coherence": np.asarray(self.coherence, float).tolist(),
            "shapes": [list(layer.op.code_shape) for layer in self.model],
            "capacity": list(self.capacity),
            "least": self.least,
        }

    def _simulate(self, sample: Sample, asked: int, level: float, on_grid: bool) -> Cell:
        p, depth = self.p, self.family.depth
        added = self.direction * jnp.asarray(self._zeta(sample, level)).astype(self.direction.dtype)
        ready = prepare(self.model, sample.path[-1], added, self.capacity, measured=sample.measured)
        with results_folder(self.folder / "cells" / f"{self.family.name}-S{asked}-noise{level:g}") as place:
            result = mc.run(
                ready.draw(),
                self.sign_key,
                p.num_draws,
                chunk_size=min(p.num_draws, BLOCK),
                statistics={"noise": mc.Extremes()},
                out=place,
                progress=False,
                spec={"family": self.family.name, "S": asked, "noise": level},
                name="dcsc-recovery",
            )
        largest = np.asarray(result["noise"]["max"], float)
        return Cell(
            self.family,
            asked,
            level,
            p.num_draws,
            tuple(int(count) for count in np.asarray(result["failed"]["successes"]).reshape(depth)),
            tuple(int(count) for count in np.asarray(sample.measured.sparsity)),
            tuple(entering_noise(ready, largest).tolist()),
            float(bound_of(ready, largest).log),
            self.promised(asked, level),
            on_grid,
        )

    def _noise(self, key: jax.Array) -> Signal:
        """Return noise of patch norm 1."""
        first = self.model[0]
        if self.p.noise_law == "aligned":
            return aligned_noise(key, first, 1.0)
        op = first.op
        return noise(
            key, op.input_shape, op.length, patch_norm=1.0, stride=op.stride, padding=op.padding, dtype=op.dtype
        )

    def _zeta(self, sample: Sample, level: float) -> float:
        """Return the patch norm of the noise."""
        return level * float(sample.measured.smallest[0]) / 2


@dataclasses.dataclass(frozen=True)
class Critical:
    """The largest S of layer 1 up to which the path is recovered, each as asked; 0 where there is none.

    Attributes:
        family: its dictionary.
        noise: zeta_0 as part of |X_min^(1)| / 2.
        simulated: in simulation, Wilson's 95% upper limit of the probability of failure being below delta.
        bound: by bound (3) at delta.
        uniform: by the uniform bound (2).
        least: smallest S that a single deepest atom needs.
        sparsity: S_l reached at ``simulated``, [L]; empty where there is none.
    """

    family: Family
    noise: float
    simulated: int
    bound: int
    uniform: int
    least: int
    sparsity: tuple[int, ...]


def largest_sparsities(held: Explorer, level: float) -> Critical:
    """Return the largest S at this noise, in simulation and by both bounds."""
    p = held.p

    def simulated(asked: int) -> bool:
        cell = held.cell(asked, level)
        return cell is not None and cell.interval[1] < p.delta

    def bounded(asked: int) -> bool:
        cell = held.cell(asked, level)
        return cell is not None and cell.log_bound <= math.log(p.delta)

    tries = [asked for asked in p.S if asked >= held.least]
    most = largest(simulated, tries, held.least)
    sample = held.sample(most) if most else None
    return Critical(
        held.family,
        level,
        most,
        largest(bounded, tries, held.least),
        largest(lambda asked: held.promised(asked, level), tries, held.least),
        held.least,
        () if sample is None else tuple(int(count) for count in np.asarray(sample.measured.sparsity)),
    )


def largest(good: Callable[[int], bool], tries: Sequence[int], least: int) -> int:
    """Return the largest S that is good, 0 if none is; what is good at S is taken to be so below it.

    Args:
        good: whether an S is good.
        tries: values to try first, ascending; none beyond the last is looked at.
        least: smallest S that there is.
    """
    low = least - 1
    for high in tries:
        if not good(high):
            between = high - low - 1
            # At S = low + 1, ...: the bisection counts from 1.
            more = critical_sparsity(lambda step, low=low: float(not good(low + step)), 0.5, between) if between else 0
            return low + more if low + more >= least else 0
        low = high
    return low if low >= least else 0


def _note(cell: Cell) -> str:
    low, high = cell.interval
    return (
        f"{cell.family.name}, S {cell.sparsity[0]}, noise {cell.noise:g}: {cell.lost / cell.draws:.4g} "
        f"[{low:.2g}, {high:.2g}]"
    )


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.dcsc_recovery_figure import recovery_figure

    return recovery_figure(report, dataset)


DCSC_RECOVERY = Study(
    "dcsc-recovery",
    "How often is the activation path recovered? Simulation beside both bounds",
    "Murray 2018, Theorem (bound (3)) and eq. (2)",
    RecoveryParameters,
    _compute,
    _figure,
)
