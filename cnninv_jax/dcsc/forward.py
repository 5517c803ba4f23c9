"""The forward pass of D-CSC, layer by layer: X_hat^(l) = Proj((A^(l) D^(l))^T X_hat^(l-1)) (Murray 2018, eq. (1)).

One pure function of the layers, which are a pytree. Names of projections and shapes are static; filters, signs,
thresholds and signals are traced data: ``vmap`` over signals, over signs (`draw_signs`) or over thresholds, and new
ones compile nothing anew, with or without a ``jit`` around. Layers of one shape (circular padding, as many filters as
channels) are traced once and scanned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, wider
from cnninv_jax._typing import Array, Bool, Code, Float, Int, Signal
from cnninv_jax.dcsc.model import Layer, Layers, respond, shapes
from cnninv_jax.sparsity.norms import patch_norm
from cnninv_jax.sparsity.stripes import project_stripes
from cnninv_jax.sparsity.thresholds import hard_threshold, relu_threshold, shifted_relu, soft_threshold

#: A projection of one's own: what remains of the responses h of a layer at its threshold (None without thresholds).
Projection: TypeAlias = Callable[[Code, Any], Code]

#: An entry is zero below this many units of rounding of its layer's largest: atoms that cancel leave no more.
CANCELLED = 64

#: The largest such part: in half precision, where rounding reaches real entries, these are kept and so may be rounding.
MOST_CANCELLED = 2.0**-12

#: A limit that no stripe reaches.
UNBOUNDED = 2**30


class Forward(NamedTuple):
    """What a pass made of every layer and, where the truth is known, how far it is from it.

    Attributes:
        codes: X_hat^(1), ..., X_hat^(L).
        hits: entries of the support of X^(l) that X_hat^(l) has too, [L]; from here on None without truth.
        misses: entries of the support that it lacks, [L].
        false_alarms: entries that it has outside the support and that are not exactly those of X^(l), [L].
        recovered: whether neither misses nor false alarms are left, and every entry of X_hat^(l) is finite, [L]: what
            holds NaN or infinity, as a threshold of NaN leaves it, recovers nothing.
        path_recovered: whether that holds of every layer.
        noise: |V^(l)|_{2,inf} of V^(l) = X_hat^(l) - X^(l), l = 0 .. L, over patches of layer l + 1, [L + 1]; the
            deepest layer has none above it: there it is |V^(L)|_inf.
    """

    codes: tuple[Code, ...]
    hits: Int[Array, " L"] | None = None
    misses: Int[Array, " L"] | None = None
    false_alarms: Int[Array, " L"] | None = None
    recovered: Bool[Array, " L"] | None = None
    path_recovered: Bool[Array, ""] | None = None
    noise: Float[Array, " levels"] | None = None


def crelu_threshold(h: Code, beta: ArrayLike) -> Code:
    """Return what both halves of a CReLU with bias -beta keep, put together again with their signs.

    max(h - beta, 0) - max(-h - beta, 0): the soft threshold.
    """
    return shifted_relu(h, beta) - shifted_relu(-h, beta)


#: Projections that compare every response with the layer's threshold.
THRESHOLDS: dict[str, Projection] = {
    "hard": hard_threshold,
    "soft": soft_threshold,
    "relu": relu_threshold,
    "shifted_relu": shifted_relu,
    "crelu": crelu_threshold,
}


def support(code: ArrayLike) -> Bool[Array, " K *n"]:
    """Return which entries of a sum of atoms are non-zero; those that rounding may have left of a cancellation are not.

    The limit is `CANCELLED` units of rounding of the largest entry, and `MOST_CANCELLED` of it at most.
    """
    size = jnp.abs(as_float(code))
    return size > min(CANCELLED * float(jnp.finfo(size.dtype).eps), MOST_CANCELLED) * jnp.max(size)


def supports(codes: Sequence[ArrayLike]) -> tuple[Bool[Array, " K *n"], ...]:
    """Return the supports of X^(1), ..., X^(L): `support` of all but X^(L), which is given, no sum: any non-zero."""
    return (*map(support, codes[:-1]), as_float(codes[-1]) != 0)


def default_thresholds(path: Sequence[ArrayLike]) -> Float[Array, " L"]:
    """Return beta_l = |X_min^(l)| / 2 of a path X^(0), ..., X^(L), half of every code's smallest non-zero entry, [L].

    A code of zeros has none: infinity, which nothing passes.
    """
    if len(path) < 2:
        raise ValueError(f"expected the path X^(0), ..., X^(L) of reverse_pass, got {len(path)} array(s)")
    codes = [as_float(code) for code in path[1:]]
    smallest = [
        jnp.min(jnp.where(own, jnp.abs(code), jnp.inf)) for own, code in zip(supports(codes), codes, strict=True)
    ]
    return jnp.stack(smallest) / 2


def forward(
    model: Layers,
    x: ArrayLike,
    projection: str | Projection = "hard",
    *,
    thresholds: Float[ArrayLike, " L"] | None = None,
    sparsity: Int[ArrayLike, " L"] | Sequence[int | None] | None = None,
    truth: Sequence[ArrayLike] | None = None,
) -> Forward:
    """Estimate the codes of every layer in one pass (Murray 2018, eq. (1)).

    Args:
        model: the layers, signs included.
        x: X^(0) + V^(0), [M, *D].
        projection: on responses h with the layer's threshold beta:

            - ``"hard"``: h where |h| > beta, what the theorem is about;
            - ``"soft"``: moved towards zero by beta;
            - ``"relu"``: h where h > beta; negative entries are lost;
            - ``"shifted_relu"``: max(h - beta, 0), a ReLU with bias -beta;
            - ``"crelu"``: both halves max(h - beta, 0) and max(-h - beta, 0), put together again: ``"soft"``;
            - ``"stripes"``: as many of the largest entries as leave at most S_l in every stripe (greedy);
            - or a function of (h, beta). The same function again compiles nothing anew: change no state that it reads.
        thresholds: beta_l, [L]; for all but ``"stripes"``. `default_thresholds` finds the theorem's from the truth.
        sparsity: S_l, [L], None among them for no limit; for ``"stripes"`` only.
        truth: X^(0), ..., X^(L) of `reverse_pass`, to compare with.

    Returns:
        Codes in the wider dtype of filters and x, and how they compare with the truth.

    Raises:
        ValueError: an unknown projection, thresholds or sparsity that are missing, too many or of another kind of
            projection, or shapes that do not fit.

    Cost: one analysis per layer, and its projection.
    """
    signal = as_signal(model, x, truth)
    settings = _settings(model, projection, thresholds, sparsity, signal.dtype)
    try:
        hash(projection)
    except TypeError:
        # What has no hash is no key of a compiled program.
        codes = _layer_by_layer(model, signal, settings, projection)
    else:
        codes = _pass(model, signal, settings, projection)
    return Forward(codes) if truth is None else compare(model, codes, truth, x)


def _layer_by_layer(
    model: Layers, signal: Signal, values: Array | None, projection: str | Projection
) -> tuple[Code, ...]:
    """Return the codes of all layers."""
    settings = (None,) * len(model) if values is None else tuple(values)
    codes: list[Code] = []
    for run in _runs(model):
        layers, chosen = model[run], settings[run]
        if len(layers) == 1:
            codes.append(_step(projection, signal, (layers[0], chosen[0])))
        else:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(layers, chosen, strict=True))

            def step(estimate: Code, above: tuple[Layer, Any]) -> tuple[Code, Code]:
                code = _step(projection, estimate, above)
                return code, code

            codes.extend(jax.lax.scan(step, signal, stacked)[1])
        signal = codes[-1]
    return tuple(codes)


#: A program for every projection and geometry, kept between calls.
_pass = jax.jit(_layer_by_layer, static_argnames=["projection"])


def as_signal(model: Layers, x: ArrayLike, truth: Sequence[ArrayLike] | None) -> Signal:
    """Return x in the wider dtype of filters and x; refuse an x or a truth of other shapes than the model's."""
    expected = shapes(model)
    signal = as_float(x)
    if signal.shape != expected[0]:
        raise ValueError(
            f"expected a signal of shape [M, *D] = {expected[0]}, got {signal.shape}; use jax.vmap for a batch"
        )
    if truth is not None:
        check_shapes("truth X^(0), ..., X^(L)", truth, expected)
    return signal.astype(wider(signal.dtype, model[0].op.dtype))


