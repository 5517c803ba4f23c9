"""The tables of crelu-ratio: Theorem C.1, what Table S1's 0.99 agrees with, layers of networks, Theorem A.5."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from cnninv_jax.experiments.studies import Table

#: Mean ratios as printed (Shang et al. 2016, Table S1): learned filters on CIFAR-10 and CIFAR-100, then random ones.
PRINTED: Mapping[str, tuple[float, float, float]] = {"conv2": (0.92, 0.93, 0.99), "conv5": (0.96, 0.96, 0.99)}
#: The printed number for random filters, and which means are printed so.
RANDOM = 0.99
ROUNDED = (0.985, 0.995)
#: Readings of appendix C for conv2 and conv5: in words, and the (D, columns) of either layer.
READINGS: tuple[tuple[str, tuple[int, int], tuple[int, int]], ...] = (
    ("C.1; D and K as in the text", (1200, 48), (2400, 96)),
    ("C.1; D of Table S3, K columns", (2400, 48), (4800, 96)),
    ("C.1; D as in the text, 2 K columns", (1200, 96), (2400, 192)),
    ("C.1; D of Table S3, 2 K columns", (2400, 96), (4800, 192)),
)


def tables(p: Mapping[str, Any], content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return what people read of the findings."""
    return (_theorem_table(content), _readings_table(content), _layers_table(p, content), _bounds_table(content))


def readings(content: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any] | None]]]:
    """Yield every reading of Table S1's random filters: its name; columns, mean, low and high for conv2 and conv5."""
    exact = {(entry["D"], entry["K"]): entry["lost"]["exact"] for entry in content["theorem"]}
    for title, *sizes in READINGS:
        yield title, [_number(size[1], exact[size]) for size in sizes]
    held = {(entry["layer"], entry["M"]): entry for entry in content["regions"]}
    by_layer = {name: sorted(m for layer, m in held if layer == name) for name in PRINTED}
    for title, leaf, place in (
        ("K columns with a convolution's zeros, shifts drawn; white x, M of Table S3", "unselected", 1),
        ("Algorithm 2; white x, M as in the text", "ratio", 0),
        ("Algorithm 2; white x, M of Table S3", "ratio", 1),
    ):
        cells: list[Mapping[str, Any] | None] = []
        for name in PRINTED:
            entry = held[name, by_layer[name][place]]
            cells.append({"columns": entry["K"] if leaf == "unselected" else entry["columns"]["mean"], **entry[leaf]})
        yield title, cells
    features = {entry["layer"]: entry for entry in content["features"] if _is_half(entry)}
    for title, leaf in (
        ("K columns, shifts drawn; features of random layers, M of Table S3", "unselected"),
        ("Algorithm 2; features of random layers, M of Table S3", "ratio"),
    ):
        cells = []
        for name in PRINTED:
            own = features[name]["kinds"]["random"] if name in features else None
            columns = (
                None if own is None else features[name]["shape"][0] if leaf == "unselected" else own["columns"]["mean"]
            )
            cells.append(None if own is None else {"columns": columns, **own[leaf]})
        if any(cell is not None for cell in cells):
            yield title, cells


def _is_half(entry: Mapping[str, Any]) -> bool:
    """Whether a layer is one of the random network of Table S3."""
    return set(entry["kinds"]) == {"random"}


def _number(columns: int, value: float) -> Mapping[str, Any]:
    return {"columns": columns, "mean": value, "low": value, "high": value}


def rounds(cell: Mapping[str, Any]) -> str:
    """Say whether a mean is printed as 0.99: agrees, differs, or undecided where its interval reaches over an end."""
    inside = [ROUNDED[0] <= cell[end] < ROUNDED[1] for end in ("low", "high")]
    if all(inside):
        return "agrees"
    apart = cell["high"] < ROUNDED[0] or cell["low"] >= ROUNDED[1]
    return "differs" if apart else "undecided"


def with_interval(cell: Mapping[str, float], digits: int = 4, *, sign: bool = False) -> str:
    """Return ``mean (low to high)``."""
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    middle = form.format(cell["mean"])
    if not (math.isfinite(cell["low"]) and math.isfinite(cell["high"])):
        return middle
    return f"{middle} ({form.format(cell['low'])} to {form.format(cell['high'])})"


