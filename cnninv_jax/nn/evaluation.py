"""A network on many examples, batch by batch, with nothing random."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnninv_jax._typing import Array, Shaped
from cnninv_jax.nn.training import Prepare

#: ``metric(model, batch) -> {name: one value per example}``.
Metric: TypeAlias = Callable[[Any, Any], Mapping[str, Array]]


def evaluate(
    model: nnx.Module,
    metric: Metric,
    data: Any,
    *,
    batch_size: int = 500,
    prepare: Prepare | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Shaped[np.ndarray, "N ..."]]:
    """Apply a function of a network to every example, at evaluation (running statistics, no dropout).

    Args:
        model: the module.
        metric: ``metric(model, batch)`` returns a dict of arrays whose first axis is that of the batch, such as
            `correct`. A function of a module's own level is compiled once.
        data: pytree of arrays with one leading axis of examples.
        batch_size: examples at once; the last batch is filled up, and cut again, so that one program serves.
        prepare: ``prepare(None, batch)``: what `train` was given, without its random part.
        progress: called with the number of examples done.

    Returns:
        The values of all examples, in order.

    Raises:
        ValueError: no examples, or axes that differ.
    """
    leaves, structure = jax.tree.flatten(data)
    counts = {leaf.shape[0] for leaf in leaves}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"expected arrays with one number of examples on their first axis, got {sorted(counts)}")
    (count,) = counts
    size = min(batch_size, count)
    graphdef, state = nnx.split(model)
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        batch = structure.unflatten([jnp.asarray(leaf[index]) for leaf in leaves])
        values = _apply(graphdef, state, batch, metric, prepare)
        found.append({name: np.asarray(value)[: count - start] for name, value in values.items()})
        if progress is not None:
            progress(min(start + size, count))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


@functools.partial(jax.jit, static_argnames=("graphdef", "metric", "prepare"))
def _apply(graphdef: Any, state: Any, batch: Any, metric: Metric, prepare: Prepare | None) -> dict[str, Array]:
    if prepare is not None:
        batch = prepare(None, batch)
    return dict(metric(nnx.merge(graphdef, state), batch))


__all__ = ["Metric", "evaluate"]
