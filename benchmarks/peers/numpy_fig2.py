"""Fig. 2 in NumPy, batched over draws, float32.

Filters are held as [B, K, l, M] (they are i.i.d., so the order of their axes is free): with x as [B, D, M] a
window of l positions is one contiguous row of l M numbers, so W x is a product of [K, l M] with [l M, n] per
draw, and W^T z gathers k rows and places them with a product by a [D, k l] matrix of shifted values.

Tried, draws per second of one worker on a 2-core AVX-512 CPU that had other work to do (best of several runs;
repeated runs differ by up to 10%, more where the other work was heavy):

| form | batch | rate |
| --- | ---: | ---: |
| Box-Muller normals, h as [K, n], matmul placement (the default) | 16 | 15,000 |
| | 32 | 15,400 |
| | 64 | 15,100 |
| | 128 | 15,400 |
| | 256 | 13,800 |
| h as [n, K] | 64 | 15,000 |
| additions into strided windows of x | 64 | 14,500 |
| Generator.standard_normal (ziggurat, SFC64) in place of Box-Muller | 64 | 6,400 |

Normals alone, millions per second on one core: ziggurat 118 (PCG64), 135 (SFC64), 99 (Philox); Box-Muller 460-477,
250-400 with chunks of 4,096 to 16,384.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from benchmarks.peers.fig2 import (
    CHANNELS,
    FILTERS,
    LENGTH,
    SCALE,
    SHIFTS,
    SIGNAL,
    SPARSITY,
    TAPS,
    measure,
)

F32 = np.float32


class BoxMuller:
    """N(0, 1) into one float32 buffer, from raw bits through NumPy's vectorised log, sqrt, cos and sin.

    Each radius has 24 bits of its own, as in torch's normal_, so |value| <= 5.77.
    """

    def __init__(self, seed: int, size: int, chunk: int = 2**18) -> None:
        self.bits, self.chunk = np.random.SFC64(seed), chunk
        self.out = np.empty(size, F32)
        self.radius, self.angle = np.empty(chunk // 2, F32), np.empty(chunk // 2, F32)

    def __call__(self) -> np.ndarray:
        """Refill the buffer; its size must be even."""
        for start in range(0, self.out.size, self.chunk):
            half = min(self.chunk, self.out.size - start) // 2
            bits = self.bits.random_raw(half).view(np.int32)
            radius, angle = self.radius[:half], self.angle[:half]
            cosine, sine = self.out[start : start + 2 * half].reshape(2, half)
            np.multiply(bits[:half], F32(2**-32), out=radius, dtype=F32, casting="unsafe")
            radius += F32(0.5 + 2**-24)  # on (0, 1]
            np.log(radius, out=radius)
            radius *= F32(-2)
            np.sqrt(radius, out=radius)
            np.multiply(bits[half:], F32(np.pi * 2**-31), out=angle, dtype=F32, casting="unsafe")
            np.cos(angle, out=cosine)
            np.sin(angle, out=sine)
            cosine *= radius
            sine *= radius
        return self.out


class Statistics:
    """The six numbers of a batch of draws, in buffers that are made once.

    Args:
        batch: Draws per call.
        product: ``"K n"`` computes h as [K, n], ``"n K"`` as [n, K].
        place: ``"matmul"`` or ``"windows"`` (k additions into strided windows of x).
    """

    def __init__(
        self,
        batch: int,
        product: Literal["K n", "n K"] = "K n",
        place: Literal["matmul", "windows"] = "matmul",
    ) -> None:
        self.batch, self.product, self.place = batch, product, place
        self.draw = np.arange(batch)[:, None]
        self.patches = np.empty((batch, SHIFTS, TAPS), F32)
        self.h = np.empty((batch, FILTERS, SHIFTS) if product == "K n" else (batch, SHIFTS, FILTERS), F32)
        self.magnitude = np.empty_like(self.h)
        self.rows, self.winning_rows = (np.empty((batch * SPARSITY, TAPS), F32) for _ in range(2))
        self.placement = np.zeros(batch * SPARSITY * LENGTH * SIGNAL, F32)
        # Entry ((j, s), s) of draw b's [k l, D] placement; a position is added to it.
        diagonal = np.arange(SPARSITY)[:, None] * (LENGTH * SIGNAL) + np.arange(LENGTH) * (SIGNAL + 1)
        self.diagonal = self.draw[:, :, None] * (SPARSITY * LENGTH * SIGNAL) + diagonal

    def synthesis(self, rows: np.ndarray, positions: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Add values[j] * rows[j] at positions[j], for each draw: [B, D, M]."""
        batch = self.batch
        if self.place == "windows":
            x = np.zeros((batch, SIGNAL, CHANNELS), F32)
            windows, taps = self.windows(x), rows.reshape(batch, SPARSITY, TAPS)
            for j in range(SPARSITY):
                windows[self.draw[:, 0], positions[:, j]] += values[:, j, None] * taps[:, j]
            return x
        where = self.diagonal + positions[:, :, None]
        self.placement[where] = values[:, :, None]
        placement = self.placement.reshape(batch, SPARSITY * LENGTH, SIGNAL).transpose(0, 2, 1)
        x = placement @ rows.reshape(batch, SPARSITY * LENGTH, CHANNELS)
        self.placement[where] = 0
        return x

    def windows(self, x: np.ndarray) -> np.ndarray:
        """Show x [B, D, M] as overlapping [B, n, l M]; no copy."""
        return as_strided(x, (self.batch, SHIFTS, TAPS), x.strides)

    def __call__(
        self, filters: np.ndarray, support: np.ndarray, positions: np.ndarray, values: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Take ``filters`` [B, K, l M] of N(0, 1), not yet scaled; the others are [B, k]."""
        batch, taps = self.batch, filters.reshape(-1, TAPS)
        rows = taps.take((self.draw * FILTERS + support).ravel(), 0, out=self.rows, mode="clip")
        x = self.synthesis(rows, positions, values)
        np.copyto(self.patches, self.windows(x))

        if self.product == "K n":
            h = np.matmul(filters, self.patches.transpose(0, 2, 1), out=self.h)
            on_support = h.reshape(-1).take((self.draw * FILTERS + support) * SHIFTS + positions)
            pooled = np.abs(h, out=self.magnitude).max(2)
            winners = pooled.argpartition(FILTERS - SPARSITY, axis=1)[:, -SPARSITY:]
            responses = h.reshape(-1, SHIFTS).take(self.draw * FILTERS + winners, axis=0)
        else:
            h = np.matmul(self.patches, filters.transpose(0, 2, 1), out=self.h)
            on_support = h.reshape(-1).take((self.draw * SHIFTS + positions) * FILTERS + support)
            pooled = np.maximum(h.max(1), -h.min(1))
            winners = pooled.argpartition(FILTERS - SPARSITY, axis=1)[:, -SPARSITY:]
            responses = np.take_along_axis(h, winners[:, None, :], 2).transpose(0, 2, 1)
        switches = np.abs(responses).argmax(2)
        pooled = np.take_along_axis(responses, switches[:, :, None], 2)[:, :, 0]

        # h is too large by 1 / SCALE**2; a reconstruction then has x's own factor.
        pooled, known_values = pooled * F32(SCALE**2), on_support * F32(SCALE**2)
        winning = taps.take((self.draw * FILTERS + winners).ravel(), 0, out=self.winning_rows, mode="clip")
        known = self.synthesis(rows, positions, known_values)
        model = self.synthesis(winning, switches, pooled)
        known -= x
        model -= x
        signal = _norm(x)
        fixed = x.reshape(batch, -1)
        fixed[:, :TAPS] -= (pooled[:, None, :] @ winning.reshape(batch, SPARSITY, TAPS))[:, 0]
        size = _norm(values)
        return {
            "synthesis_ratio": signal / size * F32(SCALE),
            "restricted_ratio": _norm(known_values) / size,
            "full_ratio": _norm(h) / size * F32(SCALE**2),
            "error_known_support": _norm(known) / signal,
            "error_model": _norm(model) / signal,
            "error_fixed": _norm(fixed) / signal,
        }


def _norm(a: np.ndarray) -> np.ndarray:
    flat = a.reshape(len(a), -1)
    return np.sqrt(np.vecdot(flat, flat))


class Draws:
    """A worker: new filters and codes in every call.

    Args:
        seed: Of this worker's streams.
        batch: Draws per call.
        normals: ``"box-muller"`` or ``"ziggurat"`` (Generator.standard_normal).
        options: For `Statistics`.
    """

    def __init__(
        self, seed: int, batch: int, normals: Literal["box-muller", "ziggurat"] = "box-muller", **options: str
    ) -> None:
        streams = np.random.SeedSequence(seed).generate_state(2)
        self.rng = np.random.Generator(np.random.SFC64(streams[0]))
        self.fill = BoxMuller(int(streams[1]), batch * FILTERS * TAPS)
        self.filters = self.fill.out.reshape(batch, FILTERS, TAPS)
        self.batch, self.normals = batch, normals
        self.statistics = Statistics(batch, **options)  # type: ignore[arg-type]

    def __call__(self) -> dict[str, np.ndarray]:
        """Compute one batch."""
        batch, rng = self.batch, self.rng
        if self.normals == "ziggurat":
            rng.standard_normal(out=self.filters, dtype=F32)
        else:
            self.fill()
        support = rng.random((batch, FILTERS), F32).argpartition(SPARSITY, axis=1)[:, :SPARSITY]
        positions = rng.integers(SHIFTS, size=(batch, SPARSITY))
        values = rng.random((batch, SPARSITY), F32)
        values *= 2
        values -= 1
        return self.statistics(self.filters, support, positions, values)


def draws(rng: np.random.Generator, batch: int, **options: str) -> dict[str, np.ndarray]:
    """Compute one batch of draws."""
    return Draws(int(rng.integers(2**32)), batch, **options)()  # type: ignore[arg-type]


def rate(seconds: float, batch: int, threads: int, **options: str) -> float:
    """Measure draws per second with ``threads`` workers; run with OPENBLAS_NUM_THREADS=1."""
    return measure(lambda seed: Draws(seed, batch, **options), seconds, batch, threads)  # type: ignore[arg-type]
