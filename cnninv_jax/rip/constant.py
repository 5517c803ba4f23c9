"""The model-RIP constant delta_k of a given layer: lower bounds and exact value (Gilbert et al. 2017, eq. 1)."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cnninv_jax._numerics import per_axis, wider
from cnninv_jax._typing import Array, Float, PerAxis, PRNGKeyArray, Scalar
from cnninv_jax.operators import ConvOperator
from cnninv_jax.rip._gram import gram_geometry, host_gram_table
from cnninv_jax.rip._patterns import Model, Patterns, count_model_supports, list_patterns, support_model
from cnninv_jax.rip.certificates import upper_bounds
from cnninv_jax.rip.enumeration import chosen_filters, enumerate_patterns, listed
from cnninv_jax.rip.search import Layer, Support, exchange, power_search, random_supports, way_matrix
from cnninv_jax.sparsity import SparseCode, regions

#: Supports that are enumerated by default: some seconds.
EXACT_LIMIT = 5_000_000
#: Most numbers in the table of inner products, and most positions of a filter.
TABLE_LIMIT, POSITION_LIMIT = 2**27, 2**12
#: How many of the supports found by the power method go into the exchanges.
_KEPT = 64
_EPS = float(np.finfo(np.float64).eps)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "exact",
        "lower",
        "upper",
        "upper_gershgorin",
        "upper_weighted",
        "upper_frobenius",
        "upper_spectral",
        "witness",
    ],
    meta_fields=["size", "members", "enumerated", "supports", "evaluations"],
)
@dataclasses.dataclass(frozen=True)
class RipConstant:
    """delta_k of a layer, or delta_2k with two members: lower <= exact <= upper.

    Attributes:
        exact: largest |W_S W_S^T - I| over all supports, NaN where they were too many to enumerate. It is computed in
            float64, but supports are compared in the filters' dtype (float32 at least): one that is larger by some
            size eps (1 + delta) may be missed.
        lower: certified by ``witness``: recomputed in float64, its rounding error taken off.
        upper: certified for every support: the least of the bounds, side by side; rounding errors added.
        upper_gershgorin: model-Gershgorin.
        upper_weighted: the same with weights (Collatz and Wielandt), never larger.
        upper_frobenius: model-Frobenius.
        upper_spectral: max(|W|^2 - 1, 1 - smallest eigenvalue of W W^T) of a circular convolution that contains W.
        witness: a unit z in the model with | |W^T z|^2 - 1 | = lower, up to the rounding of its values.
        size: entries of a support of full size (static).
        members: 1 for M_k, 2 for M_k^2 (static).
        enumerated: whether ``exact`` is a number (static).
        supports: how many supports of full size the model has (static).
        evaluations: how many supports were looked at: enumerated, random, and steps of the power method and of the
            exchanges (static).
    """

    exact: Scalar
    lower: Scalar
    upper: Scalar
    upper_gershgorin: Scalar
    upper_weighted: Scalar
    upper_frobenius: Scalar
    upper_spectral: Scalar
    witness: SparseCode
    size: int
    members: int
    enumerated: bool
    supports: int
    evaluations: int


def constant(
    op: ConvOperator,
    k: float,
    *,
    pool: PerAxis | None = None,
    members: int = 1,
    exact_limit: int = EXACT_LIMIT,
    key: PRNGKeyArray | None = None,
    starts: int = 1024,
    steps: int = 30,
    sweeps: int = 3,
    num_random: int = 16_384,
) -> RipConstant:
    """Return delta_k = max over supports S of |W_S W_S^T - I|_2, three numbers (Gilbert et al. 2017, eq. 1).

    A function of the host: filters are numbers here, not tracers. Search and enumeration run on the device in the
    filters' dtype; certificates are computed in float64 on the host whatever that is, and rounded outward. Filters need
    not have unit norm. delta_k >= 1 is a possible value; then the model-RIP says nothing.

    Args:
        op: the layer.
        k: number of non-zeros, or a fraction of the code's entries.
        pool: pooling window; None for whole filter responses as blocks.
        members: 1 for M_k; 2 for M_k^2, sums of two members, whose constant the paper calls delta_2k.
        exact_limit: enumerate up to so many supports, counted after `exact_constant`'s reductions; 0 for never.
        key: of the search; ``jax.random.key(0)`` for None.
        starts: starts of the truncated power method, rounded up to a multiple of 64.
        steps: iterations of each start.
        sweeps: sweeps of exchanges, from the best 64 supports.
        num_random: random supports, rounded up to a multiple of 4096; 0 for none.

    Returns:
        The constant and its bounds; NaN throughout for filters that are not finite.

    Raises:
        ValueError: traced filters, more than `TABLE_LIMIT` inner products or `POSITION_LIMIT` positions, or arguments
            that do not fit.

    Cost: starts steps r K prod(n) multiply-adds, and prod(2 ell - 1) K^2 M prod(ell) once.
    """
    if isinstance(op.filters, Tracer):
        raise ValueError("expected filters to be numbers, got a traced array; inside jit and vmap use exact_constant")
    for name, value, least in (("exact_limit", exact_limit, 0), ("starts", starts, 1), ("steps", steps, 1),
                               ("sweeps", sweeps, 0), ("num_random", num_random, 0)):  # fmt: skip
        per_axis(value, 1, name, minimum=least)
    model = support_model(op.code_shape, k, pool, members)
    geometry = gram_geometry(op)
    if geometry.ways * op.num_filters**2 > TABLE_LIMIT or math.prod(op.shifts) > POSITION_LIMIT:
        raise ValueError(
            f"expected at most {TABLE_LIMIT} inner products and {POSITION_LIMIT} positions, got {geometry.ways} x "
            f"{op.num_filters}^2 and {math.prod(op.shifts)}; take fewer filters, shorter ones or a shorter signal"
        )
    table = host_gram_table(np.asarray(op.filters), geometry)
    if not np.isfinite(table).all():
        return _spoilt(op, model)
    dtype = wider(op.dtype, np.float32)
    ways = way_matrix(geometry)
    # Room for a multiple of 16 tables: filters of other lengths need no program of their own.
    room = np.pad(table, ((0, -len(table) % 16), (0, 0), (0, 0)))
    layer = Layer(jnp.asarray(room, dtype), jnp.asarray(ways))
    root = jax.random.key(0) if key is None else key
    candidates, evaluations = _search(root, layer, model, starts, steps, sweeps, num_random)
    best, support = max(((_norm(table, ways, c), c) for c in candidates), key=lambda found: found[0])
    found = _enumerate(layer, model, list_patterns(model, geometry, min(exact_limit, 2**31 - 1)), best)
    if found is not None:
        evaluations += found[1]
        if found[0] is not None and (value := _norm(table, ways, found[0])) > best:
            best, support = value, found[0]
    bounds = upper_bounds(op, model, geometry, table)
    error = (op.channels * math.prod(op.length) + 8 * model.size) * _EPS * model.size * float(np.max(np.abs(table)))

    def up(value: float) -> Scalar:
        return _rounded(max(value, 0.0), dtype, math.inf)

    return RipConstant(
        exact=jnp.asarray(best if found is not None else math.nan, dtype),
        lower=_rounded(max(best - error, 0.0), dtype, 0.0),
        upper=up(bounds.best()),
        upper_gershgorin=up(float(bounds.gershgorin.max())),
        upper_weighted=up(float(bounds.weighted.max())),
        upper_frobenius=up(float(bounds.frobenius.max())),
        upper_spectral=up(float(bounds.spectral.max())),
        witness=_witness(table, ways, support, model, dtype),
        size=model.size,
        members=model.members,
        enumerated=found is not None,
        supports=count_model_supports(model),
        evaluations=evaluations,
    )


def _spoilt(op: ConvOperator, model: Model) -> RipConstant:
    """Return NaN throughout: filters that are not finite have no constant."""
    nan = jnp.full((), jnp.nan, wider(op.dtype, np.float32))
    witness = SparseCode(
        blocks=jnp.zeros((model.size,), np.int32),
        shifts=jnp.zeros((model.size, op.rank), np.int32),
        values=jnp.full((model.size,), jnp.nan, nan.dtype),
        code_shape=model.code_shape,
        pool=model.pool,
    )
    return RipConstant(nan, nan, nan, nan, nan, nan, nan, witness, model.size, model.members, False,
                       count_model_supports(model), 0)  # fmt: skip


def _search(
    key: PRNGKeyArray, layer: Layer, model: Model, starts: int, steps: int, sweeps: int, num_random: int
) -> tuple[list[Support], int]:
    """Return promising supports, and how many were looked at."""
    power_key, random_key = jax.random.split(key)
    batches = -(-starts // _KEPT)
    _, supports = power_search(power_key, layer, model, batches, steps, _KEPT)
    evaluations = batches * _KEPT * steps
    if sweeps:
        _, supports = exchange(layer, model, supports, sweeps)
        evaluations += supports.filters.shape[0] * sweeps * model.size
    filters, positions = np.asarray(supports.filters), np.asarray(supports.positions)
    found = [Support(f, j) for f, j in zip(filters, positions, strict=True)]
    if num_random:
        _, support, count = random_supports(random_key, layer, model, -(-num_random // 4096))
        found.append(Support(*(np.asarray(part) for part in support)))
        evaluations += int(count)
    # A search that found nothing returns no support: its entries coincide.
    distinct = [len(set(zip(s.filters.tolist(), s.positions.tolist(), strict=True))) == model.size for s in found]
    return [support for support, whole in zip(found, distinct, strict=True) if whole], evaluations


def _enumerate(
    layer: Layer, model: Model, families: list[Patterns] | None, best: float
) -> tuple[Support | None, int] | None:
    """Return the best support beyond ``best`` if there is one and the number looked at; None for too many."""
    if families is None:
        return None
    support, evaluations = None, 0
    start = jnp.asarray(best, layer.table.dtype)
    num_positions = model.code_shape[1:]
    for family in families:
        patterns = listed(family, model.code_shape[0])
        value, number = enumerate_patterns(layer.table, patterns, start)
        evaluations += int(patterns.total)
        if int(number) >= 0:
            choice, pattern = divmod(int(number), len(family.local))
            chosen = np.asarray(chosen_filters(jnp.asarray([choice], np.int32), patterns.binomials))[:, 0]
            shifts = tuple(family.shifts[pattern].T)
            positions = np.asarray(np.ravel_multi_index(shifts, num_positions))
            support = Support(chosen[np.asarray(patterns.local[pattern])], positions)
            start = value
    return support, evaluations


def _gram(table: Float[np.ndarray, "ways K K"], ways: np.ndarray, support: Support) -> Float[np.ndarray, "r r"]:
    f, j = np.asarray(support.filters), np.asarray(support.positions)
    return table[ways[j[:, None], j[None]], f[:, None], f[None]] - np.eye(len(f))


def _norm(table: Float[np.ndarray, "ways K K"], ways: np.ndarray, support: Support) -> float:
    # Random unions may name an entry twice; they count once.
    return float(np.max(np.abs(np.linalg.eigvalsh(_gram(table, ways, support)))))


def _witness(table: np.ndarray, ways: np.ndarray, support: Support, model: Model, dtype: np.dtype) -> SparseCode:
    """Return the unit eigenvector of the extreme eigenvalue, as a code."""
    owners, places = np.asarray(support.filters), np.asarray(support.positions)
    values, vectors = np.linalg.eigh(_gram(table, ways, support))
    vector = vectors[:, np.argmax(np.abs(values))]
    n = model.code_shape[1:]
    shifts = np.stack(np.unravel_index(places, n), axis=-1)
    count = regions(n, model.pool)
    region = np.ravel_multi_index(tuple((shifts // np.asarray(model.window)).T), count)
    blocks = owners * math.prod(count) + region
    order = np.lexsort((*shifts.T[::-1], blocks))
    return SparseCode(
        blocks=jnp.asarray(blocks[order], np.int32),
        shifts=jnp.asarray(shifts[order], np.int32),
        values=jnp.asarray(vector[order], dtype),
        code_shape=model.code_shape,
        pool=model.pool,
    )


def _rounded(value: float, dtype: np.dtype, towards: float) -> Scalar:
    """Return a float64 number in ``dtype``, rounded in one direction."""
    number = np.asarray(value, dtype)
    if (float(number) - value) * (1.0 if towards else -1.0) < 0:
        number = np.nextafter(number, np.asarray(towards, dtype))
    result: Array = jnp.asarray(number)
    return result
