"""What `dcsc-recovery` found, as content, tables and labelled arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax.experiments.studies import Table
from cnninv_jax.montecarlo.intervals import clopper_pearson

if TYPE_CHECKING:
    import xarray as xr

    from cnninv_jax.experiments.dcsc_recovery import RecoveryParameters
    from cnninv_jax.experiments.dcsc_recovery_cells import Cell, Critical

#: Confidence at which a simulated probability counts as above a bound.
LEVEL = 0.999
#: Dictionaries in words.
TITLES = {"generic": "Gaussian filters", "benign": "nearly orthogonal filters"}


def content_of(
    p: RecoveryParameters, cells: Sequence[Cell], critical: Sequence[Critical], facts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return everything found, as JSON holds it."""
    return {
        "families": list(facts),
        "cells": [
            {
                **dataclasses.asdict(cell),
                "probability": cell.lost / cell.draws,
                "low": cell.interval[0],
                "high": cell.interval[1],
                "lower_limit": float(clopper_pearson(cell.lost, cell.draws, LEVEL, side="lower")[0]),
                "bound": cell.bound,
                "vacuous": cell.vacuous,
                "holds": cell.holds,
            }
            for cell in cells
        ],
        "critical": [dataclasses.asdict(each) for each in critical],
        "verdict": verdict([cell for cell in cells if cell.on_grid]),
        "verdict_with_sought": verdict(cells),
        "level": LEVEL,
    }


def verdict(cells: Sequence[Cell]) -> dict[str, int]:
    """Return how many cells there are, what bound (3) says of them, and how many are above it."""
    return {
        "cells": len(cells),
        "vacuous": sum(cell.vacuous for cell in cells),
        "says_something": sum(not cell.vacuous for cell in cells),
        "says_something_deep": sum(not cell.vacuous and cell.family.depth > 1 for cell in cells),
        "above_bound": sum(not cell.holds for cell in cells),
        "promised": sum(cell.promised for cell in cells),
        "promised_and_lost": sum(cell.promised and cell.lost > 0 for cell in cells),
    }


def recovery_tables(
    p: RecoveryParameters, cells: Sequence[Cell], critical: Sequence[Critical], facts: Sequence[Mapping[str, Any]]
) -> tuple[Table, ...]:
    """Return failure beside bound (3), and the largest S in simulation and by both bounds."""
    return _failures(p, cells, facts), _beyond(p, critical)


def dataset_of(p: RecoveryParameters, cells: Sequence[Cell]) -> xr.Dataset:
    """Return the grid's cells as arrays over dictionary, rank, depth, noise and S; NaN where there is no cell."""
    import xarray as xr

    axes = {"dictionary": p.dictionaries, "rank": p.ranks, "depth": p.depths, "noise": p.noise, "S": p.S}
    shape = tuple(len(values) for values in axes.values())
    described = {
        "probability": "draws that lost the path, as part of all",
        "low": "lower end of Wilson's 95% interval of the probability",
        "high": "upper end of Wilson's 95% interval of the probability",
        "log_bound": "natural logarithm of bound (3)",
        "S_1": "most non-zeros of X^(1) in a stripe, as reached",
        "S_L": "most non-zeros of X^(L) in a stripe",
        "promised": "1 where the uniform bound (2) promises every draw",
    }
    arrays = {name: np.full(shape, np.nan) for name in described}
    for cell in cells:
        if not cell.on_grid:
            continue
        key = (cell.family.dictionary, cell.family.rank, cell.family.depth, cell.noise, cell.asked)
        at = tuple(values.index(value) for values, value in zip(axes.values(), key, strict=True))
        low, high = cell.interval
        found = (cell.lost / cell.draws, low, high, cell.log_bound, cell.sparsity[0], cell.sparsity[-1], cell.promised)
        for name, value in zip(described, found, strict=True):
            arrays[name][at] = value
    return xr.Dataset(
        {name: (tuple(axes), array, {"long_name": described[name]}) for name, array in arrays.items()},
        {name: list(values) for name, values in axes.items()},
    )


