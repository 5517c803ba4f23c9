"""The dictionaries that the studies of Murray 2018 share: generic ones, and benign ones of small coherence.

Bound (3) says something only where mu_l^2 S_l is far below 1 / (8 ln(2 M n_l)), which Gaussian filters of a usual size
are far from. Filters designed over their shifts, or orthogonal over them, come near, as do deep atoms that share no
channel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax import dcsc, filters
from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, FilterBank, Float, PRNGKeyArray
from cnninv_jax.experiments.dcsc_draws import PathDraw
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.operators import coherence

if TYPE_CHECKING:
    from cnninv_jax.dcsc.generate import Measured


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
    """Filters next to the signal: i.i.d. Gaussian, designed for a small coherence over shifts, or orthogonal over all
    shifts, which needs at most M stride^rank filters. Deep atoms: of random support for gaussian, in channels of their
    own for the others."""
    coherence: float | None = None
    """Coherence over shifts of the filters next to the signal, reached by mixing; the kind's own by default."""
    design_steps: int = 300
    """Steps of the design, for --kind designed."""


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
    if sizes.padding not in ("valid", "circular"):
        raise ValueError(f"expected --padding valid or circular, got {sizes.padding!r}")
    if sizes.coherence is not None and not 0 < sizes.coherence < 1:
        raise ValueError(f"expected --coherence between 0 and 1, got {sizes.coherence}")
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
        most = sizes.M * min(sizes.stride, sizes.ell) ** sizes.rank
        if sizes.num_filters[0] > most:
            raise ValueError(
                f"expected at most M stride^rank = {most} --num-filters next to the signal for --kind orthogonal, got "
                f"{sizes.num_filters[0]}; take a larger --M or --kind designed"
            )


def build(key: PRNGKeyArray, sizes: Dictionaries, depth: int, dtype: jax.typing.DTypeLike | None = None) -> dcsc.Layers:
    """Return the layers of a model of these sizes; D = I, draw its signs with `dcsc.draw_signs`.

    Models of one key and less depth are the first layers of deeper ones.

    Raises:
        ValueError: sizes that do not fit, in the words of the command line.
    """
    check(sizes, depth)
    kind = jnp.zeros((), dtype).dtype if dtype is None else jnp.dtype(dtype)
    data = tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())
    banks = _banks(data, str(jax.random.key_impl(key)), sizes, depth, str(kind))
    return dcsc.layers(
        banks, (sizes.D,) * sizes.rank, strides=[sizes.stride] * depth, padding=sizes.padding, method="auto"
    )


@functools.lru_cache(maxsize=64)
def _banks(data: tuple[int, ...], impl: str, sizes: Dictionaries, depth: int, dtype: str) -> tuple[FilterBank, ...]:
    """Return the filters of every layer: designs take long, and a study asks for the same ones again and again."""
    from cnninv_jax.dcsc.atoms import sparse_filters

    key = jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32), impl=impl)
    length = (sizes.ell,) * sizes.rank
    banks = [_bottom(jax.random.fold_in(key, 1), sizes, length, dtype)]
    for number in range(2, depth + 1):
        own = jax.random.fold_in(key, number)
        count, channels = sizes.num_filters[number - 1], sizes.num_filters[number - 2]
        if sizes.kind != "gaussian" and count * sizes.nonzeros <= channels:
            bank = apart(own, count, channels, length, sizes.nonzeros)
        else:
            bank = sparse_filters(own, count, channels, length, sizes.nonzeros, values="signs")
        banks.append(jnp.asarray(bank, dtype))
    return tuple(banks)


def _bottom(key: PRNGKeyArray, sizes: Dictionaries, length: tuple[int, ...], dtype: str) -> FilterBank:
    from cnninv_jax.dcsc.design import design, filters_of_coherence

    count = sizes.num_filters[0]
    if sizes.coherence is not None:
        bank = filters_of_coherence(key, count, sizes.M, length, sizes.coherence, stride=sizes.stride)
    elif sizes.kind == "designed":
        bank = design(key, count, sizes.M, length, stride=sizes.stride, num_steps=sizes.design_steps).filters
    elif sizes.kind == "orthogonal":
        bank = orthogonal(key, count, sizes.M, length, stride=sizes.stride)
    else:
        bank = filters.gaussian(key, count, sizes.M, length, normalize=True, dtype=dtype)
    return jnp.asarray(bank, dtype)


