"""D-CSC by dense matrices and plain loops in NumPy float64."""

import itertools

import numpy as np
import oracles


def dictionaries(model):
    """A^(l) of every layer, columns [n_l prod n, ...], unit norm; without signs."""
    found = []
    for layer in model:
        filters = np.asarray(layer.op.filters, np.float64)
        found.append(oracles.dense_matrix(filters, layer.op.signal_shape, layer.op.stride, layer.op.padding).T)
    return found


def touched(model, code):
    """How many chains of taps lead from the non-zeros of X^(L) to each entry of X^(1), ..., X^(L)."""
    counts = [(np.asarray(code) != 0).astype(int)]
    for layer, matrix in reversed(list(zip(model[1:], dictionaries(model)[1:], strict=True))):
        counts.append(((matrix != 0).astype(int) @ counts[-1].ravel()).reshape(layer.op.input_shape))
    return counts[::-1]


def stripe(code, layer):
    """The most non-zeros in a stripe: atoms that share a sample with one at some shift."""
    shifts = layer.op.shifts
    best = 0
    for center in np.ndindex(*shifts):
        inside = np.zeros(shifts, bool)
        for other in np.ndindex(*shifts):
            inside[other] = all(
                _overlap(a - b, n, ell, step, layer.op.padding)
                for a, b, n, ell, step in zip(center, other, shifts, layer.op.length, layer.op.stride, strict=True)
            )
        best = max(best, int(np.count_nonzero(np.asarray(code)[:, inside])))
    return best


def patch(signal, layer):
    """The most non-zeros, and the largest l2 norm, of what an atom of the layer sees of a signal."""
    signal = np.asarray(signal, np.float64)
    most, largest = 0, 0.0
    for shift in np.ndindex(*layer.op.shifts):
        place = itertools.product(
            *(
                [(at * step + tap) % size for tap in range(ell)]
                for at, step, ell, size in zip(
                    shift, layer.op.stride, layer.op.length, layer.op.signal_shape, strict=True
                )
            )
        )
        seen = np.stack([signal[(slice(None), *at)] for at in place])
        most, largest = max(most, int(np.count_nonzero(seen))), max(largest, float(np.linalg.norm(seen)))
    return most, largest


def _overlap(lag, shifts, length, stride, padding):
    lag = min(lag % shifts, -lag % shifts) if padding == "circular" else abs(lag)
    return lag * stride < length
