"""Does a layered thresholding pass recover the whole activation path? Fixed supports, many draws of signs.

Where X^(L) is known up to signs, so is every place at which some X^(l) can be non-zero: a support U_l, found once. As
long as layers 1 .. l recover their supports, the estimate of X^(l) lives on U_l, and the responses of layer l + 1 are a
fixed matrix times the few numbers there. A draw is then one product per layer and a comparison; the first layer that
fails is found exactly as by `forward`. What later layers make of a path already lost is `forward`'s business.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray, Scalar
from cnninv_jax.dcsc.model import Layer, Layers, shapes
from cnninv_jax.operators import analysis, synthesis


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["responses", "spread", "support", "offset", "values", "patches"],
    meta_fields=["sizes"],
)
@dataclasses.dataclass(frozen=True)
class PathTables:
    """What stays fixed while signs are drawn; N_l entries of X^(l), c_l places for its support. See `path_tables`.

    Attributes:
        responses: what a unit at a place of U_(l-1) adds to every response of layer l, [N_l, c_(l-1)]; for the first
            layer a unit of X^(1), [N_1, c_1].
        spread: what a unit of X^(l+1) adds to X^(l) on U_l, [c_l, c_(l+1)], l = 1 .. L-1.
        support: flat index of the places of U_l, [c_l]; N_l where there is none.
        offset: (A^(1))^T V^(0), [N_1].
        values: |X^(L)| at its places, [c_L].
        patches: which places of U_l lie in which patch of layer l + 1's length, [patches, c_l]; the deepest layer's is
            one patch for every place.
        sizes: N_l (static).
    """

    responses: tuple[Float[Array, "N c"], ...]
    spread: tuple[Float[Array, "c c_next"], ...]
    support: tuple[Int[Array, " c"], ...]
    offset: Float[Array, " N"]
    values: Float[Array, " c"]
    patches: tuple[Float[Array, "patches c"], ...]
    sizes: tuple[int, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """c_1, ..., c_L."""
        return tuple(places.shape[0] for places in self.support)


class PathOutcome(NamedTuple):
    """How a pass fared, layer by layer; true of layer l where every layer before it recovered its support.

    Attributes:
        score: how near the supports were to being lost: at least 1 means lost. The largest response off the support
            over beta, or 2 less the smallest on it over beta, whichever is larger, [L].
        noise: |X^(l)_hat - X^(l)|_{2,inf} over patches of layer l + 1, [L]; |.|_inf for the deepest.
        smallest: smallest non-zero |X^(l)|, [L].
        largest: largest |X^(l)|, [L].
    """

    score: Float[Array, " L"]
    noise: Float[Array, " L"]
    smallest: Float[Array, " L"]
    largest: Float[Array, " L"]

    @property
    def failed(self) -> Bool[Array, " L"]:
        """Whether layer l is the first whose support is lost."""
        lost = self.score >= 1
        return lost & (jnp.cumsum(lost) == 1)

    @property
    def recovered(self) -> Bool[Array, ""]:
        """Whether the whole path was recovered: every X^(l)_hat has the support of X^(l)."""
        return jnp.all(self.score < 1)


def path_tables(
    model: Layers, code: ArrayLike, *, noise: ArrayLike | None = None, capacity: Sequence[int] | None = None
) -> PathTables:
    """Return the tables of all passes over signals of one deepest support (Murray 2018, eq. (1)).

    Args:
        model: the layers; their signs do not matter.
        code: X^(L), [n_L, *n]; concrete, since its support decides shapes. Its signs do not matter.
        noise: V^(0), [M, *D]; none for None.
        capacity: places c_l for the supports, at least as many as there are: equal capacities give equal shapes,
            and one compiled program for many supports. Default: as many as there are.

    Raises:
        ValueError: shapes that do not fit, or capacities too small.

    Cost: sum of N_l c_(l-1) numbers.
    """
    expected = shapes(model)
    deepest = jnp.asarray(code)
    if deepest.shape != expected[-1]:
        raise ValueError(f"expected the deepest code of shape {expected[-1]}, got {deepest.shape}")
    if capacity is not None and len(capacity) != len(model):
        raise ValueError(f"expected one capacity for each of {len(model)} layers, got {len(capacity)}")
    # Places that can be non-zero: those that sums of magnitudes reach.
    masks = [jnp.abs(deepest) > 0]
    for layer in model[:0:-1]:
        bare = dataclasses.replace(layer.op, filters=(jnp.abs(layer.op.filters) > 0).astype(layer.op.dtype))
        masks.append(synthesis(bare, masks[-1].astype(layer.op.dtype)) > 0.5)
    masks.reverse()
    counts = [int(mask.sum()) for mask in masks]
    places = list(counts if capacity is None else capacity)
    for number, (count, place) in enumerate(zip(counts, places, strict=True), start=1):
        if place < max(count, 1):
            raise ValueError(f"expected a capacity of at least {max(count, 1)} for layer {number}, got {place}")
    support = tuple(
        jnp.nonzero(mask.ravel(), size=place, fill_value=mask.size)[0].astype(jnp.int32)
        for mask, place in zip(masks, places, strict=True)
    )
    atoms = [_columns(layer, where) for layer, where in zip(model, support, strict=True)]
    first = jax.vmap(lambda atom: analysis(model[0].op, atom).ravel(), out_axes=1)(atoms[0])
    others = [_rows(layer, below) for layer, below in zip(model[1:], support[:-1], strict=True)]
    spread = [
        _taken(columns.reshape(columns.shape[0], -1).T, where)
        for columns, where in zip(atoms[1:], support[:-1], strict=True)
    ]
    dtype = model[0].op.dtype
    offset = jnp.zeros(masks[0].size, dtype) if noise is None else analysis(model[0].op, noise).ravel()
    return PathTables(
        (first, *others),
        tuple(spread),
        support,
        offset.astype(dtype),
        _taken(jnp.abs(deepest).astype(dtype).ravel(), support[-1]),
        (
            *(_patches(above, where) for above, where in zip(model[1:], support[:-1], strict=True)),
            jnp.eye(places[-1], dtype=dtype),
        ),
        tuple(mask.size for mask in masks),
    )


def path_signs(key: PRNGKeyArray, tables: PathTables) -> tuple[Float[Array, " c"], ...]:
    """Return a draw of D^(1), ..., D^(L) on the supports; no other sign has an influence on what is recovered."""
    dtype = tables.values.dtype
    keys = jax.random.split(key, len(tables.support))
    return tuple(
        jax.random.rademacher(own, where.shape, dtype) for own, where in zip(keys, tables.support, strict=True)
    )


def path_outcome(
    tables: PathTables, signs: Sequence[Float[Array, " c"]], thresholds: Float[ArrayLike, " L"], *, soft: bool = False
) -> PathOutcome:
    """Return how a layered thresholding pass fares for one draw of signs (Murray 2018, eq. (1)).

    Args:
        tables: see `path_tables`.
        signs: D^(l) on the supports, see `path_signs`.
        thresholds: beta_l, [L]; the theorem's argument takes half of the smallest non-zero |X^(l)|.
        soft: soft thresholds instead of hard ones.

    Cost: sum of N_l c_(l-1) multiply-adds; under ``vmap`` one matrix product per layer.
    """
    betas = jnp.asarray(thresholds, tables.values.dtype)
    codes = [tables.values]
    for matrix, sign in zip(tables.spread[::-1], signs[:0:-1], strict=True):
        codes.append(matmul(matrix, sign * codes[-1]))
    codes.reverse()
    outcomes, carried = [], signs[0] * codes[0]
    for number, code in enumerate(codes):
        responses = matmul(tables.responses[number], carried) + (tables.offset if number == 0 else 0)
        here = _taken(responses, tables.support[number])
        score = _score(responses, here, code, tables, number, betas[number])
        kept = here - jnp.clip(here, -betas[number], betas[number]) if soft else here
        carried = signs[number] * jnp.where(code != 0, kept, 0)
        energy = jnp.square(carried - code)
        noise = jnp.sqrt(jnp.max(matmul(tables.patches[number], energy)))
        size = jnp.abs(code)
        outcomes.append((score, noise, jnp.min(jnp.where(code != 0, size, jnp.inf)), jnp.max(size)))
    return PathOutcome(*(jnp.stack(column) for column in zip(*outcomes, strict=True)))


def _score(
    responses: Float[Array, " N"], here: Float[Array, " c"], code: Float[Array, " c"], tables: PathTables, number: int,
    beta: Scalar,
) -> Scalar:  # fmt: skip
    active = code != 0
    where = jnp.where(active, tables.support[number], tables.sizes[number])
    off = jnp.abs(responses).at[where].set(0, mode="drop")
    weakest = jnp.min(jnp.where(active, jnp.abs(here), jnp.inf))
    return jnp.maximum(jnp.max(off) / beta, 2 - weakest / beta)


def _taken(array: Float[Array, " N *rest"], where: Int[Array, " c"]) -> Float[Array, " c *rest"]:
    """Return the rows at the places, zeros where there is none."""
    return jnp.take(array, where, axis=0, mode="fill", fill_value=0)


def _columns(layer: Layer, where: Int[Array, " c"]) -> Float[Array, "c M *D"]:
    """Return the atoms at the places."""

    def atom(index: Int[Array, ""]) -> Array:
        unit = jnp.zeros(layer.signs.size, layer.op.dtype).at[index].set(1, mode="drop")
        return synthesis(layer.op, unit.reshape(layer.op.code_shape))

    return jax.lax.map(atom, where)


def _rows(layer: Layer, below: Int[Array, " c"]) -> Float[Array, "N c"]:
    """Return the responses of a layer to a unit at each place of the support below."""
    size = math.prod(layer.op.input_shape)

    def column(index: Int[Array, ""]) -> Array:
        unit = jnp.zeros(size, layer.op.dtype).at[index].set(1, mode="drop")
        return analysis(layer.op, unit.reshape(layer.op.input_shape)).ravel()

    return jax.lax.map(column, below).T


def _patches(above: Layer, where: Int[Array, " c"]) -> Float[Array, "patches c"]:
    """Return which places lie under the window of which position of the layer above."""
    ones = jnp.ones((1, *above.op.filters.shape[1:]), above.op.dtype)
    window = dataclasses.replace(above, op=dataclasses.replace(above.op, filters=ones))
    return _rows(window, where)
