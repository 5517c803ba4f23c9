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
TITLES = {"generic": "Gaussian filters", "benign": "nearly orthogonal filters", "equal": "equal correlations"}


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
                "refutable": cell.refutable,
            }
            for cell in cells
        ],
        "critical": [dataclasses.asdict(each) for each in critical],
        "verdict": verdict([cell for cell in cells if cell.on_grid]),
        "verdict_with_sought": verdict(cells),
        "level": LEVEL,
    }


def verdict(cells: Sequence[Cell]) -> dict[str, int]:
    """Return how many cells there are, what bound (3) says of them, how many are above it, and how many could be."""
    says = [cell for cell in cells if not cell.vacuous]
    return {
        "cells": len(cells),
        "vacuous": sum(cell.vacuous for cell in cells),
        "says_something": len(says),
        "says_something_deep": sum(cell.family.depth > 1 for cell in says),
        "says_something_and_lost": sum(cell.lost > 0 for cell in says),
        "refuted_by_one_loss": sum(cell.bound < cell.refutable for cell in says),
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
    deepest = {(fact["dictionary"], fact["rank"]): fact for fact in sorted(facts, key=lambda fact: fact["depth"])}
    coherence = "; ".join(
        f"{TITLES[fact['dictionary']]}, {fact['rank']}-D: {', '.join(f'{mu:.3g}' for mu in fact['coherence'])}"
        for fact in deepest.values()
    )
    return Table(
        "P(path lost), in parentheses bound (3)",
        ("dictionary", *(f"S={asked}" for asked in p.S)),
        tuple(rows),
        (
            f"{draws_of(dataclasses.asdict(p), facts)} draws of signs per cell, of one support and one noise; S: most "
            "non-zeros of X^(1) in a stripe (asked; deeper supports cannot reach every S). v: vacuous, bound (3) is 1 "
            "or more.",
            f"Coherence mu_1, mu_2, ...: {coherence}.",
            f"Bound (3) says something in {grid['says_something']} of {grid['cells']} cells "
            f"({grid['says_something_deep']} of them of two layers or more) and is vacuous in {grid['vacuous']}; with "
            f"those of the search for the largest S, in {everything['says_something']} of {everything['cells']}. "
            f"Simulated failure is above it, at {100 * LEVEL:g}% confidence, in {everything['above_bound']}.",
            _power(cells, everything),
            f"The uniform bound (2) promises {everything['promised']} cells; {everything['promised_and_lost']} of them "
            "lost a path in some draw.",
            "zeta_l, l > 0: the largest patch norm of the noise after layer l, over the draws in which layers 1 .. l "
            "were recovered; where none was, what errors below |X_min|/2 could add up to.",
        ),
    )


def draws_of(p: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> str:
    """Return the numbers of draws per cell as text, from a study's parameters and its families."""
    equal = [fact["dictionary"] == "equal" for fact in facts]
    several = f" ({p['equal_draws']} of {TITLES['equal']})" if any(equal) else ""
    return f"{p['equal_draws']}" if all(equal) else f"{p['num_draws']}{several}"


def _power(cells: Sequence[Cell], found: Mapping[str, int]) -> str:
    """Return what a comparison with bound (3) could have found."""
    limits = {cell.draws: cell.refutable for cell in cells}
    each = " and ".join(f"{limit:.1e} with {draws} draws" for draws, limit in sorted(limits.items()))
    return (
        f"What this could have found: {found['says_something_and_lost']} of the {found['says_something']} cells in "
        f"which bound (3) says something lost a draw. A single lost draw refutes only bounds below {each}, which "
        f"{found['refuted_by_one_loss']} of them have; larger bounds need more lost draws."
    )


def _beyond(p: RecoveryParameters, critical: Sequence[Critical]) -> Table:
    most = max(p.S)
    rows = []
    for each in critical:
        family = each.family
        reached = f" (S_l: {', '.join(map(str, each.sparsity))})" if each.sparsity else ""
        ends = [asked >= most for asked in each.asked]
        gain = "-"
        if each.uniform and each.simulated and not ends[2]:
            gain = f"{'>= ' if ends[0] else ''}{each.simulated / each.uniform:.2g}"
        shown = [_largest(*pair) for pair in zip((each.simulated, each.bound, each.uniform), ends, strict=True)]
        name = f"{TITLES[family.dictionary]}, {family.rank}-D, L={family.depth}, noise {each.noise:g}"
        rows.append((name, shown[0] + reached, *shown[1:], gain))
    return Table(
        f"recovery beyond the uniform bound: largest S with P(path lost) < {p.delta:g}",
        ("dictionary", "simulated", "bound (3)", "uniform bound (2)", "simulated / uniform"),
        tuple(rows),
        (
            "S of layer 1 as a stripe reached it, sought by bisection over what is asked for, one support each; "
            f"simulated: Wilson's 95% upper limit is below {p.delta:g}. none: not even one deepest atom. >=: still so "
            "at the largest S asked for.",
            "Bound (2) holds for the worst signs and the worst noise of this patch norm; noise between layers as in "
            "Papyan et al. 2017. Bound (3) takes the noise between layers as it was in the draws.",
        ),
    )


def _largest(value: int, ends: bool) -> str:
    return "none" if not value else f">= {value}" if ends else str(value)


def _probability(cell: Cell) -> str:
    return "0" if not cell.lost else f"{cell.lost / cell.draws:.2g}"


def _bound(cell: Cell) -> str:
    return "v" if cell.vacuous else f"{cell.bound:.0e}"