def _theorem_table(content: Mapping[str, Any]) -> Table:
    rows = []
    for entry in content["theorem"]:
        cells = []
        for part in ("kept", "lost"):
            held = entry[part]
            drawn = with_interval(held["projection"], 5) if "projection" in held else "-"
            cells += [f"{held['printed']:.5f}", f"{held['exact']:.5f}", with_interval(held["direction"], 5), drawn]
        rows.append((f"D = {entry['D']}, K = {entry['K']}", *cells))
    first = content["theorem"][0]
    kept = first["kept"]
    names = ("as printed", "exact", "uniform direction", "Algorithm 1")
    lost = sum(entry.get("not_converged", 0) for entry in content["theorem"])
    return Table(
        "Theorem C.1: random subspaces of dimension K in D dimensions",
        ("size", *(f"|x_s|/|x|: {name}" for name in names), *(f"|x - x'|/|x|: {name}" for name in names)),
        tuple(rows),
        (
            f"In brackets 95% intervals; {kept['direction']['count']:,} uniform directions, one set for all sizes, and "
            f"{kept['projection']['count']:,} projections by Algorithm 1 at D = {first['D']}"
            f"{f' ({lost} projections stopped before the tolerance)' if lost else ''}.",
            "The theorem prints E|x_s|/|x| = sqrt(K/D), which is the root of the mean square and bounds the mean from "
            f"above (Jensen): {100 * (kept['printed'] / kept['exact'] - 1):.2f}% too large at D = {first['D']}, "
            f"K = {first['K']}. For |x - x'|/|x| the same step costs "
            f"{100 * (first['lost']['printed'] / first['lost']['exact'] - 1):.4f}%.",
        ),
    )


def _readings_table(content: Mapping[str, Any]) -> Table:
    rows = []
    for title, cells in readings(content):
        shown = []
        for cell in cells:
            if cell is None:
                shown += ["-", "-"]
                continue
            columns = cell["columns"]
            simulated = cell["low"] != cell["high"]
            shown += [
                f"{columns:.1f}" if isinstance(columns, float) else str(columns),
                with_interval(cell) if simulated else f"{cell['mean']:.5f}",
            ]
        verdicts = {rounds(cell) for cell in cells if cell is not None}
        rows.append((title, *shown, verdicts.pop() if len(verdicts) == 1 else "undecided"))
    kept = 100 * (1 - RANDOM**2)
    return Table(
        f"What the {RANDOM} +- 0.00005 of Table S1 for random filters agrees with",
        ("reading", *(f"{name}: {what}" for name in PRINTED for what in ("columns", "|x - x'|/|x|")), "verdict"),
        tuple(rows),
        (
            f"agrees: the mean, with its 95% interval, lies in [{ROUNDED[0]}, {ROUNDED[1]}), which is printed as "
            f"{RANDOM}; undecided: it reaches over an end, or the layers differ.",
            "The text has D = 48 (96) x 5 x 5, but a CReLU below doubles the channels: the kernels of conv2 and conv5 "
            "are 3 x 3 x 96 x 48 and 3 x 3 x 192 x 96 (Table S3), D = 2400 and 4800.",
            "Algorithm 2 has up to 2 K columns, and max-pooling picks the shifts that answer most: on white x both "
            "phases of nearly every filter fire. Features are never negative and alike from shift to shift, so that of "
            "many filters one phase alone fires, and picking gains less.",
            f"A ratio of {RANDOM} keeps 1 - {RANDOM}^2 = {kept:.1f}% of |x|^2; the text speaks of 1%.",
        ),
    )


