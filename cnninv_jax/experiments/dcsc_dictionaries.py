"""The dictionaries that the studies of Murray 2018 share: generic ones, and benign ones of small coherence.

Bound (3) says something only where mu_l^2 S_l is far below 1 / (8 ln(2 M n_l)), which Gaussian filters of a usual size
are far from. Filters designed over their shifts, or orthogonal over them, come near, as do deep atoms that share no
channel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax import dcsc, filters
from cnninv_jax._numerics import float_dtype
from cnninv_jax._typing import Array, Bool, FilterBank, Float, PRNGKeyArray
from cnninv_jax.dcsc.atoms import sparse_filters
from cnninv_jax.dcsc.bounds import (
    ProbabilisticBound,
    Propagation,
    probabilistic_bound,
    propagated_noise,
    uniform_bound,
)
from cnninv_jax.dcsc.design import design, filters_of_coherence
from cnninv_jax.dcsc.generate import Measured, measure
from cnninv_jax.dcsc.orthogonal import most_orthogonal, orthogonal_filters
from cnninv_jax.experiments.dcsc_draws import PathDraw
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.sparsity.norms import patch_norm


@dataclasses.dataclass(frozen=True)
class Dictionaries:
    """Sizes and kind of the dictionaries A^(1), ..., A^(L); a study's parameters may inherit these flags."""

    rank: int = 1
    """Spatial axes, 1 or 2."""
    D: int = 48
    """Signal length per axis."""
    M: int = 16
    """Channels of the signal."""
    num_filters: tuple[int, ...] = (16, 8, 4)
    """Filters n_1, n_2, ... of the layers, the one next to the signal first; a model of depth L takes the first L."""
    ell: int = 6
    """Filter length per axis, in every layer."""
    stride: int = 1
    """Stride t per axis, in every layer."""
    nonzeros: int = 2
    """Non-zero entries of an atom of layers 2, 3, ..., of equal size and random sign."""
    padding: Literal["valid", "circular"] = "circular"
    """Atoms inside of the signal (valid), or wrapping around its border (circular)."""
    kind: Literal["gaussian", "designed", "orthogonal"] = "gaussian"
    """Filters next to the signal: i.i.d. Gaussian, designed for a small coherence over shifts from such a draw, or
    orthogonal over all shifts, which needs at most M stride^rank filters."""
    coherence: float | None = None
    """Coherence over shifts of the filters next to the signal, reached by mixing, instead of a --kind; by default the
    kind's own."""
    design_steps: int = 300
    """Steps of the design, for --kind designed."""
    places: Literal["spread", "random"] = "spread"
    """Taps of deep atoms: in channels of their own as far as there are channels (spread; no two atoms overlap where
    n_l nonzeros <= n_(l-1), mu_l = 0), or anywhere (random)."""


def check(sizes: Dictionaries, depth: int) -> None:
    """Refuse sizes that do not fit, in the words of the command line.

    Raises:
        ValueError: see the messages.
    """
    for name in ("D", "M", "ell", "stride", "nonzeros", "design_steps"):
        positive(getattr(sizes, name), "--" + name.replace("_", "-"), 1 << 31)
    positive(depth, "depth", 1 << 10)
    if sizes.rank not in (1, 2):
        raise ValueError(f"expected --rank 1 or 2, got {sizes.rank}")
    for number in sizes.num_filters:
        positive(number, "--num-filters", 1 << 31)
    if len(sizes.num_filters) < depth:
        raise ValueError(
            f"expected --num-filters for each of {depth} layers, got {len(sizes.num_filters)}; name as many, or take "
            "fewer layers"
        )
    if sizes.kind not in ("gaussian", "designed", "orthogonal"):
        raise ValueError(f"expected --kind gaussian, designed or orthogonal, got {sizes.kind!r}")
    if sizes.places not in ("spread", "random"):
        raise ValueError(f"expected --places spread or random, got {sizes.places!r}")
    if sizes.padding not in ("valid", "circular"):
        raise ValueError(f"expected --padding valid or circular, got {sizes.padding!r}")
    if sizes.coherence is not None:
        if not 0 < sizes.coherence < 1:
            raise ValueError(f"expected --coherence between 0 and 1, got {sizes.coherence}")
        if sizes.kind != "gaussian":
            raise ValueError(
                f"expected --kind or --coherence, which mixes filters of its own, got --kind {sizes.kind} and "
                f"--coherence {sizes.coherence}; leave one out"
            )
    length = sizes.D
    for number in range(1, depth + 1):
        if sizes.ell > length:
            raise ValueError(
                f"expected --ell of at most {length}, the length of layer {number}'s signal, got {sizes.ell}; take a "
                "longer --D, fewer layers or a smaller --stride"
            )
        rest = (length if sizes.padding == "circular" else length - sizes.ell) % sizes.stride
        if rest:
            raise ValueError(
                f"expected a --D whose shifts fit --stride {sizes.stride}, got {sizes.D}: layer {number} has "
                f"{length} samples; --D {sizes.D - rest} may do"
            )
        length = (length if sizes.padding == "circular" else length - sizes.ell) // sizes.stride
        length += sizes.padding == "valid"
    entries = [channels * sizes.ell**sizes.rank for channels in sizes.num_filters[: depth - 1]]
    if entries and sizes.nonzeros > min(entries):
        raise ValueError(f"expected --nonzeros of at most {min(entries)}, the entries of an atom, got {sizes.nonzeros}")
    if sizes.kind == "orthogonal":
        most = most_orthogonal(sizes.M, (sizes.ell,) * sizes.rank, (sizes.stride,) * sizes.rank)
        if sizes.num_filters[0] > most:
            raise ValueError(
                f"expected at most {most} --num-filters next to the signal for --kind orthogonal, got "
                f"{sizes.num_filters[0]}; take a larger --M or --stride, or --kind designed"
            )


