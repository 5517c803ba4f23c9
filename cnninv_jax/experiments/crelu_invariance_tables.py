"""Invariance scores of many networks: means with intervals over networks and pictures, differences, and the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnninv_jax.experiments.crelu_invariance_scores import COUNTS, KINDS, READINGS, STATISTICS, Layout, Scored
from cnninv_jax.experiments.studies import Table
from cnninv_jax.montecarlo import mean_interval

if TYPE_CHECKING:
    import xarray as xr

#: Networks in words.
KINDS_OF_NETWORK = {"given": "given filters", "relu": "random ReLU", "crelu": "random CReLU"}
#: The reading that belongs to a network by appendix D: what a ReLU hands on; of a CReLU's two phases the larger.
OWN = {"given": "relu", "relu": "relu", "crelu": "crelu"}
#: Readings in short.
WORDS = {"relu": "[h]+", "crelu": "|h|"}
#: Shares of the filters that lie below.
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def combined(parts: Sequence[tuple[float, np.ndarray]]) -> dict[str, float]:
    """Return sum_j c_j mean_j over networks, with its 95% interval over networks and pictures.

    The variances over pictures (sum of squared influences of the means) and over networks are added: what a network
    makes of a picture in its own way is then counted twice, so that the interval is rather too wide than too narrow.
    Student's, with degrees of freedom after Welch and Satterthwaite.

    Args:
        parts: c_j, and for the networks of a kind the value and the pictures' influences, [networks, 1 + pictures].
    """
    total = sum((c * rows.mean(axis=0) for c, rows in parts), np.zeros(parts[0][1].shape[1]))
    value, influence = float(total[0]), total[1:]
    count = len(influence)
    variances = [(count / (count - 1) * float(np.sum(influence**2)), count - 1)]
    variances += [
        (c * c * float(rows[:, 0].var(ddof=1)) / len(rows), len(rows) - 1) for c, rows in parts if len(rows) > 1
    ]
    variance = sum(part for part, _ in variances)
    if math.isnan(variance):
        return {"value": value, "low": math.nan, "high": math.nan}
    if variance == 0:
        return {"value": value, "low": value, "high": value}
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in variances)
    low, high = mean_interval(value, variance * (freedom + 1), freedom + 1)
    return {"value": value, "low": float(low), "high": float(high)}


def content_of(found: Mapping[str, Sequence[Scored]], layout: Layout) -> dict[str, Any]:
    """Return everything that is said of the networks, by kind of network, output and reading."""
    stacked = {kind: np.stack([one.statistics for one in held]) for kind, held in found.items()}
    ends = np.cumsum((0, *layout.filters))
    networks = {}
    for kind, held in found.items():
        repeated, counts = (np.stack([getattr(one, name) for one in held]) for name in ("repeated", "counts"))
        outputs = {}
        for at, name in enumerate(layout.outputs):
            readings = {}
            for row, reading in enumerate(READINGS):
                each = np.stack([one.each[row, ends[at] : ends[at + 1]] for one in held])
                scores = each[np.isfinite(each)]
                readings[reading] = {
                    "transformations": {
                        way: {
                            **{
                                statistic: combined([(1.0, stacked[kind][:, row, at, place, number])])
                                for number, statistic in enumerate(STATISTICS)
                            },
                            "firing again": float(repeated[:, row, at, place].mean()),
                        }
                        for place, way in enumerate(KINDS)
                    },
                    "filters": dict(zip(COUNTS, counts[:, row, at].mean(axis=0).tolist(), strict=True)),
                    "quantiles": np.quantile(scores, SHARES).tolist() if scores.size else [math.nan] * len(SHARES),
                    "step": combined([(1.0, stacked[kind][:, row, at, 0, 0] - stacked[kind][:, row, at - 1, 0, 0])])
                    if at
                    else None,
                }
            both = stacked[kind][:, 1, at, 0, 0] - stacked[kind][:, 0, at, 0, 0]
            outputs[name] = {"readings": readings, "crelu minus relu": combined([(1.0, both)])}
        networks[kind] = {"networks": len(held), "outputs": outputs}
    # Each kind by the reading that belongs to it, and by the same one: what is left is not the reading's doing.
    against = {}
    for kind in found:
        if kind == "relu":
            continue
        for words, first, second in _pairs(kind):
            held = (
                stacked[kind][:, READINGS.index(first), :, 0, 0],
                stacked["relu"][:, READINGS.index(second), :, 0, 0],
            )
            against[f"{kind}: {words}"] = {
                name: combined([(1.0, held[0][:, at]), (-1.0, held[1][:, at])])
                for at, name in enumerate(layout.outputs)
            }
    return {"networks": networks, "minus random ReLU": against}


def _pairs(kind: str) -> list[tuple[str, str, str]]:
    """Return in which readings a kind of network is compared with random ReLU networks: words, its own, theirs."""
    same = [(f"both {WORDS[reading]}", reading, reading) for reading in READINGS]
    own = (OWN[kind], OWN["relu"])
    return same if own[0] == own[1] else [(f"{WORDS[own[0]]} against {WORDS[own[1]]}", *own), *same]


def dataset_of(found: Mapping[str, Sequence[Scored]], layout: Layout) -> xr.Dataset:
    """Return mean scores by network, and every filter's."""
    import xarray as xr

    names = [f"{kind} {number}" for kind, held in found.items() for number in range(len(held))]
    entries = [one for held in found.values() for one in held]
    means = np.stack([one.statistics[..., 0] for one in entries])
    owner = np.repeat(layout.outputs, layout.filters)
    note = "NaN for filters that fire less often than asked for"
    return xr.Dataset(
        {
            "mean": (
                ("network", "reading", "output", "transformation", "statistic"), means,
                {"long_name": "mean over filters", "units": "1"},
            ),
            "score": (
                ("network", "reading", "filter"), np.stack([one.each for one in entries]),
                {"long_name": f"score of every filter, mean over transformations; {note}", "units": "1"},
            ),
            "filter_output": (("filter",), owner),
        },
        {
            "network": names, "reading": list(READINGS), "output": list(layout.outputs),
            "transformation": list(KINDS), "statistic": list(STATISTICS),
        },
    )  # fmt: skip


