"""Bounds beside what is observed: Thms 2, 6 and 8 on sin(Theta), Thms 3 and 9 on cos(Phi) (Random DCN).

One looseness number each. For sin(Theta) it is bound / observed quantile: 1 / the (1 - delta)-quantile of
sin(Theta) / bound over draws and pictures, since the bounds of Thms 2 and 8 depend on the picture. For cos(Phi) it is
(1 - bound) / (1 - cos(Phi)). A bound of 1 or more on a sine, or of 0 or less on the cosine of pictures with positive
entries, says nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from cnninv_jax._typing import Array, Float
from cnninv_jax.experiments.dcn_rates_draws import layers_of
from cnninv_jax.experiments.dcn_rates_simulation import Kind, Simulated
from cnninv_jax.limits.fidelity import cosine_to_image, theorem_9_multilayer, theorem_9_refined
from cnninv_jax.limits.laws import moments_of
from cnninv_jax.limits.layers import plan
from cnninv_jax.limits.rates import theorem_2, theorem_6, theorem_8, theorem_8_refined
from cnninv_jax.montecarlo import sample_quantile, wilson

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcn_rates import RatesParameters

#: What a bound is called where people read it.
BOUNDS = {
    "theorem_6": "Thm 6",
    "theorem_8": "Thm 8",
    "theorem_2": "Thm 2, with z*",
    "refined": "Thm 8, not rounded",
    "overlap": "Thm 8, |phi| of windows",
}
#: Rounding that no comparison of cosines sees, in units of the arithmetic's own.
ROUNDING = 32


def bounds_of(network: Kind, images: Float[Array, "P M *D"], p: RatesParameters) -> dict[str, np.ndarray]:
    """Return the bounds that a network has, [widths, P] each.

    One convolution has Thm 6's, which no picture changes. Deeper networks have those of Thms 2 and 8 where windows do
    not overlap, and otherwise what Thm 8's proof gives with the windows' operator norm.
    """
    widths = jnp.asarray(p.widths, images.dtype)
    if network.depth == 1:
        shape = images.shape[1:]
        k = moments_of(p.law, plan(network.layers, shape), shape[0])[0]
        bound = theorem_6(widths, p.delta, k.K1)
        return {"theorem_6": np.repeat(np.asarray(bound, float)[:, None], len(images), axis=1)}
    settings: dict[str, Callable[..., Array]] = (
        {"theorem_8": theorem_8, "theorem_2": theorem_2, "refined": theorem_8_refined}
        if network.one_route
        else {"overlap": functools.partial(theorem_8, windows="any")}
    )
    found = {}
    for name, theorem in settings.items():

        def of_picture(image: Array, theorem: Callable[..., Array] = theorem) -> Array:
            return theorem(image, network.layers, p.delta, width=widths, filters=p.law)

        found[name] = np.asarray(jax.jit(jax.vmap(of_picture, out_axes=1))(images), float)
    return found


def compare_bounds(p: RatesParameters, one: Simulated) -> dict[str, dict[str, Any]]:
    """Return for every bound of a network how loose it is, where it speaks, and how often it is violated.

    Returns:
        By bound: ``bound``, its mean over the pictures, ``quantile``, the observed (1 - delta)-quantile of sin(Theta)
        over draws and pictures, and ``looseness`` with the ends ``looseness_low`` and ``looseness_high`` of its 95%
        interval, by width; ``speaks_from``, the first width at which the bound is below 1 for every picture, None if
        there is none; ``violated`` of ``compared``, the draws and pictures for which the bound is below 1, and
        ``violated_at_most``, the upper end of Wilson's interval (1 where nothing was compared).
    """
    found = {}
    for name, bound in bounds_of(one.network, one.images, p).items():
        ratios = [sines / row for sines, row in zip(one.sines, bound, strict=True)]
        levels = np.array([sample_quantile(ratio.ravel(), 1 - p.delta) for ratio in ratios])
        loose, high, low = (1 / levels.T).tolist()
        speaks = np.all(bound < 1, axis=1)
        # A sine is never above a bound of 1 or more: only the others are put to the test.
        tested = [np.broadcast_to(row < 1, ratio.shape) for row, ratio in zip(bound, ratios, strict=True)]
        violated = int(sum((ratio[test] > 1).sum() for test, ratio in zip(tested, ratios, strict=True)))
        compared = int(sum(test.sum() for test in tested))
        found[name] = {
            "title": BOUNDS[name],
            "bound": bound.mean(axis=1),
            "quantile": [float(np.quantile(sines, 1 - p.delta)) for sines in one.sines],
            "looseness": loose,
            "looseness_low": low,
            "looseness_high": high,
            "speaks_from": p.widths[int(np.argmax(speaks))] if speaks.any() else None,
            "violated": violated,
            "compared": compared,
            "violated_at_most": float(wilson(violated, compared)[1]) if compared else 1.0,
        }
    return found


def angles_of(images: Float[Array, "P 1 *D"], depths: tuple[int, ...], length: int) -> np.ndarray:
    """Return cos(Phi), Thm 9's bound and what its proof gives before it rounds, [P, depths, 3].

    Args:
        images: grey pictures.
        depths: numbers of convolutions of stride 1, zeros around the maps.
        length: filter length.
    """

    def of_picture(image: Array) -> Array:
        networks = [layers_of(depth, length, one_route=False) for depth in depths]
        kinds = (cosine_to_image, theorem_9_multilayer, theorem_9_refined)
        return jnp.stack([jnp.stack([kind(image, layers) for kind in kinds]) for layers in networks])

    return np.asarray(jax.jit(jax.vmap(of_picture))(images), float)


def compare_angles(p: RatesParameters, images: Float[Array, "P 1 *D"]) -> dict[str, Any]:
    """Return cos(Phi) beside Thm 9's bound for all depths, lengths and pictures.

    Returns:
        ``lengths`` and ``depths``, the rows and columns of arrays [depths, lengths, P]: ``cosine``, ``bound`` and
        ``refined``; ``looseness`` and ``refined_looseness``, the medians over pictures of (1 - bound) / (1 - cosine),
        [depths, lengths]; ``violated``, how often a bound is above the cosine by more than rounding, and ``compared``;
        ``speaks``, how often Thm 9's bound is positive.
    """
    found = np.stack(
        [angles_of(images, p.angle_depths, length) for length in p.angle_lengths]
    )  # [lengths, P, depths, 3]
    cosine, bound, refined = found.transpose(3, 2, 0, 1)
    slack = ROUNDING * float(jnp.finfo(images.dtype).eps)

    def looseness(claim: np.ndarray) -> np.ndarray:
        # A picture that is nothing but its limit leaves no gap to compare.
        gap = np.where(1 - cosine > slack, 1 - cosine, np.nan)
        ratios = np.ma.masked_invalid((1 - claim) / gap)
        return np.ma.median(ratios, axis=-1).filled(np.nan)

    def violated(claim: np.ndarray) -> Bool[np.ndarray, "depths lengths P"]:
        return claim > cosine + slack

    return {
        "depths": p.angle_depths,
        "lengths": p.angle_lengths,
        "cosine": cosine,
        "bound": bound,
        "refined": refined,
        "looseness": looseness(bound),
        "refined_looseness": looseness(refined),
        "violated": int(violated(bound).sum()),
        "refined_violated": int(violated(refined).sum()),
        "speaks": int((bound > 0).sum()),
        "compared": int(bound.size),
    }
