"""Faces of the arrangement of hyperplanes <w, x_i> = 0: where a sum of rectified responses is linear in w.

On a face the sign of every <w, x_i> is fixed, so that sums of [<w, x_i>]_+ are linear there. The largest value of
such a sum over the sphere lies inside some face, at a point that the face's own linear map names; one candidate per
face therefore suffices (`rademacher.suprema`). The opposite face holds the same with both phases exchanged, so that
one of the two is kept.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float
from cnninv_jax._typing import Array, Float

#: Points are moved by this part of their size, so that no more than r - 1 hyperplanes meet in a ray. Cells of the
#: points as they are persist, those that are new cost a candidate and change no value.
_SHIFT = 1e-9
#: Directions of singular values below this part of the largest are rounding.
_RANK = 1e-6
#: Seed of the move: one arrangement for one sample.
_SEED = 20160603


class Faces(NamedTuple):
    """Half of the faces of an arrangement; the others are their opposites.

    Attributes:
        points: the sample in coordinates of its span, [L, r]; lengths and angles as they were.
        positive: 1 where <w, x_i> > 0 on the face, else 0, [faces, L].
        negative: 1 where <w, x_i> < 0 on the face, else 0, [faces, L].
        projectors: onto the span of the face, [faces, r, r].
    """

    points: Float[Array, "L r"]
    positive: Float[Array, "faces L"]
    negative: Float[Array, "faces L"]
    projectors: Float[Array, "faces r r"]


def num_candidates(x: Float[ArrayLike, "L d"]) -> int:
    """Return how many faces `faces` looks at: C(L, r - 1) 3^(r - 1), r the rank of the sample; 0 for zeros only.

    Raises:
        ValueError: a sample of another shape.
    """
    samples, rank = _reduced(x).shape
    return math.comb(samples, rank - 1) * 3 ** (rank - 1) if rank else 0


def faces(x: Float[ArrayLike, "L d"], *, most: int = 100_000) -> Faces:
    """Return the faces of the hyperplanes <w, x_i> = 0, rays to cells, up to their sign.

    Every face has an extreme ray, on which r - 1 of the hyperplanes meet; around a ray every one of them may be kept,
    or left to either side.

    Args:
        x: sample.
        most: of the faces to look at.

    Raises:
        ValueError: a sample of another shape, without a direction, or with more faces.

    Cost: C(L, r - 1) 3^(r - 1) faces of L + r^2 numbers, r the rank of the sample; NumPy, not to be traced.
    """
    points, kind = _reduced(x), as_float(x).dtype
    count = num_candidates(points)
    if not 0 < count <= most:
        found = f"{count} faces of {len(points)} points of rank {points.shape[1]}" if count else "zeros only"
        raise ValueError(f"expected a sample of at most {most} faces, got {found}; take fewer points, or `ascent`")
    moved = points + _SHIFT * np.abs(points).max() * np.random.default_rng(_SEED).normal(size=points.shape)
    signs = _signs(moved)
    projectors = _projectors(points, signs)
    return Faces(
        jnp.asarray(points, kind),
        jnp.asarray(signs > 0, kind),
        jnp.asarray(signs < 0, kind),
        jnp.asarray(projectors, kind),
    )


def _reduced(x: ArrayLike) -> np.ndarray:
    """Return the points in coordinates of their span, [L, r]."""
    given = np.asarray(as_float(x), np.float64)
    if given.ndim != 2:
        raise ValueError(f"expected a sample of shape [L, d], got {given.shape}")
    if not given.size:
        return np.zeros((len(given), 0))
    _, values, right = np.linalg.svd(given, full_matrices=False)
    kept = values > _RANK * max(values[0], np.finfo(np.float64).tiny)
    return given @ right[kept].T


def _signs(points: np.ndarray) -> np.ndarray:
    """Return the signs of <w, x_i> on every face, the first that is not 0 being positive, [faces, L] int8."""
    samples, rank = points.shape
    chosen = list(itertools.combinations(range(samples), rank - 1))
    meeting = np.array(chosen, np.int64).reshape(len(chosen), rank - 1)
    rays = np.linalg.svd(points[meeting], full_matrices=True)[2][:, -1] if rank > 1 else np.ones((1, 1))
    signs = np.sign(rays @ points.T).astype(np.int8)
    around = []
    for sides in itertools.product((-1, 0, 1), repeat=rank - 1):
        around.append(signs.copy())
        np.put_along_axis(around[-1], meeting, np.broadcast_to(np.array(sides, np.int8), meeting.shape), axis=1)
    every = np.concatenate(around)
    first = np.take_along_axis(every, np.argmax(every != 0, axis=1)[:, None], axis=1)
    return np.unique(every * first, axis=0)


def _projectors(points: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return the projector onto {w: <w, x_i> = 0 where the face's sign is 0}, [faces, r, r]."""
    rank = points.shape[1]
    zeros = signs == 0
    sizes = zeros.sum(axis=1)
    found = np.broadcast_to(np.eye(rank), (len(signs), rank, rank)).copy()
    largest = np.linalg.norm(points, axis=1).max()
    for size in range(1, rank):
        rows = np.flatnonzero(sizes == size)
        if not rows.size:
            continue
        held = points[np.nonzero(zeros[rows])[1].reshape(-1, size)]
        _, values, right = np.linalg.svd(held, full_matrices=False)
        kept = right * (values > _RANK * largest)[..., None]
        found[rows] -= np.einsum("fki,fkj->fij", kept, kept)
    return found


__all__ = ["Faces", "faces", "num_candidates"]
