"""The tables of `dcsc-depth`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax.experiments.studies import Table

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcsc_depth import DepthParameters
    from cnninv_jax.experiments.dcsc_depth_cells import Cell


def depth_tables(p: DepthParameters, cells: Sequence[Cell], spread: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """Return failures by depth, noise and bounds by layer at the largest depth, and what happens after a loss."""
    return _failures(p, cells), _noise(p, cells), _spread(p, spread)


def _failures(p: DepthParameters, cells: Sequence[Cell]) -> Table:
    depth = len(p.num_filters)
    rows = []
    for cell in cells:
        given = [_share(*parts) for parts in zip(cell.given, cell.given_low, cell.given_high, strict=True)]
        rows.append((
            f"support {cell.support}, noise {cell.noise:g}, depth {cell.depth}",
            *given, *[""] * (depth - cell.depth), _share(cell.lost, cell.lost_low, cell.lost_high),
        ))  # fmt: skip
    where = "X^(1)" if p.fixed == "bottom" else "X^(L)"
    notes = (
        f"support: non-zeros of {where}. noise: |V^(0)|_{{2,inf}} / |X_min^(1)|. {p.paths} supports a cell, "
        f"{p.num_draws} draws of signs each.",
        "In brackets 95% intervals, Wilson's, with draws counted for fewer where supports differ (Student's t for few "
        "supports). Where no support failed all draws count, which holds for these supports. -: no draw was left.",
    )
    columns = ("cell", *(f"layer {number}" for number in range(1, depth + 1)), "path")
    return Table(
        "P(layer l loses its support | the layers before did not), and P(path lost)", columns, tuple(rows), notes
    )


def _noise(p: DepthParameters, cells: Sequence[Cell]) -> Table:
    rows = []
    for cell in cells:
        if cell.depth != len(p.num_filters):
            continue
        for at in range(cell.depth):
            rows.append((
                f"support {cell.support}, noise {cell.noise:g}, layer {at + 1}",
                f"{int(cell.sparsity[at])}", f"{cell.coherence[at]:.3g}", f"{int(cell.intact[at])}",
                _number(cell.zeta_mean[at]),
                _number(cell.zeta_largest[at]), _number(cell.uniform[at + 1]), _number(cell.probabilistic[at + 1]),
                _share(cell.given[at], cell.given_low[at], cell.given_high[at]), _number(cell.term[at]),
                _number(cell.recursion_term[at]), _number(cell.limit[at]),
            ))  # fmt: skip
    columns = (
        "layer", "S", "mu", "draws", "zeta mean", "largest", "uniform", "probabilistic", "P(lost | before)",
        "term of (3)", "by recursion", "S by (2)",
    )  # fmt: skip
    notes = (
        "zeta: |V^(l)|_{2,inf} / |X_min^(l)|, of the draws whose supports are recovered up to l (draws); uniform, "
        f"probabilistic: what the recursions allow it (delta = {p.delta:g} a layer).",
        "term of (3): with the largest noise measured in place of zeta; by recursion: with the uniform one; not cut at "
        "1, from where on it says nothing. S by (2): the uniform bound with the largest noise measured. Largest (S by "
        "(2): smallest) over supports.",
    )
    return Table(f"noise and bounds by layer, depth {len(p.num_filters)}", columns, tuple(rows), notes)


def _spread(p: DepthParameters, spread: Sequence[Mapping[str, Any]]) -> Table:
    depth, rows = len(p.num_filters), []
    for cell in spread:
        for at in range(depth):
            count = int(cell["first"][at])
            if not count:
                continue
            parts = [_after(cell, at, later) if later >= at else "" for later in range(depth)]
            rows.append(
                (f"support {cell['support']}, noise {cell['noise']:g}, first lost {at + 1}", f"{count}", *parts)
            )
    notes = (
        f"Of {p.spread_draws} whole passes each: share of passes whose layer l is lost too, then misses / false alarms "
        "of layer l over its non-zeros, means over these passes.",
    )
    columns = ("passes", "number", *(f"layer {number}" for number in range(1, depth + 1)))
    return Table("after the first loss", columns, tuple(rows), notes)


def _after(cell: Mapping[str, Any], first: int, layer: int) -> str:
    lost, misses, alarms = (cell[name][first][layer] for name in ("lost", "misses", "alarms"))
    return f"{100 * lost:.0f}%: {misses:.2g} / {alarms:.2g}"


def _share(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "-"
    if value == 0:
        return f"0 (< {high:.2g})"
    return f"{value:.3g} ({low:.2g}-{high:.2g})"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"