def tables(content: Mapping[str, Any], p: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables: scores by layer, by transformation, what lies under them, and kinds of networks compared."""
    return (
        *(_scores(content, p, kind) for kind in content["networks"]),
        _comparison(content),
        _transformations(content, p),
        _filters(content),
    )


def title_of(content: Mapping[str, Any], kind: str) -> str:
    """Return a kind of network in words, and how many there are."""
    count = content["networks"][kind]["networks"]
    if kind == "given":
        return f"given ReLU network ({content['origin']})"
    return f"{count} {KINDS_OF_NETWORK[kind]} networks"


def _scores(content: Mapping[str, Any], p: Mapping[str, Any], kind: str) -> Table:
    rows = []
    for name, held in content["networks"][kind]["outputs"].items():
        cells = []
        for reading in READINGS:
            one = held["readings"][reading]
            every = one["transformations"]["all"]
            cells += [_shown(every["score"]), _shown(every["local rate"], 3), _shown(one["step"], sign=True)]
        rows.append((name, *cells, _shown(held["crelu minus relu"], sign=True)))
    columns = ("output",)
    for word in WORDS.values():
        columns += (f"{word}: S = L/G", f"{word}: L", f"{word}: S, change from the row above")
    first = next(iter(content["networks"]))
    notes = (_setting(content, p),) if kind == first else ()
    if kind == first:
        notes += (
            "95% intervals of the mean over filters, one row at a time (no correction for several), over "
            "networks and pictures with thresholds held; differences are of the same networks and pictures.",
            "The paper does not say whether Fig. 4 shows L or S. S is the mean over the filters that reach the global "
            f"rate {p['rate']:g}, L over all that fire (the last table counts them). A pooled map fires where the "
            "largest response of a region does.",
            *(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in content["notes"]),
        )
    return Table(
        f"Invariance scores, {title_of(content, kind)}", (*columns, "S of |h| minus S of [h]+"), tuple(rows), notes
    )  # fmt: skip


def _setting(content: Mapping[str, Any], p: Mapping[str, Any]) -> str:
    unknown = {name: share for name, share in content["unknown"].items() if share}
    text = (
        f"{len(content['pictures'])} pictures ({content['source']}) of {p['picture_size']} x {p['picture_size']}, "
        f"stimuli of {p['size']} x {p['size']}; thresholds at a firing rate of {p['rate']:g}; locations: "
        f"{p['locations']}."
    )
    if not unknown:
        return f"{text} No stimulus reaches over its picture's border."
    listed = ", ".join(f"{100 * share:.1f}% of {name}" for name, share in unknown.items())
    return f"{text} Pixels beside the picture, where its border is repeated: {listed}."


def _comparison(content: Mapping[str, Any]) -> Table:
    against = content["minus random ReLU"]
    rows = tuple(
        (name, *(_shown(seen[name], sign=True) for seen in against.values())) for name in content["outputs"]
    )  # fmt: skip
    higher = {
        kind: (sum(one["low"] > 0 for one in seen.values()), sum(one["high"] < 0 for one in seen.values()))
        for kind, seen in against.items()
    }
    counts = ", ".join(f"{up} and {down} ({kind})" for kind, (up, down) in higher.items())
    notes = (
        f"Above and below random ReLU networks, beyond the interval of one row, in so many of {len(rows)} outputs: "
        f"{counts}.",
        "Appendix D reads [h]+ of a ReLU network, and |h|, the larger of both phases, of a CReLU network. With both "
        "networks read in one way, what is left is the networks' doing and not the reading's.",
        "The same pictures, so that differences are free of them as far as networks agree. The paper compares trained "
        "networks. S does not ask what a filter is for: one that answers to broad areas of one colour scores high.",
    )
    columns = [f"{KINDS_OF_NETWORK[kind.split(':')[0]]}:{kind.split(':')[1]}" for kind in against]
    return Table("S minus that of random ReLU networks", ("output", *columns), rows, notes)


def _transformations(content: Mapping[str, Any], p: Mapping[str, Any]) -> Table:
    moved = f"shifts by {p['shift']}" if p["translations"] == "shifts" else "corner crops"
    rows = []
    for kind, held in content["networks"].items():
        for name, output in held["outputs"].items():
            cells = [
                _shown(output["readings"][reading]["transformations"][way]["score"])
                for reading in READINGS
                for way in KINDS[1:]
            ]
            rows.append((f"{KINDS_OF_NETWORK[kind]}: {name}", *cells))
    words = [f"{word}: {way}" for word in WORDS.values() for way in ("flip", "rotation by 15 degrees", moved)]
    return Table("S by transformation", ("output", *words), tuple(rows))


def _filters(content: Mapping[str, Any]) -> Table:
    rows = []
    for kind, held in content["networks"].items():
        for name, output in held["outputs"].items():
            one = output["readings"][OWN[kind]]
            low, _, middle, _, high = (math.nan if v is None else v for v in one["quantiles"])
            number = content["filters"][list(content["outputs"]).index(name)]
            counted = [f"{one['filters'][count]:.3g} of {number}" for count in COUNTS]
            again = [f"{_number(one['transformations'][way]['firing again']):.2f}" for way in KINDS[1:]]
            rows.append(
                (f"{KINDS_OF_NETWORK[kind]}: {name}", f"{middle:.1f} ({low:.1f}-{high:.1f})", *counted, *again)
            )  # fmt: skip
    columns = (
        "output", "filters' S: median (5%-95%)", "never fire", "fire in one picture", "threshold 0", "not finite",
        "flip", "rotation", "translation",
    )  # fmt: skip
    notes = (
        "Each network by the reading that belongs to it; numbers of filters, mean over networks. Threshold 0: "
        "filters that are above zero less often than they are to fire; with those that never fire, and those with "
        "responses that are not finite, they are left out of S. Where most fire in one picture only, intervals are too "
        "narrow: what other pictures would do cannot be told from one.",
        "Last columns: firings for transformed stimuli divided by those for originals, mean over filters; a rotated "
        "picture is interpolated, so that fine detail fades and thresholds are reached less often.",
    )
    return Table("Filters under the means", columns, tuple(rows), notes)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _shown(found: Mapping[str, float | None] | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return ``12.31 ± 0.45``, or - where there is nothing."""
    if found is None or math.isnan(_number(found["value"])):
        return "-"
    value = _number(found["value"])
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    half = (_number(found["high"]) - _number(found["low"])) / 2
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


__all__ = ["KINDS_OF_NETWORK", "OWN", "SHARES", "combined", "content_of", "dataset_of", "tables", "title_of"]
