"""The arguments of `run`, checked at the door; every refusal says what was expected and what came."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cnninv_jax.montecarlo.accumulators import Accumulator, Leaf, Moments, Proportion, default_statistics
from cnninv_jax.montecarlo.hosts import AXIS
from cnninv_jax.montecarlo.program import Plan, with_tally

Statistics: TypeAlias = Mapping[str, Accumulator | Sequence[Accumulator]]


def make_plan(leaves: tuple[Leaf, ...], statistics: Statistics | None, keep: Sequence[str]) -> Plan:
    """Return what is computed per leaf; refuse names that do not exist and statistics that clash."""
    names = [leaf.name for leaf in leaves]
    statistics = {} if statistics is None else statistics
    if not isinstance(statistics, Mapping):
        raise ValueError(f"expected statistics to map leaf names to accumulators, got {type(statistics).__name__}")
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    _known(statistics, names, "statistics")
    _known(keep, names, "keep")
    if len(set(keep)) != len(keep):
        raise ValueError(f"expected every name in keep once, got {list(keep)}")
    groups = []
    for leaf in leaves:
        chosen = statistics.get(leaf.name)
        if chosen is None:
            group = default_statistics(leaf)
        else:
            group = (chosen,) if isinstance(chosen, Accumulator) else tuple(chosen)
        produced: set[str] = set()
        for accumulator in group:
            if not isinstance(accumulator, Accumulator):
                raise ValueError(
                    "expected accumulators (Moments(), Histogram(low, high, bins), ...) "
                    f"for leaf {leaf.name!r}, got {accumulator!r}"
                )
            if produced & set(accumulator.produces):
                raise ValueError(
                    "expected one accumulator of a kind per leaf, "
                    f"got {type(accumulator).__name__} twice for {leaf.name!r}; "
                    "return the quantity under a second name"
                )
            produced |= set(accumulator.produces)
            accumulator.check(leaf)
        groups.append(with_tally(group))
    return Plan(leaves, tuple(groups), tuple(name for name in names if name in keep))


def _known(asked: Mapping[str, Any] | Sequence[str], names: Sequence[str], where: str) -> None:
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise ValueError(f"expected names of the draw's outputs in {where}, got {unknown}; there are {list(names)}")


def choose_headline(plan: Plan, headline: str | None) -> str | None:
    """Return the leaf whose interval the progress shows: the one asked for, or the first that has one."""
    candidates = [
        leaf.name
        for leaf, group in zip(plan.leaves, plan.accumulators, strict=True)
        if leaf.shape == () and any(isinstance(accumulator, (Moments, Proportion)) for accumulator in group)
    ]
    if headline is not None and headline not in candidates:
        raise ValueError(
            f"expected headline to be a scalar output with a mean or a proportion, got {headline!r}; "
            f"there are {candidates}"
        )
    return headline if headline is not None else next(iter(candidates), None)


def positive(value: Any, name: str, most: int) -> int:
    """Return ``value`` as an integer from 1 to ``most``, or refuse it by name."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 1 <= number <= most:
        raise ValueError(f"expected {name} to be an integer from 1 to {most}, got {value!r}")
    return number


def as_key(key: Any) -> jax.Array:
    """Return one typed key; an integer is a seed."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        return key
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(int(key))
    raise ValueError(
        "expected key to be one typed key (jax.random.key(seed)) or an integer seed, "
        f"got {getattr(key, 'aval', key)!r}; "
        "raw uint32 keys are wrapped by jax.random.wrap_key_data"
    )


def as_mesh(mesh: Mesh | None) -> Mesh:
    """Return a mesh with the one axis "draws": the given one, or all devices of all processes."""
    if mesh is None:
        return Mesh(np.asarray(jax.devices()), (AXIS,))
    if tuple(mesh.axis_names) != (AXIS,):
        raise ValueError(f"expected a mesh with the one axis {AXIS!r}, got axes {tuple(mesh.axis_names)}")
    return Mesh(mesh.devices, (AXIS,))


def as_part(part: Any) -> tuple[int, int]:
    """Return (i, N) with 1 <= i <= N."""
    if not (isinstance(part, tuple) and len(part) == 2 and all(isinstance(entry, int) for entry in part)):
        raise ValueError(f"expected part to be two integers (i, N), got {part!r}")
    if not 1 <= part[0] <= part[1]:
        raise ValueError(f"expected a part (i, N) with 1 <= i <= N, got {part}")
    return part


def name_of(draw: Any) -> str:
    """Return the name of the function inside ``draw``."""
    while hasattr(draw, "func"):
        draw = draw.func
    return getattr(draw, "__name__", type(draw).__name__)
