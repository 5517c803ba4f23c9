"""Does a layered thresholding pass recover the whole activation path? Fixed supports, many draws of signs.

Where X^(L) is known up to signs, so is every place at which some X^(l) can be non-zero: a support U_l, found once. As
long as layers 1 .. l recover their supports, the estimate of X^(l) lives on U_l, and the responses of layer l + 1 are a
fixed matrix times the few numbers there. A draw is then one product per layer and a comparison; the first layer that
fails is found exactly as by `forward`. What later layers make of a path already lost is `forward`'s business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray, Scalar
from cnninv_jax.dcsc._responses import Geometry, Responses, assemble
from cnninv_jax.dcsc.forward import supports
from cnninv_jax.dcsc.model import Layers, shapes
from cnninv_jax.operators import analysis
from cnninv_jax.sparsity.norms import root


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["responses", "spread", "support", "values", "patches"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class PathTables:
    """What stays fixed while signs are drawn; c_l places for the support of X^(l). See `path_tables`.

    Attributes:
        responses: what units at the places of X^(l-1)_hat make layer l answer; for the first layer units of X^(1), and
            as a last place more the noise V^(0).
        spread: what a unit of X^(l+1) adds to X^(l) on U_l, [c_l, c_(l+1)], l = 1 .. L-1.
        support: flat index of the places of U_l, [c_l]; N_l where there is none.
        values: |X^(L)| at its places, [c_L].
        patches: which places of U_l lie in which patch of layer l + 1's length, [patches, c_l]; the deepest layer's is
            one patch for every place.
    """

    responses: tuple[Responses, ...]
    spread: tuple[Float[Array, "c c_next"], ...]
    support: tuple[Int[Array, " c"], ...]
    values: Float[Array, " c"]
    patches: tuple[Float[Array, "patches c"], ...]

    @property
    def places(self) -> tuple[int, ...]:
        """c_1, ..., c_L."""
        return tuple(places.shape[0] for places in self.support)


class PathOutcome(NamedTuple):
    """How a pass fared, layer by layer; true of layer l where every layer before it recovered its support.

    Of a batch of passes every array has its axes in front.

    Attributes:
        score: how near the supports were to being lost: at least 1 means lost. The largest response off the support
            over beta, or 2 less the smallest on it over beta, whichever is larger, [L]; infinity where an estimate is
            not finite.
        noise: |X^(l)_hat - X^(l)|_{2,inf} over patches of layer l + 1, [L]; |.|_inf for the deepest.
        smallest: smallest non-zero |X^(l)|, [L].
        largest: largest |X^(l)|, [L].
    """

    score: Float[Array, " L"]
    noise: Float[Array, " L"]
    smallest: Float[Array, " L"]
    largest: Float[Array, " L"]

    @property
    def failed(self) -> Bool[Array, "*batch L"]:
        """Whether layer l is the first whose support is lost; a score that is no number, as of a NaN beta, is too."""
        lost = ~(self.score < 1)
        return lost & (jnp.cumsum(lost, axis=-1) == 1)

    @property
    def recovered(self) -> Bool[Array, " *batch"]:
        """Whether the whole path was recovered: every X^(l)_hat has the support of X^(l)."""
        return jnp.all(self.score < 1, axis=-1)


def path_tables(
    model: Layers, code: ArrayLike, *, noise: ArrayLike | None = None, capacity: Sequence[int] | None = None
) -> PathTables:
    """Return the tables of all passes over signals of one deepest support (Murray 2018, eq. (1)).

    Made on the host, in float64, and rounded to the filters' dtype.

    Args:
        model: the layers; their signs do not matter.
        code: X^(L), [n_L, *n]; concrete, since its support decides shapes. Its signs do not matter.
        noise: V^(0), [M, *D]; none for None.
        capacity: places c_l for the supports, at least as many as there are: equal capacities give equal shapes, and
            one compiled program for many supports of a model. None takes as many as there are and, of every matrix,
            only what is not zero: for many draws of one support.

    Raises:
        ValueError: shapes that do not fit, a code of zeros, or capacities too small.

    Cost: sum of N_l c_(l-1) numbers with capacities; about (2 ell - 1) n_l per place of U_(l-1) without. On the way the
        host holds them dense, in float64, either way: [c_(l-1), N_l] for every layer ([c_1 + 1, N_1] for the first),
        and up to two copies of one, about 2 N_l c numbers more.
    """
    expected = shapes(model)
    deepest = np.abs(np.asarray(code))
    if deepest.shape != expected[-1]:
        raise ValueError(f"expected the deepest code of shape {expected[-1]}, got {deepest.shape}")
    if not np.any(deepest):
        raise ValueError("expected a deepest code with a non-zero entry, got zeros only; there is nothing to recover")
    if noise is not None and np.shape(noise) != expected[0]:
        raise ValueError(f"expected noise of the signal's shape {expected[0]}, got {np.shape(noise)}")
    if capacity is not None and len(capacity) != len(model):
        raise ValueError(f"expected one capacity for each of {len(model)} layers, got {len(capacity)}")
    geometries = [Geometry.of(layer) for layer in model]
    # Places that can be non-zero: those that an atom of the layer above touches.
    found, atoms = [np.flatnonzero(deepest)], []
    for geometry in geometries[:0:-1]:
        entries, values = geometry.columns(found[-1])
        atoms.append((entries, values))
        found.append(np.unique(entries[values != 0]))
    found, atoms = found[::-1], atoms[::-1]
    places = [max(len(where), 1) for where in found] if capacity is None else list(capacity)
    for number, (where, place) in enumerate(zip(found, places, strict=True), start=1):
        if place < max(len(where), 1):
            raise ValueError(
                f"expected a capacity of at least {max(len(where), 1)} for layer {number}, got {place}; it has so many "
                "places that can be non-zero"
            )
    first = geometries[0]
    offset = np.zeros(first.size)
    if noise is not None:
        offset = np.asarray(jax.jit(analysis)(model[0].op, np.asarray(noise))).ravel()
    answers = [_filled(first.gram(found[0]), places[0] + 1)]
    answers[0][-1] = offset
    rows, spread, patches = [first.size], [], []
    for number, above in enumerate(geometries[1:], start=1):
        where, place = found[number - 1], places[number - 1]
        answers.append(_filled(above.responses(where), place))
        rows.append(above.most_responses(place))
        spread.append(_spread(atoms[number - 1], where, (place, places[number])))
        patches.append(_filled(above.windows().responses(where), place).T)
    patches.append(np.eye(places[-1]))
    dtype = model[0].op.dtype
    return PathTables(
        tuple(
            assemble(answer, where, place, layer, None if capacity is None else most)
            for answer, where, place, layer, most in zip(answers, found, places, model, rows, strict=True)
        ),
        tuple(jnp.asarray(matrix, dtype) for matrix in spread),
        tuple(
            jnp.asarray(_filled(where, place, geometry.size), np.int32)
            for where, place, geometry in zip(found, places, geometries, strict=True)
        ),
        jnp.asarray(_filled(deepest.ravel()[found[-1]], places[-1]), dtype),
        tuple(jnp.asarray(matrix, dtype) for matrix in patches),
    )


def path_signs(key: PRNGKeyArray, tables: PathTables) -> tuple[Float[Array, " c"], ...]:
    """Return a draw of D^(1), ..., D^(L) on the supports; no other sign has an influence on what is recovered.

    Cost: one random bit for each.
    """
    total = sum(tables.places)
    words = jax.random.bits(key, (-(-total // 32), 1), np.uint32)
    bits = (words >> jnp.arange(32, dtype=np.uint32)[None]) & 1
    signs = 1 - 2 * bits.ravel()[:total].astype(tables.values.dtype)
    return tuple(jnp.split(signs, np.cumsum(tables.places)[:-1]))


def signs_of_latent(latent: Sequence[Float[Array, " c"]]) -> tuple[Float[Array, " c"], ...]:
    """Return the signs of independent normal numbers, one array per layer: Rademacher signs for splitting to move."""
    return tuple(jnp.where(values < 0, -1, 1).astype(values.dtype) for values in latent)


def path_score(
    tables: PathTables, signs: Sequence[Float[Array, " c"]], thresholds: Float[ArrayLike, " L"], *, soft: bool = False
) -> Scalar:
    """Return how near a pass came to losing its path: the largest score of `path_outcome`, at least 1 if it did.

    Raises:
        ValueError: see `path_outcome`.
    """
    return jnp.max(path_outcome(tables, signs, thresholds, soft=soft).score)


def path_outcome(
    tables: PathTables, signs: Sequence[Float[Array, " c"]], thresholds: Float[ArrayLike, " L"], *, soft: bool = False
) -> PathOutcome:
    """Return how a layered thresholding pass fares for one draw of signs (Murray 2018, eq. (1)).

    Args:
        tables: see `path_tables`.
        signs: D^(l) on the supports, see `path_signs`.
        thresholds: beta_l > 0, [L]; the theorem's argument takes half of the smallest non-zero |X^(l)|.
        soft: soft thresholds instead of hard ones.

    Raises:
        ValueError: thresholds or signs of shapes other than those of the tables.

    Cost: a multiply-add for every number in the tables; under ``vmap`` one (batched) matrix product per layer.
    """
    betas = jnp.asarray(thresholds, tables.values.dtype)
    if betas.shape != (len(tables.places),):
        raise ValueError(
            f"expected thresholds of shape ({len(tables.places)},), one per layer, got {betas.shape}; use jax.vmap for "
            "a batch"
        )
    given = tuple(jnp.shape(sign) for sign in signs)
    if given != tuple((place,) for place in tables.places):
        raise ValueError(
            f"expected one array of signs for every layer, of lengths {tables.places}, got shapes {given}; see "
            "path_signs, and use jax.vmap for a batch"
        )
    codes = [tables.values]
    for matrix, sign in zip(tables.spread[::-1], signs[:0:-1], strict=True):
        codes.append(matmul(matrix, sign * codes[-1]))
    codes.reverse()
    # The noise is the first layer's last place.
    carried = jnp.append(signs[0] * codes[0], jnp.ones((), betas.dtype))
    outcomes = []
    for number, (code, active) in enumerate(zip(codes, supports(codes), strict=True)):
        beta, size = betas[number], jnp.abs(code)
        here = matmul(tables.responses[number].own, carried)
        off = jnp.maximum(tables.responses[number].largest(carried), jnp.max(jnp.where(active, 0, jnp.abs(here))))
        smallest = jnp.min(jnp.where(active, size, jnp.inf))
        weakest = jnp.min(jnp.where(active, jnp.abs(here), jnp.inf))
        # Of magnitude beta, an entry of the support is lost, and one off it does no harm.
        score = jnp.maximum(off / beta * (1 - jnp.finfo(betas.dtype).eps), 2 - weakest / beta)
        kept = here - jnp.clip(here, -beta, beta) if soft else here
        carried = signs[number] * jnp.where(active, kept, 0)
        # Infinite responses on the support are far above beta, and no estimate.
        score = jnp.where(jnp.all(jnp.isfinite(carried)), score, jnp.inf)
        noise = root(jnp.max(matmul(tables.patches[number], jnp.square(carried - code))))
        outcomes.append((score, noise, smallest, jnp.max(size)))
    return PathOutcome(*(jnp.stack(column) for column in zip(*outcomes, strict=True)))


def _filled(array: Any, count: int, value: int = 0) -> Any:
    """Return an array with rows added until there are so many."""
    filled = np.full((count, *array.shape[1:]), value, array.dtype)
    filled[: len(array)] = array
    return filled


def _spread(
    atoms: tuple[Int[np.ndarray, "c_next e"], Float[np.ndarray, "c_next e"]],
    where: Int[np.ndarray, " c"],
    shape: tuple[int, int],
) -> Float[np.ndarray, "c c_next"]:
    """Return the atoms of the layer above as columns over the places where they can be non-zero."""
    entries, values = atoms
    spread = np.zeros(shape)
    which, part = np.nonzero(values)
    spread[np.searchsorted(where, entries[which, part]), which] = values[which, part]
    return spread
