"""One draw of Gilbert et al. 2017, Fig. 2, and how draws per second are measured: shared by every peer.

A draw takes new filters W, i.i.d. N(0, 1) / sqrt(M l) of shape [K, M, l] = [96, 32, 5], a code z in M_k
with k = 10 (k of K filters, a uniform position in each, values uniform on [-1, 1]), x = W^T z of shape
[32, 32] and h = W x of shape [96, 28], and reports the six numbers of `EXPECTED`.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

FILTERS, CHANNELS, LENGTH, SIGNAL, SHIFTS, SPARSITY = 96, 32, 5, 32, 28, 10
TAPS = CHANNELS * LENGTH
#: Peers compute with N(0, 1) filters and apply 1 / sqrt(M l) to the six results instead of to 15,360 numbers.
SCALE = 1 / math.sqrt(TAPS)

#: Mean over draws and half the width of the interval that a peer's mean over 4,096 draws must meet.
EXPECTED: dict[str, tuple[float, float]] = {
    "synthesis_ratio": (1.000, 0.010),  # |W^T z| / |z|
    "restricted_ratio": (1.007, 0.010),  # |W_S x| / |z|, S the support of z
    "full_ratio": (1.957, 0.015),  # |W x| / |z|
    "error_known_support": (0.144, 0.008),  # |W^T (W_S x) - x| / |x|
    "error_model": (0.311, 0.010),  # |W^T M(W x, k) - x| / |x|
    "error_fixed": (1.431, 0.015),  # the same with every pooled value at position 0
}

#: Computes one batch per call; owns its random generator and its buffers.
Worker = Callable[[], Mapping[str, Any]]


def measure(make_worker: Callable[[int], Worker], seconds: float, batch: int, threads: int) -> float:
    """Take the median draws per second of five stretches of ``seconds / 5``, after a warm-up of five batches.

    Every thread runs a worker of its own on a stream of its own: NumPy and torch release the interpreter
    while they compute, and drawing normals, the largest part of a draw, runs on one thread in both libraries.
    """
    workers = [make_worker(seed) for seed in range(threads)]
    for worker in workers:
        for _ in range(5):
            worker()
    gate = threading.Barrier(threads)

    def stretch(worker: Worker) -> float:
        gate.wait()
        start, done, elapsed = time.perf_counter(), 0, 0.0
        while not done or elapsed < seconds / 5:
            worker()
            done += 1
            elapsed = time.perf_counter() - start
        return done * batch / elapsed

    with ThreadPoolExecutor(threads) as pool:
        return statistics.median(sum(pool.map(stretch, workers)) for _ in range(5))
