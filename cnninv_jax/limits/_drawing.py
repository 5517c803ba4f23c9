"""What a draw of a random CNN needs to know beforehand: sizes, laws, blocks, and how a layer is drawn."""

from __future__ import annotations

import math
from typing import NamedTuple

from cnninv_jax._numerics import per_axis
from cnninv_jax.limits._channelwise import Geometry
from cnninv_jax.limits._gram_draws import moments_work
from cnninv_jax.limits.laws import FilterLaw, Laws, laws_of
from cnninv_jax.limits.layers import Conv, Network, plan

#: A block of filters has at most so many, with so many random numbers in total.
BLOCK_FILTERS, BLOCK_NUMBERS = 256, 2**22
#: What a random number, and a step of the factorisation, cost in multiply-adds (float32, two cores).
NUMBER_WORK, PIVOT_WORK = 200, 200_000


class Stage(NamedTuple):
    """A convolution and the layers that follow it, up to the next one.

    Attributes:
        conv: its sizes.
        law: of its filters.
        num_filters: N.
        channels: M, of the maps that it meets.
        scale: what its maps are multiplied by after the ReLU: 1/sqrt(N), or 1 for the last.
        before: the layers between the convolution before, or the picture, and this one.
        gram: whether its responses are drawn by their Gram matrix, not its filters.
    """

    conv: Geometry
    law: FilterLaw
    num_filters: int
    channels: int
    scale: float
    before: tuple[Geometry, ...]
    gram: bool

    @property
    def drawn(self) -> tuple[int, tuple[int, ...]]:
        """Channels and length of what is drawn in place of a filter: itself, or one number per response."""
        return (1, (math.prod(self.conv.shifts),)) if self.gram else (self.channels, self.conv.length)

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks that the filters are drawn in, and filters in each; the last block may have some too many."""
        channels, length = self.drawn
        most = max(1, min(BLOCK_FILTERS, BLOCK_NUMBERS // (channels * math.prod(length))))
        count = -(-self.num_filters // most)
        return count, -(-self.num_filters // count)


def drawing(
    layers: Network, image_shape: tuple[int, ...], width: int | None, filters: Laws, sampling: str = "plain"
) -> tuple[Stage, ...]:
    """Return the convolutions of a network that can be drawn; hashable, so that they can be static.

    Raises:
        ValueError: as `random_output`.
    """
    steps = plan(layers, image_shape)
    if width is not None:
        per_axis(width, 1, "width")
    laws = laws_of(filters, steps)
    channels = image_shape[0]
    before: tuple[Geometry, ...] = ()
    stages: list[Stage] = []
    for place, step in enumerate(steps, start=1):
        geometry = Geometry.of(step)
        if not isinstance(step.layer, Conv):
            before = (*before, geometry)
            continue
        count = width if step.layer.channels is None else step.layer.channels
        if count is None:
            raise ValueError(
                f"expected a number of channels for layer {place}, a Conv, got none; set its channels, or pass "
                "width=... for all convolutions without"
            )
        law = laws[step.convolution]
        if not isinstance(law, FilterLaw):
            raise ValueError(
                f"expected a law that filters can be drawn from, a name or a FilterLaw, got {law!r} for layer {place}; "
                "moments give the limit only"
            )
        if sampling == "gram" and law.name != "gaussian":
            raise ValueError(
                f"expected Gaussian filters with sampling='gram', got {law.name!r} for layer {place}; "
                "take sampling='plain'"
            )
        scale = 1.0 if step.convolution == len(laws) - 1 else 1 / math.sqrt(count)
        stage = Stage(geometry, law, int(count), channels, scale, before, False)
        stages.append(stage._replace(gram=sampling == "gram" and _gram_is_cheaper(stage)))
        channels, before = int(count), ()
    return tuple(stages)


def _gram_is_cheaper(stage: Stage) -> bool:
    """Compare the two ways' work, in multiply-adds."""
    entries, responses = stage.channels * math.prod(stage.conv.length), math.prod(stage.conv.shifts)
    plain = stage.num_filters * entries * (NUMBER_WORK + responses)
    gram = stage.num_filters * responses * (NUMBER_WORK + responses)
    gram += stage.channels * moments_work(stage.before, stage.conv)
    gram += responses * PIVOT_WORK + responses**3
    return gram < plain


__all__ = ["BLOCK_FILTERS", "BLOCK_NUMBERS", "Stage", "drawing"]
