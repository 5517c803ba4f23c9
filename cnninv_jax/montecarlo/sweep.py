"""`sweep`: one run per cell of a parameter grid, coarse picture first, one compiled program where only data change."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from cnninv_jax.montecarlo.accumulators import Accumulator, Histogram
from cnninv_jax.montecarlo.arguments import Statistics, as_key, as_mesh, as_part, choose_headline, make_plan, name_of
from cnninv_jax.montecarlo.arguments import positive as positive_integer
from cnninv_jax.montecarlo.engine import run
from cnninv_jax.montecarlo.errors import Interrupted
from cnninv_jax.montecarlo.grid import BoundDraw, Cell, Grid, bind, make_grid
from cnninv_jax.montecarlo.hosts import Hosts
from cnninv_jax.montecarlo.journal import WHOLE
from cnninv_jax.montecarlo.program import Plan, compile_blocks, split_draw, trace
from cnninv_jax.montecarlo.progress import Progress, Reporter, SweepReporter, make_reporter
from cnninv_jax.montecarlo.result import Result
from cnninv_jax.montecarlo.sizing import choose_sizes
from cnninv_jax.montecarlo.specification import array_digest, canonical_json, environment, sha256
from cnninv_jax.montecarlo.stopping import Width
from cnninv_jax.montecarlo.sweep_folder import SweepFolder, record_of
from cnninv_jax.montecarlo.sweep_result import VARIABLES, SweepResult


def sweep(
    draw: Callable[..., Any],
    key: jax.Array | int,
    grid: Mapping[str, Iterable[Any]],
    num_draws: int,
    *,
    static: Sequence[str] | None = None,
    traced: Sequence[str] | None = None,
    common_random_numbers: bool = False,
    out: str | os.PathLike[str] | None = None,
    part: tuple[int, int] = WHOLE,
    on_cell: Callable[[SweepResult], object] | None = None,
    statistics: Statistics | Callable[..., Statistics] | None = None,
    keep: Sequence[str] = (),
    chunk_size: int | None = None,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    until: Width | None = None,
    progress: bool | Callable[[Progress], object] = True,
    memory_limit: int | None = None,
    spec: Mapping[str, Any] | None = None,
    name: str | None = None,
    headline: str | None = None,
) -> SweepResult:
    """Run ``draw(key, **parameters)`` num_draws times in every cell of a grid.

    Each cell is a `run` of its own, with the same numbers to the last bit, and a journal of its own: an interrupted
    sweep goes on where it stopped, and values may be added to the grid later. Cells come coarse picture first (the
    ends of every axis, then the middles, the quarters, ...), inside a level by what has to be compiled.

    Args:
        draw: function of one typed key and the parameters as keywords; returns a pytree of arrays, of equal names
            and shapes in all cells.
        key: typed key, or an integer seed.
        grid: values per parameter. Floats and arrays are *traced*: all cells that differ in them alone share one
            compiled program. Integers, bools, strings, tuples and None are *static*: compiled in, once per
            combination. JAX's compilation cache on disk (JAX_COMPILATION_CACHE_DIR) serves both.
        num_draws: draws per cell; with ``until`` the most of them.
        static: parameters to compile in although they are floats.
        traced: parameters to trace although they are integers or bools.
        common_random_numbers: use the same keys in all cells, so that differences between cells vary less. By
            default a cell's key comes from a hash of its parameters: cells are independent.
        out: folder of the sweep: ``sweep.json``, and a journal per cell under ``cells/``.
        part: (i, N) runs cells i - 1, i - 1 + N, ... of the order only, for job arrays. Parts may share a folder; for
            folders of their own there is `merge_sweeps`.
        on_cell: called with all results so far after every cell (in the process that leads): a picture that sharpens.
            `SweepResult.level` is the last complete refinement level.
        statistics: as in `run`, or a function of a cell's parameters (keywords) that returns it. Statistics must be
            the same in all cells but for the edges of histograms. Edges are compiled in: let them depend on static
            parameters only.
        keep, chunk_size, lanes, mesh, until, memory_limit, headline: as in `run`, for every cell.
        progress: True for one bar over the whole grid, False for silence, or a function that receives
            `SweepProgress`.
        spec: JSON-able description of the sweep, part of what its folder is checked against.
        name: title. Default: the draw function's name.

    Returns:
        `SweepResult`.

    Raises:
        ValueError: arguments, parameters or outputs that do not fit; the cell is named.
        JournalError: the folder cannot be used, or holds another sweep; `Interrupted` on Ctrl-C.

    Cost: one compilation per combination of static parameters, as long as 64 programs hold them all; the draws.
    """
    num_draws = positive_integer(num_draws, "num_draws", 1 << 32)
    root, part, cells = as_key(key), as_part(part), make_grid(grid, static, traced)
    if not callable(draw):
        raise ValueError(f"expected draw to be a function of a key and parameters, got {type(draw).__name__}")
    hosts = Hosts.of(as_mesh(mesh))
    name = name or name_of(draw)
    study = _Study.of(draw, cells, root, statistics, keep, headline)
    # What would be refused in the first cell is refused here, before there is a folder.
    choose_sizes(chunk_size, lanes, num_draws, hosts.mesh.devices.flat[0].platform, {})
    if until is not None:
        until.check(study.plans[cells.cells[0].identity])
    full_spec = {
        "name": name,
        "user": json.loads(canonical_json(dict(spec or {}))),
        "num_draws": num_draws,
        "key": {"impl": str(jax.random.key_impl(root)), "data": jax.random.key_data(root).tolist()},
        "common_random_numbers": bool(common_random_numbers),
        "traced": [axis.name for axis in cells.axes if axis.traced],
        "static": [axis.name for axis in cells.axes if not axis.traced],
        "draw": {"data": study.data},
        **({} if until is None else {"until": until.describe()}),
        **environment(hosts.mesh.devices.flat[0]),
    }
    folder = None if out is None else SweepFolder(out)
    if folder is not None:
        hosts.share(lambda: folder.bind(full_spec, study.computations, cells))
    due = cells.cells[part[0] - 1 :: part[1]]
    results: dict[str, Result] = {}
    records: dict[str, Mapping[str, Any]] = {}
    shown = make_reporter(progress, name) if hosts.leads else Reporter()
    reporter = SweepReporter(shown, len(due), num_draws)
    began, compiled = time.perf_counter(), compile_blocks.cache_info().misses

    def so_far() -> SweepResult:
        facts = {
            "spec": {**full_spec, "grid": cells.describe()},
            "part": None if part == WHOLE else list(part),
            "seconds": time.perf_counter() - began,
            "compilations": compile_blocks.cache_info().misses - compiled,
            "device_count": hosts.mesh.size,
            "process_count": hosts.count,
            "folder": None if folder is None else str(folder.path),
        }
        facts["spec_sha256"] = sha256(canonical_json(facts["spec"]))
        return SweepResult(cells, due, dict(results), dict(records), study.headline, facts)

    try:
        for cell in due:
            with _named(cell, folder, len(results), len(due)):
                result = run(
                    study.draws[cell.identity],
                    cell.key(root, common=common_random_numbers),
                    num_draws,
                    chunk_size=chunk_size,
                    lanes=lanes,
                    statistics=study.statistics(cell),
                    keep=keep,
                    out=None if folder is None else folder.cell(cell),
                    mesh=mesh,
                    until=until,
                    progress=reporter.cell(str(cell)),
                    memory_limit=memory_limit,
                    spec={**(spec or {}), "cell": json.loads(cell.identity)},
                    name=name,
                    headline=study.headline,
                )
                results[cell.identity] = result
                records[cell.identity] = hosts.share(lambda cell=cell, result=result: _record(folder, cell, result))
                reporter.finish(int(result.provenance["num_draws"]))
                if on_cell is not None:
                    # The leader's refusal (a full disk) is everybody's, so that none waits for it.
                    hosts.share(lambda: _tell(on_cell, so_far()))
        reporter.close()
    finally:
        shown.close()
    return so_far()


def _record(folder: SweepFolder | None, cell: Cell, result: Result) -> dict[str, Any]:
    return record_of(cell, result) if folder is None else folder.record(cell, result)


def _tell(on_cell: Callable[[SweepResult], object], result: SweepResult) -> None:
    on_cell(result)


@contextlib.contextmanager
def _named(cell: Cell, folder: SweepFolder | None, done: int, total: int) -> Iterator[None]:
    """Name the cell in what is refused, and say on Ctrl-C what is safe."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None:
            raise Interrupted(
                f"stopped after {done} of {total} cells; nothing is saved, give out=folder to keep them"
            ) from None
        raise Interrupted(
            f"stopped: {done} of {total} cells are finished and safe in {folder.path}, and what was drawn of the next "
            f"({cell}); start the same sweep again to go on from there"
        ) from None
    except ValueError as error:
        raise ValueError(f"{cell}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Study:
    """What all cells have in common, found out before anything runs."""

    grid: Grid
    draws: Mapping[str, BoundDraw]
    plans: Mapping[str, Plan]
    computations: Mapping[str, str]
    data: str
    headline: str | None
    chosen: Statistics | Callable[..., Statistics] | None

    def statistics(self, cell: Cell) -> Statistics | None:
        """Return the statistics of one cell."""
        return _statistics(self.chosen, cell)

    @classmethod
    def of(
        cls,
        draw: Callable[..., Any],
        grid: Grid,
        root: jax.Array,
        statistics: Statistics | Callable[..., Statistics] | None,
        keep: Sequence[str],
        headline: str | None,
    ) -> _Study:
        """Trace every cell (once per combination of static parameters) and hold the cells against each other."""
        draws, plans, computations = {}, {}, {}
        first, chosen = grid.cells[0], None
        for cell in grid.cells:
            try:
                bound = draws[cell.identity] = bind(draw, grid, cell)
                found = trace(split_draw(bound, root)[0])
                plan = plans[cell.identity] = make_plan(found.leaves, _statistics(statistics, cell), keep)
                chosen = choose_headline(plan, headline)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{cell}: {error}") from error
            computations[cell.group] = found.digest
            _alike(plans[first.identity], plan, first, cell)
        _distinct(grid, plans[first.identity])
        arrays = [leaf for leaf in jax.tree_util.tree_leaves(draw) if hasattr(leaf, "dtype")]
        return cls(grid, draws, plans, computations, array_digest(arrays), chosen, statistics)


def _statistics(chosen: Statistics | Callable[..., Statistics] | None, cell: Cell) -> Statistics | None:
    return chosen(**cell.parameters) if callable(chosen) else chosen


def _alike(plan: Plan, other: Plan, first: Cell, cell: Cell) -> None:
    """Refuse cells that cannot stand in one dataset."""
    outputs = [{leaf.name: f"{leaf.dtype}{list(leaf.shape)}" for leaf in held.leaves} for held in (plan, other)]
    if outputs[0] != outputs[1]:
        raise ValueError(
            f"expected the same outputs in all cells, got {outputs[0]} at {first} and {outputs[1]} at {cell}; "
            "let names and shapes not depend on the parameters"
        )
    for leaf, one, two in zip(plan.leaves, plan.accumulators, other.accumulators, strict=True):
        if [_without_edges(entry) for entry in one] != [_without_edges(entry) for entry in two]:
            raise ValueError(
                f"expected the same statistics of {leaf.name!r} in all cells, histograms of equal numbers of bins, "
                f"got {list(one[1:])} at {first} and {list(two[1:])} at {cell}"
            )


def _without_edges(accumulator: Accumulator) -> object:
    return ("Histogram", accumulator.bins) if isinstance(accumulator, Histogram) else accumulator


def _distinct(grid: Grid, plan: Plan) -> None:
    """Refuse parameters whose names a dataset needs for something else."""
    for name in grid.names:
        if name == "draw" or name in VARIABLES or any(name.startswith(f"{leaf.name}_") for leaf in plan.leaves):
            raise ValueError(
                f"expected a parameter name that is no variable of the result, got {name!r}; rename it, or the output"
            )