def describe(parameters: Dictionaries | Mapping[str, Any]) -> str:
    """Return the filters next to the signal in words: ``"gaussian filters"``, ``"filters mixed to mu = 0.3"``.

    Args:
        parameters: of a study, or as its report.json holds them.
    """
    given = parameters if isinstance(parameters, Mapping) else vars(parameters)
    mu = given["coherence"]
    return f"{given['kind']} filters" if mu is None else f"filters mixed to mu = {mu:g}"


def build(key: PRNGKeyArray, sizes: Dictionaries, depth: int, dtype: jax.typing.DTypeLike | None = None) -> dcsc.Layers:
    """Return the layers of a model of these sizes; D = I, draw its signs with `dcsc.draw_signs`.

    Of one key, a model of less depth is the first layers of a deeper one; filters once made are kept.

    Args:
        key: random key.
        sizes: see `Dictionaries`.
        depth: L.
        dtype: of the filters; JAX's default float for None.

    Raises:
        ValueError: sizes that do not fit, in the words of the command line.
    """
    check(sizes, depth)
    data = tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())
    impl, kind = str(jax.random.key_impl(key)), str(float_dtype(dtype))
    banks = [_bank(data, impl, sizes, number, kind) for number in range(1, depth + 1)]
    return dcsc.layers(banks, (sizes.D,) * sizes.rank, strides=[sizes.stride] * depth, padding=sizes.padding)


@functools.lru_cache(maxsize=64)
def _bank(data: tuple[int, ...], impl: str, sizes: Dictionaries, number: int, dtype: str) -> FilterBank:
    """Return the filters of a layer; kept, since designs take long and a study asks for the same ones again."""
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32), impl=impl), number)
    length = (sizes.ell,) * sizes.rank
    count = sizes.num_filters[number - 1]
    if number > 1:
        channels = sizes.num_filters[number - 2]
        return sparse_filters(
            key, count, channels, length, sizes.nonzeros, places=sizes.places, stride=sizes.stride, dtype=dtype
        )
    if sizes.coherence is not None:
        return _of_coherence(key, sizes, length, dtype)
    if sizes.kind == "orthogonal":
        return orthogonal_filters(key, count, sizes.M, length, stride=sizes.stride, dtype=dtype)
    drawn = filters.gaussian(key, count, sizes.M, length, normalize=True, dtype=dtype)
    if sizes.kind == "gaussian":
        return drawn
    return design(
        jax.random.fold_in(key, 1), count, sizes.M, length, stride=sizes.stride, num_steps=sizes.design_steps,
        start=drawn, dtype=dtype,
    ).filters  # fmt: skip


