"""What the studies of random reconstruction found, as content, tables and labelled arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from cnninv_jax.experiments.dcn_reconstruction import Found, Setting, as_bytes
from cnninv_jax.experiments.dcn_statistics import change, combination, summary, trend, with_half_width
from cnninv_jax.experiments.studies import Table

if TYPE_CHECKING:
    import xarray as xr

#: Variants in words.
VARIANTS = {"conv": "last layer a convolution", "mean": "last layer the mean over channels"}
NOTES = (
    "SSIM on grey-scale, luminance inverted where negative, averaged over the pictures for each network; ±: 95% "
    "interval of the mean over networks, for these pictures. deviation: standard deviation of these averages.",
    "change: from the line above, on the same pictures; ±: 95% interval over networks. pictures: how many of them "
    "change that way on average over networks. verdict: whether the interval lies on the paper's side of zero.",
)


def content_of(
    settings: Sequence[Setting], found: Found, places: Sequence[float], expected: int
) -> dict[str, dict[str, Any]]:
    """Return by variant the summaries of all settings, the changes between neighbours, and the trend.

    Args:
        settings: in the order of their places.
        found: their similarities.
        places: where they stand, in ascending order.
        expected: 1 if the paper's similarity rises with the place, -1 if it falls.
    """
    content = {}
    for variant in settings[0].networks:
        values = [found[setting.name][variant].values for setting in settings]
        content[variant] = {
            "settings": {
                setting.name: {
                    "label": setting.label,
                    "place": place,
                    **summary(each),
                    "inverted": float(found[setting.name][variant].inverted.mean()),
                    "still_negative": int((each < 0).sum()),
                    "flat": int(found[setting.name][variant].flat.sum()),
                }
                for setting, place, each in zip(settings, places, values, strict=True)
            },
            "changes": [change(before, after) for before, after in itertools.pairwise(values)],
            "trend": {**trend(places, values, expected), "expected": expected},
        }
    return content


def limit_of(values: Float[np.ndarray, "networks pictures"], limit: Float[np.ndarray, " pictures"]) -> dict[str, Any]:
    """Return the mean similarity of the limit of infinite width, and how far it is from these networks.

    Returns:
        ``mean``, exact for these pictures; ``by_picture``; ``gap``, the limit less these networks' mean, with its 95%
        interval over networks.
    """
    gap, low, high = combination([1.0], [(limit[None, :] - values).mean(axis=1)])
    return {"mean": float(limit.mean()), "by_picture": limit, "gap": {"value": gap, "low": low, "high": high}}


def trend_table(
    title: str,
    column: str,
    found: Mapping[str, Any],
    per: str,
    *,
    limit: Mapping[str, Any] | None = None,
    limits: Sequence[Mapping[str, Any]] | None = None,
    explained: bool = False,
    notes: Sequence[str] = (),
) -> Table:
    """Return the table of one variant.

    Args:
        title: its title.
        column: what its rows are.
        found: `content_of` the variant.
        per: the unit of the slope, such as "per doubling".
        limit: `limit_of` the last setting, for a line of its own.
        limits: `limit_of` every setting, for a column of its own.
        explained: a table above has explained what the columns are.
        notes: further sentences.
    """
    expected = found["trend"]["expected"]
    rows = []
    for at, seen in enumerate(found["settings"].values()):
        cells = ("-", "-", "")
        if at:
            step = found["changes"][at - 1]
            along = step["rising"] if expected > 0 else step["pictures"] - step["rising"]
            cells = (
                with_half_width(step, "value", sign=True),
                f"{along} of {step['pictures']}",
                _verdict(step, expected),
            )
        wide = () if limits is None else (f"{limits[at]['mean']:.3f}",)
        rows.append((seen["label"], with_half_width(seen), _number(seen["networks"]), *wide, *cells))
    if limit is not None:
        rows.append(("infinitely wide", f"{limit['mean']:.3f}", "0", with_half_width(limit["gap"], "value", sign=True),
                     "-", ""))  # fmt: skip
    slope = found["trend"]
    if slope["steps"]:
        whole = f"{slope['along']} of {slope['steps']} steps"
        cells = (with_half_width({**slope, "value": slope["slope"]}, "value", sign=True), whole, slope["verdict"])
        rows.append((per, "", "", *(() if limits is None else ("",)), *cells))
    wide = () if limits is None else ("infinitely wide",)
    columns = (column, "SSIM", "deviation", *wide, "change", "pictures", "verdict")
    return Table(title, columns, tuple(rows), (*(() if explained else NOTES), *_trend_notes(found, per), *notes))


def deviation_table(title: str, column: str, content: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return where deviations come from: networks, pictures, or both together; and how often luminance was inverted."""
    columns = [column]
    rows: dict[str, list[str]] = {}
    for variant, found in content.items():
        head = "" if len(content) == 1 else f"{variant}: "
        columns += [f"{head}{name}" for name in ("networks", "pictures", "both", "inverted")]
        for name, seen in found["settings"].items():
            cells = rows.setdefault(name, [seen["label"]])
            cells += [_number(seen["split"][part]) for part in ("networks", "pictures", "both")]
            cells.append(f"{100 * seen['inverted']:.0f}%")
    notes = [
        "Standard deviations of the parts of SSIM = mean + network + picture + both together (analysis of variance, "
        "two ways, no less than zero); both: how differently a network treats the pictures.",
        "inverted: reconstructions whose SSIM was negative, so that their luminance was inverted.",
    ]
    odd = {
        name: sum(seen[name] for found in content.values() for seen in found["settings"].values())
        for name in ("still_negative", "flat")
    }
    if odd["still_negative"]:
        notes.append(f"{odd['still_negative']} similarities stayed negative with inverted luminance; they count as "
                     "they are.")  # fmt: skip
    if odd["flat"]:
        notes.append(f"{odd['flat']} reconstructions had pixels of one value only (a layer whose filters were all "
                     "silent); they count as black pictures.")  # fmt: skip
    return Table(title, tuple(columns), tuple(tuple(cells) for cells in rows.values()), tuple(notes))


