"""The cells of a parameter sweep: their order (coarse first), their identity, their keys.

A cell is known by the values of its parameters, never by its place in the grid: a grid that grows keeps its finished
cells and their numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax.montecarlo.specification import array_digest, canonical_json, sha256


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One parameter of a sweep.

    Attributes:
        name: keyword of the draw.
        values: in the order given.
        traced: data of one compiled program, or static: compiled in, once per value.
    """

    name: str
    values: tuple[Any, ...]
    traced: bool

    @property
    def coordinate(self) -> np.ndarray:
        """The values as labels of an array's axis; positions where they are arrays themselves."""
        plain = [_plain(value) for value in self.values]
        for kinds in ((bool,), (int,), (float,), (str,)):
            if all(type(value) in kinds for value in plain):
                return np.asarray(plain)
        if all(_is_array(value) for value in plain):
            return np.arange(len(plain))
        return np.asarray([text(value) for value in self.values])


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One point of a grid.

    Attributes:
        index: position on every axis.
        parameters: value of every parameter.
        level: refinement level; all cells up to a level are a full, coarser grid.
        identity: canonical JSON of the parameters; arrays count by their hash.
        group: the same of the static parameters and the shapes of the traced ones alone; cells of one group share a
            compiled program.
    """

    index: tuple[int, ...]
    parameters: Mapping[str, Any]
    level: int
    identity: str
    group: str

    def __str__(self) -> str:
        return ", ".join(f"{name}={text(value)}" for name, value in self.parameters.items())

    @property
    def folder(self) -> str:
        """Name of the cell's own folder, "M=8,k=2-1f0c32aa", whatever the order of the axes."""
        readable = ",".join(f"{name}={text(value)}" for name, value in sorted(self.parameters.items()))
        readable = re.sub(r"[^\w.=,+-]+", "_", readable)
        return f"{readable[:80]}-{sha256(self.identity)[:8]}"

    def key(self, root: jax.Array, *, common: bool = False) -> jax.Array:
        """Return the cell's root key: 64 bits of its identity's hash folded in, or ``root`` itself where ``common``."""
        if common:
            return root
        digest = sha256(self.identity)
        high, low = (np.uint32(int(digest[start : start + 8], 16)) for start in (0, 8))
        return jax.random.fold_in(jax.random.fold_in(root, high), low)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Named axes and the cells they span, in the order in which they run."""

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values per axis."""
        return tuple(len(axis.values) for axis in self.axes)

    def describe(self) -> list[list[object]]:
        """Return names and values in order, as JSON-able data; arrays by their hash."""
        return [[axis.name, [identity(value) for value in axis.values]] for axis in self.axes]

    def find(self, parameters: Mapping[str, Any]) -> Cell:
        """Return the cell with these parameters, or say which values there are."""
        if set(parameters) != set(self.names):
            raise ValueError(f"expected a value of each of {list(self.names)}, got {list(parameters)}")
        index = []
        for axis in self.axes:
            wanted = canonical_json(identity(_normal(parameters[axis.name], [*axis.values])))
            places = [at for at, value in enumerate(axis.values) if canonical_json(identity(value)) == wanted]
            if not places:
                there = ", ".join(text(value) for value in axis.values)
                raise ValueError(f"expected one of the values {there} of {axis.name}, got {parameters[axis.name]!r}")
            index += places
        return next(cell for cell in self.cells if cell.index == tuple(index))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["func", "traced"], meta_fields=["static"])
@dataclasses.dataclass(frozen=True)
class BoundDraw:
    """A draw with the parameters of one cell: ``func(key, **parameters)``.

    Traced parameters are leaves, so that all cells of one group have one signature and share a compiled program;
    static ones stand with their canonical JSON, which tells 1, 1.0 and True apart.
    """

    func: Callable[..., Any]
    traced: dict[str, Any]
    static: tuple[tuple[str, str, Any], ...]

    def __call__(self, key: jax.Array) -> Any:
        """Draw."""
        return self.func(key, **self.traced, **{name: value for name, _, value in self.static})


def bind(draw: Callable[..., Any], grid: Grid, cell: Cell) -> BoundDraw:
    """Return the draw of one cell, for `run`."""
    kinds = {axis.name: axis.traced for axis in grid.axes}
    traced = {name: jnp.asarray(value) for name, value in cell.parameters.items() if kinds[name]}
    static = tuple(
        (name, canonical_json(identity(value)), value) for name, value in cell.parameters.items() if not kinds[name]
    )
    return BoundDraw(draw, traced, static)


