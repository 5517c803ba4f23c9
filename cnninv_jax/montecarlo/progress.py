"""Progress of a Monte-Carlo run and of a grid of runs; `cnninv_jax._progress` shows it."""

from __future__ import annotations

import dataclasses
import time

from cnninv_jax._progress import CallbackReporter as CallbackReporter
from cnninv_jax._progress import LineReporter as LineReporter
from cnninv_jax._progress import Progress, Reporter, Stage
from cnninv_jax._progress import describe as describe
from cnninv_jax._progress import duration as duration
from cnninv_jax._progress import make_reporter as make_reporter


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

    @property
    def place(self) -> str:
        """Which cell of how many."""
        if self.stage == "finished":
            return f"{self.cells_done} of {self.cells} cells"
        doing = ", compiling" if self.compiling else ""
        return f"cell {self.cells_done + 1} of {self.cells} ({self.cell}{doing})"


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
