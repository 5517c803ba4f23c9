"""Shared array types; the axis letters are fixed here once.

| letter | axis |
| --- | --- |
| ``B`` | Monte-Carlo draws |
| ``K`` | filters |
| ``M`` | input channels |
| ``*ell`` | filter length, per spatial axis |
| ``*D`` | signal length, per spatial axis |
| ``*n`` | shifts of a filter, per spatial axis |
| ``k`` | entries of a support |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from jax import Array
from jaxtyping import Bool, Float, Int, Key, PRNGKeyArray, Shaped, UInt32

#: One integer for every spatial axis, or one per axis.
PerAxis: TypeAlias = int | Sequence[int]
FilterBank: TypeAlias = Float[Array, "K M *ell"]
Signal: TypeAlias = Float[Array, " M *D"]
Code: TypeAlias = Float[Array, " K *n"]
Scalar: TypeAlias = Float[Array, ""]

__all__ = [
    "Array",
    "Bool",
    "Code",
    "FilterBank",
    "Float",
    "Int",
    "Key",
    "PRNGKeyArray",
    "PerAxis",
    "Scalar",
    "Shaped",
    "Signal",
    "UInt32",
]
