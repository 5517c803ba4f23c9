"""What a person sees while a run goes on: a bar on a terminal, a line now and then in a log, or nothing."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO, TypeAlias

Stage: TypeAlias = Literal["compiling", "running", "finished"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """One report.

    Attributes:
        stage: what the run is doing.
        done: draws finished, those of an earlier session included.
        total: draws asked for.
        draws_per_second: speed of this session, NaN before the first block.
        seconds_left: at that speed, NaN before the first block.
        headline: the headline statistic, "ratio: 0.1522 +- 0.0004 (95%)"; empty before the first block.
    """

    stage: Stage
    done: int
    total: int
    draws_per_second: float = float("nan")
    seconds_left: float = float("nan")
    headline: str = ""


@dataclasses.dataclass(frozen=True)
class SweepProgress(Progress):
    """One report of a sweep: draws, speed and time left are those of the whole grid.

    Attributes:
        cells_done: cells finished.
        cells: cells asked for.
        cell: the one at work, "k=2, M=8".
        compiling: whether its program is being compiled.
    """

    cells_done: int = 0
    cells: int = 0
    cell: str = ""
    compiling: bool = False


class Reporter:
    """Receives progress; this one says nothing."""

    #: Seconds between two reports; the engine does not prepare a report more often than this.
    interval = float("inf")

    def report(self, progress: Progress) -> None:
        """Show one report."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class CallbackReporter(Reporter):
    """Hands every report to a function."""

    interval = 0.0

    def __init__(self, callback: Callable[[Progress], object]) -> None:
        self._callback = callback

    def report(self, progress: Progress) -> None:
        """Call the function."""
        self._callback(progress)


class LineReporter(Reporter):
    """Writes a plain line at most every ``interval`` seconds, and one at the end."""

    def __init__(self, name: str, stream: TextIO, interval: float = 10.0) -> None:
        self.interval = interval
        self._name, self._stream = name, stream
        self._last = time.monotonic()

    def report(self, progress: Progress) -> None:
        """Write a line if it is time."""
        now = time.monotonic()
        if progress.stage == "running" and now - self._last < self.interval:
            return
        self._last = now
        self._stream.write(f"{self._name}: {describe(progress)}\n")
        self._stream.flush()


class BarReporter(Reporter):
    """A bar with speed, time left and the headline statistic's interval, by rich."""

    interval = 0.2

    def __init__(self, name: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar: Any = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=stream),
            refresh_per_second=5,
        )
        self._name = name
        self._task = self._bar.add_task(name, total=None, note="")
        self._bar.start()

    def report(self, progress: Progress) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=progress.done, total=progress.total, note=_note(progress))

    def close(self) -> None:
        """Stop drawing; the last state of the bar stays."""
        self._bar.stop()


def _note(progress: Progress) -> str:
    if progress.stage == "compiling":
        return "compiling"
    parts = [_where(progress)] if isinstance(progress, SweepProgress) else []
    if progress.draws_per_second == progress.draws_per_second:
        parts.append(f"{progress.draws_per_second:,.0f} draws/s")
    if progress.stage == "running" and progress.seconds_left == progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.headline:
        parts.append(progress.headline)
    return "  ".join(parts)


def _where(progress: SweepProgress) -> str:
    if progress.stage == "finished":
        return f"{progress.cells_done} of {progress.cells} cells"
    doing = ", compiling" if progress.compiling else ""
    return f"cell {progress.cells_done + 1} of {progress.cells} ({progress.cell}{doing})"


def describe(progress: Progress) -> str:
    """Return a report as one line of text."""
    if progress.stage == "compiling":
        return "compiling"
    share = 100 * progress.done / progress.total
    return f"{progress.done:,} of {progress.total:,} draws ({share:.0f}%)  {_note(progress)}".rstrip()


def duration(seconds: float) -> str:
    """Return a time span as people write it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class SweepReporter:
    """Turns the reports of one cell after another into those of the whole grid.

    Args:
        reporter: what shows them; closed by its owner.
        cells: cells asked for.
        num_draws: draws of one cell, or the most of them.
    """

    def __init__(self, reporter: Reporter, cells: int, num_draws: int) -> None:
        self.reporter, self.cells, self.num_draws = reporter, cells, num_draws
        self._finished = self._done = self._fresh = 0
        self._began = time.perf_counter()
        self._started = False

    def cell(self, label: str) -> CellReporter:
        """Return the reporter of the next cell, to be given to its `run`."""
        return CellReporter(self, label)

    def finish(self, draws: int) -> None:
        """Count the cell that has just run; it holds ``draws`` draws."""
        self._finished += 1
        self._done += draws

    def close(self) -> None:
        """Report the end."""
        if self._finished == self.cells:
            self._send("finished", self._done, self._fresh, self._done)

    def report(self, progress: Progress, label: str, fresh: int) -> None:
        """Add what one cell says to what lies behind it."""
        stage: Stage = "running" if self._started else "compiling"
        self._started = True
        total = self._done + max(self.num_draws, progress.done) + (self.cells - self._finished - 1) * self.num_draws
        compiling = progress.stage == "compiling"
        self._send(stage, self._done + progress.done, self._fresh + fresh, total, label, compiling, progress.headline)

    def count_fresh(self, draws: int) -> None:
        """Count draws computed in this session, not read from a journal."""
        self._fresh += draws

    def _send(
        self, stage: Stage, done: int, fresh: int, total: int, cell: str = "", compiling: bool = False, text: str = ""
    ) -> None:
        # Compilation counts as time: that is how long the rest will take too.
        speed = fresh / max(time.perf_counter() - self._began, 1e-9) if fresh else float("nan")
        left = (total - done) / speed
        self.reporter.report(
            SweepProgress(stage, done, total, speed, left, text, self._finished, self.cells, cell, compiling)
        )


class CellReporter(Reporter):
    """The reporter of one cell; a run may close it, the grid's goes on."""

    def __init__(self, sweep: SweepReporter, label: str) -> None:
        self.interval = sweep.reporter.interval
        self._sweep, self._label = sweep, label
        self._read: int | None = None
        self._last = 0

    def report(self, progress: Progress) -> None:
        """Hand on what the run says; its first number of draws is what the journal held."""
        if progress.stage != "compiling":
            self._read = progress.done if self._read is None else self._read
            self._last = progress.done
        if progress.stage != "finished":
            self._sweep.report(progress, self._label, self._last - (self._read or 0))

    #: `run` takes functions.
    __call__ = report

    def close(self) -> None:
        """Leave the bar to the sweep."""
        self._sweep.count_fresh(self._last - (self._read or 0))


def make_reporter(progress: bool | Callable[[Progress], object], name: str) -> Reporter:
    """Return the reporter for ``progress``: silent, a function, a reporter itself, or by what stderr is."""
    if isinstance(progress, Reporter):
        return progress
    if callable(progress):
        return CallbackReporter(progress)
    if not progress:
        return Reporter()
    if sys.stderr.isatty():
        return BarReporter(name, sys.stderr)
    return LineReporter(name, sys.stderr)
