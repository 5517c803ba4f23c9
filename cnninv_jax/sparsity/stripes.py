"""The projection onto codes of bounded stripe norm, |X|_{0,inf}^Q <= S (Murray 2018, eq. (1)).

Every stripe (see `cnninv_jax.sparsity.norms`) may keep S entries, and stripes overlap: which entries to keep is a
selection under overlapping budgets. `project_stripes` is greedy, on any device and in any number of dimensions;
`project_stripes_exact` is the l2 projection itself, in one dimension and on the host.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, per_axis
from cnninv_jax._typing import Array, Code, Int, PerAxis
from cnninv_jax.sparsity.norms import around, stripe_norm, stripe_reach


def project_stripes(
    h: ArrayLike, S: int | Int[Array, ""], length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid"
) -> Code:
    """Return h with the entries that a greedy choice keeps, at most S in every stripe (Murray 2018, eq. (1)).

    Entries come in order of falling magnitude, ties to the lowest index; one is kept if every stripe that holds it has
    kept fewer than S. In one dimension an entry stands in the way of at most two others of the exact projection, so at
    least half of the energy that it keeps is kept (a 2-extendible system; Mestre 2006).

    Entries of one shift are in the same stripes, so each shift keeps its largest few, and the first entry that it
    refuses closes it. In a round every shift whose next entry comes before those of all shifts within two reaches keeps
    it: nothing that could have come earlier is undecided, and the result is that of one entry after the other.

    Args:
        h: responses, [K, *n]. NaN comes first and counts like any other entry; zeros are never kept.
        S: most entries of a stripe; may be traced (one below 0 counts as 0).
        length: filter length ell, one integer or one per axis.
        stride: t, one integer or one per axis.
        padding: ``"valid"`` (stripes cut at the border) or ``"circular"``.

    Returns:
        Code of h's shape and dtype. Derivatives are those with the kept entries held.

    Raises:
        ValueError: no code of shape [K, *n], a static S below 0, or lengths, strides or padding that are none.

    Cost: a sort of the K entries of every shift, then rounds of 5 windows over n; usually two to three times S rounds,
        at most K n.
    """
    code = as_float(h)
    return _greedy(code, _budget(S), stripe_reach(code, length, stride), padding)


@partial(jax.jit, static_argnames=["reach", "padding"])
def _greedy(code: Code, budget: Int[Array, ""] | np.int32, reach: tuple[int, ...], padding: str) -> Code:
    """Return the greedy choice; a program for every geometry, kept between calls."""
    twice = tuple(2 * far for far in reach)
    sizes, places = _by_size(code)
    last = code.shape[0] - 1

    def candidates(kept: Int[Array, " *n"]) -> Int[Array, " *n"]:
        """Return the size of every shift's next entry; 0 where there is none or a stripe is full."""
        full = (around(kept, reach, padding) >= budget).astype(np.int32)
        closed = (around(full, reach, padding) > 0) | (kept > last)
        return jnp.where(closed, 0, _taken(sizes, kept))

    def turn(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, size = carry
        top = (size > 0) & (size == around(size, twice, padding, largest=True))
        # Among equals the lowest index comes first; one that is no top yet waits for a larger entry further away, and
        # may come before a top of its size.
        early = jnp.where(top, code.size - _taken(places, kept), 0)
        first = early == around(early, twice, padding, largest=True)
        waiting = around(jnp.where(top, 0, size), twice, padding, largest=True)
        kept = kept + (top & first & (waiting < size)).astype(np.int32)
        return kept, candidates(kept)

    none = jnp.zeros(code.shape[1:], np.int32)
    kept, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[1] > 0), turn, (none, candidates(none)))
    turns = jnp.arange(code.shape[0], dtype=np.int32).reshape(-1, *(1,) * kept.ndim)
    chosen = jnp.zeros(code.size, bool).at[places].set(turns < kept[None], unique_indices=True)
    return jnp.where(chosen.reshape(code.shape), code, 0.0)