def compare(model: Layers, codes: Sequence[ArrayLike], truth: Sequence[ArrayLike], x: ArrayLike) -> Forward:
    """Compare estimates of every layer, from `forward` or any other pursuit, with the path that made the signal.

    Args:
        model: the layers; only their geometry matters.
        codes: X_hat^(1), ..., X_hat^(L).
        truth: X^(0), ..., X^(L) of `reverse_pass`.
        x: X^(0) + V^(0), [M, *D].

    Raises:
        ValueError: shapes that do not fit.
    """
    expected = shapes(model)
    estimates, path = [as_float(x), *map(as_float, codes)], [*map(as_float, truth)]
    check_shapes("signal and codes", estimates, expected)
    check_shapes("truth X^(0), ..., X^(L)", path, expected)
    found = [code != 0 for code in estimates[1:]]
    pairs = list(zip(found, supports(path[1:]), strict=True))
    errors = [_error(estimate, code) for estimate, code in zip(estimates, path, strict=True)]
    misses = jnp.stack([jnp.sum(~have & want) for have, want in pairs])
    # An entry that equals the truth is no error, even if the truth's is so small that it counts as zero.
    alarms = jnp.stack(
        [jnp.sum(have & ~want & (error != 0)) for (have, want), error in zip(pairs, errors[1:], strict=True)]
    )
    finite = jnp.stack([jnp.all(jnp.isfinite(code)) for code in estimates[1:]])
    recovered = (misses == 0) & (alarms == 0) & finite
    return Forward(
        tuple(estimates[1:]),
        jnp.stack([jnp.sum(have & want) for have, want in pairs]),
        misses,
        alarms,
        recovered,
        jnp.all(recovered),
        _noise(model, errors),
    )


