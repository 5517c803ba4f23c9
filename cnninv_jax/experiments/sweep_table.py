"""The table of a sweep for the terminal."""

from __future__ import annotations

import math

from rich.table import Table

from cnninv_jax.experiments.sweeps import SweepOutcome, describe
from cnninv_jax.experiments.tables import console, rounded
from cnninv_jax.montecarlo.grid import text

#: Most cells shown; the others stand in result.nc and summary.json.
SHOWN = 200


def sweep_table(outcome: SweepOutcome) -> Table:
    """Return a line per finished cell: its parameters, and mean ± half its 95% interval per reading."""
    grid, result = outcome.result.grid, outcome.result
    table = Table(title=f"{outcome.experiment.source}: {outcome.experiment.title}", title_justify="left")
    for name in grid.names:
        table.add_column(name, justify="right")
        if name in outcome.swept.derived:
            table.add_column(outcome.swept.derived[name][0].coordinate, justify="right")
    for name in outcome.experiment.labels:
        table.add_column(name, justify="right")
    cells = sorted((cell for cell in result.cells if cell.identity in result.results), key=lambda cell: cell.index)
    for cell in cells[:SHOWN]:
        held, line = result[cell.parameters], []
        for name, at in zip(grid.names, cell.index, strict=True):
            line.append(text(cell.parameters[name]))
            if name in outcome.swept.derived:
                line.append(f"{outcome.swept.derived[name][1][at]:g}")
        for name in outcome.experiment.labels:
            mean = float(held[name]["mean"])
            low, high = (float(end) for end in held.mean_interval(name))
            half = (high - low) / 2
            line.append(f"{rounded(mean, half / 2)} ± {half:.1g}" if math.isfinite(half) else rounded(mean, half))
        table.add_row(*line)
    return table


def print_sweep(outcome: SweepOutcome) -> None:
    """Print the table, what the sweep was, and where its files are; of a part, how to go on."""
    out, result = console(), outcome.result
    facts = result.provenance
    if facts["part"]:
        index, count = facts["part"]
        out.print(
            f"part {index}/{count} of the sweep is done: {len(result.results)} of {len(result.grid.cells)} cells in "
            f"{outcome.folder}",
            markup=False,
            soft_wrap=True,
        )
        out.print(
            f"when all {count} parts are done: cnninv resume {outcome.folder} (parts in folders of their own: "
            "cnninv merge FOLDERS --out FOLDER)",
            markup=False,
            soft_wrap=True,
        )
        return
    out.print(sweep_table(outcome))
    if len(result.results) > SHOWN:
        out.print(f"{len(result.results) - SHOWN} more cells in {outcome.folder / 'summary.json'}", soft_wrap=True)
    out.print(f"mean ± half the 95% interval; {describe(outcome)}", markup=False)
    drawn = sum(record["draws"] for record in result.records.values())
    hosts = f" in {facts['process_count']} processes" if facts["process_count"] > 1 else ""
    out.print(
        f"{len(result.results)} cells, {drawn:,} draws, {facts['compilations']} compilations, {facts['seconds']:.1f} s "
        f"in this session on {facts['device_count']} x {facts['spec']['device']}{hosts}",
        markup=False,
    )
    if len(result.grid.axes) > 2:
        out.print("no figure: there is one for one or two parameters")
    for path in outcome.files:
        out.print(f"  {path}", markup=False, soft_wrap=True)