def _of_coherence(key: PRNGKeyArray, sizes: Dictionaries, length: tuple[int, ...], dtype: str) -> FilterBank:
    mu = sizes.coherence
    assert mu is not None
    try:
        return filters_of_coherence(
            key, sizes.num_filters[0], sizes.M, length, mu, stride=sizes.stride, num_steps=sizes.design_steps,
            dtype=dtype,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"expected a --coherence that --num-filters, --M and --ell allow: {error}") from None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One deepest support under one noise, ready for draws of signs, and what the theorems ask of it.

    Attributes:
        tables: see `dcsc.path_tables`.
        thresholds: beta_l = |X_min^(l)| / 2, [L].
        measured: S_l, |X_min|, |X_max|, mu_l and non-zeros per patch of every layer, for the model's signs.
        zeta_0: |V^(0)|_{2,inf} over patches of the first layer's length.
        positions: shifts M of an atom, by layer.
        num_filters: n_l.
    """

    tables: dcsc.PathTables
    thresholds: Float[Array, " L"]
    measured: Measured
    zeta_0: float
    positions: tuple[int, ...]
    num_filters: tuple[int, ...]

    def draw(self, *, soft: bool = False) -> PathDraw:
        """Return what `montecarlo.run` draws."""
        return PathDraw(self.tables, self.thresholds, soft)


def prepare(
    model: dcsc.Layers,
    code: ArrayLike,
    noise: ArrayLike | None = None,
    capacity: Sequence[int] | None = None,
    *,
    measured: Measured | None = None,
) -> Prepared:
    """Turn a sample into tables, thresholds and measured quantities, once for all draws of signs.

    Args:
        model: the layers; with atoms that do not overlap in X^(1), ..., X^(L-1) their signs do not matter.
        code: X^(L), [n_L, *n].
        noise: V^(0), [M, *D]; none for None.
        capacity: places of the tables, see `dcsc.path_tables` and `capacity_of`.
        measured: of the same model and code where it is known already, such as that of `generate`.

    Raises:
        ValueError: a code of zeros, or shapes that do not fit.
    """
    if not np.any(np.asarray(code)):
        raise ValueError("expected a code with a non-zero entry, got zeros only")
    found = measure(model, dcsc.reverse_pass(model, code)) if measured is None else measured
    op = model[0].op
    level = 0.0 if noise is None else float(patch_norm(noise, op.length, stride=op.stride, padding=op.padding))
    return Prepared(
        dcsc.path_tables(model, code, noise=noise, capacity=capacity),
        found.smallest / 2,
        found,
        level,
        tuple(layer.positions for layer in model),
        tuple(layer.op.num_filters for layer in model),
    )


def capacity_of(model: dcsc.Layers, sparsity: int) -> tuple[int, ...]:
    """Return as many places as X^(1), ..., X^(L) can have if no stripe of X^(1) holds more than ``sparsity``.

    Every place lies in as many stripes as a stripe is long, and deep atoms do not overlap: tables of this capacity have
    one shape whatever the code, and share one compiled program.

    Args:
        model: the layers.
        sparsity: largest S_1.
    """
    first = model[0]
    stripes, each = 1, 1
    for reach, shifts in zip(first.reach, first.op.shifts, strict=True):
        width = 2 * reach + 1
        # Stripes beyond a border that hold something hold no more than the one at the border.
        around = min(width, shifts) if first.op.padding == "circular" else width
        stripes *= shifts if first.op.padding == "circular" else shifts + 2 * reach
        each *= around
    places = [max(1, min(stripes * sparsity // each, first.signs.size))]
    for layer in model[1:]:
        taps = np.count_nonzero(np.asarray(layer.op.filters).reshape(layer.op.num_filters, -1), axis=1).min()
        places.append(max(1, min(places[-1] // max(int(taps), 1), layer.signs.size)))
    return tuple(places)


def entering_noise(prepared: Prepared, noise: Float[ArrayLike, " L"]) -> Float[np.ndarray, " L"]:
    """Return zeta_0, ..., zeta_{L-1}: the noise that enters each layer, as large as it was in any draw.

    Args:
        prepared: what was drawn.
        noise: largest ``noise`` of `PathDraw` over its draws, 0 for a layer that no draw recovered: its noise is then
            taken as large as it can be where no response errs by half of |X_min|, see `dcsc.bounds.propagated_noise`.
    """
    most = np.asarray(_followed(prepared.measured, prepared.zeta_0, "recovered"), float)
    found = np.asarray(noise, float)
    return np.concatenate([[prepared.zeta_0], np.where(found > 0, found, most[1:])[:-1]])


def bound_of(prepared: Prepared, noise: Float[ArrayLike, " L"], *, num_data: int = 1) -> ProbabilisticBound:
    """Return bound (3) of what was drawn, with the noise that entered its layers (Murray 2018).

    Args:
        prepared: what was drawn.
        noise: largest ``noise`` of `PathDraw` over its draws, [L].
        num_data: d.
    """
    return _bound(
        prepared.measured, entering_noise(prepared, noise), np.asarray(prepared.num_filters),
        np.asarray(prepared.positions), num_data,
    )  # fmt: skip


def allowed(measured: Measured, zeta_0: float) -> bool:
    """Return whether the uniform bound (2) promises the whole path, for all signs and all noise of patch norm zeta_0.

    Noise is followed from layer to layer by Papyan et al. 2017: zeta_l = sqrt(|X^(l)|_{0,inf}^P) (zeta_{l-1} + mu_l
    (S_l - 1) |X_max^(l)|).
    """
    zetas = _followed(measured, zeta_0, "uniform")
    return bool(_promises(measured, zetas))


@functools.partial(jax.jit, static_argnames="kind")
def _followed(known: Measured, zeta_0: float | Array, kind: Propagation) -> Float[Array, " L_plus_1"]:
    return propagated_noise(
        zeta_0, known.coherence, known.smallest, known.largest, known.sparsity, known.per_patch, kind=kind
    )


@jax.jit
def _bound(
    known: Measured, zetas: ArrayLike, num_filters: ArrayLike, positions: ArrayLike, num_data: ArrayLike
) -> ProbabilisticBound:
    return probabilistic_bound(
        known.coherence, known.smallest, known.largest, known.sparsity, zetas, num_filters, positions,
        num_data=num_data,
    )  # fmt: skip


@jax.jit
def _promises(known: Measured, zetas: Float[Array, " L_plus_1"]) -> Bool[Array, ""]:
    bound = uniform_bound(known.coherence, known.smallest, known.largest, zetas[:-1])
    return jnp.all(known.sparsity <= bound.largest_sparsity)