def check_shapes(name: str, arrays: Sequence[ArrayLike], expected: tuple[tuple[int, ...], ...]) -> None:
    """Refuse arrays of other shapes than a path's.

    Raises:
        ValueError: shapes or a number of arrays that are not those expected.
    """
    found = tuple(jnp.shape(array) for array in arrays)
    if found != expected:
        raise ValueError(f"expected {name} of shapes {expected}, got {found}; reverse_pass returns such a path")


def _error(estimate: Array, code: Array) -> Array:
    """Return V^(l) = X_hat^(l) - X^(l) in the wider dtype."""
    dtype = wider(estimate.dtype, code.dtype)
    return estimate.astype(dtype) - code.astype(dtype)


def _noise(model: Layers, errors: Sequence[Array]) -> Float[Array, " levels"]:
    """Return the patch norms of X_hat^(l) - X^(l), seen by the layer above."""
    found = []
    for level, error in enumerate(errors):
        if level < len(model):
            op = model[level].op
            found.append(patch_norm(error, op.length, stride=op.stride, padding=op.padding))
        else:
            found.append(jnp.max(jnp.abs(error)))
    dtype = found[0].dtype
    for size in found[1:]:
        dtype = wider(dtype, size.dtype)
    return jnp.stack([size.astype(dtype) for size in found])


def _settings(
    model: Layers,
    projection: str | Projection,
    thresholds: ArrayLike | None,
    sparsity: ArrayLike | Sequence[int | None] | None,
    dtype: jnp.dtype,
) -> Array | None:
    """Return what the projection of every layer needs beside the responses, [L]."""
    if not callable(projection) and projection not in (*THRESHOLDS, "stripes"):
        raise ValueError(
            f"expected projection to be one of {', '.join([*THRESHOLDS, 'stripes'])} or a function of (h, beta), "
            f"got {projection!r}"
        )
    pair = {"thresholds": thresholds, "sparsity": sparsity}
    wanted = "sparsity" if projection == "stripes" else "thresholds"
    given = pair.pop(wanted)
    for unwanted, value in pair.items():
        if value is not None:
            raise ValueError(f"expected only {wanted} with projection {projection!r}, got {unwanted}; leave it out")
    if given is None:
        if callable(projection):
            return None
        hint = "one S per layer" if wanted == "sparsity" else "one beta per layer, see default_thresholds"
        raise ValueError(f"expected {wanted} with projection {projection!r}, got none; pass {hint}")
    if wanted == "sparsity" and isinstance(given, Sequence | np.ndarray) and np.ndim(given) == 1:
        given = [UNBOUNDED if limit is None else limit for limit in given]
    values = jnp.asarray(given)
    if values.shape != (len(model),):
        raise ValueError(f"expected {wanted} of shape ({len(model)},), one per layer, got {values.shape}")
    return values if wanted == "sparsity" else values.astype(dtype)


def _step(projection: str | Projection, estimate: Signal, above: tuple[Layer, Any]) -> Code:
    """Return one layer's estimate from that of the layer below."""
    layer, setting = above
    # Filters, signs and estimate in one dtype: a pass changes it nowhere.
    responses = respond(jax.tree.map(lambda leaf: leaf.astype(estimate.dtype), layer), estimate)
    if callable(projection):
        return projection(responses, setting)
    if projection == "stripes":
        op = layer.op
        return project_stripes(responses, setting, op.length, stride=op.stride, padding=op.padding)
    return THRESHOLDS[projection](responses, setting)


def _runs(model: Layers) -> Iterator[slice]:
    """Split the layers into runs that can be scanned, those whose codes have the shape of their signals, and others."""

    def shape(numbered: tuple[int, Layer]) -> object:
        number, layer = numbered
        leaves, structure = jax.tree.flatten(layer)
        if layer.op.input_shape != layer.op.code_shape:
            return number
        return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)

    start = 0
    for _, group in itertools.groupby(enumerate(model), shape):
        stop = start + len(list(group))
        yield slice(start, stop)
        start = stop