def _layers_table(p: Mapping[str, Any], content: Mapping[str, Any]) -> Table:
    rows = []
    for entry in content["features"]:
        for kind, held in entry["kinds"].items():
            rows.append(
                (
                    f"{entry['layer']}, {kind} filters", with_interval(held["ratio"]),
                    f"{held['columns']['mean']:.0f} of {2 * entry['shape'][0]}", with_interval(held["unselected"]),
                    with_interval(held["whole_ratio"]), f"{held['whole_columns']['mean']:.2f}",
                )
            )  # fmt: skip
        if "learned_less_random" in entry:
            gaps = entry["learned_less_random"]
            rows.append(
                (
                    f"{entry['layer']}, learned less random", with_interval(gaps["ratio"], sign=True), "", "",
                    with_interval(gaps["whole_ratio"], sign=True), "",
                )
            )  # fmt: skip
    lost = sum(held["not_converged"] for entry in content["features"] for held in entry["kinds"].values())
    zero = sum(held["zero_patches"] for entry in content["features"] for held in entry["kinds"].values())
    patches = max(held["patches"] for entry in content["features"] for held in entry["kinds"].values())
    compared = sum("learned_less_random" in entry for entry in content["features"])
    notes = [
        f"{len(content['pictures'])} pictures ({p['pictures']}) at {p['picture_size']} x {p['picture_size']}, "
        f"{p['num_networks']} sets of random filters and {patches} patches a layer; 95% intervals over pictures, whose "
        "random filters are independent.",
        "one region: what one 3 x 3 pooling window sees; columns: filters and phases that win, of 2 K; K drawn shifts: "
        "a control without selection. whole input: all windows, step 2; columns: different winners per entry of x.",
        "Inputs: " + "; ".join(f"{entry['layer']} takes {entry['enters']}" for entry in content["features"]) + ".",
    ]
    if compared:
        notes.append(
            f"Learned less random: picture by picture, on the same patches; {2 * compared} intervals, each of 95% by "
            "itself. Below zero: learned filters span more of their inputs. A file's filters are held with its biases, "
            "random ones without."
        )
    printed = "; ".join(f"{name} {a} (CIFAR-10), {b} (CIFAR-100)" for name, (a, b, _) in PRINTED.items())
    notes.append(
        f"Table S1, one region, learned filters of networks trained with CReLU on CIFAR: {printed}; random: {RANDOM}."
    )
    if lost or zero:
        notes.append(
            f"{lost} least-squares solutions stopped before the tolerance; {zero} patches were zero and have no ratio."
        )
    notes += content["notes"]
    columns = ("layer, filters", "one region", "columns", "K drawn shifts", "whole input", "columns per entry")
    return Table("Algorithm 2 on what enters the layers: mean |x - x'| / |x|", columns, tuple(rows), tuple(notes))


def _bounds_table(content: Mapping[str, Any]) -> Table:
    rows = []
    for entry in content["bounds"]:
        violated = f"{entry['violated']:,} (< {100 * entry['violated_limit']:.2g}%)"
        rows.append(
            (
                entry["title"], f"{entry['draws']:,}", violated,
                with_interval(entry["ratio"]), *(_middle(entry[name]) for name in ("bound", "loose")),
                f"{entry['tightest']:.2f}",
                *(_percent(entry[name]) for name in ("exact", "wrong_sign", "step_fails", "informative")),
            )
        )  # fmt: skip
    satisfying = [entry for entry in content["bounds"] if entry["satisfies"]]
    undefined = sum(entry["undefined"] for entry in content["bounds"])
    notes = [
        "violated: |x - x'|/|x| above the bound by more than rounding; in brackets the upper 95% limit of its "
        f"probability (Clopper and Pearson). Over all {sum(entry['draws'] for entry in satisfying):,} draws with (S1): "
        f"{sum(entry['violated'] for entry in satisfying)}.",
        "bound, bound / ratio: medians; the latter, and the smallest one, over draws whose ratio is above 0.001, the "
        "others being exact. wrong sign: a filter that takes part answers with the sign opposite to its coefficient. "
        "step fails: the proof's |W_x^T x| <= |W~_x^T x| is wrong. bound < 1: it says more than x' = 0 would.",
    ]
    if undefined:
        notes.append(f"In {undefined} draws lambda~_max < lambda_min: the bound is the root of a negative number.")
    return Table(
        "Theorem A.5: |x - x'| / |x| <= sqrt((lambda~_max - lambda_min) / lambda_min)",
        ("signals", "draws", "violated", "mean ratio", "bound", "bound / ratio", "smallest", "exact", "wrong sign",
         "step fails", "bound < 1"),
        tuple(rows), tuple(notes),
    )  # fmt: skip


def _middle(cell: Mapping[str, float]) -> str:
    return f"{cell['value']:.3g} ({cell['low']:.3g} to {cell['high']:.3g})"


def _percent(cell: Mapping[str, float]) -> str:
    return "{:.1f}% ({:.1f} to {:.1f})".format(*(100 * cell[name] for name in ("value", "low", "high")))


__all__ = [
    "PRINTED", "RANDOM", "READINGS", "ROUNDED", "readings", "rounds", "tables", "with_interval",
]  # fmt: skip
