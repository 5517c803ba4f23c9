"""The model-RIP constant of random banks as k, M and l grow: bounds and exact value (Gilbert et al. 2017, eq. 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from cnninv_jax import filters as ensembles
from cnninv_jax import rip
from cnninv_jax.experiments.constant_figure import constant_figure
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, Table, progress_bar
from cnninv_jax.operators import conv_operator
from cnninv_jax.rip.constant import RipConstant

#: The numbers of one bank, in the order of the arrays.
NUMBERS = ("lower", "exact", "upper", "upper_gershgorin", "upper_weighted", "upper_frobenius", "upper_spectral")
#: Parameter each panel varies.
PANELS = ("k", "M", "ell")


@dataclasses.dataclass(frozen=True)
class ConstantParameters:
    """Sizes of the banks and the effort spent on each."""

    K: int = 12
    """Number of filters."""
    M: int = 32
    """Input channels, where they are not varied."""
    ell: int = 5
    """Filter length, where it is not varied."""
    n: int = 6
    """Shifts of a filter; the signal is D = n + ell - 1 long."""
    k: int = 2
    """Non-zeros, where they are not varied."""
    k_values: tuple[int, ...] = (1, 2, 3, 4)
    """k of the first panel."""
    M_values: tuple[int, ...] = (8, 32, 128, 512)
    """M of the second panel."""
    ell_values: tuple[int, ...] = (1, 3, 5, 9)
    """l of the third panel."""
    num_banks: int = 3
    """Gaussian banks per point; the figure shows their mean and range."""
    starts: int = 256
    """Starts of the truncated power method."""
    exact_limit: int = 2_000_000
    """Supports up to which the exact value is enumerated."""


def compute(parameters: ConstantParameters, options: StudyOptions, folder: Path) -> Findings:
    """Compute the three numbers of every bank, for M_k and for sums of two members."""
    del folder
    points = list(_points(parameters))
    dtype = np.dtype(options.precision)
    if dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        with jax.enable_x64(True):
            return compute(parameters, options, Path())
    rows = []
    with progress_bar("model-RIP constants", len(points) * parameters.num_banks * 2, quiet=options.quiet) as bar:
        for panel, value, k, channels, length in points:
            for members in (1, 2):
                for bank in range(parameters.num_banks):
                    key = jax.random.fold_in(jax.random.key(options.seed), bank)
                    result = _constant(key, parameters, k, channels, length, members, dtype)
                    rows.append({"panel": panel, "value": value, "k": k, "M": channels, "ell": length,
                                 "members": members, "bank": bank, "supports": result.supports,
                                 "evaluations": result.evaluations,
                                 **{name: _number(getattr(result, name)) for name in NUMBERS}})  # fmt: skip
                    note = f"{panel} = {value}, members = {members}: at least {rows[-1]['lower']:.3g}"
                    bar.advance(1, note=note)
    return Findings({"rows": rows}, tuple(_table(panel, rows) for panel in PANELS))


def _points(parameters: ConstantParameters) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield panel, value, k, M, l; refuse sizes that do not fit before anything is computed."""
    p = parameters
    for name in ("K", "M", "ell", "n", "k", "num_banks", "starts"):
        if getattr(p, name) < 1:
            raise ValueError(f"expected {name} to be at least 1, got {getattr(p, name)}")
    if p.exact_limit < 0:
        raise ValueError(f"expected exact_limit not to be negative, got {p.exact_limit}")
    for name in ("k_values", "M_values", "ell_values"):
        if not getattr(p, name) or min(getattr(p, name)) < 1:
            raise ValueError(f"expected {name} to be positive integers, at least one, got {getattr(p, name)}")
    for k in (p.k, *p.k_values):
        if k > p.K:
            raise ValueError(f"expected k <= K = {p.K}, got {k}; lower k or raise --K")
    yield from (("k", k, k, p.M, p.ell) for k in p.k_values)
    yield from (("M", channels, p.k, channels, p.ell) for channels in p.M_values)
    yield from (("ell", length, p.k, p.M, length) for length in p.ell_values)


def _constant(
    key: jax.Array, parameters: ConstantParameters, k: int, channels: int, length: int, members: int, dtype: np.dtype
) -> RipConstant:
    filter_key, search_key = jax.random.split(key)
    bank = ensembles.gaussian(filter_key, parameters.K, channels, length, dtype=dtype)
    op = conv_operator(bank, parameters.n + length - 1)
    return rip.constant(op, k, members=members, exact_limit=parameters.exact_limit, key=search_key,
                        starts=parameters.starts, num_random=0)  # fmt: skip


def _number(value: jax.Array) -> float | None:
    """Return a number, or None for one that was not computed: JSON has no NaN."""
    number = float(value)
    return None if math.isnan(number) else number


def _table(panel: str, rows: list[dict]) -> Table:
    """Return means over banks, a row per value and model."""
    made = []
    for members in (1, 2):
        for value in sorted({row["value"] for row in rows if row["panel"] == panel}):
            group = [r for r in rows if (r["panel"], r["value"], r["members"]) == (panel, value, members)]
            means = [_mean([row[name] for row in group]) for name in NUMBERS]
            name = "delta_k" if members == 1 else "delta_2k"
            made.append((f"{name}, {panel} = {value}", *means, f"{group[0]['supports']:,}"))
    notes = (
        "Means over banks. lower: proved by a support; upper: holds for all supports; exact: by enumeration, "
        "- where there are too many supports.",
        "delta_2k is the constant of M_k^2, sums of two members. A constant of 1 or more says nothing.",
    )
    return Table(f"Model-RIP constant against {panel}", ("bank", *NUMBERS, "supports"), tuple(made), notes)


def _mean(numbers: list[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{np.mean(known):.4g}" if len(known) == len(numbers) else "-"


CONSTANT = Study(
    name="gilbert-constant",
    title="Model-RIP constant of random banks: lower bound, exact value, upper bound",
    source="Gilbert et al. 2017, eq. 1",
    parameters=ConstantParameters,
    compute=compute,
    figure=constant_figure,
)
