"""Thresholds that a given number of responses exceeds, exactly, while the responses stream by."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


class Largest:
    """The largest responses of every filter as they come, and from them the threshold.

    Args:
        most: responses of a filter that may exceed the threshold.
        shape: of the maps, (K, *n).
    """

    def __init__(self, most: int, shape: tuple[int, ...]) -> None:
        self._keep, self._shape = most + 1, shape
        self._held: list[np.ndarray] = []
        self._waiting = 0
        self._finite = np.ones(shape[0], bool)

    def add(self, maps: np.ndarray) -> None:
        """Take in maps [B, K, *n] of the next pictures.

        Raises:
            ValueError: they have another shape.
        """
        if maps.shape[1:] != self._shape:
            raise ValueError(f"expected maps of shape {self._shape} for all pictures, got {maps.shape[1:]}")
        values = np.moveaxis(maps, 1, 0).reshape(self._shape[0], -1)
        self._finite &= np.isfinite(values).all(axis=1)
        self._held.append(values)
        self._waiting += values.shape[1]
        if self._waiting > self._keep // 2:
            self._forget()

    def _forget(self) -> None:
        values = np.concatenate(self._held, axis=1)
        rest = values.shape[1] - self._keep
        # A copy: what is partitioned away is to be freed.
        self._held = [np.partition(values, rest, axis=1)[:, rest:].copy() if rest > 0 else values]
        self._waiting = 0

    def threshold(self) -> np.ndarray:
        """Return the (most + 1)-th largest of the responses so far, [K]; NaN if one was not finite."""
        self._forget()
        return np.where(self._finite, self._held[0].min(axis=1), np.array(np.nan, self._held[0].dtype))


def allowed(rate: float, pictures: int, shape: tuple[int, ...]) -> int:
    """Return floor(rate N) for the decimal number that the user wrote."""
    places = pictures * math.prod(shape)
    allowed = math.floor(Fraction(str(float(rate))) * places)
    if allowed < 1:
        raise ValueError(
            f"expected at least {math.ceil(1 / rate)} locations for a firing rate of {rate:g}, got {places} (maps of "
            f"{tuple(shape)}, {pictures} pictures); take more or larger pictures"
        )
    return allowed


__all__ = ["Largest", "allowed"]
