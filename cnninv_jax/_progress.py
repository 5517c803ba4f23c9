"""What a person sees while something long goes on: a bar on a terminal, a line now and then in a log, or nothing."""

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
        done: draws (or what ``unit`` names) finished, those of an earlier session included.
        total: draws asked for.
        draws_per_second: speed of this session, NaN before the first block.
        seconds_left: at that speed, NaN before the first block.
        headline: the headline statistic, "ratio: 0.1522 +- 0.0004 (95%)"; empty before the first block.
        unit: what is counted.
        rate: the speed in words, where it is not that of ``unit``, "512 images/s".
    """

    stage: Stage
    done: int
    total: int
    draws_per_second: float = float("nan")
    seconds_left: float = float("nan")
    headline: str = ""
    unit: str = dataclasses.field(default="draws", kw_only=True)
    rate: str = dataclasses.field(default="", kw_only=True)

    @property
    def place(self) -> str:
        """Where in something larger this is; empty where there is nothing larger."""
        return ""


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
    parts = [progress.place] if progress.place else []
    if progress.rate:
        parts.append(progress.rate)
    elif progress.draws_per_second == progress.draws_per_second:
        parts.append(f"{progress.draws_per_second:,.0f} {progress.unit}/s")
    if progress.stage == "running" and progress.seconds_left == progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.headline:
        parts.append(progress.headline)
    return "  ".join(parts)


def describe(progress: Progress) -> str:
    """Return a report as one line of text."""
    if progress.stage == "compiling":
        return "compiling"
    share = 100 * progress.done / progress.total
    return f"{progress.done:,} of {progress.total:,} {progress.unit} ({share:.0f}%)  {_note(progress)}".rstrip()


def duration(seconds: float) -> str:
    """Return a time span as people write it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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
