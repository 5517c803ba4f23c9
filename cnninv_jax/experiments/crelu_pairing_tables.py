"""The tables of the pairing study: mu against random banks and new signs, outgoing weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnninv_jax.experiments.studies import Table

#: Level of a whole table; each layer's p-value is compared with this divided by the number of layers.
LEVEL = 0.05


def tables(content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables that people read."""
    known = content["source"] is not None
    return (_random_table(content), _sign_table(content), *((_outgoing_table(content),) if known else ()))


def _random_table(content: Mapping[str, Any]) -> Table:
    layers = content["layers"]
    rows = []
    for layer in layers:
        random = layer["random"]
        half = (random["mean_high"] - random["mean_low"]) / 2
        rows.append((
            layer["layer"], _size(layer), f"{layer['mean']:.4f} ± {layer['standard_deviation']:.4f}",
            f"{random['mean']:.4f} ± {half:.4f}", f"{random['p_lower']:.2g}",
            f"{random['cliffs_delta']:+.2f} ({random['cliffs_delta_random']:.2f})",
            f"{random['distance']:.2f} ({random['distance_random_high']:.2f})", f"{random['p_distance']:.2g}",
            f"{layer['below_percent']:.1f}",
        ))  # fmt: skip
    count, level = content["num_draws"], LEVEL / len(layers)
    notes = [
        "mu: every filter's lowest cosine with another one; mean ± deviation over the filters of the bank. Random: "
        f"{count} banks of independent N(0, 1) filters, mean of their means with its 95% interval.",
        "p lower: how often a random bank's mean is as low, (b + 1) / (n + 1); one bank is one observation, since the "
        "mu of one bank share filters. p of the distance: of Kolmogorov and Smirnov's, any difference, ranked in the "
        "same way. Both are exact if the filters were drawn so; they say that they were not, not why.",
        "Cliff's delta: P(mu < random mu) - P(mu > random mu), +1 where all are lower; in brackets what 95% of random "
        "banks stay below (absolute value), likewise for the distance. Below 1%: % of filters below the lowest 1% of "
        "random mu.",
        _said(layers, "random", "random", level, count),
    ]
    left_out = {layer["layer"]: layer["left_out"] for layer in layers if layer["left_out"]}
    if left_out:
        notes.append(
            f"Filters of zeros, left out: {', '.join(f'{number} in {name}' for name, number in left_out.items())}."
        )
    if any(layer["groups"] > 1 for layer in layers):
        notes.append(
            "Filters of different groups see different channels: they are compared within their group, and across "
            "where a layer is named as stored, which ignores the groups."
        )
    if content["source"] is None:
        planted = content["planted"]
        notes += [
            "kmeans: filters learned from patches of pictures by spherical k-means, no network; one-sided: a patch "
            "belongs to the filter of largest <w, x>, two-sided: of largest |<w, x>|. planted: Gaussian filters, "
            f"{100 * planted['share']:g}% of them in pairs of cosine {planted['cosine']:g} on average, to show what "
            "the tests see.",
            "A network of your own, its outgoing weights (Table 6) too: --weights.",
        ]
    notes += [f"{note[0].upper()}{note[1:]}." for note in content["notes"]]
    columns = (
        "layer", "filters", "mean mu ± sd", "random: mean ± 95%", "p lower", "Cliff's delta (95%)",
        "KS distance (95%)", "p distance", "below 1% (%)",
    )  # fmt: skip
    where = "learned from patches, and planted" if content["source"] is None else content["source"]
    return Table(f"Pairing filters beside random ones: {where}", columns, tuple(rows), tuple(notes))


def _said(layers: Sequence[Mapping[str, Any]], hypothesis: str, words: str, level: float, count: int) -> str:
    smallest = 1 / (count + 1)
    if smallest > level:
        return (
            f"{len(layers)} layers at the level {LEVEL} together ask for p below {level:.2g}; {count} draws give "
            f"{smallest:.2g} at best: more --num-draws."
        )
    lower = [layer["layer"] for layer in layers if layer[hypothesis]["p_lower"] <= level]
    return (
        f"At the level {LEVEL} for all {len(layers)} together (p at most {level:.2g}), the mean is lower than {words} "
        + (f"in {len(lower)}: {', '.join(lower)}." if lower else "in none.")
    )


def _sign_table(content: Mapping[str, Any]) -> Table:
    layers = content["layers"]
    rows = []
    for layer in layers:
        signs = layer["signs"]
        half = (signs["mean_high"] - signs["mean_low"]) / 2
        rows.append((
            layer["layer"], f"{layer['mean']:.4f}", f"{signs['mean']:.4f} ± {half:.4f}", f"{signs['p_lower']:.2g}",
            f"{signs['cliffs_delta']:+.2f} ({signs['cliffs_delta_random']:.2f})",
        ))  # fmt: skip
    level, count = LEVEL / len(layers), content["num_draws"]
    notes = (
        f"New signs: {count} times the same filters, each times -1 or 1 at random, which keeps every "
        "|cosine|. Filters that are smooth, or few in kind, have low cosines without coming in pairs of opposite "
        "phase; here a mean below random says that filters alike in shape are opposite in phase more often than by "
        "chance. p is exact if no sign is favoured.",
        _said(layers, "signs", "with new signs", level, count),
    )
    columns = ("layer", "mean mu", "new signs: mean ± 95%", "p lower", "Cliff's delta (95%)")
    return Table("Opposite in phase, or only alike: the same filters with new signs", columns, tuple(rows), notes)


def _outgoing_table(content: Mapping[str, Any]) -> Table:
    rows, kinds = [], set()
    for layer in content["layers"]:
        found = layer["outgoing"]
        if found is None:
            rows.append((layer["layer"], layer["no_outgoing"], *["-"] * 6))
            continue
        kinds.add(found["kind"])
        cells = []
        for name in ("pair", "non_pair"):
            one = found[name]
            cells += [
                f"{one['mean_absolute']:.3f} ± {one['standard_deviation_absolute']:.3f}" if one["number"] else "-",
                f"{one['mean']:+.3f} ± {one['standard_deviation']:.3f}" if one["number"] else "-",
                f"{one['number']:,.0f}",
            ]
        rows.append((layer["layer"], found["kind"], *cells))
    notes = [
        "Cosines between the next layer's weights on two channels, mean ± deviation over pairs; the paper says neither "
        "whether it takes absolute values nor which channels an unmatched pair is made of; here it is any two that are "
        "no pair, ordered."
    ]
    if "pairing filters" in kinds:
        notes.append(
            "pairing filters: a network without CReLU has no phases; compared are every filter's channel and that of "
            "its pairing filter, which the paper does not do. Its Table 6 is about CReLU networks only."
        )
    columns = ("layer", "of", "pairs, |.|", "pairs", "number", "others, |.|", "others", "number")
    return Table("Outgoing weights of pairs (the paper's Table 6)", columns, tuple(rows), tuple(notes))


def _size(layer: Mapping[str, Any]) -> str:
    groups = f", {layer['groups']} groups" if layer["groups"] > 1 else ""
    return " x ".join(map(str, layer["shape"])) + groups


__all__ = ["LEVEL", "tables"]
