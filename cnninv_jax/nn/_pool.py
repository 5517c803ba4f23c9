"""What a pooling is: its windows, and how many of them there are."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pooling behind a layer.

    Attributes:
        window: side of the windows.
        stride: step from window to window; None for windows side by side.
        kind: largest value or mean of each window.
        ceil: also take a last window that sticks out at the end, with what it holds, as Caffe does (PyTorch and JAX
            leave it out).
    """

    window: int
    stride: int | None = None
    kind: Literal["max", "average"] = "max"
    ceil: bool = False

    @property
    def step(self) -> int:
        """Step from window to window."""
        return self.window if self.stride is None else self.stride

    def regions(self, size: int) -> int:
        """Return the number of windows along an axis of so many samples; below 1 if there is none."""
        if not self.ceil:
            return (size - self.window) // self.step + 1
        count = -((self.window - size) // self.step) + 1 if size > self.window else min(size, 1)
        # Where windows leave gaps, the last one could begin behind the end.
        return count - 1 if (count - 1) * self.step >= size > 0 else count


__all__ = ["Pool"]
