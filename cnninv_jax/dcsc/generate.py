"""Signals consistent with the D-CSC model, and what the theorems ask of them (Murray 2018, section 3).

The deepest support is filled place by place, in random order, as long as no stripe of any layer gets too full. With
``disjoint=True`` no two atoms meet in an entry of X^(l), 1 <= l < L. Every entry is then one product of taps and a
deepest value: the supports, S_l, |X_min^(l)| and |X_max^(l)| are the same for all signs D, and the hypotheses of the
theorem hold in every draw of them. X^(0) is data: there atoms overlap freely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from cnninv_jax import operators
from cnninv_jax._numerics import per_axis
from cnninv_jax._typing import Array, Bool, Float, Int, PRNGKeyArray, Scalar, Signal
from cnninv_jax.dcsc._placing import footprints, place
from cnninv_jax.dcsc.forward import supports
from cnninv_jax.dcsc.model import Layers, reverse_pass, shapes
from cnninv_jax.sparsity.norms import patch_sparsity, stripe_norm

#: S asked for: of the deepest layer, or of every layer with None where there is no limit.
Sparsity: TypeAlias = int | Sequence[int | None] | Int[ArrayLike, " L"] | None

#: A limit that no stripe reaches.
_UNBOUNDED = 2**30


class Measured(NamedTuple):
    """What the bounds of Murray 2018 ask of a signal, for l = 1, ..., L; of a data matrix, over all its columns.

    Non-zero is what `cnninv_jax.dcsc.forward.supports` calls so: rounding of a cancellation is none.

    Attributes:
        sparsity: S_l = |X^(l)|_{0,inf}^Q, the most non-zeros in a stripe, [L] integers.
        smallest: |X_min^(l)|, the smallest non-zero magnitude, [L]; inf where X^(l) = 0.
        largest: |X_max^(l)|, [L].
        coherence: mu_l over all shifts, [L].
        per_patch: |X^(l)|_{0,inf}^P, the most non-zeros in a patch of layer l + 1's length, [L] integers; an entry
            is a patch of its own in the deepest layer.
    """

    sparsity: Int[Array, " L"]
    smallest: Float[Array, " L"]
    largest: Float[Array, " L"]
    coherence: Float[Array, " L"]
    per_patch: Int[Array, " L"]


class Sample(NamedTuple):
    """A signal of the model.

    Attributes:
        path: X^(0), ..., X^(L); of a data matrix each with a leading axis of d columns.
        measured: see `Measured`.
    """

    path: tuple[Signal, ...]
    measured: Measured


def generate(
    key: PRNGKeyArray,
    model: Layers,
    *,
    sparsity: Sparsity = None,
    num_nonzeros: int | None = None,
    magnitudes: tuple[ArrayLike, ArrayLike] = (1.0, 1.0),
    disjoint: bool = True,
    nonnegative: bool = False,
    columns: int | None = None,
    coherence: ArrayLike | None = None,
) -> Sample:
    """Draw a signal of the D-CSC model, X^(l-1) = A^(l) D^(l) X^(l) (Murray 2018, section 3).

    What the bounds take is asked for piece by piece. mu_1 is that of the filters next to the signal: bring your own, or
    `cnninv_jax.dcsc.design.filters_of_coherence` makes a bank of a given one. mu_l of the deeper layers is 1/q, or 0
    with many channels, for `cnninv_jax.dcsc.atoms.sparse_filters` with q taps of one size. S_L, or any S_l, is the
    ``sparsity``. |X^(L)| are the ``magnitudes``; each layer below divides them by sqrt(q), so that magnitudes of
    sqrt(q)^(L-1) give |X^(1)| = 1.

    Args:
        key: random key.
        model: the layers, see `cnninv_jax.dcsc.layers`; D are the signs they carry.
        sparsity: largest S_l allowed: an integer for the deepest layer, or one per layer, None for no limit. The
            values reached are in the result's ``measured``.
        num_nonzeros: non-zeros of X^(L) at most; None goes on until no place is left that fits.
        magnitudes: smallest and largest |X^(L)|, uniform in between.
        disjoint: let no two atoms meet in X^(l), 1 <= l < L.
        nonnegative: X^(L) >= 0, for ReLU networks (with D = I and atoms without negative taps every X^(l) is);
            otherwise its signs are random.
        columns: d, draws a data matrix of independent signals: every array of the path gets a leading axis.
        coherence: mu_l, [L], where it is known already, see `coherences`.

    Raises:
        ValueError: limits or magnitudes that are none, or limits that not even one non-zero keeps (found where the
            filters are concrete; with traced ones the code is empty).

    Cost: at most one step for every place of X^(L), each the size of what one atom touches.
    """
    shapes(model)
    _check_padding(model)
    limits = _limits(sparsity, len(model))
    size = math.prod(model[-1].op.code_shape)
    (wanted,) = (size,) if num_nonzeros is None else per_axis(num_nonzeros, 1, "num_nonzeros")
    bounds = _magnitudes(magnitudes, model[-1].op.dtype)
    if not any(isinstance(layer.op.filters, Tracer) for layer in model):
        _check_possible(model, limits, disjoint)
    given = (model, jnp.asarray(limits, np.int32), jnp.asarray(wanted, np.int32), bounds)
    if columns is None:
        path = _draw(key, *given, bool(disjoint), bool(nonnegative))
    else:
        (count,) = per_axis(columns, 1, "columns")
        path = _draw_columns(jax.random.split(key, count), *given, bool(disjoint), bool(nonnegative))
    return Sample(path, measure(model, path, coherence=coherence))


def measure(model: Layers, path: Sequence[Signal], *, coherence: ArrayLike | None = None) -> Measured:
    """Return S_l, |X_min^(l)|, |X_max^(l)| and mu_l of a path, what bounds (2) and (3) of Murray 2018 take.

    Args:
        model: the layers.
        path: X^(0), ..., X^(L), or a data matrix of them, each with a leading axis.
        coherence: mu_l, [L], where it is known already; see `coherences`.

    Raises:
        ValueError: arrays that are not the signals of the model.
    """
    expected = shapes(model)
    arrays = tuple(jnp.asarray(signal) for signal in path)
    given = tuple(signal.shape for signal in arrays)
    count = given[0][: -len(expected[0])] if given else ()
    if given != tuple((*count, *shape) for shape in expected) or len(count) > 1:
        raise ValueError(f"expected signals of shapes {expected}, all with one more leading axis or none, got {given}")
    mu = coherences(model) if coherence is None else jnp.asarray(coherence)
    if mu.shape != (len(model),):
        raise ValueError(f"expected one coherence for each of {len(model)} layers, got an array of shape {mu.shape}")
    sparsity, smallest, largest, per_patch = _sizes(model, arrays, bool(count))
    return Measured(sparsity, smallest, largest, mu, per_patch)


@jax.jit
def coherences(model: Layers) -> Float[Array, " L"]:
    """Return mu_l of A^(l) over all shifts, [L]; D^(l) does not change it. 0 for an atom alone.

    Cost: see `cnninv_jax.operators.coherence`.
    """
    found: list[Scalar] = []
    for layer in model:
        alone = layer.signs.size == 1
        found.append(jnp.zeros((), layer.op.dtype) if alone else operators.coherence(layer.op, over="shifts"))
    return jnp.stack(found)


@partial(jax.jit, static_argnames=["disjoint", "nonnegative"])
def _draw(
    key: PRNGKeyArray,
    model: Layers,
    limits: Int[Array, " L"],
    wanted: Int[Array, ""],
    bounds: Float[Array, " 2"],
    disjoint: bool,
    nonnegative: bool,
) -> tuple[Signal, ...]:
    place_key, value_key, sign_key = jax.random.split(key, 3)
    taken = place(place_key, model, limits, wanted, disjoint=disjoint)
    dtype = model[-1].op.dtype
    size = bounds[0] + (bounds[1] - bounds[0]) * jax.random.uniform(value_key, taken.shape, dtype)
    values = size if nonnegative else size * jax.random.rademacher(sign_key, taken.shape, dtype)
    return reverse_pass(model, jnp.where(taken, values, 0))


@partial(jax.jit, static_argnames=["disjoint", "nonnegative"])
def _draw_columns(
    keys: PRNGKeyArray,
    model: Layers,
    limits: Int[Array, " L"],
    wanted: Int[Array, ""],
    bounds: Float[Array, " 2"],
    disjoint: bool,
    nonnegative: bool,
) -> tuple[Signal, ...]:
    # One after the other: a slow column would hold the loop of all others.
    return jax.lax.map(lambda key: _draw(key, model, limits, wanted, bounds, disjoint, nonnegative), keys)


@partial(jax.jit, static_argnames=["batched"])
def _sizes(
    model: Layers, path: tuple[Signal, ...], batched: bool
) -> tuple[Int[Array, " L"], Float[Array, " L"], Float[Array, " L"], Int[Array, " L"]]:
    if batched:
        sparsity, smallest, largest, per_patch = jax.vmap(lambda one: _sizes(model, one, False))(path)
        return jnp.max(sparsity, 0), jnp.min(smallest, 0), jnp.max(largest, 0), jnp.max(per_patch, 0)
    found = []
    for number, (layer, code, active) in enumerate(zip(model, path[1:], supports(path[1:]), strict=True)):
        size = jnp.where(active, jnp.abs(code), 0)
        if number + 1 < len(model):
            op = model[number + 1].op
            per_patch = patch_sparsity(size, op.length, stride=op.stride, padding=op.padding)
        else:
            per_patch = jnp.any(active).astype(np.int32)
        found.append(
            (
                stripe_norm(size, layer.op.length, stride=layer.op.stride, padding=layer.op.padding),
                jnp.min(jnp.where(active, size, jnp.inf)),
                jnp.max(size),
                per_patch,
            )
        )
    sparsity, smallest, largest, patches = (jnp.stack(column) for column in zip(*found, strict=True))
    return sparsity, smallest, largest, patches


def _check_padding(model: Layers) -> None:
    paddings = sorted({layer.op.padding for layer in model})
    if paddings not in (["valid"], ["circular"]):
        raise ValueError(
            f"expected all layers to have padding 'valid' or all 'circular', got {', '.join(paddings)}; "
            "build them with dcsc.layers"
        )


def _limits(sparsity: Sparsity, depth: int) -> list[int]:
    """Return the limit of every layer."""
    listed = np.asarray(sparsity).tolist() if isinstance(sparsity, np.ndarray | jax.Array) else sparsity
    asked = list(listed) if isinstance(listed, Sequence) else [*[None] * (depth - 1), listed]
    if len(asked) != depth:
        raise ValueError(f"expected one sparsity, or one for each of {depth} layers, got {sparsity}")
    return [_UNBOUNDED if limit is None else per_axis(limit, 1, "sparsity")[0] for limit in asked]


def _magnitudes(magnitudes: tuple[ArrayLike, ArrayLike], dtype: jnp.dtype) -> Float[Array, " 2"]:
    if isinstance(magnitudes, int | float):
        raise ValueError(f"expected two magnitudes, the smallest and the largest |X^(L)|, got {magnitudes}")
    bounds = [jnp.asarray(bound).astype(dtype) for bound in magnitudes]
    if len(bounds) != 2 or any(bound.shape for bound in bounds):
        raise ValueError(f"expected two magnitudes, the smallest and the largest |X^(L)|, got {magnitudes}")
    if not any(isinstance(bound, Tracer) for bound in bounds):
        low, high = (float(bound) for bound in bounds)
        if not 0 < low <= high < math.inf:
            raise ValueError(f"expected magnitudes 0 < smallest <= largest, got {low:g} and {high:g}")
    return jnp.stack(bounds)


def _check_possible(model: Layers, limits: list[int], disjoint: bool) -> None:
    """Refuse limits that no single non-zero of X^(L) keeps."""
    with jax.ensure_compile_time_eval():
        needed, meets = (np.asarray(found) for found in _alone(model))
    if disjoint and meets.all():
        raise ValueError(
            "expected a deepest atom whose own atoms below it do not meet, got none; make the deep filters sparser "
            "(dcsc.sparse_filters), or pass disjoint=False"
        )
    possible = needed[:, ~meets] if disjoint else needed
    if not (possible <= np.asarray(limits)[:, None]).all(axis=0).any():
        least = possible.min(axis=1)
        asked = [None if limit == _UNBOUNDED else limit for limit in limits]
        raise ValueError(
            f"expected a sparsity that one non-zero of X^(L) keeps: it alone fills stripes up to {least.tolist()} in "
            f"layers 1 to {len(model)}, got {asked}"
        )


@jax.jit
def _alone(model: Layers) -> tuple[Int[Array, "L K"], Bool[Array, " K"]]:
    """Return the fullest stripe of every layer below one non-zero, and whether its atoms meet."""
    fullest = [jnp.ones(model[-1].op.num_filters, np.int32)]
    meets = jnp.zeros(model[-1].op.num_filters, bool)
    for one in reversed(footprints(model)):
        fullest.insert(0, jnp.max(one.filled, axis=tuple(range(1, one.filled.ndim))))
        meets = meets | one.meets
    return jnp.stack(fullest), meets
