"""`run`: many independent draws, streamed through accumulators, journaled by the block."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cnninv_jax.montecarlo.accumulators import HostState
from cnninv_jax.montecarlo.arguments import (
    Statistics,
    as_key,
    as_mesh,
    choose_headline,
    make_plan,
    name_of,
    positive,
)
from cnninv_jax.montecarlo.errors import Interrupted, JournalError
from cnninv_jax.montecarlo.journal import Journal
from cnninv_jax.montecarlo.program import BlockProgram, Plan, split_draw, trace
from cnninv_jax.montecarlo.progress import Progress, Reporter, make_reporter
from cnninv_jax.montecarlo.result import Result, headline_text
from cnninv_jax.montecarlo.sizing import choose_sizes, fit
from cnninv_jax.montecarlo.specification import array_digest, canonical_json, environment, sha256

#: Blocks gathered for this many seconds, or this many bytes, go to the journal in one transaction.
COMMIT_SECONDS, COMMIT_BYTES = 0.5, 16 << 20


def run(
    draw: Callable[[jax.Array], Any],
    key: jax.Array | int,
    num_draws: int,
    *,
    chunk_size: int | None = None,
    lanes: int | None = None,
    statistics: Statistics | None = None,
    keep: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
    progress: bool | Callable[[Progress], object] = True,
    memory_limit: int | None = None,
    spec: Mapping[str, Any] | None = None,
    name: str | None = None,
    headline: str | None = None,
) -> Result:
    """Run ``draw(jax.random.fold_in(key, i))`` for i = 0 .. num_draws - 1; return statistics of the outputs.

    A draw is a pure function of (key, index): the same draws come out whatever the block size, the devices or
    a restart. At one block size and one number of lanes the result is the same to the last bit on any number
    of devices, interrupted or not; another block size agrees to rounding.

    Args:
        draw: function of one typed key that returns a pytree of real or bool arrays. Leaves are named by
            their joined key path ("a.b"), a bare array is "value". Array leaves of a `jax.tree_util.Partial`
            (or any registered pytree callable) are traced arguments: other values of equal shape compile
            nothing anew.
        key: typed key, or an integer seed.
        num_draws: how many draws, at most 2^32.
        chunk_size: draws per block, the unit of computation and of the journal. Default: 1024 on CPU, 32768
            elsewhere.
        lanes: draws computed at the same time inside a block, a power of two. Default: 128 on CPU, 2048
            elsewhere, halved until the memory fits.
        statistics: accumulator or sequence of them per leaf; leaves not named get `Moments` and `Extremes`,
            bool leaves a `Proportion`.
        keep: leaves whose raw draws are returned (and journaled).
        out: folder of the journal. A run that finds its own journal there goes on where it stopped; a
            finished one is read back without computing.
        mesh: devices to use, one axis "draws". Default: all local devices.
        progress: True for a bar on a terminal and a line every 10 s elsewhere (on stderr), False for silence,
            or a function that receives `Progress`.
        memory_limit: bytes per device that arguments, temporaries and two supersteps in flight may take.
            Default: 80% of an accelerator's memory; on CPU half of the physical memory.
        spec: JSON-able description of the run, part of what a journal is checked against.
        name: title of the run. Default: the draw function's name.
        headline: scalar leaf whose interval the progress shows. Default: the first one with a mean or a
            proportion.

    Returns:
        `Result`.

    Raises:
        ValueError: arguments or outputs that do not fit; the sentence says which and what exists.
        JournalError: the journal cannot be used; `Interrupted` on Ctrl-C, after the journal is flushed.

    Cost: num_draws draws; memory of two supersteps, independent of num_draws unless raw draws are kept.
    """
    num_draws = positive(num_draws, "num_draws", 1 << 32)
    root, mesh = as_key(key), as_mesh(mesh)
    name = name or name_of(draw)
    user = json.loads(canonical_json(dict(spec or {})))
    reporter = make_reporter(progress, name)
    try:
        reporter.report(Progress("compiling", 0, num_draws))
        signature, arrays = split_draw(draw, root)
        traced = trace(signature)
        plan = make_plan(traced.leaves, statistics, keep)
        headline = choose_headline(plan, headline)
        device = mesh.devices.flat[0]
        journal = None if out is None else Journal(out)
        try:
            held = {} if journal is None or journal.spec is None else journal.spec
            sizes = choose_sizes(chunk_size, lanes, num_draws, device.platform, held)
            program = None
            if journal is None or not held:
                sizes, program = fit(signature, plan, mesh, sizes, memory_limit)
            full_spec = {
                "name": name,
                "user": user,
                "num_draws": num_draws,
                "key": _describe_key(root),
                "block": sizes.block,
                "lanes": sizes.lanes,
                "draw": {"computation": traced.digest, "data": array_digest(arrays)},
                **plan.describe(),
                **environment(device),
            }
            if journal is not None:
                # A journal that is there fixes block and lanes: refuse another run before compiling.
                journal.bind(full_spec)
                if program is None and journal.finished() < -(-num_draws // sizes.block):
                    sizes, program = fit(signature, plan, mesh, sizes, memory_limit)
            session = _Session(plan, num_draws, sizes.block, journal, reporter, headline)
            session.go(program, arrays, root)
        finally:
            if journal is not None:
                journal.close()
        return session.result(full_spec, mesh, program)
    finally:
        reporter.close()


def _describe_key(root: jax.Array) -> dict[str, object]:
    data = np.asarray(jax.random.key_data(root)).tolist()
    return {"impl": str(jax.random.key_impl(root)), "data": data}


@dataclasses.dataclass
class _Session:
    """The host's side of one run: totals, kept draws, what waits for the journal."""

    plan: Plan
    num_draws: int
    block: int
    journal: Journal | None
    reporter: Reporter
    headline: str | None

    def __post_init__(self) -> None:
        self.totals: list[list[HostState]] = [
            [accumulator.empty(leaf.shape) for accumulator in group]
            for leaf, group in zip(self.plan.leaves, self.plan.accumulators, strict=True)
        ]
        self.kept = {leaf.name: np.empty((self.num_draws, *leaf.shape), leaf.dtype) for leaf in self.plan.kept}
        self.blocks = -(-self.num_draws // self.block)
        self.merged = self.resumed = 0
        self.waiting: list[tuple[int, int, bytes]] = []
        self.waiting_bytes, self.last_commit, self.last_report = 0, time.monotonic(), -math.inf
        self.began = time.perf_counter()
        self.seconds = 0.0

    def count(self, position: int) -> int:
        """Return the number of draws in a block; zero past the end."""
        return max(0, min(self.block, self.num_draws - position * self.block))

    def merge(self, packed: Sequence[np.ndarray], kept: Sequence[np.ndarray]) -> None:
        """Take the next block, in order, into the totals."""
        states = self.plan.unpack(packed)
        for group, totals, held in zip(self.plan.accumulators, self.totals, states, strict=True):
            for number, (accumulator, state) in enumerate(zip(group, held, strict=True)):
                totals[number] = accumulator.merge(totals[number], state)
        start = self.merged * self.block
        for target, values in zip(self.kept.values(), kept, strict=True):
            target[start : start + len(values)] = values
        self.merged += 1

    def load(self) -> None:
        """Take the blocks that the journal holds already."""
        if self.journal is None:
            return
        available = min(self.journal.finished(), self.blocks)
        counts = [self.count(position) for position in range(available)]
        fixed = sum(dtype.itemsize * size for dtype, size in self.plan.packed)
        row = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in self.plan.kept)
        payloads = self.journal.read(available, counts, [fixed + row * count for count in counts])
        for payload, count in zip(payloads, counts, strict=True):
            self.merge(*self._unpack(payload, count))
        self.resumed = available

    def _unpack(self, payload: bytes, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        arrays, offset = [], 0
        states = [(dtype, (size,)) for dtype, size in self.plan.packed]
        for dtype, shape in [*states, *((leaf.dtype, (count, *leaf.shape)) for leaf in self.plan.kept)]:
            size = math.prod(shape)
            raw = np.frombuffer(payload, dtype.newbyteorder("<"), count=size, offset=offset)
            arrays.append(raw.astype(dtype, copy=False).reshape(shape))
            offset += size * dtype.itemsize
        return arrays[: len(states)], arrays[len(states) :]

    def go(self, program: BlockProgram | None, arrays: Any, root: jax.Array) -> None:
        """Load what is there, compute the rest, and leave the journal complete."""
        try:
            self.load()
            self.began = time.perf_counter()
            if program is not None:
                self._compute(program, program.place(arrays), program.place(root))
            self.flush()
        except KeyboardInterrupt:
            raise Interrupted(self._stop()) from None
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
        if self.journal is None:
            done = min(self.merged * self.block, self.num_draws)
            return f"stopped after {done:,} of {self.num_draws:,} draws; nothing is saved, give out=folder to keep them"
        self.flush()
        done = min(self.journal.finished() * self.block, self.num_draws)
        return (
            f"stopped: {done:,} of {self.num_draws:,} draws are safe in {self.journal.path}; "
            "start the same run again to go on from there"
        )

    def _compute(self, program: BlockProgram, arrays: Any, root: jax.Array) -> None:
        devices = program.mesh.size
        flight: collections.deque[Any] = collections.deque()
        self._report("running")
        for first in range(self.merged, self.blocks, devices):
            positions = range(first, first + devices)
            counts = np.array([self.count(position) for position in positions], np.int32)
            # Positions past the end count no draws; their start is set to 0 to stay within 32 bits.
            starts = np.array([p * self.block if n else 0 for p, n in zip(positions, counts, strict=True)], np.uint32)
            flight.append((counts, program.compiled(arrays, root, starts, counts)))
            if len(flight) > 1:
                self._collect(*flight.popleft())
        while flight:
            self._collect(*flight.popleft())

    def _collect(self, counts: np.ndarray, outputs: Any) -> None:
        packed, kept = jax.device_get(outputs)
        for device, count in enumerate(counts):
            if count == 0:
                continue
            arrays = [array[device] for array in packed]
            raw = [array[device][:count] for array in kept]
            position = self.merged
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

    def flush(self) -> None:
        """Commit what waits for the journal."""
        if self.journal is not None and self.waiting:
            self.journal.append(self.waiting)
        self.waiting, self.waiting_bytes, self.last_commit = [], 0, time.monotonic()

    def _report(self, stage: Any) -> None:
        if math.isinf(self.reporter.interval):
            return
        self.last_report = time.monotonic()
        done = min(self.merged * self.block, self.num_draws)
        fresh = done - min(self.resumed * self.block, self.num_draws)
        speed = fresh / max(time.perf_counter() - self.began, 1e-9) if fresh else math.nan
        text = ""
        if self.merged and self.headline is not None:
            at = [leaf.name for leaf in self.plan.leaves].index(self.headline)
            text = headline_text(self.plan.accumulators[at], self.totals[at], self.headline)
        self.reporter.report(Progress(stage, done, self.num_draws, speed, (self.num_draws - done) / speed, text))

    def result(self, spec: dict[str, Any], mesh: Mesh, program: BlockProgram | None) -> Result:
        """Return the finished numbers with where they come from."""
        fresh = self.num_draws - min(self.resumed * self.block, self.num_draws)
        provenance = {
            "spec": spec,
            "spec_sha256": sha256(canonical_json(spec)),
            "device": spec["device"],
            "device_count": mesh.size,
            "seconds": self.seconds,
            "compile_seconds": 0.0 if program is None else program.compile_seconds,
            "draws_per_second": fresh / self.seconds if fresh else math.nan,
            "resumed_blocks": self.resumed,
            "memory_bytes": None if program is None else program.resident_bytes,
            "journal": None if self.journal is None else str(self.journal.path),
        }
        return Result.build(self.plan.leaves, self.plan.accumulators, self.totals, self.kept, provenance)


def _little_endian(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
