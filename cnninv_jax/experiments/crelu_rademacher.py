"""Theorem 4.1 of the CReLU paper put to the test: Rademacher complexity of a layer, both sides, on many samples.

The class is F = {x -> <w, x>, |w|_2 <= A}, its complexity that of Definition B.1 given the sample. Left and right are
suprema for the same signs, exact where the faces of the sample's hyperplanes can be gone through. A, B and d_in scale
both sides alike, so that the ratio is that of one unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cnninv_jax import data
from cnninv_jax.crelu import rademacher
from cnninv_jax.experiments.crelu_rademacher_draws import LAWS, READINGS, Cell, Effort, cell_key, ratio, sample
from cnninv_jax.experiments.crelu_rademacher_tables import CLASSES, tables
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.images import to_grey
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Chance that any interval of the study misses, all of them together.
MISS = 0.05
#: A ratio no further above 1 may be above 1 by rounding.
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class RademacherParameters:
    """Samples, and the effort spent on each."""

    laws: tuple[str, ...] = tuple(LAWS)
    """Laws of the points: gaussian, antipodal (pairs x, -x), positive, patches (of pictures), centred (the same less
    their mean)."""
    dims: tuple[int, ...] = (1, 2, 3, 16)
    """Input dimensions d; of a patch, the number of its pixels."""
    samples: tuple[int, ...] = (2, 8, 32, 128)
    """Numbers L of points; up to 12, all signs are gone through where faces allow."""
    num_draws: int = 2048
    """Draws of signs per sample."""
    most_faces: int = 20000
    """Samples whose hyperplanes have more faces are left to ascent: lower bounds of the left side."""
    starts: int = 8
    """Random starts of ascent for each draw."""
    steps: int = 24
    """Moves of ascent from each start."""
    pictures: str = "embedded"
    """Pictures that patches are cut from: a folder, or the few inside scikit-image."""
    size: int = 128
    """Side that pictures are brought to."""
    limit: int = 100
    """Most pictures read."""


def _compute(p: RademacherParameters, options: StudyOptions, folder: Path) -> Findings:
    _checked(p)
    images = None
    if {"patches", "centred"} & set(p.laws):
        images = np.asarray(to_grey(data.load_pictures(p.pictures, size=p.size, limit=p.limit).images))
    effort = Effort(p.num_draws, p.most_faces, p.starts, p.steps)
    cells: list[Cell] = []
    with progress_bar(
        "both sides of Theorem 4.1", len(p.laws) * len(p.dims) * len(p.samples), quiet=options.quiet
    ) as bar:
        for dim in sorted(p.dims):
            for count in sorted(p.samples):
                for law in p.laws:
                    sample_key, draw_key = jax.random.split(cell_key(options.seed, law, count, dim))
                    points = sample(law, sample_key, count, dim, images, options.precision)
                    name = f"{law}-d{dim}-L{count}"
                    found = effort.measure(points, draw_key, folder / "draws" / name, name)
                    cells.append({"law": law, "dim": dim, "samples": count, **found, **_promised(points)})
                    bar.advance(1, f"{name}: {found['means']['crelu'] / found['means']['linear']:.3f}")
    comparisons = len(READINGS) * sum(cell["draws"] > 0 for cell in cells)
    level = 1 - MISS / max(comparisons, 1)
    for cell in cells:
        cell["ratios"] = {name: _judged(cell, name, level) for name in READINGS}
    content = {
        "cells": cells,
        "comparisons": comparisons,
        "level": level,
        "classes": [_finite(name, values) for name, values in CLASSES.items()],
    }
    return Findings(content, tables(content))


def _checked(p: RademacherParameters) -> None:
    """Refuse parameters that do not fit, in the words of the command line."""
    for name in ("laws", "dims", "samples"):
        given = getattr(p, name)
        if not given:
            raise ValueError(f"expected at least one value of --{name}, got none")
        if len(set(given)) != len(given):
            raise ValueError(f"expected --{name} to be different values, got {given}")
    if unknown := [law for law in p.laws if law not in LAWS]:
        raise ValueError(f"expected --laws out of {', '.join(LAWS)}, got {', '.join(unknown)}")
    for dim in p.dims:
        positive(dim, "--dims", 4096)
    for count in p.samples:
        if positive(count, "--samples", 1 << 16) < 2:
            raise ValueError(f"expected --samples of at least 2 points, got {count}")
    for name in ("most_faces", "starts", "steps", "size", "limit"):
        positive(getattr(p, name), "--" + name.replace("_", "-"), 1 << 20)
    if positive(p.num_draws, "--num-draws", 1 << 32) < 2:
        raise ValueError(f"expected --num-draws of at least 2, for intervals, got {p.num_draws}")
    if max(p.dims) > p.size:
        raise ValueError(f"expected --dims of at most --size {p.size}, so that patches fit, got {max(p.dims)}")


def _promised(points: np.ndarray) -> dict[str, Any]:
    """Return what is proved for this sample: factors of the right side, and bounds of the expectations."""
    return {
        "stable_rank": float(rademacher.stable_rank(points)),
        "constants": {name: float(value) for name, value in rademacher.constants(points)._asdict().items()},
        "upper_bounds": {name: float(value) for name, value in rademacher.upper_bounds(points)._asdict().items()},
    }


def _judged(cell: Mapping[str, Any], reading: str, level: float) -> dict[str, Any]:
    """Return left / right of a reading, its interval, and what that says of R^(left) <= R^(right) as printed."""
    value, low, high = ratio(cell, reading, level)
    bound = cell["kind"] == "lower bounds"
    if low > 1 + ROUNDING:
        verdict = "fails"
    elif (high <= 1 + ROUNDING and not bound) or cell["constants"][reading] <= 1 + ROUNDING:
        verdict = "holds"
    else:
        verdict = "open"
    return {"ratio": value, "low": low, "high": high, "lower_bound": bound, "verdict": verdict}


def _finite(name: str, values: tuple[tuple[float, ...], ...]) -> dict[str, Any]:
    """Return the complexities of a finite class, over all signs, relative to the linear one."""
    found = rademacher.finite_complexities(np.array(values))
    plain = rademacher.finite_complexities(np.maximum(np.array(values), 0)).linear
    return {
        "name": name,
        "linear": float(found.linear),
        "relu": float(plain / found.linear),
        "avr": float(found.avr / found.linear),
        "crelu": float(found.crelu / found.linear),
    }


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.crelu_rademacher_figure import rademacher_figure

    return rademacher_figure(report, dataset)


CRELU_RADEMACHER = Study(
    name="crelu-rademacher",
    title="Rademacher complexity of linear + CReLU + linear: both sides of Theorem 4.1",
    source="Shang et al. 2016, Theorem 4.1 and Appendix B",
    parameters=RademacherParameters,
    compute=_compute,
    figure=_figure,
)
