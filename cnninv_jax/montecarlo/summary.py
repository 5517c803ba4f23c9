"""A run's table for people: aligned text, HTML for notebooks, rows for programs."""

from __future__ import annotations

import dataclasses
import html
import math


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: a statistic of one element of one leaf, with its interval."""

    name: str
    statistic: str
    value: float
    standard_error: float
    low: float
    high: float
    count: int
    non_finite: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The rows of a run; ``str()`` aligns them."""

    title: str
    level: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def _cells(self) -> list[tuple[str, ...]]:
        percent = f"{100 * self.level:g}%"
        header = (
            "name",
            "statistic",
            "value",
            "std. error",
            f"{percent} low",
            f"{percent} high",
            "draws",
            "non-finite",
        )
        return [
            header,
            *(
                (
                    row.name,
                    row.statistic,
                    _rounded(row.value, row.standard_error),
                    _rounded(row.standard_error, row.standard_error),
                    _rounded(row.low, row.standard_error),
                    _rounded(row.high, row.standard_error),
                    f"{row.count:,}",
                    f"{row.non_finite:,}",
                )
                for row in self.rows
            ),
        ]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(
                text.ljust(width) if column < 2 else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join([self.title, lines[0], "-" * len(lines[0]), *lines[1:], *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, *body = ([html.escape(text) for text in line] for line in self._cells())
        head = "".join(f"<th>{text}</th>" for text in header)
        rows = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in line)}</tr>" for line in body)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        caption = f"<caption>{html.escape(self.title)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def _rounded(value: float, error: float) -> str:
    """Return ``value`` with two digits of its error, or six significant ones where there is no error."""
    if math.isnan(value):
        return "-"
    if not (math.isfinite(error) and error > 0 and math.isfinite(value)):
        return f"{value:.6g}"
    digits = 1 - math.floor(math.log10(error))
    return f"{value:.{digits}f}" if 0 <= digits <= 12 and abs(value) < 1e9 else f"{value:.6g}"
