"""The tables of a study, for the terminal."""

from __future__ import annotations

from rich.table import Table as Rich
from rich.text import Text

from cnninv_jax.experiments.studies import StudyOutcome, Table
from cnninv_jax.experiments.tables import console

#: Words of a verdict that are coloured.
COLOURS = {"agrees": "green", "differs": "red", "undecided": "yellow"}


def print_study(outcome: StudyOutcome) -> None:
    """Print the tables with their notes, how long it took, and where the files are."""
    out = console()
    for table in outcome.tables:
        out.print(as_rich(table))
        for note in table.notes:
            out.print(note, markup=False)
        out.print()
    facts = outcome.report["provenance"]
    out.print(
        f"{outcome.report['source']}: {facts['seconds']:.1f} s on {facts['device']}, {outcome.report['precision']}, "
        f"seed {outcome.report['seed']}",
        markup=False,
    )
    for path in outcome.files:
        out.print(f"  {path}", markup=False, soft_wrap=True)


def as_rich(table: Table) -> Rich:
    """Return a table as rich prints it: names to the left, numbers to the right, verdicts in colour."""
    drawn = Rich(title=Text(table.title), title_justify="left")
    for place, heading in enumerate(table.columns):
        drawn.add_column(Text(heading), justify="left" if place == 0 or heading == "verdict" else "right")
    for row in table.rows:
        drawn.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    return drawn
