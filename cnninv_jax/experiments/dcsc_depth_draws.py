"""One draw of `dcsc-depth` past the first loss: what the layers above a lost support make of it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from cnninv_jax import dcsc
from cnninv_jax._typing import Array, Code, Float, Signal
from cnninv_jax.dcsc.forward import forward


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["model", "codes", "noises", "thresholds"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class SpreadDraw:
    """A whole forward pass under new signs, of one of several deepest codes.

    Attributes:
        model: the layers.
        codes: X^(L), [P, *code].
        noises: V^(0) of each, [P, *signal].
        thresholds: beta_l of each, [P, L].
    """

    model: dcsc.Layers
    codes: Float[Code, "P ..."]
    noises: Float[Signal, "P ..."]
    thresholds: Float[Array, "P L"]

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        """Return ``first`` [L], and [first, L] of draws whose first lost layer is ``first``, zeros elsewhere.

        ``misses`` and ``alarms`` are shares of the non-zeros of X^(l); ``lost`` is whether layer l's support is.
        """
        choice, signs = jax.random.split(key)
        which = jax.random.randint(choice, (), 0, self.codes.shape[0])
        model = dcsc.draw_signs(signs, self.model)
        path = dcsc.reverse_pass(model, self.codes[which])
        signal = path[0] + self.noises[which]
        found = forward(model, signal, "hard", thresholds=self.thresholds[which], truth=path)
        assert found.hits is not None
        assert found.misses is not None
        assert found.false_alarms is not None
        assert found.recovered is not None
        lost = ~found.recovered
        first = (lost & (jnp.cumsum(lost) == 1)).astype(self.codes.dtype)
        size = (found.hits + found.misses).astype(self.codes.dtype)

        def after(values: Array) -> Array:
            return first[:, None] * values.astype(first.dtype)[None]

        return {
            "first": first > 0,
            "misses": after(found.misses.astype(size.dtype) / size),
            "alarms": after(found.false_alarms.astype(size.dtype) / size),
            "lost": after(lost),
        }
