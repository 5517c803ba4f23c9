"""Layers of deep convolutional sparse coding (D-CSC): X^(l-1) = A^(l) D^(l) X^(l) (Murray 2018, section 3).

A^(l) holds every shift of every unit-norm atom, D^(l) a Rademacher sign for each of these columns. X^(0) is the signal,
X^(L) the deepest code. Layers are a tuple, the one next to the signal first; a layer is a pytree whose leaves are
filters and signs, so that new signs never recompile.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, wider
from cnninv_jax._typing import Code, PerAxis, PRNGKeyArray, Signal
from cnninv_jax.filters import normalize
from cnninv_jax.operators import ConvOperator, analysis, conv_operator, synthesis


@partial(jax.tree_util.register_dataclass, data_fields=["op", "signs"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer A^(l) D^(l); build it with `layers`, which validates.

    Attributes:
        op: its analysis is (A^(l))^T, its synthesis A^(l): n_l filters over n_(l-1) channels, unit norm.
        signs: the diagonal of D^(l), +-1 for every filter and shift, [K, *n]; ones for D = I.
    """

    op: ConvOperator
    signs: Code

    @property
    def reach(self) -> tuple[int, ...]:
        """Shifts on either side of an atom, per axis, whose atoms overlap it: floor((ell - 1) / t)."""
        return tuple((ell - 1) // step for ell, step in zip(self.op.length, self.op.stride, strict=True))

    @property
    def positions(self) -> int:
        """Shifts of an atom, the M of the theorem's bound (3)."""
        return math.prod(self.op.shifts)


Layers: TypeAlias = tuple[Layer, ...]


def layers(
    banks: Sequence[ArrayLike],
    signal_shape: PerAxis,
    *,
    strides: int | Sequence[PerAxis] | None = None,
    padding: str = "valid",
    signs: Sequence[ArrayLike] | None = None,
    method: str = "auto",
) -> Layers:
    """Build the layers of a D-CSC model from their filters (Murray 2018, section 3).

    Atoms get unit norm: a filter is divided by its own. Every layer's codes are the signals of the next.

    Args:
        banks: filters of every layer, the one next to the signal first, [n_l, n_(l-1), *ell_l]; n_0 = M.
        signal_shape: spatial length D of the signal per axis.
        strides: t, one integer for all layers or one entry for each; 1 for None.
        padding: ``"valid"`` (atoms inside the signal) or ``"circular"`` (atoms wrap around: every atom has as many
            neighbours, and layers of equal filters share one shape).
        signs: D^(l) of every layer, [n_l, *n]; ones for None, see `draw_signs`.
        method: see `cnninv_jax.operators.conv_operator`.

    Raises:
        ValueError: no layer; numbers of banks, strides, signs that differ; a layer whose channels are not the filters
            of the one below; padding that crops atoms (``"same"``); lengths that do not fit; where they are concrete,
            filters of zeros or not finite, and signs that are none.
    """
    if hasattr(banks, "ndim"):
        raise ValueError("expected a sequence of filter banks, one for every layer, got one array; pass [bank]")
    if not banks:
        raise ValueError("expected the filters of at least one layer, got none")
    if padding not in ("valid", "circular"):
        raise ValueError(
            f"expected padding to be 'valid' or 'circular', got {padding!r}; a border would crop atoms of unit norm"
        )
    steps = [strides or 1] * len(banks) if strides is None or isinstance(strides, int) else list(strides)
    diagonals = [None] * len(banks) if signs is None else list(signs)
    if not len(banks) == len(steps) == len(diagonals):
        raise ValueError(
            f"expected one stride and one array of signs for every layer, got {len(banks)} banks, {len(steps)} strides "
            f"and {len(diagonals)} arrays of signs"
        )
    shape, built = signal_shape, []
    for number, (bank, step, diagonal) in enumerate(zip(banks, steps, diagonals, strict=True), start=1):
        _check_norms(bank, number)
        op = conv_operator(normalize(bank), shape, stride=step, padding=padding, method=method)
        if built and op.channels != built[-1].op.num_filters:
            raise ValueError(
                f"expected layer {number} to have {built[-1].op.num_filters} channels, the filters of layer "
                f"{number - 1}, got {op.channels}"
            )
        given = jnp.ones(op.code_shape, op.dtype) if diagonal is None else jnp.asarray(diagonal).astype(op.dtype)
        if given.shape != op.code_shape:
            raise ValueError(f"expected signs of layer {number} of shape [K, *n] = {op.code_shape}, got {given.shape}")
        if not isinstance(given, Tracer) and not np.all(np.abs(np.asarray(given, np.float32)) == 1):
            raise ValueError(f"expected signs of layer {number} to be +1 or -1, got other numbers; see draw_signs")
        built.append(Layer(op, given))
        shape = op.shifts
    return tuple(built)


def _check_norms(bank: ArrayLike, number: int) -> None:
    """Refuse concrete filters that cannot have unit norm."""
    array = as_float(bank)
    if isinstance(array, Tracer) or array.ndim < 3:
        return
    norms = np.linalg.norm(np.asarray(array, np.float64).reshape(len(array), -1), axis=1)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        raise ValueError(
            f"expected filters of layer {number} that are finite and not zero, got norms from {norms.min():g} to "
            f"{norms.max():g}; leave out filters of zeros"
        )


def draw_signs(key: PRNGKeyArray, model: Layers) -> Layers:
    """Return the layers with new D^(l): independent Rademacher signs for every filter and shift."""
    return tuple(
        dataclasses.replace(layer, signs=jax.random.rademacher(own, layer.op.code_shape, layer.op.dtype))
        for own, layer in zip(jax.random.split(key, len(model)), model, strict=True)
    )


def reverse(layer: Layer, code: ArrayLike) -> Signal:
    """Return X^(l-1) = A^(l) D^(l) X^(l), [M, *D], of a code [K, *n] (Murray 2018, section 3).

    Raises:
        ValueError: a code of another shape.
    """
    array = as_float(code)
    if array.shape != layer.op.code_shape:
        raise ValueError(f"expected a code of shape [K, *n] = {layer.op.code_shape}, got {array.shape}")
    return synthesis(layer.op, _signed(layer, array))


def respond(layer: Layer, signal: ArrayLike) -> Code:
    """Return (A^(l) D^(l))^T X, what eq. (1) of Murray 2018 projects."""
    return _signed(layer, analysis(layer.op, signal))


def _signed(layer: Layer, code: Code) -> Code:
    """Return D X in the wider dtype of the two."""
    dtype = wider(layer.signs.dtype, code.dtype)
    return layer.signs.astype(dtype) * code.astype(dtype)


def reverse_pass(model: Layers, code: ArrayLike) -> tuple[Signal, ...]:
    """Return (X^(0), ..., X^(L)) of the deepest code X^(L), [n_L, *n] (Murray 2018, section 3)."""
    path = [jnp.asarray(code)]
    for layer in reversed(model):
        path.append(reverse(layer, path[-1]))
    return tuple(reversed(path))


def shapes(model: Layers) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of X^(0), ..., X^(L)."""
    found = [model[0].op.input_shape, *(layer.op.code_shape for layer in model)]
    for number, (below, above) in enumerate(itertools.pairwise(model), start=2):
        if above.op.input_shape != below.op.code_shape:
            raise ValueError(
                f"expected layer {number} to take signals of shape {below.op.code_shape}, the codes of layer "
                f"{number - 1}, got {above.op.input_shape}; build them with dcsc.layers"
            )
    return tuple(found)
