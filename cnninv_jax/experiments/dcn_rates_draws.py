"""One draw of `dcn-rates`: random CNNs of growing depth on every picture, and how far their outputs are from f*.

A draw gives all depths at once: what the last convolution of a network averages over its filters is, before the
average, what a deeper network goes on with. Given the maps below, the answers of Gaussian filters are independent
Gaussian vectors whose covariance is the Gram matrix of the patches, so that a chain of Gram matrices is all there is of
a network: as `random_output(..., sampling="gram")`, but with the width N as data (one program serves every N) and with
the outputs of all depths. Other laws have no such chain; their filters are drawn by `random_maps`, once per N.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Float, Int, PRNGKeyArray
from cnninv_jax.limits._channelwise import Geometry, patches
from cnninv_jax.limits._gram_draws import gram_of, moments_size, root, second_moments
from cnninv_jax.limits.angles import sine_angle
from cnninv_jax.limits.draws import random_maps
from cnninv_jax.limits.layers import Conv, Step, plan
from cnninv_jax.limits.values import convergence_value

Outcome: TypeAlias = dict[str, Array]
#: Filters drawn at a time.
FILTERS = 64


def layers_of(depth: int, length: int, *, one_route: bool) -> tuple[Conv, ...]:
    """Return a network of so many convolutions.

    Args:
        depth: convolutions; the paper counts the mean over the channels as one layer more.
        length: filter length per axis.
        one_route: windows side by side (stride = length), at most one route from a pixel to an output entry, as Thm 8
            assumes; otherwise stride 1 and zeros around the maps, whose size stays.
    """
    conv = Conv(length, stride=length) if one_route else Conv(length, padding="same")
    return (conv,) * depth


@functools.partial(jax.tree_util.register_dataclass, data_fields=["images"], meta_fields=["depths", "law"])
@dataclasses.dataclass(frozen=True)
class RatesDraw:
    """Draw networks of all depths for every picture, each picture with filters of its own.

    Attributes:
        images: pictures, [P, M, *D].
        depths: numbers of convolutions.
        law: of the filters.
    """

    images: Float[Array, "P M *D"]
    depths: tuple[int, ...]
    law: str

    def __call__(self, key: PRNGKeyArray, *, width: int | Int[Array, ""], length: int, one_route: bool) -> Outcome:
        """Draw.

        Args:
            key: typed key.
            width: filters N of every convolution; may be traced where the law is Gaussian.
            length: filter length per axis; static.
            one_route: see `layers_of`; static.

        Returns:
            ``deviation``, |f - f*|^2 / |f*|^2, ``sine`` and ``sine_squared`` of the angle Theta between f and f*,
            [depths, P] each, and the means of the first and the last over the pictures, ``mean_deviation`` and
            ``mean_sine_squared``, [depths].
        """

        def of_picture(drawn: tuple[PRNGKeyArray, Array]) -> tuple[Array, Array]:
            own_key, image = drawn
            network = layers_of(max(self.depths), length, one_route=one_route)
            outputs = self.outputs(own_key, image, network, width)
            found = []
            for depth in self.depths:
                limit = convergence_value(image, network[:depth], filters=self.law)
                found.append(_distances(outputs[depth - 1], limit))
            return jnp.stack([deviation for deviation, _ in found]), jnp.stack([sine for _, sine in found])

        # One picture after the other: the lanes of the engine stay the only batch of the factorisation.
        keys = jax.random.split(key, len(self.images))
        deviation, sine = (jnp.swapaxes(part, 0, 1) for part in lax.map(of_picture, (keys, self.images)))
        return {
            "deviation": deviation,
            "sine": sine,
            "sine_squared": jnp.square(sine),
            "mean_deviation": jnp.mean(deviation, axis=1),
            "mean_sine_squared": jnp.mean(jnp.square(sine), axis=1),
        }

    def outputs(
        self, key: PRNGKeyArray, image: Float[Array, " M *D"], network: tuple[Conv, ...], width: int | Int[Array, ""]
    ) -> list[Array]:
        """Return the outputs f of the networks that end after the first, the second, ... convolution."""
        if self.law == "gaussian":
            return _chain(key, image, plan(network, image.shape), width)
        maps = random_maps(key, image, network, width=int(width), filters=self.law)
        *hidden, last = (jnp.mean(each, axis=0) for each in maps)
        # All but the last maps were divided by sqrt(N).
        return [*(each * math.sqrt(int(width)) for each in hidden), last]


def _distances(output: Float[Array, " *D_out"], limit: Float[Array, " *D_out"]) -> tuple[Array, Array]:
    deviation = jnp.sum(jnp.square(output - limit)) / jnp.sum(jnp.square(limit))
    return deviation, sine_angle(output, limit)


def _chain(key: PRNGKeyArray, image: Float[Array, " M *D"], steps: tuple[Step, ...], width: int | Array) -> list[Array]:
    """Return the outputs of networks that end after the first, the second, ... convolution."""
    first, *others = [Geometry.of(step) for step in steps]
    afters = [*others, None]
    # A picture has few channels: the patches themselves are the smaller factor of their Gram matrix.
    mean, moments = _answers(jax.random.fold_in(key, 0), patches(image, first), width, first, afters[0])
    if len(others) > 1 and len(set(others)) == 1:
        # Alike, they share a compiled body; it takes the moments of the last one too, which nobody needs.
        def follow(moments: Array, place: Array) -> tuple[Array, Array]:
            factor = root(gram_of(moments, (), others[0]))
            mean, moments = _answers(jax.random.fold_in(key, place), factor, width, others[0], others[0])
            return moments, mean

        _, means = lax.scan(follow, moments, jnp.arange(1, len(steps), dtype=jnp.uint32))
        return [mean, *means]
    found = [mean]
    for place, (conv, after) in enumerate(zip(others, afters[1:], strict=True), start=1):
        mean, moments = _answers(jax.random.fold_in(key, place), root(gram_of(moments, (), conv)), width, conv, after)
        found.append(mean)
    return found


def _answers(
    key: PRNGKeyArray, factor: Float[Array, "rows n"], width: int | Array, conv: Geometry, after: Geometry | None
) -> tuple[Float[Array, " *n"], Float[Array, "entries entries"]]:
    """Draw the answers relu(g) of ``width`` filters, g ~ N(0, factor^T factor).

    Returns:
        Their mean, and means of the products that the next convolution's Gram matrix is made of; none for the last.
    """
    entries = 0 if after is None else moments_size(conv.shifts, (), after)

    def block(at: Array, held: tuple[Array, Array]) -> tuple[Array, Array]:
        total, moments = held
        noise = jax.random.normal(jax.random.fold_in(key, at), (FILTERS, len(factor)), factor.dtype)
        used = at * FILTERS + jnp.arange(FILTERS) < width
        answers = jnp.where(used[:, None], jax.nn.relu(matmul(noise, factor)), 0).reshape(-1, *conv.shifts)
        if after is not None:
            moments = moments + second_moments(answers, (), after)
        return total + jnp.sum(answers, axis=0), moments

    start = (jnp.zeros(conv.shifts, factor.dtype), jnp.zeros((entries, entries), factor.dtype))
    total, moments = lax.fori_loop(0, -(-width // FILTERS), block, start)
    share = 1 / jnp.asarray(width, factor.dtype)
    return total * share, moments * share
