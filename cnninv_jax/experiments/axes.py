"""What `--over` asks for: NAME=VALUES, typed by the experiment's own parameters, and quantities derived from them."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

#: Most values that one range may stand for.
_MOST_VALUES = 10_000


@dataclasses.dataclass(frozen=True)
class Derived:
    """A quantity that people think in, and the parameter that sets it.

    Attributes:
        parameter: the parameter that is swept in its place.
        label: how it is written.
        coordinate: its name among a dataset's coordinates.
        needs: parameters that it depends on beside; they must not be swept.
        solve: value of the parameter for a value of the quantity, rounded to what the parameter can be.
        value: the quantity at a value of the parameter.
    """

    parameter: str
    label: str
    coordinate: str
    needs: tuple[str, ...]
    solve: Callable[[Any, float], Any]
    value: Callable[[Any, Any], float]


@dataclasses.dataclass(frozen=True)
class Swept:
    """The values of a sweep.

    Attributes:
        grid: values per parameter.
        derived: quantities that hold along one of them, by parameter: (quantity, its values).
    """

    grid: Mapping[str, tuple[Any, ...]]
    derived: Mapping[str, tuple[Derived, tuple[float, ...]]]


def parse_over(texts: Sequence[str], parameters: Any, derived: Mapping[str, Derived]) -> Swept:
    """Return the grid that ``--over NAME=VALUES ...`` asks for.

    Values are separated by commas; ``start:stop:step`` (or ``start:stop``) stands for a range that includes its stop
    where a step meets it.

    Args:
        texts: one per axis.
        parameters: the experiment's parameters; they fix the types, and what is not swept.
        derived: further names, by how people write them.

    Raises:
        ValueError: no axes, unknown or doubled names, values of the wrong type.
    """
    if not texts:
        raise ValueError("expected at least one --over NAME=VALUES, such as --over k=2,5,10,20, got none")
    hints = get_type_hints(type(parameters))
    pairs = [_split(text, [*hints, *derived]) for text in texts]
    targets = [derived[name].parameter if name in derived else name for name, _ in pairs]
    doubled = [name for (name, _), target in zip(pairs, targets, strict=True) if targets.count(target) > 1]
    if doubled:
        raise ValueError(f"expected every parameter in one --over, got {' and '.join(doubled)}")
    grid: dict[str, tuple[Any, ...]] = {}
    for (name, values), target in zip(pairs, targets, strict=True):
        default = next(field.default for field in dataclasses.fields(parameters) if field.name == target)
        if getattr(parameters, target) != default:
            raise ValueError(f"expected {target} either as --{target} or in --over, got both")
        if name in derived:
            grid[target] = _solved(name, values, parameters, derived[name], targets)
        else:
            grid[target] = _distinct(name, [entry for item in values for entry in _values(name, item, hints[name])])
    held: dict[str, tuple[Derived, tuple[float, ...]]] = {}
    for quantity in derived.values():
        if quantity.parameter in grid and not set(quantity.needs) & set(grid):
            numbers = tuple(quantity.value(parameters, value) for value in grid[quantity.parameter])
            held[quantity.parameter] = (quantity, numbers)
    return Swept(grid, held)


def _split(text: str, known: Sequence[str]) -> tuple[str, list[str]]:
    name, equals, values = (part.strip() for part in text.partition("="))
    items = [item.strip() for item in values.split(",")]
    if not (name and equals and all(items)):
        raise ValueError(f"expected --over NAME=VALUES, such as k=2,5,10 or k=2:20:2, got {text!r}")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"expected --over one of {', '.join(known)}, got {name!r}{hint}")
    return name, items


def _solved(
    name: str, values: Sequence[str], parameters: Any, quantity: Derived, swept: Sequence[str]
) -> tuple[Any, ...]:
    clash = sorted(set(quantity.needs) & set(swept))
    if clash:
        raise ValueError(
            f"expected {name} with fixed {', '.join(quantity.needs)}, got {', '.join(clash)} in --over too"
        )
    wanted = [entry for item in values for entry in _values(name, item, float)]
    found = [quantity.solve(parameters, value) for value in wanted]
    for position, value in enumerate(found):
        if value in found[:position]:
            raise ValueError(
                f"expected values of {name} that differ in {quantity.parameter}, got {wanted[found.index(value)]:g} "
                f"and {wanted[position]:g}, both nearest to {quantity.parameter}={value}"
            )
    return tuple(found)


def _values(name: str, item: str, kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if item not in choices:
            close = difflib.get_close_matches(item, choices, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {item!r}{hint}")
        return [item]
    if kind is bool:
        if item.lower() not in ("true", "false"):
            raise ValueError(f"expected {name} to be true or false, got {item!r}")
        return [item.lower() == "true"]
    if kind not in (int, float):
        return [item]
    try:
        ends = [kind(part) for part in item.split(":")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"expected {name} to be {what}, or ranges start:stop:step of such, got {item!r}") from None
    if not all(math.isfinite(end) for end in ends):
        raise ValueError(f"expected {name} to be finite, got {item!r}")
    if len(ends) == 1:
        return ends
    start, stop, step = (*ends, kind(1))[:3]
    if len(ends) > 3 or step <= 0 or stop < start:
        raise ValueError(f"expected a range start:stop:step with start <= stop and a positive step, got {name}={item}")
    # A step of 0.1 meets a stop of 1 in decimals, not in binary.
    count = math.floor((stop - start) / step * (1 + 1e-12) + 1e-9) + 1
    if count > _MOST_VALUES:
        raise ValueError(f"expected at most {_MOST_VALUES:,} values in a range, got {count:,} in {name}={item}")
    return [kind(round(start + at * step, 12)) for at in range(count)]


def _distinct(name: str, values: list[Any]) -> tuple[Any, ...]:
    doubled = [value for value in values if values.count(value) > 1]
    if doubled:
        raise ValueError(f"expected every value of {name} once, got {doubled[0]} more than once")
    return tuple(values)


def nearest_at_least_one(value: float) -> int:
    """Return the nearest integer from 1 on; halves go up."""
    return max(1, math.floor(value + 0.5))
