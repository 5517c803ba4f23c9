"""One draw of Gilbert et al. 2017, Fig. 3: |W^T z| / |z| of synthetic codes, and of codes that Algorithm 2 recovers."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._numerics import norm
from cnninv_jax._typing import Array, Code, FilterBank, Float, PRNGKeyArray, Scalar, Signal
from cnninv_jax.operators import ConvOperator, conv_operator, synthesis
from cnninv_jax.recovery.lasso import LassoStatus, lam_max
from cnninv_jax.recovery.sparse_code import sparse_code
from cnninv_jax.sparsity import regions, sample_code, window

#: Multiply-adds of one product by W that lanes work on side by side on a CPU, which bounds their memory.
LANE_WORK = 2**31
#: Panels of recovered codes, (b) and (c): the signal before and after the ReLU.
PANELS = ("before", "after")
#: What `readings_of` returns.
READINGS = ("cut", "uncut", "error", "density", "l1_error", "l1_density", "gap", "converged")


def layer(bank: FilterBank, size: int) -> ConvOperator:
    """Return W at maps of size x size: same padding and stride 1, as in VGG-16; the filters as they are.

    Wide layers at small maps multiply several times faster as patches on a CPU (a draw of Fig. 3a: 20 ms, not 400).
    """
    method = "patches" if jax.default_backend() == "cpu" else "auto"
    return conv_operator(bank, (size,) * (bank.ndim - 2), padding="same", method=method)


def lanes(op: ConvOperator) -> int | None:
    """Return how many draws go side by side on a CPU; None leaves it to the engine."""
    if jax.default_backend() != "cpu":
        return None
    work = math.prod(op.code_shape) * op.channels * math.prod(op.length)
    return 2 ** max(0, min(4, int(math.log2(max(1, LANE_WORK // work)))))


def ratios_of(op: ConvOperator, z: Code) -> dict[str, Scalar]:
    """Return |W^T z| / |z| (Gilbert et al. 2017, eq. 1) with x cut to the map, and with nothing cut off.

    With same padding W^T z is cut to the size of the map, and the outermost shifts lose the taps that stand outside:
    even orthonormal filters then have a ratio below 1. Uncut, x is ell - 1 longer per axis (valid padding).

    Args:
        op: W with same padding and stride 1.
        z: code, [K, *n].

    Returns:
        ``cut`` (the network's) and ``uncut`` (the theory's); NaN for a code of zeros.
    """
    lengths = tuple(n + ell - 1 for n, ell in zip(op.shifts, op.length, strict=True))
    whole = synthesis(dataclasses.replace(op, signal_shape=lengths, padding="valid"), z)
    margins = zip(op.margins, op.signal_shape, strict=True)
    inner = whole[(slice(None), *(slice(before, before + size) for (before, _), size in margins))]
    size = norm(z)
    return {"cut": norm(inner) / size, "uncut": norm(whole) / size}


def synthetic(key: PRNGKeyArray, *, op: ConvOperator, k: int, pool: int, values: str) -> dict[str, Scalar]:
    """Draw a code of M_k and return its ratios: one draw of Fig. 3 (a).

    Cost: one synthesis of the dense code. A fifth of the entries is non-zero, so that the sum of k shifted filters
    would hold k M prod(ell) numbers (440 MB at the paper's size) and save little.
    """
    code = sample_code(key, op.num_filters, op.shifts, k, pool=pool, values=values, dtype=op.dtype)
    return ratios_of(op, code.to_dense())


def expected_square(bank: FilterBank | np.ndarray, size: int, pool: int) -> float:
    """Return E |W^T z|^2 / E |z|^2 over the codes of `synthetic`, x cut to the map; uncut it is the mean of |w|^2.

    Independent values of mean zero leave sum_j E z_j^2 |a_j|^2, a_j the cut shifted filters. A tap s of a filter stays
    inside the map for the shifts j with 0 <= j + s - before < n; an entry's shift is uniform in its region, so that
    the far border, where regions are partial, has more than its share.
    """
    filters = np.asarray(bank, np.float64)
    shape = (size,) * (filters.ndim - 2)
    energy = np.sum(np.square(filters), axis=1).mean(axis=0)
    for axis, length in enumerate(filters.shape[2:]):
        places = np.arange(size)
        cell, count = window(shape, pool)[axis], regions(shape, pool)[axis]
        width = np.minimum(size - places // cell * cell, cell)
        chance = 1.0 / (count * width)
        before = (length - 1) // 2
        stays = [chance[(places + tap - before >= 0) & (places + tap - before < size)].sum() for tap in range(length)]
        kept = np.asarray(stays).reshape([-1 if other == axis else 1 for other in range(len(shape))])
        energy = energy * kept
    return float(energy.sum())


def crop(key: PRNGKeyArray, maps: Float[Array, "N M *D"], size: int) -> Signal:
    """Cut a size x size piece at a uniformly random place out of a uniformly random picture's maps."""
    picture_key, place_key = jax.random.split(key)
    most = np.asarray([length - size + 1 for length in maps.shape[2:]], np.int32)
    picture = jax.random.randint(picture_key, (), 0, maps.shape[0], np.int32)
    place = jax.random.randint(place_key, most.shape, 0, most, np.int32)
    starts = (picture, np.int32(0), *place)
    return jax.lax.dynamic_slice(maps, starts, (1, maps.shape[1], *(size,) * len(most)))[0]


def recovered(
    key: PRNGKeyArray,
    *,
    op: ConvOperator,
    maps: Float[Array, "N M *D"],
    k: int,
    pool: int,
    fractions: tuple[float, ...],
    tol: float,
    max_steps: int,
) -> dict[str, dict[str, Float[Array, " F"]]]:
    """Recover codes of a random piece of the maps: one draw of Fig. 3 (b) and (c), see `readings_of`.

    Args:
        key: typed key; one piece for both panels.
        op: W at the pieces' size.
        maps: what enters the layer, before the ReLU.
        k: most non-zeros.
        pool: pooling window.
        fractions: lam as fractions of lam_max, F of them.
        tol: relative duality gap at which the lassos stop.
        max_steps: most steps of each.

    Returns:
        ``before`` and ``after`` the ReLU, each the readings of `readings_of`.
    """
    x = crop(key, maps, op.signal_shape[0])
    # One loop over both panels and every lam: the lassos are compiled once, which takes longer than a draw.
    signals, shares = jnp.stack([x, jax.nn.relu(x)]), jnp.asarray(fractions, x.dtype)
    pairs = (jnp.repeat(signals, len(fractions), axis=0), jnp.tile(shares, 2))
    found = jax.lax.map(lambda pair: readings_of(op, *pair, k=k, pool=pool, tol=tol, max_steps=max_steps), pairs)
    panels = {name: values.reshape(2, len(fractions)) for name, values in found.items()}
    return {panel: {name: values[row] for name, values in panels.items()} for row, panel in enumerate(PANELS)}


def readings_of(
    op: ConvOperator, x: Signal, fraction: float | Scalar, *, k: int, pool: int, tol: float, max_steps: int
) -> dict[str, Scalar]:
    """Return what Algorithm 2 makes of one signal at lam = fraction * 2 |W x|_inf (no code is zero below fraction 1).

    Returns:
        ``cut`` and ``uncut``: |W^T z| / |z|; ``error``: |x - W^T z| / |x|; ``density``: non-zeros over entries of z;
        ``l1_error``, ``l1_density``: the same of step 1, before M; ``gap``: the larger relative duality gap of
        steps 1 and 3; ``converged``: 1 where both lassos reached ``tol``, else 0. NaN for a signal of zeros.
    """
    found = sparse_code(op, x, k, fraction * lam_max(op, x), pool=pool, tol=tol, max_steps=max_steps)
    parts = (found.initial, found.restricted)
    done = [part.status == LassoStatus.CONVERGED for part in parts]
    return {
        **ratios_of(op, found.code),
        "error": norm(x - synthesis(op, found.code)) / norm(x),
        "density": _density(found.code),
        "l1_error": norm(x - synthesis(op, found.initial.code)) / norm(x),
        "l1_density": _density(found.initial.code),
        "gap": jnp.maximum(*(part.relative_gap for part in parts)),
        "converged": (done[0] & done[1]).astype(x.dtype),
    }


def _density(code: Code) -> Scalar:
    return jnp.mean((code != 0).astype(code.dtype))