def make_grid(
    grid: Mapping[str, Iterable[Any]], static: Sequence[str] | None = None, traced: Sequence[str] | None = None
) -> Grid:
    """Return the grid over named values, checked.

    Args:
        grid: values per parameter. Numbers become Python's, which adapt to the dtype they meet; a 0-d array keeps its
            own.
        static: parameters to compile in, whatever they are.
        traced: parameters to pass as data, whatever they are. Of the others floats, and numbers beside them, and
            arrays are traced; integers, bools, strings, tuples and None are static.

    Raises:
        ValueError: no or doubled values, values that cannot be what they are asked to be, names that do not exist.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"expected grid to map parameter names to their values, got {grid!r}")
    wanted = [(name, kind) for kind, names in ((False, static), (True, traced)) for name in _names(names)]
    unknown = [name for name, _ in wanted if name not in grid]
    if unknown:
        raise ValueError(f"expected static and traced to name parameters of the grid {list(grid)}, got {unknown}")
    kinds = dict(wanted)
    if len(kinds) != len(wanted):
        raise ValueError(f"expected every parameter once in static or traced, got {[name for name, _ in wanted]}")
    axes = tuple(_axis(name, values, kinds.get(name)) for name, values in grid.items())
    levels = [refinement(len(axis.values)) for axis in axes]
    cells = []
    for index in itertools.product(*(range(len(axis.values)) for axis in axes)):
        parameters = {axis.name: axis.values[at] for axis, at in zip(axes, index, strict=True)}
        identities = {name: identity(value) for name, value in parameters.items()}
        group = {
            axis.name: _shape(parameters[axis.name]) if axis.traced else identities[axis.name]
            for axis in axes
            if not axis.traced or _is_array(parameters[axis.name])
        }
        level = max(of_axis[at] for of_axis, at in zip(levels, index, strict=True))
        cells.append(Cell(index, parameters, level, canonical_json(identities), canonical_json(group)))
    return Grid(axes, tuple(_ordered(cells)))


def refinement(count: int) -> tuple[int, ...]:
    """Return the level of each of ``count`` values in a row: the ends 0, the middle 1, the quarters 2, and so on."""
    levels = [0] * count
    gaps, level = [(0, count - 1)], 1
    while gaps:
        halves = []
        for first, last in gaps:
            if last - first > 1:
                middle = (first + last) // 2
                levels[middle] = level
                halves += [(first, middle), (middle, last)]
        gaps, level = halves, level + 1
    return tuple(levels)


def _ordered(cells: list[Cell]) -> list[Cell]:
    """Sort by level, inside a level by what is compiled in.

    Every other level runs backward through the groups: the programs used last are those that a full cache still holds.
    """
    ranks: dict[str, int] = {}
    for cell in cells:
        ranks.setdefault(cell.group, len(ranks))
    return sorted(cells, key=lambda cell: (cell.level, (-1) ** cell.level * ranks[cell.group], cell.index))


def _names(names: Sequence[str] | None) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names or ()


def _axis(name: Any, values: Any, traced: bool | None) -> Axis:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"expected parameter names that can be keywords of the draw, got {name!r}")
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ValueError(f"expected a sequence of values for {name}, got {values!r}")
    given = list(values)
    if not given:
        raise ValueError(f"expected at least one value for {name}, got none")
    for value in given:
        if not (_is_array(value) or _is_static(value)):
            raise ValueError(
                f"expected values of {name} to be numbers, strings, bools, tuples of such, None or arrays, "
                f"got {value!r} ({type(value).__name__})"
            )
    normal = tuple(_normal(value, given) for value in given)
    identities = [canonical_json(identity(value)) for value in normal]
    doubled = [text(value) for value, own in zip(normal, identities, strict=True) if identities.count(own) > 1]
    if doubled:
        raise ValueError(f"expected every value of {name} once, got {doubled[0]} more than once")
    numbers = all(_is_array(value) or type(value) in (bool, int, float) for value in normal)
    if traced is None:
        traced = numbers and any(_is_array(value) or type(value) is float for value in normal)
    if traced and not numbers:
        raise ValueError(f"expected numbers or arrays as values of the traced {name}, got {list(normal)!r}")
    if not traced and any(_is_array(value) for value in normal):
        raise ValueError(f"expected static values of {name} to be hashable, got arrays; leave it traced")
    return Axis(name, normal, traced)


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array)) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _is_static(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_static(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str, np.bool_, np.integer, np.floating))


def _normal(value: Any, beside: Sequence[Any]) -> Any:
    """Return Python's own numbers; integers beside floats are floats."""
    if isinstance(value, np.generic):
        value = value.item()
    floats = any(isinstance(other, (float, np.floating)) for other in beside)
    return float(value) if floats and type(value) is int else value


def _plain(value: Any) -> Any:
    return value.item() if _is_array(value) and value.ndim == 0 else value


def _shape(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def identity(value: Any) -> object:
    """Return what a value is known by, as JSON-able data."""
    if _is_array(value):
        return {"array": _shape(value), "sha256": array_digest([value])}
    if isinstance(value, tuple):
        return [identity(entry) for entry in value]
    return value


def text(value: Any) -> str:
    """Return a value as people read it in a label."""
    value = _plain(value)
    if _is_array(value):
        return f"array_{'x'.join(map(str, value.shape))}_{array_digest([value])[:4]}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "x".join(text(entry) for entry in value) if isinstance(value, tuple) else str(value)
