"""What the study of style transfer says of its losses, its trend in the content weight, and its times."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnninv_jax.experiments.studies import Table

#: Shares of the initial total loss whose time is told.
SHARES = (0.1, 0.05)


def seconds_to(cell: Mapping[str, Any], share: float) -> float | None:
    """Return when the total loss was first at ``share`` of its beginning or below; None if it never was."""
    total = np.asarray(cell["total"], float)
    below = np.flatnonzero(total <= share)
    return None if not len(below) else float(below[0]) * cell["seconds"] / (len(total) - 1)


def summarised(found: Mapping[str, Any], p: Any) -> dict[str, Any]:
    """Return means by weight, how many sweeps are monotone, and times of both ways."""
    by_weight = {
        variable: [
            {
                name: float(np.mean([cell[name] if name == "ssim" else cell[name][-1] for cell in cells]))
                for name in ("content", "style", "total", "ssim")
            }
            for weight in p.content_weights
            if (cells := _chosen(found, variable, weight=weight))
        ]
        for variable in ("features", "pixels")
    }
    sweeps = [
        _chosen(found, "features", seed=seed, picture=place)
        for seed in range(p.num_seeds)
        for place in range(len(found["styles"]))
    ]
    monotone = {
        "ssim": sum(_ascends([cell["ssim"] for cell in sweep]) for sweep in sweeps),
        "content": sum(_ascends([-cell["content"][-1] for cell in sweep]) for sweep in sweeps),
        "style": sum(_ascends([cell["style"][-1] for cell in sweep]) for sweep in sweeps),
        "sweeps": len(sweeps),
    }
    times = {variable: _times(_chosen(found, variable, seed=0), p.steps) for variable in ("features", "pixels")}
    return {"by_weight": by_weight, "monotone": monotone, "times": times}


def tables(found: Mapping[str, Any], p: Any) -> tuple[Table, ...]:
    """Return the tables of losses and of times."""
    summary = found["summary"]
    rows = tuple(
        (f"{variable}, {weight:g}", *(f"{entry[name]:.3f}" for name in ("content", "style", "total", "ssim")))
        for variable, entries in summary["by_weight"].items()
        for weight, entry in zip(p.content_weights, entries, strict=True)
    )
    counts = summary["monotone"]
    losses = Table(
        f"Random DCN, A.4: losses after {p.steps} steps",
        ("variable, content weight", "content loss", "style loss", "total loss", "SSIM to the content"),
        rows,
        (
            f"Means over {len(found['styles'])} styles ({', '.join(found['styles'])}) and, for features, "
            f"{p.num_seeds} rrVGGs; pixels with the first rrVGG. Content: {found['content']}.",
            "content: relative to the squares of the content's activations; style and total: to the beginning.",
            f"Of {counts['sweeps']} sweeps of features along the content weight, SSIM rises all the way in "
            f"{counts['ssim']}, the content loss falls in {counts['content']}, the style loss rises in "
            f"{counts['style']}.",
            *found["notes"],
        ),
    )
    rows = tuple(
        (
            variable,
            f"{1e3 * times['seconds_per_step']:.1f}",
            *(_reached(times["reached"][str(share)]) for share in SHARES),
            f"{times['compile_seconds']:.1f}",
        )
        for variable, times in summary["times"].items()
    )
    ratio = summary["times"]["pixels"]["seconds_per_step"] / summary["times"]["features"]["seconds_per_step"]
    clock = Table(
        "Times on this machine: features against pixels",
        ("variable", "ms / step", *(f"s to {share:.0%} of the loss" for share in SHARES), "compilation, s"),
        rows,
        (
            "First rrVGG, all styles and weights; medians, and how many came so far. Same losses, start and steps.",
            f"A step of pixels takes {ratio:.1f} times as long: it goes through conv1 too.",
        ),
    )
    return losses, clock


def _chosen(found: Mapping[str, Any], variable: str, **wanted: Any) -> list[Mapping[str, Any]]:
    return [
        cell
        for cell in found["cells"].values()
        if cell["variable"] == variable and all(cell[name] == value for name, value in wanted.items())
    ]


def _ascends(values: Sequence[float]) -> bool:
    return all(after > before for before, after in itertools.pairwise(values))


def _times(cells: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    reached = {}
    for share in SHARES:
        times = [time for cell in cells if (time := seconds_to(cell, share)) is not None]
        median = float(np.median(times)) if times else math.nan
        reached[str(share)] = {"median": median, "count": len(times), "of": len(cells)}
    return {
        "seconds_per_step": float(np.median([cell["seconds"] for cell in cells])) / steps,
        "compile_seconds": max(cell["compile_seconds"] for cell in cells),
        "reached": reached,
    }


def _reached(entry: Mapping[str, Any]) -> str:
    median = "never" if not entry["count"] else f"{entry['median']:.2f}"
    return f"{median} ({entry['count']} of {entry['of']})"


__all__ = ["SHARES", "seconds_to", "summarised", "tables"]
