"""Layered thresholding passes by torch and NumPy: the peers of `benchmarks.dcsc`, in a process of their own.

Run by any Python that has NumPy, and torch for torch's forms (`python -m benchmarks.dcsc --peer-python PATH`); it need
not have JAX. Requests come as lines of JSON on standard input; problems, signs and outcomes travel as .npz files.
Torch takes the accelerator where it finds one. On a CPU, ``workers`` are a thread per core with part of the draws,
each product on one; otherwise torch uses its own threads, and NumPy those of its products.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import dcsc_numpy, dcsc_torch

#: What a form of torch is made of.
TORCH: dict[str, dict[str, Any]] = {
    "torch, pass": {},
    "torch, support": {},
    "torch, support, compiled": {"compiled": True},
}
#: Batches that are tried: passes over all entries, and over the supports.
BATCHES = {"pass": (16, 64, 256), "support": (64, 256, 1024)}
ACCELERATOR_BATCHES = {"pass": (1024, 4096), "support": (16384, 131072)}


class Server:
    """Holds a problem and answers requests about it."""

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.cores)
        self.device = "cpu"
        if dcsc_torch.UNAVAILABLE is None:
            self.torch = dcsc_torch.torch
            self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
            self.inference = self.torch.inference_mode
        self.calls: dict[str, Callable[[int], np.ndarray]] = {}

    def load(self, problem: str, compiled: bool = True) -> dict[str, Any]:
        """Read a problem; return which forms there are and the batches that suit them."""
        self.problem = dcsc_numpy.read(problem)
        self.makers: dict[str, Any] = {}
        self.calls = {}
        self.rng = np.random.default_rng(0)
        for form in dcsc_numpy.FORMS:
            self.calls[f"NumPy, pass, {form}"] = self._numpy(form)
        versions, reason = {"numpy": np.__version__}, dcsc_torch.UNAVAILABLE
        if reason is None:
            versions["torch"] = self.torch.__version__
            for name, options in TORCH.items():
                if options.get("compiled") and not compiled:
                    continue
                kind = dcsc_torch.Support if "support" in name else dcsc_torch.Full
                made = self.makers[name] = kind(self.problem, self.device, **options)
                self.calls[name] = self._torch(made)
                if self.device == "cpu" and not options.get("compiled"):
                    self.calls[f"{name}, workers"] = self._workers(made)
        sizes = BATCHES if self.device == "cpu" else ACCELERATOR_BATCHES
        batches = {
            form: BATCHES["pass"] if form.startswith("NumPy") else sizes["support" if "support" in form else "pass"]
            for form in self.calls
        }
        for form in batches:
            if form.endswith("compiled"):  # every batch is compiled anew
                batches[form] = batches[form][:2]
        return {"versions": versions, "forms": batches, "device": self.device, "reason": reason}

    def check(self, signs: str, outcomes: str) -> dict[str, Any]:
        """Write what becomes of given signs [B, n_l, n] by every form."""
        with np.load(signs) as held:
            given = [held[name] for name in sorted(held.files)]
        found = {f"NumPy, pass, {form}": dcsc_numpy.failures(self.problem, given, form) for form in dcsc_numpy.FORMS}
        for name, made in self.makers.items():
            tensors = [self.torch.from_numpy(sign).to(self.device) for sign in given]
            with self.inference():
                tensors = made.of(tensors) if isinstance(made, dcsc_torch.Support) else tensors
                found[name] = made(tensors).cpu().numpy()
        np.savez(outcomes, **found)
        return {}

    def time(self, form: str, batch: int, seconds: float) -> dict[str, Any]:
        """Return seconds and processor seconds of every call, the first one (which may compile), and failures."""
        if self.device == "cpu" and dcsc_torch.UNAVAILABLE is None:
            self.torch.set_num_threads(1 if form.endswith("workers") else self.cores)
        call = self.calls[form]
        started = time.perf_counter()
        counts = call(batch)
        first = time.perf_counter() - started
        wall, processor, draws = [], [], batch
        while sum(wall) < seconds:
            started, used = time.perf_counter(), time.process_time()
            counts = counts + call(batch)
            wall.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
            draws += batch
        return {
            "wall": wall, "processor": processor, "first": first, "warmed": sorted(wall)[len(wall) // 2],
            "draws": draws, "failed": counts.tolist(), "resident_MiB": peak_mib(),
        }  # fmt: skip

    def _numpy(self, form: str) -> Callable[[int], np.ndarray]:
        def call(batch: int) -> np.ndarray:
            signs = dcsc_numpy.draw_signs(self.rng, self.problem, batch)
            return dcsc_numpy.failures(self.problem, signs, form).sum(0)

        return call

    def _torch(self, made: Any) -> Callable[[int], np.ndarray]:
        generator = self.torch.Generator(self.device).manual_seed(0)

        def call(batch: int) -> np.ndarray:
            with self.inference():
                return made(made.draw(generator, batch)).sum(0).cpu().numpy()

        return call

    def _workers(self, made: Any) -> Callable[[int], np.ndarray]:
        generators = [self.torch.Generator().manual_seed(1 + number) for number in range(self.cores)]

        def part(generator: Any, batch: int) -> np.ndarray:
            with self.inference():
                return made(made.draw(generator, batch)).sum(0).numpy()

        def call(batch: int) -> np.ndarray:
            sizes = [batch // self.cores + (number < batch % self.cores) for number in range(self.cores)]
            return sum(self.pool.map(part, generators, sizes), np.zeros(len(self.problem.banks), np.int64))

        return call


def peak_mib() -> float:
    """Return the largest resident memory of this process, in MiB.

    Linux counts that of the process that started it in ``ru_maxrss``.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Answer requests until standard input ends."""
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(server, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
