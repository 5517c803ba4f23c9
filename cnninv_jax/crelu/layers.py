"""Networks of conv + CReLU (+ max-pooling) layers, forth and back to the picture (Shang et al. 2016, Fig. 5 and G).

Forth, layer l takes f_{l-1}, f_0 = x, to z_l = W_l f_{l-1} + b_l and hands on f_l = rho_c(z_l), max-pooled where it
has a window. Back, every layer by itself is inverted by Algorithm 1 (without pooling) or 2 (with): from what stands for
f_l the responses z_l are read off, and the projection of f_{l-1} onto what they determine is the estimate of f_{l-1},
from which the layer below is inverted in its turn. Nothing is learned.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, norm, wider
from cnninv_jax._typing import Array, Code, Float, Int, PerAxis, Scalar, Signal
from cnninv_jax.crelu.activation import crelu, max_pool, nearest, window_and_step
from cnninv_jax.crelu.reconstruction import check_operator, reconstruct, reconstruct_pooled
from cnninv_jax.operators import ConvOperator, analysis
from cnninv_jax.recovery.pseudo_inverse import check_tol

#: What is done to an estimate of features before it is taken for features: nothing, as in the paper; negative ones
#: are set to zero; or it is replaced by the nearest features that a CReLU (and max-pooling with these switches) has.
Feasible: TypeAlias = Literal["none", "clip", "nearest"]
FEASIBLE: tuple[Feasible, ...] = get_args(Feasible)


@partial(jax.tree_util.register_dataclass, data_fields=["op", "bias"], meta_fields=["pool", "pool_stride"])
@dataclasses.dataclass(frozen=True)
class CReLULayer:
    """One layer: convolution, CReLU, and max-pooling if it has a window. Filters and bias are data, the rest static.

    Attributes:
        op: the convolution W; its M are the 2 K channels that the layer below hands on.
        bias: b, [K]; None for none.
        pool: max-pooling window, one integer or one per axis; None for no pooling. The whole response is ``op.shifts``.
        pool_stride: step from window to window; None for windows side by side.
    """

    op: ConvOperator
    bias: Float[Array, " K"] | None = None
    pool: PerAxis | None = None
    pool_stride: PerAxis | None = None

    def __post_init__(self) -> None:
        """Make tuples of what a user may give as lists: static fields are hashed."""
        for name in ("pool", "pool_stride"):
            value = getattr(self, name)
            if isinstance(value, Sequence):
                object.__setattr__(self, name, tuple(value))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(2 K, *n), or (2 K, *regions) with pooling: the shape of what the layer hands on."""
        shifts = self.op.shifts
        if self.pool is not None:
            window, stride = window_and_step(shifts, self.pool, self.pool_stride)
            shifts = tuple((n - size) // step + 1 for n, size, step in zip(shifts, window, stride, strict=True))
        return (2 * self.op.num_filters, *shifts)


class Forward(NamedTuple):
    """What every layer took and handed on.

    Attributes:
        x: the signal, [M, *D].
        features: f_l of every layer, the first layer first, [2 K_l, *n_l] or, with pooling, [2 K_l, *regions_l].
        switches: those of `max_pool` where a layer pools, None where it does not.
    """

    x: Signal
    features: tuple[Float[Array, " K2 *n"], ...]
    switches: tuple[Int[Array, " K2 *regions"] | None, ...]

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What every layer took: x, f_1, ..., f_{L-1}."""
        return (self.x, *self.features[:-1])


class Inversion(NamedTuple):
    """Estimates of what every layer took, from the features of the top alone.

    Attributes:
        signals: x', then the estimates of f_1, ..., f_{L-1} as the layers below were inverted from them.
        residuals: of the least-squares problem of every layer, see `PseudoInverseResult`, [L].
        num_steps: iterations of every layer, [L].
        status: how every layer's iteration ended, a `PseudoInverseStatus`, [L].
        errors: |estimate - truth| / |truth| of every signal, [L]; None without truth.
    """

    signals: tuple[Signal, ...]
    residuals: Float[Array, " L"]
    num_steps: Int[Array, " L"]
    status: Int[Array, " L"]
    errors: Float[Array, " L"] | None


def forward(layers: Sequence[CReLULayer], x: ArrayLike) -> Forward:
    """Return the features of every layer (Shang et al. 2016, 2.2): f_l = pool(rho_c(W_l f_{l-1} + b_l)).

    Args:
        layers: the first layer first.
        x: signal, [M, *D].

    Raises:
        ValueError: no layer, a layer that does not take what the one below hands on, or x of another shape.
    """
    check_layers(layers)
    return _forward(tuple(layers), as_float(x))


@jax.jit
def _forward(layers: Sequence[CReLULayer], signal: Signal) -> Forward:
    """Return `forward`; compiled once for a geometry."""
    current, features, switches = signal, [], []
    for layer in layers:
        responses = responses_of(layer, current)
        if layer.pool is None:
            current, switch = crelu(responses), None
        else:
            current, switch = max_pool(responses, layer.pool, stride=layer.pool_stride)
        features.append(current)
        switches.append(switch)
    return Forward(signal, tuple(features), tuple(switches))


def invert(
    layers: Sequence[CReLULayer],
    features: ArrayLike,
    switches: Sequence[Int[Array, " K2 *regions"] | None] | None = None,
    *,
    tol: float = 1e-6,
    max_steps: int = 5000,
    feasible: Feasible = "none",
    patchwise: bool = True,
    truth: Sequence[ArrayLike] | None = None,
) -> Inversion:
    """Return the signal reconstructed from the features of the top layer (Shang et al. 2016, Fig. 5).

    Args:
        layers: the first layer first.
        features: of the top layer, `Forward.features[-1]`.
        switches: of every layer, `Forward.switches`; None where no layer pools.
        tol: relative residual at which every layer's least squares stops, see `pseudo_inverse`.
        max_steps: most iterations of a layer.
        feasible: what is done to an estimate of features before the layer below is inverted from it.
        patchwise: whether layers whose filters span every patch begin at the patchwise solution, see `pseudo_inverse`;
            with a loose tol, iterations that start from zero keep what small singular values would blow up out.
        truth: `Forward.signals`, to have the errors.

    Raises:
        ValueError: layers that do not follow on one another, features, switches or truth of another shape or number,
            or an unknown feasible.
    """
    placed = check_features(layers, features, switches)
    _check_feasible(feasible)
    check_tol(tol)
    if truth is not None:
        _check_truth(layers, truth)
    return _invert(
        tuple(layers), as_float(features), tuple(None if switch is None else jnp.asarray(switch) for switch in placed),
        None if truth is None else tuple(map(as_float, truth)), tol,
        max_steps=max_steps, feasible=feasible, patchwise=patchwise,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("max_steps", "feasible", "patchwise"))
def _invert(
    layers: Sequence[CReLULayer],
    current: Array,
    placed: Sequence[Array | None],
    truth: Sequence[Signal] | None,
    tol: float,
    *,
    max_steps: int,
    feasible: Feasible,
    patchwise: bool,
) -> Inversion:
    """Return `invert`; compiled once for a geometry."""
    found, signals = [], []
    for number in reversed(range(len(layers))):
        layer, switch = layers[number], placed[number]
        if number < len(layers) - 1:
            current = feasible_features(current, switch, feasible)
            signals.append(current)
        if switch is None:
            step = reconstruct(
                layer.op, current, bias=layer.bias, tol=tol, max_steps=max_steps, patchwise=patchwise
            )  # fmt: skip
        else:
            step = reconstruct_pooled(layer.op, current, switch, bias=layer.bias, tol=tol, max_steps=max_steps)
        found.append(step)
        current = step.signal
    signals.append(current)
    signals.reverse()
    found.reverse()
    return Inversion(
        tuple(signals),
        jnp.stack([step.residual for step in found]),
        jnp.stack([step.num_steps for step in found]),
        jnp.stack([step.status for step in found]),
        None if truth is None else _errors(signals, truth),
    )


def responses_of(layer: CReLULayer, x: ArrayLike) -> Code:
    """Return z = W x + b of one layer, [K, *n]."""
    responses = analysis(layer.op, x)
    if layer.bias is None:
        return responses
    return responses + jnp.asarray(layer.bias, responses.dtype).reshape(-1, *(1,) * layer.op.rank)


def check_layers(layers: Sequence[CReLULayer]) -> None:
    """Refuse layers that do not follow on one another.

    Raises:
        TypeError: no sequence of `CReLULayer`s.
        ValueError: no layer, a bias of another shape than [K], or a layer whose signal has another shape than what the
            one below hands on.
    """
    if isinstance(layers, CReLULayer):
        raise TypeError("expected a sequence of layers, got one CReLULayer; pass [layer]")
    if not layers:
        raise ValueError("expected at least one layer, got none")
    for number, layer in enumerate(layers, start=1):
        if not isinstance(layer, CReLULayer):
            raise TypeError(f"expected layer {number} to be a CReLULayer, got {type(layer).__name__}")
        check_operator(layer.op)
        if layer.bias is not None and jnp.shape(layer.bias) != (layer.op.num_filters,):
            raise ValueError(
                f"expected a bias of shape [K] = ({layer.op.num_filters},) in layer {number}, got "
                f"{jnp.shape(layer.bias)}"
            )
        if layer.pool is None and layer.pool_stride is not None:
            raise ValueError(f"expected a pooling window beside pool_stride={layer.pool_stride} in layer {number}")
        _ = layer.output_shape  # refuses a window longer than the responses, above the last layer too
    for number, (below, above) in enumerate(itertools.pairwise(layers), start=1):
        if above.op.input_shape != below.output_shape:
            raise ValueError(
                f"expected layer {number + 1} to take signals of shape {below.output_shape}, both phases of "
                f"{below.op.num_filters} filters as layer {number} hands them on, got an operator for "
                f"{above.op.input_shape}"
            )


def check_features(
    layers: Sequence[CReLULayer], features: ArrayLike, switches: Sequence[Array | None] | None
) -> Sequence[Array | None]:
    """Return the switches of every layer, None where it does not pool.

    Raises:
        TypeError: as `check_layers`; a whole `Forward` as features, or one array as switches.
        ValueError: as `check_layers`; features of another shape than the top layer's; switches of another number or
            shape, missing where a layer pools, or given where none does.
    """
    check_layers(layers)
    if isinstance(features, Forward):
        raise TypeError("expected the features of the top layer, got a Forward; pass its features[-1] and switches")
    if hasattr(switches, "shape"):
        raise TypeError("expected switches of every layer, as Forward.switches has them, got one array")
    if jnp.shape(features) != layers[-1].output_shape:
        raise ValueError(
            f"expected the features of layer {len(layers)}, of shape {layers[-1].output_shape}, got "
            f"{jnp.shape(features)}"
        )
    placed = [None] * len(layers) if switches is None else switches
    if len(placed) != len(layers):
        raise ValueError(f"expected switches of {len(layers)} layers (None without pooling), got {len(placed)}")
    for number, (layer, switch) in enumerate(zip(layers, placed, strict=True), start=1):
        expected = None if layer.pool is None else layer.output_shape
        given = None if switch is None else jnp.shape(switch)
        if expected is None and given is not None:
            raise ValueError(f"expected no switches for layer {number}, which does not pool, got some of shape {given}")
        if given != expected:
            raise ValueError(
                f"expected switches of shape {expected} for layer {number}, which pools, got {given or 'none'}"
            )
    return placed


def feasible_features(
    features: ArrayLike, switch: Int[Array, " K2 *regions"] | None = None, feasible: Feasible = "nearest"
) -> Signal:
    """Return what stands for an estimate of a layer's features when the layer is inverted from it.

    Args:
        features: [2 K, *n], or [2 K, *regions] where the layer pools.
        switch: of `max_pool`, None where the layer does not pool. Where nothing fired the nearest feature is 0.
        feasible: one of `FEASIBLE`.

    Raises:
        ValueError: an unknown feasible.
    """
    _check_feasible(feasible)
    features = as_float(features)
    if feasible == "none":
        return features
    if feasible == "clip" or switch is not None:
        positive = jnp.maximum(features, 0)
        return positive if feasible == "clip" or switch is None else jnp.where(switch < 0, 0, positive)
    return nearest(features)


def _check_feasible(feasible: str) -> None:
    if feasible not in FEASIBLE:
        raise ValueError(f"expected feasible to be one of {', '.join(FEASIBLE)}, got {feasible!r}")


def _check_truth(layers: Sequence[CReLULayer], truth: Sequence[ArrayLike]) -> None:
    if len(truth) != len(layers):
        raise ValueError(f"expected the truth of {len(layers)} signals (x and the features below), got {len(truth)}")
    for number, (layer, true) in enumerate(zip(layers, truth, strict=True), start=1):
        if jnp.shape(true) != layer.op.input_shape:
            raise ValueError(
                f"expected the truth of layer {number}'s signal, of shape {layer.op.input_shape}, got {jnp.shape(true)}"
            )


def _errors(signals: Sequence[Signal], truth: Sequence[ArrayLike]) -> Float[Array, " L"]:
    errors: list[Scalar] = []
    for signal, true in zip(signals, map(as_float, truth), strict=True):
        dtype = wider(signal.dtype, true.dtype)
        size = norm(true.astype(dtype))
        difference = norm(signal.astype(dtype) - true.astype(dtype))
        # A zero signal rebuilt as zero is exact.
        errors.append(jnp.where(size == 0, difference, difference / jnp.where(size == 0, 1, size)))
    return jnp.stack(errors)
