"""What trainings minimise, and what evaluations count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from cnninv_jax._numerics import wider
from cnninv_jax._typing import Array, PRNGKeyArray, Scalar


def classification_loss(model: Any, batch: Any, key: PRNGKeyArray) -> tuple[Scalar, Mapping[str, Scalar]]:
    """Cross-entropy of the soft-max, in float32 at least; metric ``accuracy`` (of the batch, augmented)."""
    logits = _logits(model(batch["images"], train=True, key=key))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    right = _right(logits, batch["labels"])
    return jnp.mean(losses), {"accuracy": jnp.mean(right, dtype=losses.dtype)}


def classification_metrics(model: Any, batch: Any) -> dict[str, Array]:
    """For every example: whether the largest output is its label's (``correct``), and its cross-entropy."""
    logits = _logits(model(batch["images"]))
    right = _right(logits, batch["labels"])
    return {
        "correct": right,
        "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]),
    }


def _logits(outputs: Array) -> Array:
    """Return outputs in float32 at least: a soft-max of bfloat16 numbers has three digits."""
    return outputs.astype(wider(outputs.dtype, jnp.float32))


def _right(logits: Array, labels: Array) -> Array:
    return jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels


__all__ = ["classification_loss", "classification_metrics"]
