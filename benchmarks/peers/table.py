"""Measure every contestant on draws of Fig. 2 and print one table: ``python -m benchmarks.peers.table``.

Each number comes from fresh processes, because the settings of the allocator and of the threads are read
when a process starts. To enter a form of our own, add a `Contestant` to `CONTESTANTS`: a name, a
``"module:function"`` with the signature ``rate(seconds, batch, threads, **options) -> draws per second``, its
options, and the modules it needs.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: glibc keeps freed pages instead of returning them, so that buffers made anew do not fault again.
KEEP_PAGES = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
#: One thread per product: the workers are what runs in parallel.
SINGLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Contestant:
    """One form of the computation.

    Attributes:
        name: For the table.
        rate: ``"module:function"``.
        options: Keyword arguments of the function.
        needs: Top-level modules that have to be installed.
        batches: Batch sizes worth trying; the best is reported.
        variant: Whether it is shown only with ``--all``: it was tried and is not the best of its library.
        environment: Added to the process's environment.
    """

    name: str
    rate: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    batches: tuple[int, ...] = (16, 32, 64, 128, 256)
    variant: bool = False
    environment: dict[str, str] = field(default_factory=lambda: dict(SINGLE))

    def unavailable(self) -> str | None:
        """Say in words why it cannot run here, or return None."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{' and '.join(missing)} not installed" if missing else None

    def call(self, seconds: float, batch: int, threads: int) -> float:
        """Measure in this process."""
        module, _, function = self.rate.partition(":")
        return getattr(importlib.import_module(module), function)(seconds, batch, threads, **self.options)


_NUMPY, _TORCH = "benchmarks.peers.numpy_fig2:rate", "benchmarks.peers.torch_fig2:rate"
_numpy = functools.partial(Contestant, rate=_NUMPY)
_torch = functools.partial(Contestant, rate=_TORCH, needs=("torch",))

_ours = functools.partial(Contestant, rate="benchmarks.ours:rate", needs=("jax", "cnninv_jax"), environment={})

CONTESTANTS: list[Contestant] = [
    _ours("cnninv_jax, conditional", batches=(64, 128, 256)),
    _ours("cnninv_jax, plain", options={"sampling": "plain"}, batches=(32, 64, 128)),
    Contestant("np.convolve loop", "benchmarks.peers.convolve_fig2:rate", batches=(1,)),
    _numpy("NumPy"),
    _numpy("NumPy, ziggurat normals", options={"normals": "ziggurat"}),
    _numpy("NumPy, h as [n, K]", options={"product": "n K"}, variant=True),
    _numpy("NumPy, sliding windows", options={"place": "windows"}, variant=True),
    _torch("torch", batches=(16, 32, 64, 128, 256, 512, 1024)),
    _torch("torch.compile", options={"compiled": True}, batches=(64, 128, 256)),
    _torch(
        "torch.compile + NumPy normals",
        options={"compiled": True, "normals": "numpy"},
        batches=(64, 128, 256),
    ),
    _torch("torch + NumPy normals", options={"normals": "numpy"}, variant=True),
    _torch("torch, h as [K, n]", options={"product": "K n"}, variant=True),
    _torch("torch, baddbmm per tap", options={"product": "baddbmm"}, variant=True),
    _torch("torch, einsum", options={"product": "einsum"}, variant=True),
    _torch("torch, grouped conv1d", options={"product": "conv"}, variant=True),
    _torch("torch, its own threads", options={"inner_threads": os.cpu_count() or 1}, variant=True, environment={}),
    _torch("torch, index_add", options={"place": "index_add"}, variant=True),
]


def peers() -> list[tuple[str, Callable[[float, int, int], float], str | None]]:
    """List every contestant: its name, ``rate(seconds, batch, threads)``, why it cannot run (or None)."""
    return [(one.name, one.call, one.unavailable()) for one in CONTESTANTS]


def measure(
    one: Contestant,
    seconds: float,
    batch: int,
    *,
    threads: int = 1,
    processes: int = 1,
    keep_pages: bool = False,
) -> float:
    """Measure draws per second in ``processes`` fresh processes at once, summed.

    The processes wait for each other after their imports, so that they compute at the same time.
    """
    environment = {**os.environ, **one.environment, **(KEEP_PAGES if keep_pages else {})}
    task = json.dumps([one.rate, one.options, seconds, batch, threads])
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.table", "--child", task],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(processes)
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    total = 0.0
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        output, _ = child.communicate()
        if child.returncode:
            raise RuntimeError(f"{one.name} failed with batch {batch}; its error is above")
        total += float(output.split()[-1])
    return total


def _child(task: str) -> None:
    rate, options, seconds, batch, threads = json.loads(task)
    importlib.import_module(rate.partition(":")[0])
    print("ready", flush=True)
    sys.stdin.readline()
    print(Contestant("", rate, options).call(seconds, batch, threads))


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement (default 2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="workers (default: every core)")
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes to try (default: each form's own list)")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names to measure")
    parser.add_argument("--all", action="store_true", help="also the variants that did not win")
    parser.add_argument("--smoke", action="store_true", help="one short measurement of each, to see that they run")
    parser.add_argument("--json", help="write the measurements to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        _child(given.child)
        return
    chosen = [
        one
        for one in CONTESTANTS
        if (any(part in one.name for part in given.only) if given.only else given.all or not one.variant)
    ]
    columns = [("1 thread", 1, 1, False), ("1 thread, pages kept", 1, 1, True)]
    if given.threads > 1:
        columns += [
            (f"{given.threads} threads", given.threads, 1, False),
            (f"{given.threads} threads, pages kept", given.threads, 1, True),
            (f"{given.threads} processes, pages kept", 1, given.threads, True),
        ]
    if given.smoke:
        given.seconds, given.batches, columns = 0.05, [32], columns[:1]
    print(f"| draws per second (best batch) | {' | '.join(name for name, *_ in columns)} |")
    print(f"| --- |{' ---: |' * len(columns)}", flush=True)
    records = []
    for one in chosen:
        if reason := one.unavailable():
            print(f"| {one.name} | {reason} |")
            continue
        cells = []
        for column, threads, processes, keep in columns:
            rates = {
                batch: measure(one, given.seconds, batch, threads=threads, processes=processes, keep_pages=keep)
                for batch in given.batches or one.batches
            }
            best = max(rates, key=lambda batch: rates[batch])
            cells.append(f"{rates[best]:,.0f} ({best})")
            records.append({"name": one.name, "column": column, "rates": rates})
        print(f"| {one.name} | {' | '.join(cells)} |", flush=True)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