def _failures(p: RecoveryParameters, cells: Sequence[Cell], facts: Sequence[Mapping[str, Any]]) -> Table:
    found = {(cell.family, cell.noise, cell.asked): cell for cell in cells if cell.on_grid}
    rows = []
    for family in dict.fromkeys(cell.family for cell in cells):
        for level in p.noise:
            shown = (found.get((family, level, asked)) for asked in p.S)
            texts = ("-" if cell is None else f"{_probability(cell)} ({_bound(cell)})" for cell in shown)
            rows.append((f"{TITLES[family.dictionary]}, {family.rank}-D, L={family.depth}, noise {level:g}", *texts))
    grid, everything = verdict(list(found.values())), verdict(cells)
    coherence = "; ".join(
        f"{TITLES[fact['dictionary']]}, {fact['rank']}-D: {', '.join(f'{mu:.3g}' for mu in fact['coherence'])}"
        for fact in facts
        if fact["depth"] == max(p.depths)
    )
    return Table(
        "P(path lost), in parentheses bound (3)",
        ("dictionary", *(f"S={asked}" for asked in p.S)),
        tuple(rows),
        (
            f"{p.num_draws} draws of signs per cell, of one support and one noise; S: most non-zeros of X^(1) in a "
            "stripe (asked; deeper supports cannot reach every S). v: vacuous, bound (3) is 1 or more.",
            f"Coherence mu_1, mu_2, ...: {coherence}.",
            f"Bound (3) says something in {grid['says_something']} of {grid['cells']} cells "
            f"({grid['says_something_deep']} of them of two layers or more) and is vacuous in {grid['vacuous']}; with "
            f"those of the search for the largest S, in {everything['says_something']} of {everything['cells']}. "
            f"Simulated failure is above it, at {100 * LEVEL:g}% confidence, in {everything['above_bound']}.",
            f"The uniform bound (2) promises {everything['promised']} cells; {everything['promised_and_lost']} of them "
            "lost a path in some draw.",
            "zeta_l, l > 0: the largest patch norm of the noise after layer l, over the draws in which layers 1 .. l "
            "were recovered; where none was, what errors below |X_min|/2 could add up to.",
        ),
    )


def _beyond(p: RecoveryParameters, critical: Sequence[Critical]) -> Table:
    most = max(p.S)
    rows = []
    for each in critical:
        family = each.family
        reached = f" (S_l: {', '.join(map(str, each.sparsity))})" if each.sparsity else ""
        gain = f"{each.simulated / each.uniform:.2g}" if each.uniform and each.simulated else "-"
        rows.append((
            f"{TITLES[family.dictionary]}, {family.rank}-D, L={family.depth}, noise {each.noise:g}",
            f"{_largest(each.simulated, most)}{reached}", _largest(each.bound, most), _largest(each.uniform, most),
            gain if each.simulated < most else f">= {gain}" if gain != "-" else gain,
        ))  # fmt: skip
    return Table(
        f"recovery beyond the uniform bound: largest S with P(path lost) < {p.delta:g}",
        ("dictionary", "simulated", "bound (3)", "uniform bound (2)", "simulated / uniform"),
        tuple(rows),
        (
            "S of layer 1, sought among all integers by bisection, one support each; simulated: Wilson's 95% upper "
            f"limit is below {p.delta:g}. none: not even one deepest atom. >=: the largest S asked for.",
            "Bound (2) holds for the worst signs and the worst noise of this patch norm; noise between layers as in "
            "Papyan et al. 2017. Bound (3) takes the noise between layers as it was in the draws.",
        ),
    )


def _largest(value: int, most: int) -> str:
    return "none" if not value else f">= {value}" if value >= most else str(value)


def _probability(cell: Cell) -> str:
    return "0" if not cell.lost else f"{cell.lost / cell.draws:.2g}"


def _bound(cell: Cell) -> str:
    return "v" if cell.vacuous else f"{cell.bound:.0e}"
