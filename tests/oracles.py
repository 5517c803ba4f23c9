"""Dense and brute-force references in NumPy float64, by plain loops: slow, obvious, for small sizes only."""

import itertools
import math

import numpy as np


def margins(length, signal_shape, stride, padding):
    """Zeros before x per axis, and shifts n, as TensorFlow defines valid and same padding; circular has no zeros."""
    before, shifts = [], []
    for ell, size, step in zip(length, signal_shape, stride, strict=True):
        if padding == "valid":
            before.append(0)
            shifts.append(1 + (size - ell) // step)
        elif padding == "circular":
            before.append(0)
            shifts.append(size // step)
        else:
            n = math.ceil(size / step)
            before.append(max((n - 1) * step + ell - size, 0) // 2)
            shifts.append(n)
    return tuple(before), tuple(shifts)


def dense_matrix(filters, signal_shape, stride, padding="valid"):
    """W of shape (K prod n, M prod D): row (i, j) is filter i shifted by j t; the border cuts it or it wraps around."""
    filters = np.asarray(filters, np.float64)
    num_filters, channels, *length = filters.shape
    before, shifts = margins(length, signal_shape, stride, padding)
    rows = []
    for i in range(num_filters):
        for j in np.ndindex(*shifts):
            row = np.zeros((channels, *signal_shape))
            for m in range(channels):
                for s in np.ndindex(*length):
                    at = tuple(ja * ta + sa - ba for ja, ta, sa, ba in zip(j, stride, s, before, strict=True))
                    if padding == "circular":
                        at = tuple(a % size for a, size in zip(at, signal_shape, strict=True))
                    if all(0 <= a < size for a, size in zip(at, signal_shape, strict=True)):
                        row[(m, *at)] = filters[(i, m, *s)]
            rows.append(row.ravel())
    return np.stack(rows)


def blocks(code_shape, pool=None):
    """The entries of every block, as lists of index tuples (filter, *shift), blocks in row-major order."""
    num_filters, *shifts = code_shape
    window = shifts if pool is None else pool
    found = []
    for i in range(num_filters):
        for corner in itertools.product(*(range(0, n, p) for n, p in zip(shifts, window, strict=True))):
            ranges = [range(c, min(c + p, n)) for c, p, n in zip(corner, window, shifts, strict=True)]
            found.append([(i, *shift) for shift in itertools.product(*ranges)])
    return found


def projection_distance(h, k, pool=None, nonnegative=False):
    """The smallest |h - z|^2 over every support of M_k: the best values on a support are h's own."""
    h = np.asarray(h, np.float64)
    best = np.inf
    for chosen in itertools.combinations(blocks(h.shape, pool), k):
        for support in itertools.product(*chosen):
            z = np.zeros_like(h)
            for entry in support:
                z[entry] = max(h[entry], 0.0) if nonnegative else h[entry]
            best = min(best, np.sum((h - z) ** 2))
    return best


def project(h, k, pool=None, nonnegative=False, switches=None, fixed=False):
    """M, M_known (with switches) and M_fixed by loops; the first among equals wins."""
    h = np.asarray(h, np.float64)
    seen = np.maximum(h, 0.0) if nonnegative else h
    entries = []
    for number, block in enumerate(blocks(h.shape, pool)):
        if switches is not None:
            flat = int(np.asarray(switches).ravel()[number])
            if flat < 0:
                continue
            place = (block[0][0], *np.unravel_index(flat, h.shape[1:]))
            value = seen[place]
        else:
            place = block[0]
            for entry in block:
                if abs(seen[entry]) > abs(seen[place]):
                    place = entry
            value = seen[place]
            if fixed:
                place = block[0]
        entries.append((-abs(value), number, place, value))
    z = np.zeros_like(h)
    for _, _, place, value in sorted(entries, key=lambda entry: entry[:2])[:k]:
        z[place] = value
    return z


def count_supports(code_shape, k, pool=None):
    """|M_k| by enumeration of block subsets."""
    sizes = [len(block) for block in blocks(code_shape, pool)]
    return sum(math.prod(chosen) for chosen in itertools.combinations(sizes, k))


def coherence(columns):
    """Largest |cosine| between distinct non-zero columns."""
    best = 0.0
    for a in range(columns.shape[1]):
        for b in range(a):
            first, second = columns[:, a], columns[:, b]
            norms = np.linalg.norm(first) * np.linalg.norm(second)
            if norms:
                best = max(best, abs(first @ second) / norms)
    return best


def all_shifts_matrix(filters, stride):
    """Columns: every filter at every multiple of the stride, on a signal long enough for all overlaps."""
    length = filters.shape[2:]
    sizes = tuple(2 * ell * step + ell for ell, step in zip(length, stride, strict=True))
    fitting = tuple(size - (size - ell) % step for size, ell, step in zip(sizes, length, stride, strict=True))
    return dense_matrix(filters, fitting, stride).T


def adjoint_gap(forward, backward, x, z):
    """|<W x, z> - <x, W^T z>| against |W x| |z| + |x| |W^T z|: a relative error of the two inner products."""
    wx, wz = np.asarray(forward(x), np.float64), np.asarray(backward(z), np.float64)
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    scale = np.linalg.norm(wx) * np.linalg.norm(z) + np.linalg.norm(x) * np.linalg.norm(wz)
    return abs(np.vdot(wx, z) - np.vdot(x, wz)) / scale
