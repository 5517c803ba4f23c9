"""Stopping on precision: run until an interval is narrow enough, and still tell the truth about its coverage.

Looking at an interval after every draw and stopping when it pleases makes a stated 95% untrue. Here the draw counts
at which one may look are fixed beforehand (they double), and the error level is spent over the looks, so that
P(the reported interval misses) <= sum of what was spent <= 1 - level.

Spending it evenly over twenty possible looks would make every interval needlessly wide. The width, unlike the estimate,
is predictable: a *pilot* look estimates the spread, from it follows the *target* look, the first one that exceeds the
predicted need by `MARGIN`. Nearly all of the error level is kept for the target; nothing is spent, and nothing
looked at, between pilot and target. The choice of the target depends on the pilot's spread; the bound holds
exactly where spread and estimate are independent (normal means) and to first order otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from cnninv_jax.montecarlo.accumulators import Histogram
from cnninv_jax.montecarlo.program import Plan

Statistic: TypeAlias = Literal["mean", "proportion", "quantile"]
#: (estimate, low, high) of the named statistic at a confidence level.
Interval: TypeAlias = Callable[[float], tuple[float, float, float]]

#: Shares of 1 - level: for stopping at the pilot, at the target, at the look after it; the rest is halved on and on.
PILOT, TARGET, NEXT = 0.02, 0.88, 0.08
#: The target look holds this many times the draws that the pilot predicts.
MARGIN = 1.25
#: A pilot whose own relative width is larger predicts nothing; the following look becomes the pilot.
VAGUE = 1.0


@dataclasses.dataclass(frozen=True)
class Width:
    """Run until the interval of one output is narrower than a width: ``until=Width("ratio", absolute=1e-3)``.

    Attributes:
        output: scalar output of the draw.
        absolute: width of the whole interval, high - low, in the output's units.
        relative: width as a fraction of the estimate's magnitude; give one of the two.
        statistic: "mean", "proportion" or "quantile".
        q: which quantile, from a histogram or kept draws.
        level: confidence level of the reported interval, all looks together.
        first: draws at the first look, rounded up to whole blocks; then 2, 4, 8, ... times that, and the maximum.
    """

    output: str
    absolute: float | None = None
    relative: float | None = None
    statistic: Statistic = "mean"
    q: float | None = None
    level: float = 0.95
    first: int = 1024

    def __post_init__(self) -> None:
        if (self.absolute is None) == (self.relative is None):
            raise ValueError(f"expected either an absolute or a relative width, got {self.absolute}, {self.relative}")
        width = self.absolute if self.relative is None else self.relative
        if not (isinstance(width, (int, float)) and math.isfinite(width) and width > 0):
            raise ValueError(f"expected a positive width, got {width!r}")
        if self.statistic not in ("mean", "proportion", "quantile"):
            raise ValueError(f"expected statistic to be 'mean', 'proportion' or 'quantile', got {self.statistic!r}")
        if (self.statistic == "quantile") != (self.q is not None):
            raise ValueError(f"expected q for statistic='quantile' and for no other, got q={self.q}")
        if self.q is not None and not 0.0 < self.q < 1.0:
            raise ValueError(f"expected a quantile q between 0 and 1, got {self.q}")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"expected a confidence level between 0 and 1, got {self.level}; 95% is level=0.95")
        if isinstance(self.first, bool) or not isinstance(self.first, int) or self.first < 2:
            raise ValueError(f"expected first to be an integer of at least 2, got {self.first!r}")

    def __str__(self) -> str:
        what = f"{self.q:g}-quantile" if self.statistic == "quantile" else self.statistic
        width = f"{self.absolute:g}" if self.relative is None else f"{100 * self.relative:g}% of it"
        return f"{100 * self.level:g}% interval of the {what} of {self.output} narrower than {width}"

    def check(self, plan: Plan) -> None:
        """Refuse a rule that the run's outputs and statistics cannot serve."""
        leaves = {leaf.name: (leaf, group) for leaf, group in zip(plan.leaves, plan.accumulators, strict=True)}
        if self.output not in leaves:
            raise ValueError(f"expected until to name one of the outputs {list(leaves)}, got {self.output!r}")
        leaf, group = leaves[self.output]
        if leaf.shape:
            raise ValueError(f"expected until to name a scalar output, got {leaf.name!r} of shape {leaf.shape}")
        produced = {name for accumulator in group for name in accumulator.produces}
        if self.statistic == "quantile":
            if not any(isinstance(accumulator, Histogram) for accumulator in group) and leaf.name not in plan.keep:
                raise ValueError(f"expected a Histogram or kept draws of {leaf.name!r} to stop on a quantile")
        elif self.statistic not in produced:
            raise ValueError(
                f"expected a statistic that gives the {self.statistic} of {leaf.name!r}, got {sorted(produced)}"
            )

    def describe(self) -> dict[str, Any]:
        """Return the rule as JSON-able data, for the run's specification."""
        constants = {"pilot": PILOT, "target": TARGET, "next": NEXT, "margin": MARGIN}
        return {**dataclasses.asdict(self), "spending": constants}

    def excess(self, interval: tuple[float, float, float]) -> float:
        """Return the interval's width over the wanted one; narrow enough where at most 1, NaN where undefined."""
        estimate, low, high = interval
        if self.relative is None:
            assert self.absolute is not None
            return (high - low) / self.absolute
        # The wanted width, not the estimate: the product of two small numbers may be zero.
        wanted = self.relative * abs(estimate)
        return (high - low) / wanted if wanted else math.nan


