"""What a training is, as JSON: a folder of checkpoints belongs to one training only."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from typing import Any

import jax
import numpy as np

from cnninv_jax._typing import PRNGKeyArray
from cnninv_jax.nn.recipes import Recipe


def describe_training(name: str, recipe: Recipe, key: PRNGKeyArray, data: Any, states: Any) -> dict[str, Any]:
    """Return name, recipe, key, digests of data and of all initial values, and what else changes the bits."""
    device = jax.devices()[0]
    return {
        "name": name,
        "recipe": dataclasses.asdict(recipe),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "data": digest(data),
        "model": digest(states),
        "jax": jax.__version__,
        "flax": importlib.metadata.version("flax"),
        "optax": importlib.metadata.version("optax"),
        "device": f"{device.platform}: {device.device_kind}",
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]  # made at run time
    }


def digest(tree: Any) -> str:
    """Return a digest of the arrays of a pytree: places, shapes, dtypes and bytes."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype};".encode())
        found.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return found.hexdigest()[:32]


__all__ = ["describe_training", "digest"]
