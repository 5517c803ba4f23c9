"""How often does a layered pass recover the whole activation path? Simulation beside both bounds (Murray 2018).

Draws are signs of all atoms; supports, filters and noise stand still. S is what stripes of X^(1) hold at most, at any
depth: it is the first layer that fails first, and both bounds there fall with S_1. Generic dictionaries show what bound
(3) leaves open, benign ones where it says something, equal ones where it says something and draws are lost.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from cnninv_jax.experiments.dcsc_dictionaries import Dictionaries, check
from cnninv_jax.experiments.dcsc_recovery_cells import Cell, Explorer, Family, largest_sparsities
from cnninv_jax.experiments.dcsc_recovery_tables import TITLES, content_of, dataset_of, recovery_tables
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import xarray as xr
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class RecoveryParameters:
    """Dictionaries, sparsities and noise; flags of two numbers are for rank 1 and for rank 2."""

    dictionaries: tuple[Literal["generic", "benign", "equal"], ...] = ("generic", "benign", "equal")
    """Of generic (Gaussian filters next to the signal, deep atoms with taps anywhere), benign (filters mixed to
    --coherence over all shifts, deep atoms in channels of their own: mu_l = 0) and equal (circular signal as long as
    a filter, any two atoms of product --coherence; only of rank 1 and depth 1)."""
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
    equal_draws: int = 100_000
    """Draws of signs per cell of equal dictionaries, whose lost draws are rare where bound (3) says something."""
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
    coherence: float = 0.017
    """mu_1 of the benign and the equal dictionaries."""
    stride: int = 1
    """Stride t per axis, in every layer."""
    padding: Literal["valid", "circular"] = "circular"
    """Atoms inside of the signal (valid), or wrapping around its border (circular)."""


def _compute(parameters: RecoveryParameters, options: StudyOptions, folder: Path) -> Findings:
    p = dataclasses.replace(parameters, S=tuple(sorted(parameters.S)), noise=tuple(sorted(parameters.noise)))
    families = checked(p)
    cells: list[Cell] = []
    critical = []
    facts = []
    with progress_bar("P(path lost)", len(families) * len(p.noise) * (len(p.S) + 1), quiet=options.quiet) as bar:
        explorers = [Explorer(p, sizes_of(p, family), family, options, folder) for family in families]
        least = min(held.least for held in explorers)
        if max(p.S) < least:
            raise ValueError(
                f"expected an --S of at least {least}, what a single deepest atom of these --dictionaries, --ranks and "
                f"--depths puts into a stripe of X^(1), got at most {max(p.S)}"
            )
        for family, held in zip(families, explorers, strict=True):
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
    if not set(p.dictionaries) <= set(TITLES):
        raise ValueError(f"expected --dictionaries of {', '.join(TITLES)}, got {p.dictionaries}")
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
    if not 0 < p.delta < 1:
        raise ValueError(f"expected --delta between 0 and 1, got {p.delta}")
    for name in ("num_draws", "equal_draws"):
        draws, flag = getattr(p, name), "--" + name.replace("_", "-")
        positive(draws, flag, 1 << 32)
        if wilson(0, draws)[1] >= p.delta:
            # Wilson's upper end for no failure in n draws is z^2 / (n + z^2).
            square = NormalDist().inv_cdf(0.975) ** 2
            raise ValueError(
                f"expected {flag} of at least {math.floor(square * (1 - p.delta) / p.delta) + 1}, with fewer the "
                f"interval of no failure reaches --delta {p.delta:g}; got {draws}"
            )
    for name in ("D", "ell"):
        if len(getattr(p, name)) != 2:
            raise ValueError(f"expected --{name} for rank 1 and for rank 2, got {getattr(p, name)}")
    families = tuple(
        Family(dictionary, rank, depth)
        for dictionary in p.dictionaries
        for rank in p.ranks
        for depth in p.depths
        if dictionary != "equal" or rank == depth == 1
    )
    if not families:
        raise ValueError("expected 1 among --ranks and among --depths for --dictionaries equal; add it to both")
    for family in families:
        if family.dictionary == "equal":
            if p.num_filters and p.num_filters[0] >= p.M:
                raise ValueError(
                    f"expected fewer --num-filters next to the signal than --M {p.M} for --dictionaries equal, got "
                    f"{p.num_filters[0]}"
                )
            if p.ell[0] % max(p.stride, 1):
                raise ValueError(
                    f"expected the --ell of rank 1 to be a multiple of --stride {p.stride} for --dictionaries equal, "
                    f"got {p.ell[0]}"
                )
        check(sizes_of(p, family), family.depth)
    return families


def sizes_of(p: RecoveryParameters, family: Family) -> Dictionaries:
    """Return the dictionaries of a family."""
    generic, equal = family.dictionary == "generic", family.dictionary == "equal"
    return Dictionaries(
        rank=family.rank,
        # Equal filters are as long as the signal.
        D=p.ell[0] if equal else p.D[family.rank - 1],
        M=p.M,
        num_filters=p.num_filters,
        ell=p.ell[family.rank - 1],
        stride=p.stride,
        nonzeros=p.nonzeros,
        padding="circular" if equal else p.padding,
        coherence=None if generic else p.coherence,
        places="random" if generic else "spread",
    )


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
