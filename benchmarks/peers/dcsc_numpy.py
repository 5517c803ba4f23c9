"""The layered hard-thresholding pass of D-CSC in NumPy, batched over draws of signs: a peer of `benchmarks.dcsc`.

As a user would write it: signs for every entry, X^(L) down to the signal, up again with a threshold in every layer,
supports compared. Convolutions are windows times one large matrix, or products of spectra. Needs NumPy alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

FORMS = ("windows", "FFT")
#: What a convolution by spectra leaves of a zero, against entries of size 1.
LEFT = 1e-4


@dataclasses.dataclass(frozen=True)
class Problem:
    """What stays fixed while signs are drawn.

    Attributes:
        banks: unit-norm filters of every layer, the one next to the signal first, [n_l, n_(l-1), ell] float32.
        code: |X^(L)|, [n_L, n].
        thresholds: beta_l, [L].
        samples: D, the signal's length.
    """

    banks: tuple[np.ndarray, ...]
    code: np.ndarray
    thresholds: tuple[float, ...]
    samples: int

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Filters and shifts of every layer's code."""
        found, length = [], self.samples
        for bank in self.banks:
            length += 1 - bank.shape[-1]
            found.append((bank.shape[0], length))
        return tuple(found)


def read(path: str) -> Problem:
    """Read a problem from an .npz file."""
    with np.load(path) as held:
        banks = tuple(held[name] for name in sorted(held.files) if name.startswith("bank"))
        return Problem(banks, held["code"], tuple(map(float, held["thresholds"])), int(held["samples"]))


def draw_signs(rng: np.random.Generator, problem: Problem, batch: int) -> list[np.ndarray]:
    """Draw D^(1), ..., D^(L), [B, n_l, n] each, out of single random bits."""
    found = []
    for shape in problem.shapes:
        size = batch * shape[0] * shape[1]
        bits = np.unpackbits(np.frombuffer(rng.bytes((size + 7) // 8), np.uint8), count=size)
        sign = bits.astype(np.float32).reshape(batch, *shape)
        sign *= 2
        sign -= 1
        found.append(sign)
    return found


def synthesis(bank: np.ndarray, code: np.ndarray, form: str) -> np.ndarray:
    """Return A z of codes [B, K, n], [B, M, D]."""
    filters, channels, length = bank.shape
    batch, _, shifts = code.shape
    samples = shifts + length - 1
    if form == "FFT":
        spectrum = np.einsum(
            "fbk,fkm->fbm",
            np.moveaxis(np.fft.rfft(code, samples), -1, 0), np.moveaxis(np.fft.rfft(bank, samples), -1, 0),
            optimize=True,
        )  # fmt: skip
        return np.fft.irfft(np.moveaxis(spectrum, 0, -1), samples)
    rows = np.ascontiguousarray(code.transpose(0, 2, 1)).reshape(-1, filters)
    spread = (rows @ bank.transpose(0, 2, 1).reshape(filters, -1)).reshape(batch, shifts, length, channels)
    found = np.zeros((batch, samples, channels), code.dtype)
    for tap in range(length):
        found[:, tap : tap + shifts] += spread[:, :, tap]
    return found.transpose(0, 2, 1)


def analysis(bank: np.ndarray, signal: np.ndarray, form: str) -> np.ndarray:
    """Return A^T x of signals [B, M, D], [B, K, n]."""
    filters, channels, length = bank.shape
    batch, _, samples = signal.shape
    shifts = samples - length + 1
    if form == "FFT":
        spectrum = np.einsum(
            "fbm,fkm->fbk",
            np.moveaxis(np.fft.rfft(signal, samples), -1, 0),
            np.moveaxis(np.conj(np.fft.rfft(bank, samples)), -1, 0),
            optimize=True,
        )
        return np.fft.irfft(np.moveaxis(spectrum, 0, -1), samples)[..., :shifts]
    windows = np.lib.stride_tricks.sliding_window_view(signal.transpose(0, 2, 1), length, axis=1)
    rows = np.ascontiguousarray(windows).reshape(-1, channels * length)
    return (rows @ bank.reshape(filters, -1).T).reshape(batch, shifts, filters).transpose(0, 2, 1)


def failures(problem: Problem, signs: Sequence[np.ndarray], form: str = "windows") -> np.ndarray:
    """Return whether layer l is the first that loses its support, [B, L]."""
    codes = [np.broadcast_to(problem.code, signs[-1].shape)]
    for bank, sign in zip(problem.banks[::-1], signs[::-1], strict=True):
        codes.append(synthesis(bank, sign * codes[-1], form))
    codes.reverse()
    estimate, lost, found = codes[0], np.zeros(len(codes[0]), bool), []
    for bank, sign, code, beta in zip(problem.banks, signs, codes[1:], problem.thresholds, strict=True):
        responses = sign * analysis(bank, estimate, form)
        kept = np.abs(responses) > beta
        estimate = np.where(kept, responses, np.float32(0))
        wrong = np.any(kept != (np.abs(code) > LEFT), axis=(1, 2))
        found.append(wrong & ~lost)
        lost |= wrong
    return np.stack(found, 1)
