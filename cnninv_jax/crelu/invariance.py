"""Invariance scores of filters (Goodfellow et al. 2009; Shang et al. 2016, 4.2 and appendix D), for any feature maps.

A filter fires where its response exceeds a threshold t_i that lets it fire at one of a hundred locations: its global
firing rate G(i) is 0.01. Of the locations where it fires for a picture, the local firing rate L(i) is the share where
it fires for the transformed picture too, at the same place of the map. The invariance score is S(i) = L(i) / G(i):
1 for a filter to which the transformed picture is another one, 1 / G(i) for one that cannot tell the two apart.

Two passes over the pictures, a few at a time: thresholds first, then firings. Pictures are what is sampled, locations
of one picture are not independent: standard errors are those of ratios of sums over groups of pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax._typing import Array, Bool, Float, Int
from cnninv_jax.crelu._largest import Largest, allowed

#: How a response becomes what is compared with the threshold: [h]_+ for ReLU, |h| for CReLU (appendix D).
Reading: TypeAlias = Literal["relu", "crelu"]
#: Pictures [B, C, H, W] to maps [B, K, *n], or to a tree of such maps; called as it is, so jit it yourself.
Features: TypeAlias = Callable[[Any], Any]
#: Pictures to stimuli.
Transform: TypeAlias = Callable[[Any], Any]

#: Appendix D: "fired one percent of the time".
RATE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Firings:
    """How often the filters of one layer fired, by groups of pictures (a picture each, unless there are many).

    Attributes:
        thresholds: t_i, [K]; a filter fires where its response is greater. NaN where responses were not finite.
        tuned: whether t_i > 0, which gives the global rate asked for but for ties, [K]. A filter that is zero at more
            than 99 of 100 locations keeps t_i = 0 and fires less often.
        locations: places seen, [groups].
        fired: by the originals, [groups, K].
        transformed: by every transformed stimulus, [V, groups, K].
        both: by original and transformed stimulus at the same place, [V, groups, K].
        names: of the V transformations.
    """

    thresholds: Float[np.ndarray, " K"]
    tuned: np.ndarray
    locations: Int[np.ndarray, " groups"]
    fired: Int[np.ndarray, "groups K"]
    transformed: Int[np.ndarray, "V groups K"]
    both: Int[np.ndarray, "V groups K"]
    names: tuple[str, ...]


class Estimate(NamedTuple):
    """A number, or an array of numbers, and what every group of pictures adds to it.

    Attributes:
        value: NaN where undefined.
        influence: to first order, summing to 0 along the last axis, [..., groups]. Influences of two estimates from
            the same pictures may be subtracted: those of the difference.
    """

    value: Float[np.ndarray, " *shape"]
    influence: Float[np.ndarray, "*shape groups"]

    @property
    def standard_error(self) -> Float[np.ndarray, " *shape"]:
        """Standard error over pictures (delta method, thresholds held), groups - 1 degrees of freedom."""
        groups = self.influence.shape[-1]
        if groups < 2:
            return np.full(np.shape(self.value), np.nan)
        return np.sqrt(groups / (groups - 1) * np.sum(np.square(self.influence), axis=-1))


def firing_thresholds(
    features: Features,
    pictures: Any,
    *,
    rate: float = RATE,
    reading: Reading = "relu",
    original: Transform | None = None,
    chunk: int = 1,
) -> Any:
    """Return the least thresholds at which filters fire at no more than a share of all locations.

    t_i is the (floor(rate N) + 1)-th largest of the N responses of filter i, exactly, whatever the chunk. Firing is
    "greater than": ties at the threshold do not fire, and t_i >= 0 since readings are not negative.

    Args:
        features: pictures [B, C, H, W] to maps [B, K, *n], channels second, or to a tree (dict, list) of maps, one for
            a layer. Maps are linear responses, before the activation, which `reading` says.
        pictures: [N, C, H, W]; anything with a length that can be sliced, also on disk.
        rate: global firing rate.
        reading: ``"relu"`` sets negative responses to zero, ``"crelu"`` takes the absolute value.
        original: pictures to the original stimuli, such as `stimuli.original`; None takes pictures as they are.
        chunk: pictures side by side.

    Returns:
        The tree, every map replaced by float thresholds [K]; NaN for a filter with a response that is not finite.

    Raises:
        ValueError: no pictures, impossible arguments, maps of other shapes than the first, or fewer locations than
            1 / rate.

    Cost: one pass; in memory the largest responses, a share ``rate`` of all, about three times.
    """
    _check(pictures, rate, reading, chunk)
    found: list[Largest] = []
    structure = None
    for _, batch in _chunks(pictures, chunk):
        maps, tree = _maps(features, batch if original is None else original(batch))
        if structure is None:
            structure = tree
            found = [Largest(allowed(rate, len(pictures), leaf.shape[2:]), leaf.shape[1:]) for leaf in maps]
        for largest, leaf in zip(found, maps, strict=True):
            largest.add(np.asarray(_read(leaf, reading)))
    return jax.tree.unflatten(structure, [largest.threshold() for largest in found])


def count_firings(
    features: Features,
    pictures: Any,
    transforms: Mapping[str, Transform] | Sequence[Any],
    thresholds: Any,
    *,
    reading: Reading = "relu",
    original: Transform | None = None,
    chunk: int = 1,
    groups: int = 256,
) -> Any:
    """Count where filters fire for the original, for every transformed stimulus, and for both at the same place.

    Args:
        features: as in `firing_thresholds`.
        pictures: as in `firing_thresholds`.
        transforms: pictures to transformed stimuli, by name; or a sequence of `stimuli.View`s, which have names.
        thresholds: tree as `firing_thresholds` returns it.
        reading: as in `firing_thresholds`.
        original: as in `firing_thresholds`.
        chunk: pictures side by side; counts do not depend on it.
        groups: most groups of pictures; picture p belongs to group p mod groups.

    Returns:
        The tree, every map replaced by `Firings`.

    Raises:
        TypeError: transforms without names.
        ValueError: no pictures or transforms, impossible arguments, stimuli whose maps have another shape than the
            original's, or thresholds of another structure.

    Cost: one pass for the original and for every transform; counts in memory, 2 V + 1 for a filter and group.
    """
    _check(pictures, RATE, reading, chunk)
    named = _named(transforms)
    if groups < 1:
        raise ValueError(f"expected groups >= 1, got {groups}")
    limits, tree = jax.tree.flatten(thresholds)
    finite = [~np.isnan(t) for t in limits]
    rows = min(groups, len(pictures))
    tables = [_Table.empty(len(named), rows, len(t)) for t in limits]
    for start, batch in _chunks(pictures, chunk):
        place = np.arange(start, start + len(batch)) % rows
        firsts, structure = _maps(features, batch if original is None else original(batch))
        if structure != tree:
            raise ValueError(f"expected thresholds of the structure of the maps, {structure}, got {tree}")
        for table, leaf, t in zip(tables, firsts, limits, strict=True):
            np.add.at(table.locations, place, math.prod(leaf.shape[2:]))
            np.add.at(table.fired, place, np.asarray(_fired(leaf, t.astype(leaf.dtype), reading)))
        for at, transform in enumerate(named.values()):
            seconds, _ = _maps(features, transform(batch))
            for table, first, second, t, sound in zip(tables, firsts, seconds, limits, finite, strict=True):
                if first.shape != second.shape:
                    raise ValueError(
                        f"expected maps of transformed stimuli of shape {first.shape}, got {second.shape}; stimuli "
                        "must have the size of the original"
                    )
                alone, together, bounded = _fired_both(first, second, t.astype(first.dtype), reading)
                np.add.at(table.transformed[at], place, np.asarray(alone))
                np.add.at(table.both[at], place, np.asarray(together))
                sound &= np.asarray(bounded)
    counted = [
        Firings(np.where(sound, t, np.array(np.nan, t.dtype)), t > 0, *table, tuple(named))
        for t, sound, table in zip(limits, finite, tables, strict=True)
    ]
    return jax.tree.unflatten(tree, counted)


def firings(
    features: Features,
    pictures: Any,
    transforms: Mapping[str, Transform] | Sequence[Any],
    *,
    rate: float = RATE,
    reading: Reading = "relu",
    original: Transform | None = None,
    chunk: int = 1,
    groups: int = 256,
) -> Any:
    """Return the `Firings` of every layer: both passes, `firing_thresholds` and `count_firings`, with their arguments.

    ``features`` gives linear responses, before the activation, channels second: [B, K, *n].

    Example: ``firings(features, pictures, stimuli.small_stimuli(80, 64), original=stimuli.original(80, 64))``.
    """
    ways: dict[str, Any] = {"reading": reading, "original": original, "chunk": chunk}
    named = _named(transforms)
    thresholds = firing_thresholds(features, pictures, rate=rate, **ways)
    return count_firings(features, pictures, named, thresholds, groups=groups, **ways)


def global_rate(counts: Firings) -> Float[np.ndarray, " K"]:
    """Return G(i), the share of all locations at which filter i fires for the originals; NaN as thresholds are."""
    rates = counts.fired.sum(axis=0) / counts.locations.sum()
    return np.where(np.isnan(counts.thresholds), np.nan, rates)


def local_rate(counts: Firings) -> Estimate:
    """Return L(i), the share of a filter's firings that a transformed stimulus repeats at the same place.

    Returns:
        Values [V, K], NaN for a filter that never fires; influences [V, K, groups].
    """
    fired, both = counts.fired.sum(axis=0), counts.both.sum(axis=1)
    fired = np.where((fired > 0) & ~np.isnan(counts.thresholds), fired, np.nan)
    rates = both / fired
    influence = (counts.both - rates[:, None] * counts.fired) / fired
    return Estimate(rates, np.moveaxis(influence, 1, -1))


def invariance_score(counts: Firings) -> Estimate:
    """Return S(i) = L(i) / G(i) (Goodfellow et al. 2009), with the global rate that was reached.

    Where thresholds are tuned, G(i) is what was asked for in all samples of pictures and has no error of its own;
    where a filter fires less often than that, its error counts.

    Returns:
        Values [V, K], NaN for a filter that never fires; influences [V, K, groups].
    """
    local, reached = local_rate(counts), global_rate(counts)
    reached = np.where(reached > 0, reached, np.nan)
    values = local.value / reached
    share = counts.fired / counts.fired.sum(axis=0).clip(1) - (counts.locations / counts.locations.sum())[:, None]
    own = np.where(counts.tuned[:, None], 0.0, share.T)
    return Estimate(values, local.influence / reached[:, None] - values[..., None] * own)


def layer_mean(estimate: Estimate, *, where: np.ndarray | None = None) -> Estimate:
    """Return the mean over transformations and over the filters that have a value (appendix D's last step).

    Args:
        estimate: of `local_rate` or `invariance_score`, [V, K]; or rows of it, for some of the transformations.
        where: which filters count, [K]. `Firings.tuned` leaves out those below the global firing rate: S of a filter
            that fires at one of 10,000 locations reaches 10,000, and a few of them make the mean.

    Returns:
        One value, NaN if no filter has one, with influences [groups]. Filters without a value are left out; count them
        by ``np.isnan(estimate.value).any(axis=0).sum()``.
    """
    each = filter_mean(estimate)
    held = ~np.isnan(each.value) if where is None else ~np.isnan(each.value) & where
    if not held.any():
        return Estimate(np.asarray(np.nan), np.full(each.influence.shape[-1:], np.nan))
    return Estimate(np.asarray(each.value[held].mean()), each.influence[held].mean(axis=0))


def filter_mean(estimate: Estimate) -> Estimate:
    """Return the mean over transformations, each counting alike as in Goodfellow et al. 2009: [K] from [V, K]."""
    return Estimate(estimate.value.mean(axis=0), estimate.influence.mean(axis=0))


def seen_once(counts: Firings) -> np.ndarray:
    """Return which filters fire in one group of pictures only, [K]: no standard error can tell how others would do."""
    return np.count_nonzero(counts.fired, axis=0) == 1


class _Table(NamedTuple):
    """Counts of one layer as they grow, see `Firings`."""

    locations: np.ndarray
    fired: np.ndarray
    transformed: np.ndarray
    both: np.ndarray

    @classmethod
    def empty(cls, transforms: int, rows: int, filters: int) -> _Table:
        shapes = (rows,), (rows, filters), (transforms, rows, filters), (transforms, rows, filters)
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))


def _check(pictures: Any, rate: float, reading: str, chunk: int) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"expected a firing rate between 0 and 1, got {rate}; one percent is 0.01")
    if reading not in get_args(Reading):
        raise ValueError(f"expected reading to be one of {', '.join(get_args(Reading))}, got {reading!r}")
    if not len(pictures) or chunk < 1:
        raise ValueError(f"expected pictures, and chunk >= 1, got {len(pictures)} pictures and chunk {chunk}")


def _named(transforms: Mapping[str, Transform] | Sequence[Any]) -> dict[str, Transform]:
    if isinstance(transforms, Mapping):
        named, number = dict(transforms), len(transforms)
    else:
        views = list(transforms) if isinstance(transforms, Sequence) else [transforms]
        nameless = [view for view in views if not hasattr(view, "name")]
        if nameless or not isinstance(transforms, Sequence):
            raise TypeError(
                "expected a mapping of names to transforms, or a sequence of stimuli.View, got "
                f"{type((nameless or views)[0]).__name__}"
            )
        named, number = {view.name: view for view in views}, len(views)
    if not named or len(named) != number:
        raise ValueError(f"expected transforms with names of their own, got {list(named)}")
    return named


def _chunks(pictures: Any, chunk: int) -> Any:
    return ((start, pictures[start : start + chunk]) for start in range(0, len(pictures), chunk))


def _maps(features: Features, batch: Any) -> tuple[list[Any], Any]:
    """Return the layers' maps, and how they are joined."""
    leaves, structure = jax.tree.flatten(features(batch))
    maps = [jnp.asarray(leaf) for leaf in leaves]
    for leaf in maps:
        if leaf.ndim < 2 or len(leaf) != len(batch) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"expected real maps [B, K, *n] with B = {len(batch)}, got shape {leaf.shape} of {leaf.dtype}; put "
                "pictures first, then filters"
            )
    return maps, structure


