"""Upper bounds of delta_k that hold for every support (Gilbert et al. 2017, eq. 1), computed on the host in float64.

Let A = G - I = D + N, D its diagonal, restricted to a support of r entries, at most c a block. Each bound holds for
the largest eigenvalue of A and, with -D for D, for that of -A; both are bounded, then the larger one is taken.

- model-Gershgorin: D_ii + the r - 1 largest |A_ij|, at most c of a block (c - 1 of i's own), over all rows i;
- the same with weights: a matrix with non-negative off-diagonal has no eigenvalue above max_i (A v)_i / v_i, whatever
  the positive v (Collatz 1942, Wielandt 1950). A power iteration finds a good v; v = 1 is Gershgorin;
- model-Frobenius: N has trace 0, so |N|_2 <= sqrt((r - 1) / r) |N|_F, and |N|_F^2 is a sum of r rows bounded as above;
- spectral: with valid padding W is part of a circular convolution, whose singular values are those of its symbol on
  a finite grid: an exact number, not a limit that an iteration approaches from below. With same padding it is also
  cropped, which only lowers its largest singular value.

Rounding errors of float64 are added (those of LAPACK's eigenvalues as ten times the customary n eps |G|).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cnninv_jax._typing import Float, Int
from cnninv_jax.operators import ConvOperator
from cnninv_jax.rip._gram import Geometry
from cnninv_jax.rip._patterns import Model
from cnninv_jax.sparsity import regions

_EPS = float(np.finfo(np.float64).eps)
#: Steps of the power iteration for the weights.
_WEIGHT_STEPS = 20
#: Multiply-adds of the eigenvalues of the symbol up to which they are computed; row sums bound them beyond.
SPECTRAL_LIMIT = 2**35


class UpperBounds(NamedTuple):
    """Bounds of the largest eigenvalue of A over all supports and of that of -A, [2] each."""

    gershgorin: Float[np.ndarray, " 2"]
    weighted: Float[np.ndarray, " 2"]
    frobenius: Float[np.ndarray, " 2"]
    spectral: Float[np.ndarray, " 2"]

    def best(self) -> float:
        """Return the bound of delta_k: side by side the least, then the larger side; -A never exceeds 1 (G >= 0)."""
        top, bottom = np.min(np.stack(self), axis=0)
        return max(0.0, float(top), min(1.0, float(bottom)))


def upper_bounds(
    op: ConvOperator, model: Model, geometry: Geometry, table: Float[np.ndarray, "ways K K"]
) -> UpperBounds:
    """Return all bounds of a layer.

    Args:
        op: the layer.
        model: its supports.
        geometry: its overlaps.
        table: inner products in float64, see `host_gram_table`.

    Cost: a sort of the K prod(2 ell - 1) overlaps of every filter, and eigenvalues of prod(n + ell) matrices of
    min(K, M prod(t)) rows.
    """
    rows = [_rows(at, model, geometry, table) for at in _positions(model, geometry)]
    largest = max(float(np.max(diagonal)) for diagonal, _ in rows) + 1.0
    taps = op.channels * math.prod(op.length)
    slack = (taps + 2) * _EPS * max(largest, 0.0)
    gershgorin = _weighted(rows, np.ones(op.num_filters), model.size, slack)
    weighted, weights = gershgorin, np.ones(op.num_filters)
    for _ in range(_WEIGHT_STEPS):
        # The shift keeps the iteration from swinging between two vectors.
        sums = [_sums(candidates * weights[None, :, None], model.size) + np.abs(d) * weights for d, candidates in rows]
        if not np.max(sums) > 0:  # an orthonormal bank
            break
        weights = np.max(np.stack(sums), axis=0) + np.max(sums) * weights
        weights = np.maximum(weights / weights.max(), 1e-3)
        weighted = np.minimum(weighted, _weighted(rows, weights, model.size, slack))
    return UpperBounds(gershgorin, weighted, _frobenius(rows, model, slack), _spectral(op, slack))


def _positions(model: Model, geometry: Geometry) -> list[Int[np.ndarray, "Q rank"]]:
    """Return one position of every kind of neighbourhood, with the positions that overlap it (itself first)."""
    n = geometry.shifts
    every = np.asarray(list(np.ndindex(*n)))
    found: dict[bytes, np.ndarray] = {}
    for at in every:
        ways = geometry.way(at, every)
        near = every[ways > 0]
        region = near // np.asarray(model.window) - at // np.asarray(model.window)
        kind = np.concatenate([ways[ways > 0][:, None], region], axis=1).astype(np.int32).tobytes()
        found.setdefault(kind, np.concatenate([at[None], near]))
    return list(found.values())


def _rows(
    neighbourhood: Int[np.ndarray, "Q rank"], model: Model, geometry: Geometry, table: Float[np.ndarray, "ways K K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "K K c"]]:
    """Return D_ii and the |A_ij| that may stand in the row of every filter at one position."""
    at, near = neighbourhood[0], neighbourhood[1:]
    count = table.shape[1]
    own = int(np.flatnonzero(np.all(near == at, axis=1))[0])
    entries = table[geometry.way(at, near)].transpose(1, 2, 0)
    diagonal = entries[np.arange(count), np.arange(count), own] - 1.0
    sizes = np.abs(entries)
    sizes[np.arange(count), np.arange(count), own] = 0.0
    grid = regions(model.code_shape[1:], model.pool)
    region = np.asarray(np.ravel_multi_index(tuple((near // np.asarray(model.window)).T), grid))
    parts = []
    for number in np.unique(region):
        block = sizes[..., region == number]
        kept = min(model.members, block.shape[-1])
        # In descending order, so that the last place can be taken from a row's own block.
        top = np.sort(block, axis=-1)[..., ::-1][..., :kept]
        if number == region[own] and kept == model.members:
            top[np.arange(count), np.arange(count), -1] = 0.0
        parts.append(top)
    return diagonal, np.concatenate(parts, axis=-1)


def _sums(candidates: Float[np.ndarray, "K K c"], size: int) -> Float[np.ndarray, " K"]:
    """Return the sum of the size - 1 largest candidates of every row."""
    flat = candidates.reshape(len(candidates), -1)
    kept = min(size - 1, flat.shape[1])
    if kept == 0:
        return np.zeros(len(flat))
    return np.sum(np.partition(flat, flat.shape[1] - kept, axis=1)[:, flat.shape[1] - kept :], axis=1)


def _weighted(
    rows: list[tuple[np.ndarray, np.ndarray]], weights: Float[np.ndarray, " K"], size: int, slack: float
) -> Float[np.ndarray, " 2"]:
    sums = [_sums(candidates * weights[None, :, None], size) / weights for _, candidates in rows]
    bounds = [[np.max(sign * d + s) for (d, _), s in zip(rows, sums, strict=True)] for sign in (1.0, -1.0)]
    spread = float(weights.max() / weights.min())
    rounding = size * spread * slack + (size + 8) * _EPS * (1.0 + np.max(sums))
    return np.max(np.asarray(bounds), axis=1) + rounding


def _frobenius(rows: list[tuple[np.ndarray, np.ndarray]], model: Model, slack: float) -> Float[np.ndarray, " 2"]:
    size = model.size
    squares = np.max(np.stack([_sums(candidates**2, size) for _, candidates in rows]), axis=0)
    # Without pooling regions a filter is one block and gives at most `members` rows.
    times = model.members if math.prod(regions(model.code_shape[1:], model.pool)) == 1 else size
    largest = np.sort(np.repeat(squares, times))[::-1][:size]
    norm = math.sqrt((size - 1) / size * float(np.sum(largest)))
    diagonal = [max(float(np.max(sign * d)) for d, _ in rows) for sign in (1.0, -1.0)]
    return np.asarray(diagonal) + norm + size * slack + (size + 8) * _EPS * (1.0 + norm)


def _spectral(op: ConvOperator, slack: float) -> Float[np.ndarray, " 2"]:
    """Return |W|^2 - 1 and 1 - (smallest eigenvalue of W W^T) of a circular convolution that contains W."""
    symbol = _symbol(op)
    wide = symbol.shape[-2] <= symbol.shape[-1]
    adjoint = np.conj(np.swapaxes(symbol, -1, -2))
    gram = symbol @ adjoint if wide else adjoint @ symbol
    order = gram.shape[-1]
    if len(gram) * order**3 <= SPECTRAL_LIMIT:
        values = np.linalg.eigvalsh(gram)
        low, high = float(values.min()), float(values.max())
    else:
        low, high = 0.0, float(np.max(np.sum(np.abs(gram), axis=-1)))
    size = float(np.max(np.sqrt(np.sum(np.abs(gram) ** 2, axis=(-1, -2)))))
    rounding = (10 * order + 8 * math.log2(len(gram) + 2)) * _EPS * size + slack * order
    if not wide or op.padding != "valid":
        low = 0.0
    return np.asarray([high - 1.0 + rounding, 1.0 - max(low - rounding, 0.0)])


def _symbol(op: ConvOperator) -> np.ndarray:
    """Return the symbol [frequencies, K, M prod(t)]: the filters' polyphase parts on the grid of n + reach shifts."""
    bank = np.asarray(op.filters, np.float64)
    rank, grid = op.rank, []
    for axis, (ell, step, n) in enumerate(zip(op.length, op.stride, op.shifts, strict=True)):
        parts = -(-ell // step)
        at = 2 + 2 * axis
        widths = [(0, 0)] * bank.ndim
        widths[at] = (0, parts * step - ell)
        bank = np.pad(bank, widths).reshape(*bank.shape[:at], parts, step, *bank.shape[at + 1 :])
        grid.append(n + parts - 1)
    taps, phases = tuple(range(2, 2 + 2 * rank, 2)), tuple(range(3, 3 + 2 * rank, 2))
    ordered = bank.transpose(*taps, 0, 1, *phases)
    # Real filters: a frequency and its negative have conjugate symbols.
    spectrum = np.fft.rfftn(ordered, s=grid, axes=tuple(range(rank)))
    return spectrum.reshape(-1, op.num_filters, op.channels * math.prod(op.stride))
