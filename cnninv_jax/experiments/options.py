"""How a simulation runs: the flags that every experiment shares, checked in the words of the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Literal, TypeAlias

import jax

from cnninv_jax.montecarlo import Width
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.montecarlo.journal import WHOLE, part_from_text

Precision: TypeAlias = Literal["float32", "float64"]
#: The most draws of a run that stops by itself, where the user names no number.
UNTIL_DRAWS = 100_000_000


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a simulation runs; none of this but seed, draws, precision, block and until changes its numbers."""

    num_draws: int | None = None
    """Number of draws; the experiment's own by default. With --until the most of them, by default 100 million."""
    seed: int = 0
    """Seed of the root key; draw i uses fold_in(key(seed), i)."""
    out: Path | None = None
    """Folder for journal, result.nc, summary.json and figures; by default a folder of its own under runs/."""
    precision: Precision = "float32"
    """Arithmetic of the draws."""
    until: str | None = None
    """Stop when a 95% interval is narrow: OUTPUT=WIDTH or OUTPUT=1%, such as error_model=0.001; OUTPUT:proportion and
    OUTPUT:q0.999 stand for other statistics than the mean."""
    part: str | None = None
    """Compute part i/N of the blocks only, such as 2/4, into a folder of its own below --out, for a job array;
    `cnninv merge` joins the parts."""
    block: int | None = None
    """Draws per block, the unit of the journal; the experiment's own by default."""
    lanes: int | None = None
    """Draws computed side by side inside a block; the experiment's own by default."""
    memory_limit: float | None = None
    """Gibibytes per device that a run may take; block and lanes chosen by the library are lowered to fit."""
    quiet: bool = False
    """No progress."""

    def most_draws(self, default: int) -> int:
        """Return the number of draws, or the most of them."""
        if self.num_draws is not None:
            return self.num_draws
        return default if self.until is None else UNTIL_DRAWS

    def parsed_part(self) -> tuple[int, int]:
        """Return --part as (i, N)."""
        if self.part is None:
            return WHOLE
        try:
            part = part_from_text(self.part)
        except ValueError:
            raise ValueError(f"expected --part i/N with 1 <= i <= N, such as 2/4, got {self.part!r}") from None
        if self.until is not None and part != WHOLE:
            raise ValueError("expected --part or --until, got both; a part cannot see the whole run's interval")
        return part

    def parsed_until(self) -> Width | None:
        """Return --until as a rule."""
        return None if self.until is None else parse_until(self.until)


def parse_until(text: str) -> Width:
    """Return the rule that OUTPUT[:STATISTIC]=WIDTH[%] stands for.

    Raises:
        ValueError: not of that form.
    """
    found = re.fullmatch(r"\s*([\w.]+)(?::(mean|proportion|q[\d.]+))?\s*=\s*([^\s%]+)\s*(%?)\s*", text)
    try:
        if found is None:
            raise ValueError
        output, statistic, width, percent = found[1], found[2] or "mean", float(found[3]), bool(found[4])
        q = float(statistic[1:]) if statistic.startswith("q") else None
    except ValueError:
        raise ValueError(
            f"expected --until OUTPUT=WIDTH, such as error_model=0.001, model_rip=0.1% or error_model:q0.999=0.01, "
            f"got {text!r}"
        ) from None
    try:
        return Width(
            output,
            absolute=None if percent else width,
            relative=width / 100 if percent else None,
            statistic="quantile" if q is not None else statistic,  # type: ignore[arg-type]  # checked by Width
            q=q,
        )
    except ValueError as error:
        raise ValueError(f"--until {text}: {error}") from None


def chosen_sizes(options: RunOptions, block: int, lanes: int) -> tuple[int | None, int | None]:
    """Return draws per block and side by side: the flags, else an experiment's own on a CPU, else the engine's choice.

    An experiment's sizes suit the caches of a CPU core; an accelerator wants far more, and the engine fits them to its
    memory.
    """
    if jax.default_backend() != "cpu":
        return options.block, options.lanes
    return (
        block if options.block is None else options.block,
        lanes if options.lanes is None else options.lanes,
    )


def check_options(options: RunOptions, num_draws: int) -> int | None:
    """Refuse impossible options by the names of their flags; return the memory limit in bytes."""
    checked_seed(options.seed)
    positive(num_draws, "--num-draws", 1 << 32)
    if options.block is not None:
        positive(options.block, "--block", 1 << 30)
    if options.lanes is not None:
        positive(options.lanes, "--lanes", 1 << 30)
    if options.memory_limit is None:
        return None
    if not (math.isfinite(options.memory_limit) and options.memory_limit > 0):
        raise ValueError(f"expected --memory-limit to be a positive number of gibibytes, got {options.memory_limit}")
    return int(options.memory_limit * 2**30)


def checked_seed(seed: int) -> int:
    """Return a seed that `jax.random.key` takes whatever the width of integers is."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected a seed from 0 to 2^32 - 1, got {seed}")
    return seed


def as_flags(message: str) -> str:
    """Return the library's sentence in the words of the command line."""
    flags = {"chunk_size": "--block", "lanes": "--lanes", "memory_limit": "--memory-limit"}
    message = message.replace(" or padding='same'", "").replace("sampling='plain'", "--sampling plain")
    message = re.sub(r"products='(\w+)'", r"--products \1", message).replace("dtype float32", "--precision float32")
    message = message.replace("expected until to name", "expected --until to name")
    return re.sub(r"(?<![\w./-])(chunk_size|lanes|memory_limit)\b", lambda found: flags[found[0]], message)
