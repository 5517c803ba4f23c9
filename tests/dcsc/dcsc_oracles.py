"""D-CSC by dense matrices and plain loops in NumPy float64."""

import itertools

import numpy as np
import oracles


class Dense:
    """A model's dictionaries and stripes as matrices.

    Attributes:
        model: the layers.
        matrices: A^(l) of every layer without signs, columns of unit norm.
        stripes: which entries of X^(l), all filters alike, lie in the stripe around which shift, [n, n].
    """

    def __init__(self, model):
        self.model = model
        self.matrices = [
            oracles.dense_matrix(layer.op.filters, layer.op.signal_shape, layer.op.stride, layer.op.padding).T
            for layer in model
        ]
        self.stripes = [
            np.array(
                [[_overlap(j, i, layer.op) for i in np.ndindex(*layer.op.shifts)] for j in np.ndindex(*layer.op.shifts)]
            )
            for layer in model
        ]
        self.taps = [(matrix != 0).astype(int) for matrix in self.matrices]

    def touched(self, code):
        """How many chains of taps lead from the non-zeros of X^(L) to each entry of X^(1), ..., X^(L)."""
        counts = [(np.asarray(code) != 0).astype(int)]
        for layer, taps in zip(self.model[:0:-1], self.taps[:0:-1], strict=True):
            counts.append((taps @ counts[-1].ravel()).reshape(layer.op.input_shape))
        return counts[::-1]

    def fullest(self, codes):
        """The most non-zeros in a stripe of X^(1), ..., X^(L)."""
        return [
            int((stripes @ np.count_nonzero(np.asarray(code), axis=0).ravel()).max())
            for stripes, code in zip(self.stripes, codes, strict=True)
        ]


def patch(signal, layer):
    """The most non-zeros, and the largest l2 norm, of what an atom of the layer sees of a signal."""
    op = layer.op
    signal = np.asarray(signal, np.float64)
    most, largest = 0, 0.0
    for shift in np.ndindex(*op.shifts):
        axes = zip(shift, op.stride, op.length, op.signal_shape, strict=True)
        places = itertools.product(*([(at * step + tap) % size for tap in range(ell)] for at, step, ell, size in axes))
        seen = np.stack([signal[(slice(None), *place)] for place in places])
        most, largest = max(most, int(np.count_nonzero(seen))), max(largest, float(np.linalg.norm(seen)))
    return most, largest


def _overlap(shift, other, op):
    """Whether two atoms share a sample."""
    for j, i, n, ell, step in zip(shift, other, op.shifts, op.length, op.stride, strict=True):
        lag = min((j - i) % n, (i - j) % n) if op.padding == "circular" else abs(j - i)
        if lag * step >= ell:
            return False
    return True