@dataclasses.dataclass(frozen=True)
class Look:
    """One look: how many draws there were, what was spent, and what was seen."""

    draws: int
    error: float
    estimate: float
    low: float
    high: float
    narrow: bool


@dataclasses.dataclass(frozen=True)
class Stopping:
    """How a run ended that was to stop on precision.

    Attributes:
        rule: the rule.
        looks: every look that was taken.
        reached: whether the width was reached, or the largest number of draws came first.
    """

    rule: Width
    looks: tuple[Look, ...]
    reached: bool

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the last look; covers with the rule's level, all looks together."""
        return self.looks[-1].low, self.looks[-1].high

    def __str__(self) -> str:
        last = self.looks[-1]
        count = f"{len(self.looks)} look{'s' if len(self.looks) > 1 else ''}"
        found = f"{last.estimate:.6g} in [{last.low:.6g}, {last.high:.6g}]"
        if self.reached:
            return f"stopped at {last.draws:,} draws after {count}: {self.rule}: {found}"
        return f"NOT reached in {last.draws:,} draws ({count}): {self.rule}: {found}"

    def describe(self) -> dict[str, Any]:
        """Return all of it as JSON-able data."""
        return {
            "rule": self.rule.describe(),
            "looks": [dataclasses.asdict(look) for look in self.looks],
            "reached": self.reached,
        }


class Looks:
    """The looks of one run: where the next one is, and what it may spend.

    Args:
        rule: when to stop.
        num_draws: the most draws.
        block: draws per block; a look stands at the end of a block.
    """

    def __init__(self, rule: Width, num_draws: int, block: int) -> None:
        self.rule = rule
        self.taken: list[Look] = []
        self.reached = False
        blocks = -(-num_draws // block)
        step = -(-rule.first // block)
        self._counts: list[int] = []
        while step < blocks:
            self._counts.append(min(step * block, num_draws))
            step *= 2
        self._counts.append(num_draws)
        self._at, self._target, self._spent = 0, -1, 0.0
        self._pilots = 0

    @property
    def draws(self) -> int:
        """How many draws the next look needs."""
        return self._counts[self._at]

    @property
    def over(self) -> bool:
        """Whether no look is left."""
        return self._at >= len(self._counts)

    def look(self, interval: Interval) -> bool:
        """Take the look at `draws`; return whether the run is over."""
        alpha = 1.0 - self.rule.level
        last = self._at == len(self._counts) - 1
        if last:
            # Nothing comes after it: all that is left is spent here.
            error = alpha - self._spent
        elif self._target < 0:
            # A pilot may turn out too vague and be repeated: all of them together spend their share.
            self._pilots += 1
            error = alpha * PILOT / 2**self._pilots
        elif self._at <= self._target + 1:
            error = alpha * (TARGET if self._at == self._target else NEXT)
        else:
            error = (alpha - self._spent) / 2
        seen = interval(1.0 - error)
        narrow = bool(self.rule.excess(seen) <= 1.0)
        self._spent += error
        self.taken.append(Look(self.draws, error, *seen, narrow))
        if narrow or last:
            self.reached, self._at = narrow, len(self._counts)
            return True
        informative = self._target < 0 and not self._vague(seen)
        self._at = self._predict(interval) if informative else self._at + 1
        return False

    def _vague(self, seen: tuple[float, float, float]) -> bool:
        estimate, low, high = seen
        if not math.isfinite(high - low):
            return True
        return self.rule.relative is not None and high - low > VAGUE * abs(estimate)

    def _predict(self, interval: Interval) -> int:
        """Return the target look: the first with `MARGIN` times the draws that the pilot's width calls for."""
        excess = self.rule.excess(interval(1.0 - (1.0 - self.rule.level) * TARGET))
        need = MARGIN * self.draws * max(excess, 1.0) ** 2
        later = range(self._at + 1, len(self._counts))
        self._target = next((at for at in later if self._counts[at] >= need), len(self._counts) - 1)
        return self._target

    def state(self) -> dict[str, Any]:
        """Return where the looks stand, as JSON-able data."""
        names = ("_at", "_target", "_spent", "_pilots", "reached")
        return {**{name: getattr(self, name) for name in names}, "taken": [dataclasses.asdict(x) for x in self.taken]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what another process' `state` said."""
        for name, value in state.items():
            setattr(self, name, [Look(**look) for look in value] if name == "taken" else value)

    def outcome(self) -> Stopping:
        """Return how it ended."""
        return Stopping(self.rule, tuple(self.taken), self.reached)
