"""Tables of `dcn-train`: who learns faster, who ends lower, and what laws and deviations of filters do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cnninv_jax.experiments.classification import STAND_IN
from cnninv_jax.experiments.dcn_statistics import combination
from cnninv_jax.experiments.studies import Table

#: Shares of the pictures' variance that a decoder explains: the steps it takes to each say how fast it learns.
SHARES = (0.5, 0.8, 0.9)


def steps_to(curve: list[float], num_steps: int, variance: float, share: float, window: int = 5) -> float:
    """Return the step at which a smoothed loss first explains a share of the variance; infinite if it never does.

    Args:
        curve: losses over equal stretches of steps.
        num_steps: all of them.
        variance: of a pixel.
        share: of the variance.
        window: stretches that are averaged.
    """
    values = np.asarray(curve, float)
    if not len(values):
        return math.inf
    # A running mean over the last stretches: only what was seen by then.
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    smooth = (sums[ends] - sums[starts]) / (ends - starts)
    reached = np.flatnonzero(smooth <= (1 - share) * variance)
    return float(math.ceil((reached[0] + 1) / len(values) * num_steps)) if len(reached) else math.inf


def summarised(content: Mapping[str, Any], p: Any) -> list[dict[str, Any]]:
    """Return random against learned, network by network and depth by depth, paired by seed.

    ``mean_loss`` is the geometric mean of the training loss over all steps, the area under its curve on a logarithmic
    scale: lower means faster. ``earlier`` counts the seeds in which random came first to half of the variance.
    """
    found = []
    main = [case for case in content["cases"].values() if case["group"] == "main"]
    for network, depth in dict.fromkeys((case["network"], case["depth"]) for case in main):
        both = {
            kind: sorted(
                (c for c in main if (c["network"], c["depth"], c["kind"]) == (network, depth, kind)),
                key=lambda case: case["seed"],
            )
            for kind in ("random", "learned")
        }
        entry: dict[str, Any] = {"network": network, "depth": depth}
        for measure in ("mean_loss", "test_loss", "train_loss"):
            pairs = zip(both["random"], both["learned"], strict=True)
            # Of logarithms: a ratio, whose seeds have one sign however large the losses are.
            ratios = [math.log(random[measure] / learned[measure]) for random, learned in pairs]
            value, low, high = (math.exp(x) for x in combination([1.0], [np.array(ratios)]))
            entry[measure] = {"ratio": value, "low": low, "high": high, "each": [math.exp(ratio) for ratio in ratios]}
        for kind, cases in both.items():
            entry[kind] = {
                **{name: float(np.mean([c[name] for c in cases])) for name in ("mean_loss", "test_loss", "train_loss")},
                "steps_to": {
                    f"{share:g}": [steps_to(c["curve"], p.num_steps, content["variance"], share) for c in cases]
                    for share in SHARES
                },
            }
        to_half = [entry[kind]["steps_to"][f"{SHARES[0]:g}"] for kind in ("random", "learned")]
        entry["earlier"] = sum(random < learned for random, learned in zip(*to_half, strict=True))
        found.append(entry)
    return found


def tables(content: Mapping[str, Any], p: Any) -> tuple[Table, ...]:
    """Return the tables of a study.

    Args:
        content: its findings.
        p: `TrainParameters`.
    """
    found = [_speed(content, p), _losses(content, p)]
    others = [case for case in content["cases"].values() if case["group"] != "main"]
    return tuple([*found, _laws(content, others)] if others else found)


def _notes(content: Mapping[str, Any], p: Any) -> tuple[str, ...]:
    held = content["data"]
    notes = [
        f"{held['train']:,} training and {held['test']:,} test pictures of 32 x 32 ({held['source']}), RGB in [0, 1]; "
        f"a pixel's variance is {content['variance']:.4f}. {p.num_steps} steps of {p.batch_size}, {p.num_seeds} seeds."
    ]
    if p.scale == "unit":
        notes.append("Features are divided by their root mean square, so that the size of weights does not decide.")
    if content["encoders"]:
        accuracies = [100 * entry["accuracy"] for entry in content["encoders"].values()]
        notes.append(
            f"Learned encoders: classifiers of these pictures, {min(accuracies):.0f} to {max(accuracies):.0f}% right "
            "on the test set; the paper's learned on ImageNet (--weights)."
        )
    notes += content["notes"]
    if held["name"] == "embedded":
        notes.append(STAND_IN)
    failed = [case["message"] for case in content["cases"].values() if case["status"] != "finished"]
    return (*notes, *failed)


def _speed(content: Mapping[str, Any], p: Any) -> Table:
    rows = []
    for entry in content["comparisons"]:
        area = entry["mean_loss"]
        verdict = _verdict(area, "random is faster", "learned is faster")
        shares = [
            " | ".join(_steps(entry[kind]["steps_to"][f"{share:g}"]) for kind in ("random", "learned"))
            for share in SHARES
        ]
        earlier = f"{entry['earlier']} of {len(area['each'])}"
        rows.append((_label(entry), *shares, earlier, _ratio(area), verdict))
    headings = tuple(f"steps to {share:.0%} of the variance: random | learned" for share in SHARES)
    return Table(
        "Random DCN, Figs. 2 and 10a: does a decoder learn faster above a random encoder?",
        ("network", *headings, "random first to 50%", "mean loss of all steps, random / learned", "so"),
        tuple(rows),
        (
            "Steps: median over seeds. The mean over steps is geometric; 95% intervals are of the geometric mean over "
            "seeds (paired).",
            *_notes(content, p),
        ),
    )


def _losses(content: Mapping[str, Any], p: Any) -> Table:
    rows = [
        (
            _label(entry),
            *(
                f"{entry[kind][name]:.5f}"
                for name in ("train_loss", "test_loss")
                for kind in ("random", "learned")
            ),
            _ratio(entry["test_loss"]),
            _verdict(entry["test_loss"], "random is lower", "learned is lower"),
        )
        for entry in content["comparisons"]
    ]  # fmt: skip
    return Table(
        "Random DCN, Figs. 3 and 11: mean squared error of a pixel when training ended",
        ("network", "training, random", "training, learned", "test, random", "test, learned", "random / learned", "so"),
        tuple(rows),
        ("The paper: random VGG yields much less loss than the pre-trained one, the more so in deeper layers.",),
    )  # fmt: skip


def _laws(content: Mapping[str, Any], others: list[Mapping[str, Any]]) -> Table:
    network, depth = others[0]["network"], others[0]["depth"]
    base = [
        case for case in content["cases"].values()
        if (case["group"], case["network"], case["depth"], case["kind"], case["seed"])
        == ("main", network, depth, "random", 0)
    ]  # fmt: skip
    rows = [
        (
            case["encoder"] + (f", deviation {case['deviation']:g}" if case["encoder"] == "gaussian" else ""),
            f"{case['divided_by']:.3g}",
            f"{case['mean_loss']:.5f}",
            f"{case['train_loss']:.5f}",
            f"{case['test_loss']:.5f}",
        )
        for case in [*base, *others]
    ]
    return Table(
        f"Random DCN, Figs. 10b, 10c and 13: laws of random filters, {network} CD{depth}, one seed",
        ("filters", "features divided by", "mean loss of all steps", "training", "test"),
        tuple(rows),
        (
            "Without biases a ReLU network is positively homogeneous: another deviation multiplies its features by a "
            "number. Rows divided by 1 are of features as they are.",
        ),
    )


def _label(entry: Mapping[str, Any]) -> str:
    names = {"vgg16": "VGG-16", "alexnet": "AlexNet"}
    return f"{names.get(entry['network'], entry['network'])}, CD{entry['depth']}"


def _steps(values: list[float]) -> str:
    middle = float(np.median([math.inf if value is None else value for value in values]))
    return f"{middle:.0f}" if math.isfinite(middle) else "never"


def _ratio(found: Mapping[str, Any]) -> str:
    if math.isnan(found["low"]):
        return f"{found['ratio']:.3f}"
    return f"{found['ratio']:.3f} ({found['low']:.3f} .. {found['high']:.3f})"


def _verdict(found: Mapping[str, Any], below: str, above: str) -> str:
    if math.isnan(found["low"]):
        return f"{below if found['ratio'] < 1 else above}, one seed"
    return below if found["high"] < 1 else above if found["low"] > 1 else "undecided"


__all__ = ["SHARES", "steps_to", "summarised", "tables"]