def apart(key: PRNGKeyArray, num_filters: int, channels: int, length: tuple[int, ...], nonzeros: int) -> FilterBank:
    """Return sparse atoms of which no two share a channel, and none has two entries in one: mu = 0 over all shifts.

    Args:
        key: random key.
        num_filters: K, at most channels / nonzeros.
        channels: M.
        length: ell per axis.
        nonzeros: entries of an atom, +-1/sqrt(nonzeros) at a random tap each.

    Raises:
        ValueError: too few channels.
    """
    if num_filters * nonzeros > channels:
        raise ValueError(
            f"expected at least {num_filters * nonzeros} channels for {num_filters} atoms of {nonzeros} entries in "
            f"channels of their own, got {channels}"
        )
    order, taps, signs = jax.random.split(key, 3)
    where = jax.random.permutation(order, channels)[: num_filters * nonzeros].reshape(num_filters, nonzeros)
    tap = jax.random.randint(taps, where.shape, 0, math.prod(length))
    values = jax.random.rademacher(signs, where.shape, jnp.float32) / math.sqrt(nonzeros)
    bank = jnp.zeros((num_filters, channels, math.prod(length)))
    bank = bank.at[jnp.arange(num_filters)[:, None], where, tap].set(values.astype(bank.dtype))
    return filters.normalize(bank.reshape(num_filters, channels, *length))


def orthogonal(
    key: PRNGKeyArray, num_filters: int, channels: int, length: tuple[int, ...], *, stride: int = 1
) -> FilterBank:
    """Return random filters that are orthogonal to one another over all shifts, and to their own shifts: mu = 0.

    A paraunitary matrix in the polyphase domain: orthogonal matrices with delays of half of the channels between them
    (Vaidyanathan, Multirate Systems and Filter Banks, 1993, 14.4). Taps beyond the largest multiple of the stride
    stay 0.

    Args:
        key: random key.
        num_filters: K, at most M stride^rank (stride at most ell).
        channels: M.
        length: ell per axis.
        stride: t, of all axes.

    Raises:
        ValueError: more filters than there are orthogonal ones.
    """
    blocks = tuple(min(stride, ell) for ell in length)
    phases = channels * math.prod(blocks)
    if num_filters > phases:
        raise ValueError(
            f"expected at most {phases} filters that are orthogonal over all shifts, got {num_filters}; take more "
            "channels or a larger stride"
        )
    delays = tuple(ell // block - 1 for ell, block in zip(length, blocks, strict=True))
    rank, count = len(length), 1 + sum(delays)
    mixing = jnp.linalg.qr(jax.random.normal(key, (count, phases, phases)))[0]
    # [K, phases, *blocks of taps]
    bank = mixing[0, :num_filters].reshape(num_filters, phases, *(1,) * rank)
    stage = 1
    for axis, number in enumerate(delays):
        for _ in range(number):
            before = [(0, 0)] * bank.ndim
            after = list(before)
            after[2 + axis], before[2 + axis] = (0, 1), (1, 0)
            half = phases // 2
            bank = jnp.concatenate([jnp.pad(bank[:, :half], before), jnp.pad(bank[:, half:], after)], axis=1)
            flat = matmul(mixing[stage].T, jnp.moveaxis(bank, 1, 0).reshape(phases, -1))
            bank = jnp.moveaxis(flat.reshape(phases, num_filters, *bank.shape[2:]), 0, 1)
            stage += 1
    # Phases become taps: tap = block * stride + phase.
    split = bank.reshape(num_filters, channels, *blocks, *bank.shape[2:])
    order = [0, 1]
    for axis in range(rank):
        order += [2 + rank + axis, 2 + axis]
    taps = [block * (delay + 1) for block, delay in zip(blocks, delays, strict=True)]
    whole = jnp.transpose(split, order).reshape(num_filters, channels, *taps)
    missing = [(0, ell - tap) for ell, tap in zip(length, taps, strict=True)]
    return filters.normalize(jnp.pad(whole, [(0, 0), (0, 0), *missing]))


def coherences(model: dcsc.Layers) -> Float[np.ndarray, " L"]:
    """Return mu_l over the shifts of every layer."""
    return np.array([float(coherence(layer.op, over="shifts")) for layer in model])


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One deepest support under one noise, ready for draws of signs, and what the theorem asks of it.

    Attributes:
        tables: see `dcsc.path_tables`.
        thresholds: beta_l = |X_min^(l)| / 2, [L].
        measured: S_l, |X_min|, |X_max|, mu_l and non-zeros per patch of every layer, for the model's signs.
        zeta_0: |V^(0)|_{2,inf} over patches of the first layer's length.
        positions: shifts M_l of an atom, by layer.
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
        capacity: see `dcsc.path_tables`.
        measured: of the same model and code where it is known already, such as that of `dcsc.generate`.

    Raises:
        ValueError: a code of zeros, or shapes that do not fit.
    """
    from cnninv_jax.dcsc.generate import measure
    from cnninv_jax.sparsity.norms import patch_norm

    if not np.any(np.asarray(code)):
        raise ValueError("expected a code with a non-zero entry, got zeros only")
    found = measure(model, dcsc.reverse_pass(model, code)) if measured is None else measured
    op = model[0].op
    level = 0.0 if noise is None else float(patch_norm(noise, op.length, stride=op.stride, padding=op.padding))
    return Prepared(
        dcsc.path_tables(model, code, noise=noise, capacity=capacity),
        jnp.asarray(np.asarray(found.smallest) / 2, op.dtype),
        found,
        level,
        tuple(layer.positions for layer in model),
        tuple(layer.op.num_filters for layer in model),
    )
