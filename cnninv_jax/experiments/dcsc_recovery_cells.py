"""The cells of `dcsc-recovery`: one support under one noise, drawn, and what the bounds say of it; the largest S."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax._typing import PRNGKeyArray, Signal
from cnninv_jax.dcsc.bounds import critical_sparsity
from cnninv_jax.dcsc.generate import Sample, coherences, generate
from cnninv_jax.dcsc.noise import aligned_noise, noise
from cnninv_jax.experiments.dcsc_dictionaries import (
    Dictionaries,
    allowed,
    bound_of,
    build,
    capacity_of,
    entering_noise,
    prepare,
)
from cnninv_jax.experiments.dcsc_recovery_tables import LEVEL, TITLES
from cnninv_jax.experiments.dcsc_scaling_families import equal_correlations
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import StudyOptions
from cnninv_jax.montecarlo.intervals import clopper_pearson, wilson

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcsc_recovery import RecoveryParameters

#: Most draws of a block, the unit of the journals.
BLOCK = 1000
#: The same for equal dictionaries: small, and of many draws.
EQUAL_BLOCK = 10_000


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
    def refutable(self) -> float:
        """Bounds below this a single lost draw would have refuted, at confidence `LEVEL`."""
        return float(clopper_pearson(1, self.draws, LEVEL, side="lower")[0])

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


class Explorer:
    """Simulates the cells of one family, each once; of one rank and depth all share one compiled program."""

    def __init__(
        self, p: RecoveryParameters, sizes: Dictionaries, family: Family, options: StudyOptions, folder: Path
    ) -> None:
        """Build the dictionary and the direction of the noise."""
        self.p, self.family, self.options, self.folder = p, family, options, folder
        root = jax.random.fold_in(jax.random.key(options.seed), list(TITLES).index(family.dictionary))
        root = jax.random.fold_in(root, family.rank)
        names = ("filters", "noise", "code", "signs")
        keys = dict(zip(names, jax.random.split(root, len(names)), strict=True))
        self.num_draws, self.block = p.num_draws, BLOCK
        if family.dictionary == "equal":
            self.num_draws, self.block = p.equal_draws, EQUAL_BLOCK
            bank = equal_correlations(keys["filters"], p.num_filters[0], p.M, sizes.D, p.coherence)
            self.model = dcsc.layers(
                [bank.astype(options.precision)], (sizes.D,), strides=[p.stride], padding="circular"
            )
        else:
            self.model = build(keys["filters"], sizes, family.depth, options.precision)
        self.coherence = coherences(self.model)
        self.capacity = capacity_of(self.model, max(p.S))
        self.direction = self._noise(keys["noise"])
        # Nearly nested supports: places are visited in the same order, whatever S.
        self.code_key, self.sign_key = keys["code"], jax.random.fold_in(keys["signs"], family.depth)
        self._samples: dict[int, Sample | None] = {}
        self._cells: dict[tuple[int, float], Cell | None] = {}
        one = generate(jax.random.clone(self.code_key), self.model, num_nonzeros=1, coherence=self.coherence)
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
                found = generate(jax.random.clone(self.code_key), self.model, sparsity=limits, coherence=self.coherence)
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
        depth = self.family.depth
        added = self.direction * jnp.asarray(self._zeta(sample, level)).astype(self.direction.dtype)
        ready = prepare(self.model, sample.path[-1], added, self.capacity, measured=sample.measured)
        with results_folder(self.folder / "cells" / f"{self.family.name}-S{asked}-noise{float(level)!r}") as place:
            result = mc.run(
                ready.draw(),
                jax.random.clone(self.sign_key),
                self.num_draws,
                chunk_size=min(self.num_draws, self.block),
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
            self.num_draws,
            tuple(int(count) for count in np.asarray(result["failed"]["successes"]).reshape(depth)),
            _sparsity(sample),
            tuple(entering_noise(ready, largest).tolist()),
            float(bound_of(ready, largest).log),
            self.promised(asked, level),
            on_grid,
        )

    def _noise(self, key: PRNGKeyArray) -> Signal:
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
    """The largest S of layer 1 up to which the path is recovered, as stripes reached it; 0 where there is none.

    Attributes:
        family: its dictionary.
        noise: zeta_0 as part of |X_min^(1)| / 2.
        simulated: in simulation, Wilson's 95% upper limit of the probability of failure being below delta.
        bound: by bound (3) at delta.
        uniform: by the uniform bound (2).
        asked: what was asked for where these were reached.
        least: smallest S that a single deepest atom needs.
        sparsity: S_l reached at ``simulated``, [L]; empty where there is none.
    """

    family: Family
    noise: float
    simulated: int
    bound: int
    uniform: int
    asked: tuple[int, int, int]
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
    asked = (
        largest(simulated, tries, held.least),
        largest(bounded, tries, held.least),
        largest(lambda asked: held.promised(asked, level), tries, held.least),
    )
    reached = [_sparsity(held.sample(most)) if most else () for most in asked]
    first = [sparsity[0] if sparsity else 0 for sparsity in reached]
    return Critical(held.family, level, first[0], first[1], first[2], asked, held.least, reached[0])


def _sparsity(sample: Sample | None) -> tuple[int, ...]:
    return () if sample is None else tuple(int(count) for count in np.asarray(sample.measured.sparsity))


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
