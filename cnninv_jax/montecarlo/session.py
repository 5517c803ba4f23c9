"""The host's side of one run: which blocks are due, totals, kept draws, looks, what waits for the journal."""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cnninv_jax.montecarlo.accumulators import HostState
from cnninv_jax.montecarlo.errors import HostLostError, Interrupted, JournalError
from cnninv_jax.montecarlo.hosts import Hosts
from cnninv_jax.montecarlo.journal import WHOLE, Journal
from cnninv_jax.montecarlo.program import BlockProgram, Plan
from cnninv_jax.montecarlo.progress import Progress, Reporter
from cnninv_jax.montecarlo.result import Result, headline_text
from cnninv_jax.montecarlo.stopping import Looks, Stopping, Width

#: Blocks gathered for this many seconds, or this many bytes, go to the journal in one transaction.
COMMIT_SECONDS, COMMIT_BYTES = 0.5, 16 << 20


class Session:
    """One run from its first to its last block.

    Args:
        plan: what is computed per draw.
        num_draws: draws of the whole run; the most of them where ``until`` is given.
        block: draws per block.
        part: (i, N): blocks i - 1, i - 1 + N, ... are due.
        until: when to stop before ``num_draws``.
        hosts: the processes that take part.
        journal: the leader's journal, if there is one.
        reporter: receives progress.
        headline: output whose interval the progress shows.
    """

    def __init__(
        self,
        plan: Plan,
        num_draws: int,
        block: int,
        *,
        part: tuple[int, int],
        until: Width | None,
        hosts: Hosts,
        journal: Journal | None,
        reporter: Reporter,
        headline: str | None,
    ) -> None:
        self.plan, self.num_draws, self.block, self.hosts = plan, num_draws, block, hosts
        self.journal, self.reporter, self.headline, self.part = journal, reporter, headline, part
        self.positions = range(part[0] - 1, -(-num_draws // block), part[1])
        self.looks = None if until is None else Looks(until, num_draws, block)
        self.totals: list[list[HostState]] = [
            [accumulator.empty(leaf.shape) for accumulator in group]
            for leaf, group in zip(plan.leaves, plan.accumulators, strict=True)
        ]
        # A run that may stop early must not take the memory of one that does not: kept draws grow with the looks.
        rows = self.goal_draws
        self.kept = {leaf.name: np.empty((rows, *leaf.shape), leaf.dtype) for leaf in plan.kept}
        self.merged = self.resumed = self.draws = self.resumed_draws = 0
        self.stopped = False
        self.waiting: list[tuple[int, int, bytes]] = []
        self.waiting_bytes, self.last_commit, self.last_report = 0, time.monotonic(), -math.inf
        self.began = time.perf_counter()
        self.seconds = 0.0

    @property
    def goal(self) -> int:
        """How many blocks of this part are due before the next look, or the end."""
        if self.looks is None or self.looks.over:
            return len(self.positions) if self.looks is None else self.merged
        return -(-self.looks.draws // self.block)

    @property
    def goal_draws(self) -> int:
        """How many draws those blocks hold."""
        goal = self.goal
        last = 0 if goal == 0 else self.count(self.positions[goal - 1])
        return max(goal - 1, 0) * self.block + last

    def count(self, position: int) -> int:
        """Return the number of draws in a block."""
        return max(0, min(self.block, self.num_draws - position * self.block))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compute."""
        return self.stopped or (self.looks is None and self.merged == len(self.positions))

    def merge(self, packed: Sequence[np.ndarray], kept: Sequence[np.ndarray]) -> None:
        """Take the next block, in order, into the totals."""
        count = self.count(self.positions[self.merged])
        states = self.plan.unpack(packed)
        for group, totals, held in zip(self.plan.accumulators, self.totals, states, strict=True):
            for number, (accumulator, state) in enumerate(zip(group, held, strict=True)):
                totals[number] = accumulator.merge(totals[number], state)
        for target, values in zip(self.kept.values(), kept, strict=True):
            target[self.draws : self.draws + count] = values
        self.merged += 1
        self.draws += count

    def _look(self) -> None:
        """Take the look that is due, if one is."""
        if self.looks is None or self.looks.over or self.merged < self.goal:
            return
        rule = self.looks.rule
        now = self._result({"spec": {}})

        def interval(level: float) -> tuple[float, float, float]:
            return now.interval(rule.output, rule.statistic, rule.q, level)

        self.stopped = self.looks.look(interval)
        rows = self.goal_draws
        for name, held in self.kept.items():
            if rows > len(held):
                self.kept[name] = np.concatenate([held, np.empty((rows - len(held), *held.shape[1:]), held.dtype)])

    def load(self) -> None:
        """Take the blocks that the journal holds already, looks included; the leader's journal speaks for all."""
        if self.hosts.leads:
            self._load()
        if self.hosts.count > 1 and self.hosts.share(lambda: self.merged):
            self._exchange()
        self.resumed, self.resumed_draws = self.merged, self.draws

    def _load(self) -> None:
        if self.journal is None:
            return
        available = self.journal.finished(self.positions)
        fixed = sum(dtype.itemsize * size for dtype, size in self.plan.packed)
        row = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in self.plan.kept)
        while not self.complete and self.merged < available:
            due = self.positions[self.merged : min(available, self.goal)]
            counts = [self.count(position) for position in due]
            payloads = self.journal.read(due, counts, [fixed + row * count for count in counts])
            for payload, count in zip(payloads, counts, strict=True):
                self.merge(*self._unpack(payload, count))
            self._look()

    def _exchange(self) -> None:
        """Give every process the state that the leader has loaded."""
        leaves, structure = jax.tree_util.tree_flatten(
            (self.totals, {k: v[: self.draws] for k, v in self.kept.items()})
        )
        arrays = self.hosts.share_arrays([np.asarray(leaf) for leaf in leaves] if self.hosts.leads else None)
        facts = self.hosts.share(lambda: [self.merged, self.draws, self.stopped])
        looks = self.hosts.share(lambda: None if self.looks is None else self.looks.state())
        if self.hosts.leads:
            return
        self.totals, kept = jax.tree_util.tree_unflatten(structure, arrays)
        self.merged, self.draws, self.stopped = facts
        if self.looks is not None:
            self.looks.restore(looks)
        for name, values in kept.items():
            held = np.empty((max(self.goal_draws, len(values)), *values.shape[1:]), values.dtype)
            held[: len(values)] = values
            self.kept[name] = held

    def _unpack(self, payload: bytes, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        arrays, offset = [], 0
        states = [(dtype, (size,)) for dtype, size in self.plan.packed]
        for dtype, shape in [*states, *((leaf.dtype, (count, *leaf.shape)) for leaf in self.plan.kept)]:
            size = math.prod(shape)
            raw = np.frombuffer(payload, dtype.newbyteorder("<"), count=size, offset=offset)
            arrays.append(raw.astype(dtype, copy=False).reshape(shape))
            offset += size * dtype.itemsize
        return arrays[: len(states)], arrays[len(states) :]

    def go(self, program: BlockProgram | None, arrays: Any, root: Any) -> None:
        """Compute what is not done yet and leave the journal complete; `load` comes before."""
        try:
            self.began = time.perf_counter()
            if program is not None and not self.complete:
                placed = self.hosts.place(arrays), self.hosts.place(root)
                self._report("running")
                while not self.complete:
                    self._compute(program, *placed)
                    self._look()
            self.flush()
        except KeyboardInterrupt:
            raise Interrupted(self._stop()) from None
        except HostLostError as error:
            raise HostLostError(f"{error}; {self._stop()}") from None
        except JournalError:
            raise
        except Exception:
            with contextlib.suppress(JournalError):
                self.flush()
            raise
        finally:
            self.seconds = time.perf_counter() - self.began
        self._report("finished")

    def _stop(self) -> str:
        total = sum(self.count(position) for position in self.positions)
        if self.journal is None:
            if not self.hosts.leads:
                return "what is saved lies with process 0; start the same run again to go on from there"
            return f"stopped after {self.draws:,} of {total:,} draws; nothing is saved, give out=folder to keep them"
        self.flush()
        done = sum(self.count(position) for position in self.positions[: self.journal.finished(self.positions)])
        return (
            f"stopped: {done:,} of {total:,} draws are safe in {self.journal.path}; "
            "start the same run again to go on from there"
        )

    def _compute(self, program: BlockProgram, arrays: Any, root: Any) -> None:
        """Compute the blocks up to the next look, or to the end, with two supersteps in flight."""
        devices, goal = program.mesh.size, self.goal
        flight: collections.deque[Any] = collections.deque()
        spare: list[Any] = []
        for first in range(self.merged, goal, devices):
            due = self.positions[first : min(first + devices, goal)]
            counts, starts = np.zeros(devices, np.int32), np.zeros(devices, np.uint32)
            counts[: len(due)] = [self.count(position) for position in due]
            starts[: len(due)] = [position * self.block for position in due]
            dealt = self.hosts.deal(starts), self.hosts.deal(counts)
            outputs = program.compiled(arrays, root, *dealt, spare.pop() if spare else program.spare())
            flight.append((counts, outputs, self.hosts.gather(outputs)))
            if len(flight) > 1:
                spare.append(self._collect(*flight.popleft()))
        while flight:
            self._collect(*flight.popleft())

    def _collect(self, counts: np.ndarray, outputs: Any, gathered: Any) -> Any:
        """Merge one superstep; return its buffers for reuse."""
        packed, kept = self.hosts.fetch(gathered)
        for device, count in enumerate(counts):
            if count == 0:
                continue
            arrays = [array[device] for array in packed]
            raw = [array[device][:count] for array in kept]
            position = self.positions[self.merged]
            self.merge(arrays, raw)
            if self.journal is not None:
                payload = b"".join(_little_endian(array) for array in (*arrays, *raw))
                self.waiting.append((position, int(count), payload))
                self.waiting_bytes += len(payload)
        now = time.monotonic()
        if now - self.last_commit > COMMIT_SECONDS or self.waiting_bytes > COMMIT_BYTES:
            self.flush()
        if now - self.last_report >= self.reporter.interval:
            self._report("running")
        return outputs

    def flush(self) -> None:
        """Commit what waits for the journal."""
        if self.journal is not None and self.waiting:
            self.journal.append(self.waiting)
        self.waiting, self.waiting_bytes, self.last_commit = [], 0, time.monotonic()

    def _report(self, stage: Any) -> None:
        if math.isinf(self.reporter.interval):
            return
        self.last_report = time.monotonic()
        total = max(self.goal_draws, self.draws)
        fresh = self.draws - self.resumed_draws
        speed = fresh / max(time.perf_counter() - self.began, 1e-9) if fresh else math.nan
        text = ""
        if self.merged and self.headline is not None:
            at = [leaf.name for leaf in self.plan.leaves].index(self.headline)
            text = headline_text(self.plan.accumulators[at], self.totals[at], self.headline)
        self.reporter.report(Progress(stage, self.draws, total, speed, (total - self.draws) / speed, text))

    @property
    def stopping(self) -> Stopping | None:
        """How the looks ended."""
        return self.looks.outcome() if self.looks is not None and self.looks.taken else None

    def facts(self) -> dict[str, Any]:
        """Return what this session did, for the result's provenance."""
        fresh = self.draws - self.resumed_draws
        return {
            "seconds": self.seconds,
            "draws_per_second": fresh / self.seconds if fresh else math.nan,
            "resumed_blocks": self.resumed,
            "num_draws": self.draws,
            "part": None if self.part == WHOLE else list(self.part),
            "journal": None if self.journal is None else str(self.journal.path),
        }

    def result(self, provenance: dict[str, Any]) -> Result:
        """Return the finished numbers with where they come from."""
        return self._result({**provenance, **self.facts()})

    def _result(self, provenance: dict[str, Any]) -> Result:
        return Result.build(
            self.plan.leaves, self.plan.accumulators, self.totals, self._kept(), provenance, self.stopping
        )

    def _kept(self) -> dict[str, np.ndarray]:
        return {name: values[: self.draws] for name, values in self.kept.items()}


def _little_endian(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
