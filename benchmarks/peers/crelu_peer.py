"""Peers of `benchmarks.crelu` in a process of their own: scipy's LSMR, and conjugate gradients in torch.

Run by any Python that has NumPy and SciPy, and torch for torch's forms; it need not have JAX. Requests come as lines of
JSON on standard input, problems and answers as files. Stride 1, odd filters, zeros around the picture (same padding).
``LSMR`` multiplies by patches and BLAS, ``LSMR, CSR`` by a sparse matrix; pictures of a batch one after the other, for
it takes one right-hand side. ``torch`` is conjugate gradients on the normal equations by conv2d and conv_transpose2d,
``autocorrelation`` the same by the filters' autocorrelation, and ``patchwise`` begins at the patchwise solution, too:
the library's own ways, written in torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, lsmr

from benchmarks.peers.dcsc_peer import peak_mib

try:
    import torch  # pyright: ignore
except ImportError:
    torch = None  # type: ignore[assignment]

#: Steps of any form, at most.
MOST_STEPS = 500
#: Entries of a sparse matrix, at most: 8 bytes each.
MOST_ENTRIES = 2**25


class Server:
    """Holds a problem and answers requests about it."""

    def load(self, problem: str) -> dict[str, Any]:
        """Read filters [K, M, l, l] and features [B, 2 K, D, D]; return the forms there are."""
        with np.load(problem) as held:
            self.bank, self.features = held["bank"], held["features"]
        count, self.channels, self.length, _ = self.bank.shape
        self.size = self.features.shape[2:]
        self.flat = np.ascontiguousarray(self.bank.reshape(count, -1))
        self.forms: dict[str, Callable[[float], tuple[np.ndarray, int]]] = {"scipy LSMR": self._lsmr(self._patches())}
        if self.flat.size * self.size[0] * self.size[1] <= MOST_ENTRIES:
            self.forms["scipy LSMR, CSR"] = self._lsmr(self._sparse())
        if torch is not None:
            made = Torch(self.bank, self.features)
            for name, options in Torch.forms(self.bank).items():
                self.forms[name] = lambda tol, options=options: made.solve(tol, **options)
        versions = {"scipy": __import__("scipy").__version__}
        return {"forms": list(self.forms), "versions": versions | ({"torch": torch.__version__} if torch else {})}

    def solve(self, form: str, tol: float, output: str = "") -> dict[str, Any]:
        """Solve once; return seconds, steps and memory, and leave the signals in a file if asked."""
        started, used = time.perf_counter(), time.process_time()
        signals, steps = self.forms[form](tol)
        wall, processor = time.perf_counter() - started, time.process_time() - used
        if output:
            np.save(output, signals)
        return {"wall": wall, "processor": processor, "steps": steps, "resident_MiB": peak_mib()}

    def _patches(self) -> Any:
        margin, (high, wide), ell = self.length // 2, self.size, self.length
        shape = (self.channels, ell, ell, high, wide)
        buffer = np.empty(shape, np.float32)

        def forward(x: np.ndarray) -> np.ndarray:
            padded = np.pad(x.reshape(self.channels, high, wide), ((0, 0), (margin,) * 2, (margin,) * 2))
            views = np.lib.stride_tricks.sliding_window_view(padded, (ell, ell), axis=(1, 2))
            np.copyto(buffer, views.transpose(0, 3, 4, 1, 2))
            return (self.flat @ buffer.reshape(self.flat.shape[1], -1)).ravel()

        def backward(z: np.ndarray) -> np.ndarray:
            patches = (self.flat.T @ z.reshape(len(self.flat), -1)).reshape(shape)
            total = np.zeros((self.channels, high + 2 * margin, wide + 2 * margin), np.float32)
            for row in range(ell):
                for column in range(ell):
                    total[:, row : row + high, column : column + wide] += patches[:, row, column]
            return total[:, margin : margin + high, margin : margin + wide].ravel()

        rows, columns = len(self.flat) * high * wide, self.channels * high * wide
        return LinearOperator((rows, columns), matvec=forward, rmatvec=backward, dtype=np.float32)

    def _sparse(self) -> Any:
        high, wide = self.size
        margin = self.length // 2
        place = np.arange(high * wide).reshape(high, wide)
        rows, columns, values = [], [], []
        for i, m, s, u in np.ndindex(*self.bank.shape):
            y, x = np.mgrid[:high, :wide]
            seen_y, seen_x = y + s - margin, x + u - margin
            inside = (seen_y >= 0) & (seen_y < high) & (seen_x >= 0) & (seen_x < wide)
            rows.append(i * high * wide + place[inside])
            columns.append(m * high * wide + seen_y[inside] * wide + seen_x[inside])
            values.append(np.full(np.count_nonzero(inside), self.bank[i, m, s, u]))
        where = (np.concatenate(rows), np.concatenate(columns))
        shape = (len(self.bank) * high * wide, self.channels * high * wide)
        matrix = sparse.csr_matrix((np.concatenate(values), where), shape)
        transposed = matrix.T.tocsr()
        return LinearOperator(shape, matvec=lambda x: matrix @ x, rmatvec=lambda z: transposed @ z, dtype=np.float32)

    def _lsmr(self, matrix: Any) -> Callable[[float], tuple[np.ndarray, int]]:
        count = len(self.bank)

        def solve(tol: float) -> tuple[np.ndarray, int]:
            found, most = [], 0
            for one in self.features:
                z = (one[:count] - one[count:]).ravel()
                with np.errstate(over="ignore"):
                    x, _, steps, *_ = lsmr(matrix, z, atol=tol, btol=tol, conlim=0, maxiter=MOST_STEPS)
                found.append(x.reshape(self.channels, *self.size))
                most = max(most, steps)
            return np.stack(found), most

        return solve


class Torch:
    """Conjugate gradients on the normal equations of a batch, every picture with factors of its own."""

    def __init__(self, bank: np.ndarray, features: np.ndarray) -> None:
        self.bank, self.features = torch.from_numpy(bank), torch.from_numpy(features)
        self.count, self.channels, self.length, _ = bank.shape
        self.margin = self.length // 2

    @staticmethod
    def forms(bank: np.ndarray) -> dict[str, dict[str, bool]]:
        """Return the forms that suit a bank."""
        forms = {"torch": {}, "torch, autocorrelation": {"correlated": True}}
        if len(bank) >= bank[0].size:
            forms["torch, patchwise"] = {"correlated": True, "patchwise": True}
        return forms

    def solve(self, tol: float, correlated: bool = False, patchwise: bool = False) -> tuple[np.ndarray, int]:
        """Iterate until |W^T (z - W x)| <= tol |W^T z| for all pictures."""
        conv, transposed = torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d
        with torch.inference_mode():
            z = self.features[:, : self.count] - self.features[:, self.count :]
            right = transposed(z, self.bank, padding=self.margin)
            if correlated:
                normal = self._correlated()
            else:
                normal = lambda x: transposed(conv(x, self.bank, padding=self.margin), self.bank, padding=self.margin)  # noqa: E731
            x, diagonal = torch.zeros_like(right), 1.0
            rest = right
            if patchwise:
                inverse = torch.linalg.pinv(self.bank.flatten(1)).T.reshape(self.bank.shape).contiguous()
                ones = torch.ones(1, 1, *right.shape[2:])
                taps = torch.ones(1, 1, self.length, self.length)
                diagonal = 1 / transposed(ones, taps, padding=self.margin)
                x = transposed(z, inverse, padding=self.margin) * diagonal
                rest = right - normal(x)
            limit = tol * _dot(right, right).sqrt()
            scaled = rest * diagonal
            direction, gamma, steps = scaled, _dot(rest, scaled), 0
            while steps < MOST_STEPS and bool((_dot(rest, rest).sqrt() > limit).any()):
                image = normal(direction)
                rate = gamma / _dot(direction, image).clamp_min(1e-30)
                x = x + rate * direction
                rest = rest - rate * image
                scaled = rest * diagonal
                fresh = _dot(rest, scaled)
                direction, gamma = scaled + fresh / gamma.clamp_min(1e-30) * direction, fresh
                steps += 1
            return x.numpy(), steps

    def _correlated(self) -> Callable[[Any], Any]:
        """Return W^T W as a convolution less the shifts outside, in rings as wide as the margin."""
        conv, transposed = torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d
        reach, missing = self.length - 1, self.length - 1 - self.margin
        swapped = self.bank.swapaxes(0, 1).contiguous()
        # [out, in]: conv2d takes R[out, in, lag] with lag from 1 - l on.
        kernel = conv(swapped, swapped, padding=reach).swapaxes(0, 1).contiguous()

        def box(padded: Any, spread: Any, rows: slice, columns: slice) -> None:
            part = padded[:, :, rows, columns]
            spread[:, :, rows, columns] -= transposed(conv(part, self.bank), self.bank)

        def normal(x: Any) -> Any:
            high, wide = x.shape[2:]
            padded = torch.nn.functional.pad(x, (reach,) * 4)
            spread = torch.nn.functional.pad(conv(padded, kernel), (reach,) * 4)
            whole, width = slice(None), missing + reach
            inner = slice(missing, high + reach - missing + reach)
            for strip in (slice(0, width), slice(high + 2 * reach - width, high + 2 * reach)):
                box(padded, spread, strip, whole)
            for strip in (slice(0, width), slice(wide + 2 * reach - width, wide + 2 * reach)):
                box(padded, spread, inner, strip)
            return spread[:, :, reach : reach + high, reach : reach + wide]

        return normal


def _dot(first: Any, second: Any) -> Any:
    return (first * second).sum((1, 2, 3), keepdim=True)


def main() -> None:
    """Answer requests until standard input ends."""
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(server, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
