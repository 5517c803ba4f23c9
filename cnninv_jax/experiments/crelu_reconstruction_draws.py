"""One picture through a CReLU network and back from every depth: errors, and the least squares behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from cnninv_jax import data, images
from cnninv_jax._typing import Array, Int, Signal
from cnninv_jax._typing import Float as JaxFloat
from cnninv_jax.crelu.joint import invert_jointly
from cnninv_jax.crelu.layers import CReLULayer, Forward, feasible_features, forward, invert
from cnninv_jax.experiments.crelu_networks import picture_of

#: How layers below the top are inverted, from estimates of their features: by the pseudo-inverse, as in the paper; the
#: same after an estimate was replaced by the nearest features that a CReLU (and max-pooling with these switches) has;
#: or by conjugate gradients from zero that stop early, which keeps the pseudo-inverse of filters whose least singular
#: values are small from blowing up what the estimates have wrong (iterative regularisation); or all layers at once, by
#: `crelu.invert_jointly` from what ``early`` gives.
WAYS = ("linear", "nearest", "early", "joint")
#: Numbers of a reconstruction x' of the network's input x: |x - x'| / |x|, and the least |x - a x'| / |x| over factors
#: a. Those of the picture are taken after it is cut to [0, 1], as it is shown.
MEASURES = ("error", "scaled_error", "picture_error", "psnr", "ssim")
#: Numbers of every layer on the way: |f - f'| / |f| of its input's estimate, before it is replaced by the nearest
#: features, and how its least squares ended. The way ``joint`` has them once, of the network's input: the error, the
#: misfit of the top layer's responses, rounds, and a `JointStatus`.
SOLVES = ("error", "residual", "steps", "status")


class Reconstruction(NamedTuple):
    """A picture from the features of so many layers, in one of the `WAYS`.

    Attributes:
        measures: see `MEASURES`.
        solves: see `SOLVES`, the first layer first; of ``joint`` one row.
        shown: the picture, 8 bits a channel.
    """

    measures: Float[np.ndarray, " measures"]
    solves: Float[np.ndarray, "layers numbers"]
    shown: UInt8[np.ndarray, "3 H W"]


class Limits(NamedTuple):
    """Where a layer's least squares ends.

    Attributes:
        tol: relative residual of the normal equations.
        tol_below: the same of layers below the top, for the way ``early``.
        max_steps: most steps.
        joint_rounds: most rounds of the way ``joint``; 0 leaves it out.
        joint_steps: most steps of a round.
        joint_tol: misfit at which it ends.
    """

    tol: float
    tol_below: float
    max_steps: int
    joint_rounds: int = 0
    joint_steps: int = 30
    joint_tol: float = 1e-4


def inverted(
    layers: Sequence[CReLULayer], passed: Forward, depth: int, limits: Limits
) -> dict[str, tuple[Signal, Float[np.ndarray, "layers numbers"]]]:
    """Return the signal reconstructed from the features of layer ``depth``, in all `WAYS` (without ``joint`` if asked).

    The first three are `crelu.layers.invert`, layer by layer: a layer's program is compiled once and serves all depths
    and banks of filters, and the top layer is inverted once for all ways.

    Args:
        layers: the network.
        passed: the signal through it.
        depth: from 1.
        limits: of the least squares.

    Returns:
        x' and the `SOLVES` of every layer; of one layer for the first way alone, since ways differ below the top.
    """

    def solve(number: int, features: Array, way: str) -> tuple[Signal, list[float]]:
        layer, switches, truth = layers[number], passed.switches[number], passed.signals[number]
        below = way == "early"
        # A start at the patchwise solution would be the blow-up that is to be kept out; elsewhere there is none.
        spans = layer.op.num_filters >= layer.op.channels * math.prod(layer.op.length)
        found = invert(
            (layer,), features, (switches,), tol=limits.tol_below if below else limits.tol,
            max_steps=limits.max_steps, patchwise=not (below and spans and switches is None), truth=(truth,),
        )  # fmt: skip
        numbers = (found.errors, found.residuals, found.num_steps, found.status)
        return found.signals[0], [float(part[0]) for part in numbers if part is not None]

    top, solved = solve(depth - 1, passed.features[depth - 1], WAYS[0])
    results = {}
    for way in ways_of(depth, limits.joint_rounds > 0):
        if way == "joint":
            results[way] = _jointly(layers, passed, depth, limits, results["early"][0])
            continue
        estimate, numbers = top, [solved]
        for number in reversed(range(depth - 1)):
            if way == "nearest":
                estimate = _feasible(estimate, passed.switches[number])
            estimate, one = solve(number, estimate, way)
            numbers.append(one)
        results[way] = (estimate, np.asarray(numbers[::-1]))
    return results


def ways_of(depth: int, joint: bool) -> tuple[str, ...]:
    """Return the ways that differ: one layer is the same in all."""
    return WAYS[: 1 if depth == 1 else len(WAYS) - (not joint)]


def reconstructions(
    layers: Sequence[CReLULayer],
    passed: Forward,
    picture: JaxFloat[Array, "3 H W"],
    way: data.Preprocessing,
    depth: int,
    limits: Limits,
) -> dict[str, Reconstruction]:
    """Return reconstructions of a picture from features of layer ``depth`` in all `WAYS`, see `inverted`.

    Args:
        layers: the network.
        passed: the prepared picture through it.
        picture: RGB in [0, 1].
        way: how the picture was prepared.
        depth: from 1.
        limits: of the least squares.
    """
    results = {}
    for name, (signal, solves) in inverted(layers, passed, depth, limits).items():
        shown = np.clip(picture_of(way, np.asarray(signal)), 0.0, 1.0)
        compared = _compare(picture, jnp.asarray(shown, picture.dtype))
        scaled = _scaled_error(passed.x, signal)
        measures = np.asarray([solves[0, 0], *(float(value) for value in (scaled, *compared))])
        # A reconstruction that is no number is shown black, and its errors say so.
        results[name] = Reconstruction(
            measures, solves, np.round(255 * np.nan_to_num(shown)).astype(np.uint8)
        )  # fmt: skip
    return results


@jax.jit
def passed_through(layers: Sequence[CReLULayer], signal: Signal) -> Forward:
    """Return a signal through a network; compiled once for its geometry."""
    return forward(layers, signal)


def equations(layer: CReLULayer, switches: Int[Array, " K2 *regions"] | None) -> int:
    """Return how many responses the layer's features give: K n, or with max-pooling the windows that fire.

    Windows lie side by side, so that no response is given twice.
    """
    return math.prod(layer.op.code_shape) if switches is None else int((np.asarray(switches) >= 0).sum())


def as_row(found: dict[str, Reconstruction], *, keep: bool) -> list[float]:
    """Return reconstructions as numbers in a row: measures and layers way by way, then pictures if kept."""
    numbers = [np.concatenate([one.measures, one.solves.ravel()]) for one in found.values()]
    pictures = [one.shown.ravel().astype(float) for one in found.values()] if keep else []
    return np.concatenate([*numbers, *pictures]).tolist()


def from_row(row: Sequence[float], depth: int, side: int, *, joint: bool) -> dict[str, Reconstruction]:
    """Return what `as_row` put into a row; pictures that were not kept are empty."""
    ways, pixels, values = ways_of(depth, joint), 3 * side * side, np.asarray(row, float)
    sizes = [len(MEASURES) + (1 if way == "joint" else depth) * len(SOLVES) for way in ways]
    *numbers, pictures = np.split(values, np.cumsum(sizes))
    found = {}
    for at, (way, own) in enumerate(zip(ways, numbers, strict=True)):
        shown = pictures[at * pixels : (at + 1) * pixels].astype(np.uint8)
        found[way] = Reconstruction(
            own[: len(MEASURES)],
            own[len(MEASURES) :].reshape(-1, len(SOLVES)),
            shown.reshape(3, side, side) if shown.size else np.zeros((3, 0, 0), np.uint8),
        )
    return found


def _jointly(
    layers: Sequence[CReLULayer], passed: Forward, depth: int, limits: Limits, start: Signal
) -> tuple[Signal, Float[np.ndarray, "1 numbers"]]:
    """Return the network's input by all layers at once, and error, misfit, rounds and status."""
    found = invert_jointly(
        layers[:depth], passed.features[depth - 1], passed.switches[:depth], start=start, tol=limits.joint_tol,
        num_rounds=limits.joint_rounds, max_steps=limits.joint_steps,
    )  # fmt: skip
    numbers = (images.relative_error(passed.x, found.signal), found.misfit, found.num_rounds, found.status)
    return found.signal, np.asarray([[float(value) for value in numbers]])


@jax.jit
def _feasible(features: Signal, switches: Array | None) -> Signal:
    return feasible_features(features, switches, "nearest")


@jax.jit
def _scaled_error(x: Array, y: Array) -> Array:
    """Return the least |x - a y| / |x| over a: the sine of the angle between the two."""
    size = jnp.sum(jnp.square(y))
    factor = jnp.sum(x * y) / jnp.where(size > 0, size, 1)
    return images.relative_error(x, factor * y)


@jax.jit
def _compare(picture: Array, shown: Array) -> tuple[Array, Array, Array]:
    """Return relative error, peak signal-to-noise ratio in dB, and structural similarity in colour."""
    difference = jnp.mean(jnp.square(shown - picture))
    return (
        images.relative_error(picture, shown),
        -10.0 * jnp.log10(difference),
        images.ssim(picture, shown),
    )


__all__ = [
    "MEASURES",
    "SOLVES",
    "WAYS",
    "Limits",
    "Reconstruction",
    "as_row",
    "equations",
    "from_row",
    "inverted",
    "passed_through",
    "reconstructions",
    "ways_of",
]