def project_stripes_exact(
    h: ArrayLike, S: int, length: PerAxis, *, stride: PerAxis = 1, padding: str = "valid"
) -> np.ndarray:
    """Return the l2 projection of h onto |Z|_{0,inf}^Q <= S, in one dimension (Murray 2018, eq. (1)).

    The entries kept maximise sum_i h_i^2 s_i over 0 <= s <= 1 with at most S in every stripe. Along the shifts every
    stripe is an interval: the matrix of this linear program is totally unimodular and its vertices are selections, so
    that the simplex method (HiGHS) ends on one. Circular stripes are no intervals, and two axes neither.

    Args:
        h: responses, [K, n]; finite.
        S: most entries of a stripe.
        length: filter length ell.
        stride: t.
        padding: ``"valid"``.

    Returns:
        Code of h's shape and dtype. Entries below about 1e-5 of the largest are decided to the solver's tolerance.

    Raises:
        ValueError: more than one axis, circular padding, an S below 0, or values that are not finite.
        RuntimeError: the solver ended without a selection.

    Cost: a linear program with min(K, S) n unknowns on the host, some 0.2 s for 2,000.
    """
    import scipy.optimize
    import scipy.sparse

    code = np.asarray(as_float(h))
    if code.ndim != 2 or padding != "valid":
        raise ValueError(
            f"expected a code of shape [K, n] and padding 'valid', got {code.shape} and {padding!r}: only then are "
            "stripes intervals; use project_stripes"
        )
    if not np.all(np.isfinite(code)):
        raise ValueError("expected finite responses, got NaN or infinity; use project_stripes")
    (reach,) = stripe_reach(jnp.asarray(code), length, stride)
    budget = int(_budget(S))
    # Entries of one shift are in the same stripes: only its S largest can be kept.
    turns = np.argsort(np.argsort(-np.abs(code), axis=0, kind="stable"), axis=0)
    places = np.flatnonzero((code != 0) & (turns < budget))
    if places.size == 0:
        return np.zeros_like(code)
    shifts = np.arange(code.shape[1])
    stripes = np.abs(shifts[:, None] - places % code.shape[1]) <= reach
    energy = np.square(code.ravel()[places].astype(np.float64) / np.abs(code).max())
    found = scipy.optimize.linprog(
        -energy,
        A_ub=scipy.sparse.csr_array(stripes.astype(float)),
        b_ub=np.full(shifts.size, budget),
        bounds=(0, 1),
        method="highs-ds",
        options={"dual_feasibility_tolerance": 1e-10},
    )
    selection = found.x if found.status == 0 else np.full(places.size, np.nan)
    if not np.all(np.abs(selection - np.round(selection)) < 1e-6):
        raise RuntimeError(f"expected the linear program to end on a selection, got: {found.message}")
    kept = np.zeros_like(code)
    chosen = places[selection > 0.5]
    kept.flat[chosen] = code.flat[chosen]
    assert stripe_norm(kept, length, stride=stride) <= budget
    return kept


def greedy_gap(h: ArrayLike, S: int, length: PerAxis, *, stride: PerAxis = 1) -> float:
    """Return the part of the exact projection's energy |Z|_2^2 that the greedy one keeps, in [1/2, 1].

    Args:
        h: responses, [K, n].
        S: most entries of a stripe.
        length: filter length ell.
        stride: t.

    Raises:
        ValueError: see `project_stripes_exact`.
    """
    exact = project_stripes_exact(h, S, length, stride=stride).astype(np.float64)
    greedy = np.asarray(project_stripes(h, S, length, stride=stride), np.float64)
    most = np.sum(np.square(exact))
    return float(np.sum(np.square(greedy)) / most) if most > 0 else 1.0


def _budget(S: int | Int[Array, ""]) -> Int[Array, ""] | np.int32:
    """Return S as an int32."""
    if isinstance(S, jax.Array):
        if S.ndim or not jnp.issubdtype(S.dtype, jnp.integer):
            raise ValueError(f"expected S to be an integer scalar, got shape {S.shape} and dtype {S.dtype}")
        return S.astype(np.int32)
    return np.int32(per_axis(S, 1, "S", minimum=0)[0])


def _by_size(code: Code) -> tuple[Int[Array, " K *n"], Int[Array, " K *n"]]:
    """Return every shift's entries from the largest on, equal ones in the order of filters: sizes and flat indices.

    Sizes are the bits of magnitudes, integers of the same order that no comparison of floats slows down; zeros have 0.
    """
    wide = code if code.dtype.itemsize >= 4 else code.astype(np.float32)
    magnitudes = jnp.where(jnp.isnan(wide), jnp.inf, jnp.abs(wide))
    bits = jax.lax.bitcast_convert_type(magnitudes, np.int32 if wide.dtype.itemsize == 4 else np.int64)
    places = jnp.arange(code.size, dtype=np.int32).reshape(code.shape)
    falling, order = jax.lax.sort((-bits, places), dimension=0, num_keys=1, is_stable=True)
    return -falling, order


def _taken(entries: Int[Array, " K *n"], turn: Int[Array, " *n"]) -> Int[Array, " *n"]:
    """Return every shift's entry whose turn it is; the last one after that."""
    return jnp.take_along_axis(entries, jnp.minimum(turn, entries.shape[0] - 1)[None], axis=0)[0]
