"""`run`: many independent draws, streamed through accumulators, journaled by the block."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cnninv_jax.montecarlo.arguments import (
    Statistics,
    as_key,
    as_mesh,
    as_part,
    choose_headline,
    make_plan,
    name_of,
    positive,
)
from cnninv_jax.montecarlo.hosts import Hosts
from cnninv_jax.montecarlo.journal import WHOLE, Journal
from cnninv_jax.montecarlo.program import split_draw, trace
from cnninv_jax.montecarlo.progress import Progress, Reporter, make_reporter
from cnninv_jax.montecarlo.result import Result
from cnninv_jax.montecarlo.session import Session
from cnninv_jax.montecarlo.sizing import agree_on_sizes, choose_sizes
from cnninv_jax.montecarlo.specification import array_digest, canonical_json, differences, environment, sha256
from cnninv_jax.montecarlo.stopping import Width


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
    part: tuple[int, int] = WHOLE,
    until: Width | None = None,
    progress: bool | Callable[[Progress], object] = True,
    memory_limit: int | None = None,
    spec: Mapping[str, Any] | None = None,
    name: str | None = None,
    headline: str | None = None,
) -> Result:
    """Run ``draw(jax.random.fold_in(key, i))`` for i = 0 .. num_draws - 1; return statistics of the outputs.

    A draw is a pure function of (key, index): the same draws come out whatever the block size, the devices or
    a restart. At one block size and one number of lanes the result is the same to the last bit on any number
    of devices and processes, interrupted or not; another block size agrees to rounding.

    Under `jax.distributed` every process calls `run` with the same arguments; each returns the same result, and
    the process with index 0 keeps the journal.

    Args:
        draw: function of one typed key that returns a pytree of real or bool arrays. Leaves are named by
            their joined key path ("a.b"), a bare array is "value". Array leaves of a `jax.tree_util.Partial`
            (or any registered pytree callable) are traced arguments: other values of equal shape compile
            nothing anew.
        key: typed key, or an integer seed.
        num_draws: how many draws, at most 2^32; with ``until`` the most of them.
        chunk_size: draws per block, the unit of computation and of the journal. Default: 1024 on CPU, 32768
            elsewhere.
        lanes: draws computed at the same time inside a block, a power of two. Default: 128 on CPU, 2048
            elsewhere, halved until the memory fits.
        statistics: accumulator or sequence of them per leaf; leaves not named get `Moments` and `Extremes`,
            bool leaves a `Proportion`.
        keep: leaves whose raw draws are returned (and journaled).
        out: folder of the journal. A run that finds its own journal there goes on where it stopped; a
            finished one is read back without computing.
        mesh: devices to use, one axis "draws". Default: all devices of all processes.
        part: (i, N) computes blocks i - 1, i - 1 + N, ... only, for job arrays without a cluster runtime;
            `merge` joins the N journals to the bits of one run.
        until: stop when an interval is narrow enough, `Width("ratio", absolute=1e-3)`; the looks double, and the
            error level is spent over them.
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
    root, part = as_key(key), as_part(part)
    hosts = Hosts.of(as_mesh(mesh))
    if until is not None and part != WHOLE:
        raise ValueError("expected part or until, got both; a part cannot see how narrow the whole run's interval is")
    name = name or name_of(draw)
    user = json.loads(canonical_json(dict(spec or {})))
    reporter = make_reporter(progress, name) if hosts.leads else Reporter()
    journal: Journal | None = None
    try:
        reporter.report(Progress("compiling", 0, num_draws))
        signature, arrays = split_draw(draw, root)
        traced = trace(signature)
        plan = make_plan(traced.leaves, statistics, keep)
        headline = choose_headline(plan, headline)
        if until is not None:
            until.check(plan)

        def open_journal() -> dict[str, Any]:
            nonlocal journal
            journal = None if out is None else Journal(out)
            return {} if journal is None or journal.spec is None else journal.spec

        device = hosts.mesh.devices.flat[0]
        identity = {
            "name": name,
            "user": user,
            "num_draws": num_draws,
            "key": _describe_key(root),
            "draw": {"computation": traced.digest, "data": array_digest(arrays)},
            **({} if until is None else {"until": until.describe()}),
            **plan.describe(),
            **environment(device),
        }
        _compare(hosts, {**identity, "chunk_size": chunk_size, "lanes": lanes, "part": part})
        held = hosts.share(open_journal)
        sizes = choose_sizes(chunk_size, lanes, num_draws, device.platform, held)
        program = None
        if not held:
            sizes, program = agree_on_sizes(signature, plan, hosts, sizes, memory_limit)
        full_spec = {**identity, "block": sizes.block, "lanes": sizes.lanes}
        # A journal that is there fixes block and lanes: refuse another run before compiling.
        hosts.share(lambda: None if journal is None else journal.bind(full_spec, part))
        session = Session(
            plan,
            num_draws,
            sizes.block,
            part=part,
            until=until,
            hosts=hosts,
            journal=journal,
            reporter=reporter,
            headline=headline,
        )
        session.load()
        if program is None and not session.complete:
            sizes, program = agree_on_sizes(signature, plan, hosts, sizes, memory_limit)
        session.go(program, arrays, root)
        provenance = {
            "spec": full_spec,
            "spec_sha256": sha256(canonical_json(full_spec)),
            "device": full_spec["device"],
            "device_count": hosts.mesh.size,
            "process_count": hosts.count,
            "compile_seconds": 0.0 if program is None else program.compile_seconds,
            "memory_bytes": None if program is None else program.resident_bytes,
        }
        return session.result(provenance)
    finally:
        if journal is not None:
            journal.close()
        reporter.close()


def _describe_key(root: jax.Array) -> dict[str, object]:
    data = np.asarray(jax.random.key_data(root)).tolist()
    return {"impl": str(jax.random.key_impl(root)), "data": data}


def _compare(hosts: Hosts, spec: Mapping[str, Any]) -> None:
    """Refuse processes that were asked for different runs, or run on different software."""
    if hosts.count == 1:
        return
    specs = hosts.agree(lambda: json.loads(canonical_json(spec)))
    for index, other in enumerate(specs):
        found = differences(specs[0], other, names=("process 0", f"process {index}"))
        if found:
            raise ValueError(
                f"expected all processes to ask for one run on equal software, got ({'; '.join(found)}); "
                "start them with the same command in the same environment"
            )