@functools.partial(jax.jit, static_argnames="reading")
def _read(maps: Array, reading: Reading) -> Array:
    return jnp.maximum(maps, 0) if reading == "relu" else jnp.abs(maps)


def _above(maps: Array, thresholds: Array, reading: Reading) -> Array:
    flat = _read(maps, reading).reshape(*maps.shape[:2], -1)
    return flat > thresholds[None, :, None]


@functools.partial(jax.jit, static_argnames="reading")
def _fired(maps: Array, thresholds: Array, reading: Reading) -> Int[Array, "B K"]:
    return jnp.sum(_above(maps, thresholds, reading), axis=-1, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames="reading")
def _fired_both(
    first: Array, second: Array, thresholds: Array, reading: Reading
) -> tuple[Int[Array, "B K"], Int[Array, "B K"], Bool[Array, " K"]]:
    one, other = (_above(maps, thresholds, reading) for maps in (first, second))
    axes = (0, *range(2, second.ndim))
    alone, together = (jnp.sum(where, axis=-1, dtype=jnp.int32) for where in (other, one & other))
    return alone, together, jnp.all(jnp.isfinite(second), axis=axes)


__all__ = [
    "RATE",
    "Estimate",
    "Features",
    "Firings",
    "Reading",
    "Transform",
    "count_firings",
    "filter_mean",
    "firing_thresholds",
    "firings",
    "global_rate",
    "invariance_score",
    "layer_mean",
    "local_rate",
    "seen_once",
]
