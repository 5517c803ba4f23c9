"""What the studies of Murray 2018 draw: signs, and how a layered thresholding pass fares with them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from cnninv_jax import dcsc
from cnninv_jax._typing import Array, Float


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tables", "thresholds"], meta_fields=["soft"])
@dataclasses.dataclass(frozen=True)
class PathDraw:
    """One draw of all signs: which layer loses its support first, and what the layers before it achieved.

    Tables of equal shapes (see ``capacity`` of `dcsc.path_tables`) compile nothing anew.

    Attributes:
        tables: see `dcsc.path_tables`; codes and noise V^(0) are those of the tables, in every draw.
        thresholds: beta_l, [L].
        soft: soft thresholds instead of hard ones (static).
    """

    tables: dcsc.PathTables
    thresholds: Float[Array, " L"]
    soft: bool = False

    def __call__(self, key: jax.Array) -> dict[str, Array]:
        """Return ``failed`` [L], ``lost`` (any), and ``noise``, ``smallest``, ``largest`` [L].

        Propagated noise of a layer is 0 where the layer or one before it lost its support: its largest value over
        draws is the level that the theorem's hypotheses need.
        """
        outcome = dcsc.path_outcome(self.tables, dcsc.path_signs(key, self.tables), self.thresholds, soft=self.soft)
        intact = jnp.cumsum(outcome.score >= 1) == 0
        return {
            "failed": outcome.failed,
            "lost": ~outcome.recovered,
            "noise": jnp.where(intact, outcome.noise, 0),
            "smallest": outcome.smallest,
            "largest": outcome.largest,
        }