def dataset_of(
    settings: Sequence[Setting],
    found: Found,
    pictures: Sequence[str],
    shown: Mapping[str, Mapping[str, Any]],
    originals: np.ndarray,
    axis: str,
    *,
    kinds: Sequence[str] = ("grey",),
    extra: Mapping[str, np.ndarray] | None = None,
) -> xr.Dataset:
    """Return similarities and shown reconstructions as labelled arrays.

    Args:
        settings: in order.
        found: their similarities.
        pictures: names.
        shown: see `Reconstructions.reconstructed`; of one size all.
        originals: the shown pictures, [shown, 3, H, W] in [0, 1].
        axis: what the settings are, name of their dimension.
        kinds: of reconstructions to be kept, ``grey`` (as compared) and ``colour``.
        extra: further grey pictures, [shown, H, W] each.
    """
    import xarray as xr

    variants = list(settings[0].networks)
    dims = ("variant", axis, "network", "picture")
    stacked = {
        name: np.array([[getattr(found[s.name][v], name) for s in settings] for v in variants])
        for name in ("values", "inverted")
    }
    count = len(originals)
    arrays: dict[str, Any] = {
        "similarity": (dims, stacked["values"], {"long_name": "SSIM on grey-scale", "units": "1"}),
        "inverted": (dims, stacked["inverted"].astype(np.int8), {"long_name": "luminance inverted"}),
        "original": (("shown", "colour", "y", "x"), as_bytes(originals)),
    }
    for variant in variants:
        for kind in kinds:
            maps = np.stack([shown[s.name][variant][kind] for s in settings])
            colours = ("colour",) if maps.ndim == 5 else ()
            arrays[f"{kind}_{variant}"] = ((axis, "shown", *colours, "y", "x"), as_bytes(maps))
        for name in ("similarity", "network"):
            chosen = np.array([shown[s.name][variant][name] for s in settings])
            arrays[f"shown_{name}_{variant}"] = ((axis, "shown"), chosen)
    for name, maps in (extra or {}).items():
        arrays[name] = (("shown", "y", "x"), as_bytes(maps))
    coords = {
        "variant": variants,
        axis: [setting.label for setting in settings],
        "picture": list(pictures),
        "shown": list(pictures[:count]),
    }
    dataset = xr.Dataset(arrays, coords)
    for name in dataset.data_vars:
        dataset[name].encoding = {"zlib": True, "complevel": 4}
    return dataset


def _verdict(step: Mapping[str, Any], expected: int) -> str:
    if math.isnan(step["low"]) or step["low"] <= 0 <= step["high"]:
        return "undecided"
    return "agrees" if (step["low"] > 0) == (expected > 0) else "differs"


def _trend_notes(found: Mapping[str, Any], per: str) -> list[str]:
    slope = found["trend"]
    if not slope["steps"]:
        return []
    if math.isnan(slope["low"]):
        return ["One network for each setting has no interval: ask for more with --num-networks."]
    word, steps = ("rises" if slope["expected"] > 0 else "falls"), slope["steps"]
    whole = with_half_width({**slope, "value": slope["slope"]}, "value", sign=True)
    return [
        f"{per}: slope of the least-squares line, {whole}. Paper: SSIM {word}; here {slope['along']} of {steps} steps "
        f"do beyond their interval, {slope['against']} go the other way: {slope['verdict']}."
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


__all__ = ["NOTES", "VARIANTS", "content_of", "dataset_of", "deviation_table", "limit_of", "trend_table"]
