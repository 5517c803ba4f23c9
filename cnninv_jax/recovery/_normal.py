"""W^T S W of a convolution, by the least work that its geometry allows.

At stride 1 and without weights it is a convolution of M by M channels with the filters' autocorrelation, 2 l - 1 long,
wherever no shift is missing, and never sees the K channels of the code. Shifts that would reach over the border and
that the padding leaves out are subtracted: thin slabs. 64 filters of 3 x 3 x 3 take 225 multiply-adds per sample so,
in place of 3456.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Code, FilterBank, Float, Signal
from cnninv_jax.operators import ConvOperator, analysis, conv_operator, synthesis

#: Up to so many products a sample the autocorrelation is summed term by term, in one loop over the samples: with 3
#: channels and 5 x 5 taps this took 0.6 ms for 224 x 224 samples where ``lax.conv`` took 3.9 and patches 2.0, and
#: 1.9 ms for 256 pictures of 32 x 32 where they took 34 and 139 (2-core CPU, float32).
STENCIL_LIMIT = 512


def normal_operator(op: ConvOperator, weights: Code | None) -> Callable[[Signal], Signal]:
    """Return x -> W^T S W x; without weights S is the identity.

    Cost per sample: M^2 prod(2 l - 1) multiply-adds with stride 1 and no weights, if that is less than the
    2 K M prod(l) of an analysis and a synthesis; else these.
    """
    if weights is None and correlates(op):
        return _correlated(op)

    def normal(x: Signal) -> Signal:
        h = analysis(op, x)
        return synthesis(op, h if weights is None else weights * h)

    return normal


def correlates(op: ConvOperator) -> bool:
    """Whether the filters' autocorrelation is less work than an analysis and a synthesis."""
    if any(step != 1 for step in op.stride):
        return False
    lags = [2 * ell - 1 for ell in op.length]
    if op.padding == "circular" and any(ell > size for ell, size in zip(op.length, op.signal_shape, strict=True)):
        return False
    return op.channels * math.prod(lags) < 2 * op.num_filters * math.prod(op.length)


def autocorrelation(filters: FilterBank) -> Float[Array, "M M *lags"]:
    """Return R[a, b, l - 1 + u] = sum over i, s of w[i, a, s] w[i, b, s + u], lags u from 1 - l to l - 1 per axis."""
    count, channels, *length = filters.shape
    matrix = filters.reshape(count, -1)
    products = matmul(matrix.T, matrix).reshape(channels, math.prod(length), channels, *length)
    zero = jnp.zeros((), filters.dtype)
    total = None
    for number, tap in enumerate(itertools.product(*map(range, length))):
        widths = [(ell - 1 - at, at, 0) for ell, at in zip(length, tap, strict=True)]
        term = jax.lax.pad(products[:, number], zero, [(0, 0, 0), (0, 0, 0), *widths])
        total = term if total is None else total + term
    assert total is not None
    return total


def _correlated(op: ConvOperator) -> Callable[[Signal], Signal]:
    reach = [ell - 1 for ell in op.length]
    kernel = autocorrelation(op.filters)
    around = [(0, 0), *((size, size) for size in reach)]
    padded_shape = tuple(size + 2 * r for r, size in zip(reach, op.signal_shape, strict=True))
    slabs = [] if op.padding == "circular" else _missing(op)

    def normal(x: Signal) -> Signal:
        padded = jnp.pad(x, around, mode="wrap" if op.padding == "circular" else "constant")
        # Otherwise every term would look for the border anew.
        padded = jax.lax.optimization_barrier(padded)
        if math.prod(kernel.shape) <= STENCIL_LIMIT:
            result = _stencil(kernel, padded, op.signal_shape)
        else:
            result = analysis(conv_operator(kernel, padded_shape), padded)
        zero = jnp.zeros((), x.dtype)
        for box in slabs:
            # A box of shifts reads, and writes, a filter's length less one beyond its last shift.
            part = padded[(slice(None), *(slice(a, b + r) for (a, b), r in zip(box, reach, strict=True)))]
            slab = conv_operator(op.filters, part.shape[1:])
            excess = synthesis(slab, analysis(slab, part))
            # Padded, or cropped, into its place.
            ends = zip(box, reach, op.signal_shape, strict=True)
            widths = [(0, 0, 0), *((a - r, size - b, 0) for (a, b), r, size in ends)]
            result = result - jax.lax.pad(excess, zero, widths)
        return result

    return normal


def _stencil(kernel: Float[Array, "M M *lags"], padded: Signal, shape: tuple[int, ...]) -> Signal:
    """Correlate by shifted slices, products and sums, which XLA makes one loop of."""
    total = None
    ones = (1,) * len(shape)
    for at in itertools.product(*map(range, kernel.shape[2:])):
        window = tuple(slice(lag, lag + size) for lag, size in zip(at, shape, strict=True))
        for channel in range(kernel.shape[1]):
            # All outputs at once: a third of the program to compile, and as fast.
            taps = kernel[(slice(None), channel, *at)].reshape(-1, *ones)
            term = taps * padded[(slice(channel, channel + 1), *window)]
            total = term if total is None else total + term
    assert total is not None
    return total


def _missing(op: ConvOperator) -> list[tuple[tuple[int, int], ...]]:
    """Return disjoint boxes of the shifts that touch x and that W does not have; shift 0 sees one sample only."""
    boxes = []
    ahead: list[tuple[int, int]] = []
    totals = [size + ell - 1 for size, ell in zip(op.signal_shape, op.length, strict=True)]
    for axis, ((before, _), ell, n) in enumerate(zip(op.margins, op.length, op.shifts, strict=True)):
        first = ell - 1 - before
        rest = [(0, total) for total in totals[axis + 1 :]]
        for start, stop in ((0, first), (first + n, totals[axis])):
            if stop > start:
                boxes.append((*ahead, (start, stop), *rest))
        ahead.append((first, first + n))
    return boxes
