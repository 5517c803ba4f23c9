"""Random filter ensembles as one line of text, ``gaussian:K=96,M=32,ell=5``: read here, sampled elsewhere."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cnninv_jax.data.errors import EnsembleError, did_you_mean

ENSEMBLES = ("gaussian", "uniform", "logistic", "laplace", "sphere")
_SIZES = ("K", "M", "ell")
_OPTIONS = ("scale", "normalize")
_LARGEST_BANK = 2**31 - 1


@dataclass(frozen=True)
class EnsembleSpec:
    """A named ensemble and the shape of its banks.

    Attributes:
        name: One of `ENSEMBLES`.
        num_filters: K.
        channels: M.
        length: Filter length per spatial axis, one or two entries.
        options: ``("normalize", bool)`` and ``("scale", float)`` as far as they were given, by name;
            ``dict(spec.options)`` are keyword arguments. A tuple, so that the whole is hashable.
    """

    name: str
    num_filters: int
    channels: int
    length: tuple[int, ...]
    options: tuple[tuple[str, float | bool], ...] = ()

    def __str__(self) -> str:
        """Write the text that parses to this."""
        sizes = f"K={self.num_filters},M={self.channels},ell={'x'.join(map(str, self.length))}"
        options = "".join(f",{name}={str(value).lower()}" for name, value in self.options)
        return f"{self.name}:{sizes}{options}"


def parse_ensemble(text: str) -> EnsembleSpec:
    """Read ``name:K=...,M=...,ell=...[,scale=...][,normalize=true|false]``.

    ``ell=5`` is one spatial axis, ``ell=3x3`` two. Neither order nor spaces around the parts matter.

    Args:
        text: The description, for instance ``gaussian:K=96,M=32,ell=5``.

    Returns:
        What was read; nothing is sampled.

    Raises:
        EnsembleError: naming the part that is unknown, missing, repeated or out of range.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if name not in ENSEMBLES:
        raise EnsembleError(
            f"ensemble must be one of {', '.join(ENSEMBLES)}, got {name!r}{did_you_mean(name, ENSEMBLES)}; "
            f"write for example {_example('gaussian')!r}"
        )
    if not colon or not rest:
        raise EnsembleError(f"{text!r} does not say how large the bank is: write for example {_example(name)!r}")
    given = _parts(rest)
    if missing := [size for size in _SIZES if size not in given]:
        raise EnsembleError(f"{text!r} lacks {' and '.join(missing)}: for example {_example(name)!r}")
    num_filters, channels = _positive("K", given["K"]), _positive("M", given["M"])
    length = _length(given["ell"])
    entries = num_filters * channels * math.prod(length)
    if entries > _LARGEST_BANK:
        raise EnsembleError(
            f"a bank of {num_filters} x {channels} x {'x'.join(map(str, length))} has {entries} entries, "
            f"more than the {_LARGEST_BANK} one array may have: make K, M or ell smaller"
        )
    options: list[tuple[str, float | bool]] = []
    if "normalize" in given:
        options.append(("normalize", _flag("normalize", given["normalize"])))
    if "scale" in given:
        options.append(("scale", _scale(given["scale"])))
    return EnsembleSpec(name, num_filters, channels, length, tuple(options))


def _example(name: str) -> str:
    return f"{name}:K=96,M=32,ell=5"


def _parts(rest: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in rest.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            hint = "; two spatial axes are written ell=3x3" if re.fullmatch(r"[0-9]+", part.strip()) else ""
            raise EnsembleError(f"expected name=value between commas, got {part.strip()!r}{hint}")
        if key not in (*_SIZES, *_OPTIONS):
            known = (*_SIZES, *_OPTIONS)
            raise EnsembleError(f"{key!r} is not one of {', '.join(known)}{_meant(key)}")
        if key in given:
            raise EnsembleError(f"{key} is given twice ({given[key]!r} and {value!r}): keep one")
        given[key] = value
    return given


def _meant(key: str) -> str:
    """Other common names of the sizes, then similar spelling."""
    alias = {
        "num_filters": "K", "filters": "K", "channels": "M", "in_channels": "M",
        "l": "ell", "length": "ell", "kernel": "ell", "kernel_size": "ell", "size": "ell",
        "normalise": "normalize", "normalized": "normalize", "sigma": "scale", "std": "scale",
    }.get(key.lower())  # fmt: skip
    return f" (did you mean {alias!r}?)" if alias else did_you_mean(key, (*_SIZES, *_OPTIONS))


def _positive(name: str, value: str) -> int:
    # At most 18 digits: int() of text without a bound can be made slow, and no bank is that large.
    if not re.fullmatch(r"[0-9]{1,18}", value) or int(value) == 0:
        shown = value if len(value) <= 40 else value[:37] + "..."
        raise EnsembleError(f"{name} must be a positive whole number, got {shown!r}")
    return int(value)


def _length(value: str) -> tuple[int, ...]:
    axes = value.split("x")
    if len(axes) > 2:
        raise EnsembleError(f"ell may have one or two spatial axes, got {value!r}: write ell=5 or ell=3x3")
    if not all(re.fullmatch(r"[0-9]+", axis) for axis in axes):
        raise EnsembleError(f"ell must be whole numbers, got {value!r}: write ell=5 or ell=3x3")
    return tuple(_positive("ell", axis) for axis in axes)


def _scale(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise EnsembleError(f"scale must be a positive finite number, got {value!r}")
    return number


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise EnsembleError(f"{name} must be true or false, got {value!r}")
    return value.lower() == "true"


__all__ = ["ENSEMBLES", "EnsembleError", "EnsembleSpec", "parse_ensemble"]
