"""The straightforward form of Fig. 2: one draw at a time, np.convolve per filter and channel, float64.

It is what the figure's text says, line by line, and so it is also what the fast peers are checked against.
"""

from __future__ import annotations

import numpy as np

from benchmarks.peers.fig2 import CHANNELS, FILTERS, LENGTH, SHIFTS, SIGNAL, SPARSITY, measure


def synthesis(filters: np.ndarray, code: np.ndarray) -> np.ndarray:
    """W^T z: every non-zero response convolved with its filter."""
    x = np.zeros((CHANNELS, SIGNAL))
    for i in np.flatnonzero(code.any(axis=1)):
        for m in range(CHANNELS):
            x[m] += np.convolve(code[i], filters[i, m])
    return x


def analysis(filters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """W x: a CNN's cross-correlation, which is a convolution with the reversed filter."""
    h = np.zeros((FILTERS, SHIFTS))
    for i in range(FILTERS):
        for m in range(CHANNELS):
            h[i] += np.convolve(x[m], filters[i, m, ::-1], mode="valid")
    return h


def statistics(filters: np.ndarray, support: np.ndarray, positions: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Compute the six numbers of one draw.

    Args:
        filters: ``[K, M, l]``, already divided by sqrt(M l).
        support: The k filters in use.
        positions: Their shifts.
        values: Their coefficients.
    """
    code = np.zeros((FILTERS, SHIFTS))
    code[support, positions] = values
    x = synthesis(filters, code)
    h = analysis(filters, x)

    known = np.where(code != 0, h, 0)
    model, fixed = np.zeros_like(h), np.zeros_like(h)
    winners = np.abs(h).argmax(axis=1)
    pooled = h[np.arange(FILTERS), winners]
    for i in np.argsort(-np.abs(pooled), kind="stable")[:SPARSITY]:
        model[i, winners[i]] = fixed[i, 0] = pooled[i]

    norm = np.linalg.norm
    return {
        "synthesis_ratio": float(norm(x) / norm(code)),
        "restricted_ratio": float(norm(known) / norm(code)),
        "full_ratio": float(norm(h) / norm(code)),
        "error_known_support": float(norm(synthesis(filters, known) - x) / norm(x)),
        "error_model": float(norm(synthesis(filters, model) - x) / norm(x)),
        "error_fixed": float(norm(synthesis(filters, fixed) - x) / norm(x)),
    }


def draws(rng: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
    """Compute ``batch`` draws, one after the other."""
    rows = []
    for _ in range(batch):
        filters = rng.standard_normal((FILTERS, CHANNELS, LENGTH)) / np.sqrt(CHANNELS * LENGTH)
        support = rng.choice(FILTERS, SPARSITY, replace=False)
        positions = rng.integers(SHIFTS, size=SPARSITY)
        rows.append(statistics(filters, support, positions, rng.uniform(-1, 1, SPARSITY)))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def rate(seconds: float, batch: int, threads: int) -> float:
    """Measure draws per second; the loop holds the interpreter, so more threads do not help it."""

    def make(seed: int):
        rng = np.random.default_rng(seed)
        return lambda: draws(rng, batch)

    return measure(make, seconds, batch, threads)
