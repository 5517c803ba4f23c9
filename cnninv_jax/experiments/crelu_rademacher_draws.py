"""Samples of the Rademacher study, and both sides of Theorem 4.1 on each: over all signs, or over drawn ones."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.special import stdtrit

from cnninv_jax.crelu import rademacher
from cnninv_jax.crelu.arrangement import Faces, faces, num_candidates
from cnninv_jax.montecarlo import Moments, run

#: Laws of the points x_i, in words.
LAWS = {
    "gaussian": "independent normals",
    "antipodal": "pairs (x, -x) of normals",
    "positive": "magnitudes of normals",
    "patches": "picture patches, grey",
    "centred": "the same patches less their mean",
}
#: What stands before the linear map, and what the paper says of it.
READINGS = {
    "crelu": "CReLU (Theorem 4.1)",
    "relu": "ReLU (Corollary B.3)",
    "avr": "AVR (Lemma B.1)",
}
#: Samples no longer than this go through all signs: 2^(L - 1) of them.
ENUMERATED = 12
#: Draws of a journaled block, and side by side.
BLOCK, LANES = 1024, 16
Cell: TypeAlias = dict[str, Any]


def sample(law: str, key: jax.Array, count: int, dim: int, pictures: np.ndarray | None, dtype: Any) -> np.ndarray:
    """Return L points of a law, [L, d].

    Args:
        law: one of `LAWS`.
        key: what is random.
        count: L.
        dim: d; a patch is the rectangle of d pixels that is nearest to a square.
        pictures: [N, height, width] grey, for patches.
        dtype: of the points.
    """
    if law in ("patches", "centred"):
        assert pictures is not None
        height = max(rows for rows in range(1, int(dim**0.5) + 1) if dim % rows == 0)
        width = dim // height
        number, tall, wide = pictures.shape
        ends = np.broadcast_to(np.array([number, tall - height + 1, wide - width + 1], np.int32), (count, 3))
        places = jax.random.randint(key, (count, 3), 0, ends, np.int32)
        cut = [pictures[n, i : i + height, j : j + width].reshape(-1) for n, i, j in np.asarray(places)]
        points = np.array(cut, np.float64)
        return np.asarray(points - points.mean(axis=0) if law == "centred" else points, dtype)
    if law == "antipodal":
        half = np.asarray(jax.random.normal(key, (-(-count // 2), dim), jnp.float32))
        return np.asarray(np.stack([half, -half], axis=1).reshape(-1, dim)[:count], dtype)
    points = np.asarray(jax.random.normal(key, (count, dim), jnp.float32))
    return np.asarray(np.abs(points) if law == "positive" else points, dtype)


def cell_key(seed: int, law: str, count: int, dim: int) -> jax.Array:
    """Return the key of a cell, which depends on what it is and not on where it stands; both patch laws share one."""
    name = "patches" if law == "centred" else law
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(jax.random.fold_in(key, count), dim)


def _leaves(found: rademacher.Complexity) -> dict[str, jax.Array]:
    """Return what is summed up: the suprema, and by how much each is above the linear one for the same signs."""
    excess = {f"{name}_excess": getattr(found, name) - found.linear for name in READINGS}
    return {**found._asdict(), **excess}


def _exact_draw(arrangement: Faces, key: jax.Array) -> dict[str, jax.Array]:
    signs = jax.random.rademacher(key, arrangement.points.shape[:1], arrangement.points.dtype)
    return _leaves(rademacher.suprema(arrangement, signs))


@functools.cache
def _ascent_draw(starts: int, steps: int) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    """Return the draw of an ascent: one function for all samples, so that those of one size share a program."""

    def draw(points: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        sign_key, start_key = jax.random.split(key)
        signs = jax.random.rademacher(sign_key, points.shape[:1], points.dtype)
        return _leaves(rademacher.ascent(start_key, points, signs, starts=starts, steps=steps))

    return draw


@dataclasses.dataclass(frozen=True)
class Effort:
    """How a cell is computed.

    Attributes:
        num_draws: draws of signs.
        most_faces: arrangements with more faces are left to ascent, whose suprema are lower bounds.
        starts: of ascent.
        steps: of ascent.
    """

    num_draws: int
    most_faces: int
    starts: int
    steps: int

    def measure(self, points: np.ndarray, key: jax.Array, out: Path, name: str) -> Cell:
        """Return both sides for A = B = d_in = 1: means, and their spread where signs are drawn.

        Args:
            points: the sample, [L, d].
            key: of the signs.
            out: journal of the draws.
            name: of the run.
        """
        count = len(points)
        by_faces = num_candidates(points) <= self.most_faces
        if count <= ENUMERATED and by_faces:
            found = rademacher.exact_complexities(faces(points, most=self.most_faces))
            means = {name: float(value) for name, value in found._asdict().items()}
            return {"kind": "all signs", "draws": 0, "means": means}
        if by_faces:
            draw = Partial(_exact_draw, faces(points, most=self.most_faces))
        else:
            draw = Partial(_ascent_draw(self.starts, self.steps), jnp.asarray(points))
        result = run(
            draw, key, self.num_draws, chunk_size=BLOCK, lanes=LANES, out=out, progress=False, name=name,
            statistics={leaf: Moments() for leaf in ("linear", *READINGS, *(f"{one}_excess" for one in READINGS))},
        )  # fmt: skip
        if lost := int(sum(np.sum(numbers["non_finite"]) for numbers in result.statistics.values())):
            raise ValueError(f"expected finite suprema, got {lost} that are not in {name}; take --precision float64")
        return {
            "kind": "exact suprema" if by_faces else "lower bounds",
            "draws": self.num_draws,
            "means": {leaf: float(numbers["mean"]) for leaf, numbers in result.statistics.items()},
            "variances": {leaf: float(numbers["variance"]) for leaf, numbers in result.statistics.items()},
        }


def ratio(cell: Mapping[str, Any], reading: str, level: float) -> tuple[float, float, float]:
    """Return left / right and its interval; both sides share their signs, which the delta method takes into account.

    Args:
        cell: as `Effort.measure` returns it.
        reading: one of `READINGS`.
        level: of the interval, Student's; a point where all signs were gone through.
    """
    means = cell["means"]
    value = means[reading] / means["linear"]
    if not cell["draws"]:
        return value, value, value
    spread = cell["variances"]
    left, right = spread[reading], spread["linear"]
    shared = (left + right - spread[f"{reading}_excess"]) / 2
    variance = max(left - 2 * value * shared + value**2 * right, 0.0) / (cell["draws"] * means["linear"] ** 2)
    half = float(stdtrit(cell["draws"] - 1, 0.5 + level / 2)) * variance**0.5
    return value, value - half, value + half


__all__ = ["ENUMERATED", "LAWS", "READINGS", "Cell", "Effort", "cell_key", "ratio", "sample"]
