"""Inversion of several conv + CReLU layers at once: the signal whose features are nearest to those given.

Layer by layer (`layers.invert`), what a layer cannot tell of its input is lost for good, and with 2 K_{l-1} channels
below K_l filters every layer loses something. But features that a network has are few among all: they are those of
some signal. Asked for the signal instead of for the features below, the responses of the top layer are many equations
for few unknowns. They are linear in x where the signs of all responses are known: with switches of max-pooling they
are (a switch names shift and sign), without pooling they are those of the estimate at hand, which is the Gauss-Newton
method for a piecewise linear map. Not in the paper.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, norm, wider
from cnninv_jax._typing import Array, Code, Float, Int, Scalar, Signal
from cnninv_jax.crelu.activation import crelu, inverse
from cnninv_jax.crelu.layers import CReLULayer, check_features, invert, responses_of
from cnninv_jax.recovery.pseudo_inverse import check_tol, for_loops

#: The normal equations of a round are solved no further than this: the next round has others.
LINEAR_TOL = 1e-2
#: A step that does not bring the features nearer is halved at most so many times.
MOST_HALVINGS = 10
#: A round that lessens the misfit by less than this part of it is the last.
LEAST_PROGRESS = 1e-3


class JointStatus(enum.IntEnum):
    """How a joint inversion ended; each has a message."""

    CONVERGED = 0
    CAP = 1
    STALLED = 2
    NOT_FINITE = 3

    @property
    def message(self) -> str:
        """What happened and what to do."""
        return _MESSAGES[self]


_MESSAGES = {
    JointStatus.CONVERGED: "the features of the signal are those given, to tol",
    JointStatus.CAP: "the misfit is above tol after num_rounds rounds: raise num_rounds",
    JointStatus.STALLED: "no step brings the features nearer: a local minimum; try another start",
    JointStatus.NOT_FINITE: "the misfit is not finite: look for NaN or infinity in features, filters or start",
}


class JointInversion(NamedTuple):
    """The signal found.

    Attributes:
        signal: x', [M, *D].
        misfit: |z(x') - z| / |z|, of the top layer's responses without bias (of the winners, with pooling).
        num_rounds: Gauss-Newton rounds taken.
        status: how it ended, a `JointStatus`. A small misfit alone does not say that x' is x: where the network is
            not injective, other signals have the same features.
    """

    signal: Signal
    misfit: Scalar
    num_rounds: Int[Array, ""]
    status: Int[Array, ""]


def invert_jointly(
    layers: Sequence[CReLULayer],
    features: ArrayLike,
    switches: Sequence[Int[Array, " K2 *regions"] | None] | None = None,
    *,
    start: ArrayLike | None = None,
    tol: float = 1e-5,
    num_rounds: int = 20,
    max_steps: int = 50,
) -> JointInversion:
    """Return min over x of |z(x) - z|, z the responses of the top layer, by Gauss-Newton rounds from an estimate.

    A round solves (J^T J) d = J^T (z - z(x)) by conjugate gradients, J the derivative of z(x) at x, and takes the
    longest of d, d/2, d/4, ... that lessens the misfit.

    Args:
        layers: the first layer first.
        features: of the top layer, `Forward.features[-1]`.
        switches: of every layer, `Forward.switches`; None where no layer pools.
        start: x_0, [M, *D]; None for what `invert` gives.
        tol: misfit at which it ends.
        num_rounds: most rounds.
        max_steps: most conjugate-gradient iterations of a round, and of a layer of `invert`.

    Raises:
        ValueError: as `invert`, or a start of another shape.

    Cost: an iteration takes every layer forth and back once; memory for the signs of every layer. Compiled once for a
    geometry.
    """
    placed = check_features(layers, features, switches)
    given = None if start is None else as_float(start)
    if given is not None and given.shape != layers[0].op.input_shape:
        raise ValueError(f"expected a start of shape (M, *D) = {layers[0].op.input_shape}, got {given.shape}")
    check_tol(tol)
    switched = tuple(None if switch is None else jnp.asarray(switch) for switch in placed)
    return _jointly(tuple(layers), as_float(features), switched, given, tol, num_rounds, max_steps=max_steps)


@functools.partial(jax.jit, static_argnames="max_steps")
def _jointly(
    layers: Sequence[CReLULayer],
    features: Array,
    placed: Sequence[Array | None],
    start: Signal | None,
    tol: float,
    num_rounds: int,
    *,
    max_steps: int,
) -> JointInversion:
    """Return `invert_jointly`."""
    layers = [dataclasses.replace(layer, op=for_loops(layer.op)) for layer in layers]
    target = _top(features, placed[-1])
    x = start
    if x is None:
        x = invert(layers, features, placed, tol=LINEAR_TOL, max_steps=max_steps).signals[0]
    dtype = wider(wider(x.dtype, target.dtype), layers[0].op.dtype)
    x, target = x.astype(dtype), target.astype(dtype)
    size = _safe(norm(target))

    def responses(x: Signal) -> Array:
        return _responses(layers, placed, x)

    def misfit(x: Signal) -> Scalar:
        return norm(target - responses(x)) / size

    def turn(state: tuple[Signal, Scalar, Array, Array]) -> tuple[Signal, Scalar, Array, Array]:
        x, before, rounds, _ = state
        found, push = jax.linearize(responses, x)
        pull = jax.linear_transpose(push, x)
        (right,) = pull((target - found) / size)
        direction, _ = jax.scipy.sparse.linalg.cg(lambda v: pull(push(v))[0], right, tol=LINEAR_TOL, maxiter=max_steps)
        direction = direction * size

        def halve(carry: tuple[Scalar, Scalar, Array]) -> tuple[Scalar, Scalar, Array]:
            step = carry[0] / 2
            return step, misfit(x + step * direction), carry[2] + 1

        whole = (jnp.ones((), dtype), misfit(x + direction), jnp.zeros((), np.int32))
        # A comparison with NaN is false: what is not finite is no progress.
        step, after, _ = lax.while_loop(lambda c: ~(c[1] < before) & (c[2] < MOST_HALVINGS), halve, whole)
        better = after < before
        moved = jnp.where(better, x + step * direction, x)
        return moved, jnp.where(better, after, before), rounds + 1, better & (after <= (1 - LEAST_PROGRESS) * before)

    def going(state: tuple[Signal, Scalar, Array, Array]) -> Array:
        return (state[1] > tol) & (state[2] < num_rounds) & state[3]

    first = (x, misfit(x), jnp.zeros((), np.int32), jnp.ones((), bool))
    x, left, rounds, progress = lax.while_loop(going, turn, first)
    status = jnp.where(progress, int(JointStatus.CAP), int(JointStatus.STALLED))
    status = jnp.where(left <= tol, int(JointStatus.CONVERGED), status)
    return JointInversion(x, left, rounds, jnp.where(jnp.isfinite(left), status, int(JointStatus.NOT_FINITE)))


def _top(features: Array, switch: Array | None) -> Array:
    """Return what is known of the top layer's responses: all of them, or the winners in the phase in which they won."""
    return inverse(features) if switch is None else jnp.where(switch < 0, 0, features)


def _responses(layers: Sequence[CReLULayer], switches: Sequence[Array | None], x: Signal) -> Array:
    """Return the top layer's responses to x, with the winners of every pooling layer where the switches say."""
    for layer, switch in zip(layers[:-1], switches[:-1], strict=True):
        responses = responses_of(layer, x)
        x = crelu(responses) if switch is None else _at(switch, responses)
    responses = responses_of(layers[-1], x)
    return responses if switches[-1] is None else _at(switches[-1], responses)


def _at(switch: Int[Array, " K2 *regions"], responses: Code) -> Float[Array, " K2 *regions"]:
    """Return the responses at the switches, in the phase in which they won: linear, as what won is known."""
    flat = responses.reshape(responses.shape[0], -1)
    places = switch.reshape(switch.shape[0], -1)
    picked = jnp.take_along_axis(jnp.concatenate([flat, -flat]), jnp.maximum(places, 0), axis=1)
    return jnp.where(places < 0, 0, picked).reshape(switch.shape)


def _safe(size: Scalar) -> Scalar:
    return jnp.where(size == 0, 1, size)
