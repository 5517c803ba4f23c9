"""Theorem 10's recursion on the full covariance matrix with the paper's index sets D_m, in NumPy float64 by loops."""

import math

import numpy as np

from cnninv_jax.limits.layers import AvgPool, Conv, L2Pool, Upsample


def index_sets(step):
    """D_m for every output m, in the order of the window's entries; None outside of the maps."""
    sets = []
    for place in np.ndindex(*step.outputs):
        found = []
        for entry in np.ndindex(*step.window):
            at = [j * t + s - low for j, t, s, (low, _) in zip(place, step.stride, entry, step.margins, strict=True)]
            inside = all(0 <= p < size for p, size in zip(at, step.inputs, strict=True))
            found.append(int(np.ravel_multi_index(at, step.inputs)) if inside else None)
        sets.append(found)
    return sets


def on_picture(picture, step):
    """A layer in front of the first convolution, on the numbers of the picture."""
    flat = picture.reshape(len(picture), -1)
    if isinstance(step.layer, Upsample):
        spread = np.zeros((len(picture), *step.outputs))
        spread[(slice(None), *(slice(None, None, by) for by in step.stride))] = picture
        return spread
    columns = []
    for places in index_sets(step):
        patch = flat[:, places]
        columns.append(patch.mean(1) if isinstance(step.layer, AvgPool) else np.sqrt((patch**2).sum(1)))
    return np.stack(columns, 1).reshape(len(picture), *step.outputs)


def limit(picture, steps, moments):
    """f* and the diagonal of C after every layer."""
    picture = np.asarray(picture, np.float64)
    first = next(place for place, step in enumerate(steps) if isinstance(step.layer, Conv))
    maps = []
    for step in steps[:first]:
        picture = on_picture(picture, step)
        maps.append((picture**2).sum(0))
    flat = picture.reshape(len(picture), -1)
    covariance, value = flat.T @ flat, None
    for step in steps[first:]:
        size = math.prod(step.outputs)
        after = np.zeros((size, size))
        if isinstance(step.layer, Upsample):
            spread = [
                int(np.ravel_multi_index([p * by for p, by in zip(place, step.stride, strict=True)], step.outputs))
                for place in np.ndindex(*step.inputs)
            ]
            after[np.ix_(spread, spread)] = covariance
        elif isinstance(step.layer, AvgPool):
            sets = index_sets(step)
            for j in range(size):
                for k in range(size):
                    after[j, k] = covariance[np.ix_(sets[j], sets[k])].mean()
        elif isinstance(step.layer, L2Pool):
            # Only the diagonal is known from here on.
            after = np.diag([sum(covariance[p, p] for p in places) for places in index_sets(step)])
        else:
            sets, known = index_sets(step), moments[step.convolution]
            for j in range(size):
                for k in range(size):
                    pairs = zip(sets[j], sets[k], strict=True)
                    after[j, k] = sum(covariance[p, q] for p, q in pairs if p is not None and q is not None)
            norms = np.sqrt(np.diag(after))
            product = np.outer(norms, norms)
            cosine = np.divide(after, product, out=np.zeros_like(after), where=product > 0)
            angle = np.arccos(np.clip(cosine, -1, 1))
            np.fill_diagonal(angle, 0.0)
            value = known.k1 * norms
            after = known.k2 / np.pi * ((np.pi - angle) * np.cos(angle) + np.sin(angle)) * product
        covariance = after
        maps.append(np.diag(covariance).reshape(step.outputs))
    return value.reshape(steps[-1].outputs), maps
