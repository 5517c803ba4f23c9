"""Tables of `crelu-table1`: errors and parameters beside the printed ones, and who beats whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from cnninv_jax.experiments.classification import STAND_IN
from cnninv_jax.experiments.dcn_statistics import combination
from cnninv_jax.experiments.studies import Table

Model: TypeAlias = Literal[
    "baseline", "double", "avr", "crelu", "half", "half-192", "vgg", "vgg-1", "vgg-1-3", "vgg-1-3-5"
]
#: The models in words, in the tables' order.
LABELS: dict[str, str] = {
    "baseline": "ReLU (baseline)",
    "double": "ReLU (double)",
    "avr": "AVR",
    "crelu": "CReLU",
    "half": "CReLU (half)",
    "half-192": "CReLU (half, conv3: 96)",
    "vgg": "VGG, ReLU",
    "vgg-1": "VGG, CReLU at conv1",
    "vgg-1-3": "VGG, CReLU at conv1, 3",
    "vgg-1-3-5": "VGG, CReLU at conv1, 3, 5",
}


class Printed(NamedTuple):
    """Single-network errors in percent, on the test and on the training set; None where none is printed."""

    test: float
    train: float | None = None


#: Tables 1 and 2, column "Single".
PAPER: dict[str, dict[str, Printed]] = {
    "cifar10": {
        "baseline": Printed(9.17, 1.09), "double": Printed(8.65, 0.47), "avr": Printed(8.32, 4.10),
        "crelu": Printed(8.43, 4.23), "half": Printed(8.37, 4.73),
        "vgg": Printed(6.35), "vgg-1": Printed(6.18), "vgg-1-3": Printed(5.94), "vgg-1-3-5": Printed(6.06),
    },
    "cifar100": {
        "baseline": Printed(36.30, 13.68), "double": Printed(34.77, 6.03), "avr": Printed(35.00, 19.35),
        "crelu": Printed(31.48, 14.25), "half": Printed(33.68, 21.01),
        "vgg": Printed(28.99), "vgg-1": Printed(27.29), "vgg-1-3": Printed(26.52), "vgg-1-3-5": Printed(26.16),
    },
}  # fmt: skip
#: Printed millions of parameters, Table 1.
PAPER_PARAMETERS = {"baseline": 1.4, "double": 5.6, "avr": 1.4, "crelu": 2.8, "half": 0.7}
#: What networks have the same of, in words.
BUDGETS = {"steps": "number of steps", "operations": "multiply-adds"}
#: What the paper compares: with the baseline, and CReLU with ReLU at the same number of maps.
PAIRS: tuple[tuple[Model, Model], ...] = (
    ("baseline", "half"), ("baseline", "half-192"), ("baseline", "crelu"), ("baseline", "avr"), ("baseline", "double"),
    ("double", "crelu"), ("avr", "half"), ("vgg", "vgg-1"), ("vgg", "vgg-1-3"), ("vgg", "vgg-1-3-5"),
)  # fmt: skip


def compared(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return differences in test error, and in what is left between test and training set, seed by seed.

    Args:
        cells: outcomes by model, one per seed.

    Returns:
        For every pair of models that is there ``before`` and ``after``; ``value`` of the difference in test error with
        its 95% interval ``low`` to ``high`` (Student over seeds, NaN for one seed) and ``each`` seed's; ``gap``, the
        same of test error less training error.
    """
    found = []
    for before, after in PAIRS:
        if before not in cells or after not in cells:
            continue
        errors = {name: np.array([1 - cell["accuracy"] for cell in cells[name]]) for name in (before, after)}
        gaps = {name: errors[name] - [1 - cell["train_accuracy"] for cell in cells[name]] for name in (before, after)}
        value, low, high = combination([1.0], [errors[after] - errors[before]])
        gap = dict(zip(("value", "low", "high"), combination([1.0], [gaps[after] - gaps[before]]), strict=True))
        each = errors[after] - errors[before]
        found.append(
            {"before": before, "after": after, "value": value, "low": low, "high": high, "each": each, "gap": gap}
        )
    return found


def answer(found: Mapping[str, Any], budget: str) -> str:
    """Return in one sentence whether a model beats another.

    Args:
        found: one entry of `compared`.
        budget: what both had the same of.
    """
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    first, second = LABELS[found["after"]], LABELS[found["before"]]
    verdict = _verdict(found)
    says = {
        "lower": f"{first} beats {second}",
        "higher": f"{first} does not beat {second}: it is worse",
        "undecided": f"whether {first} beats {second} is undecided",
        "one seed": f"one seed says nothing of whether {first} beats {second}",
    }[verdict]
    interval = "" if np.isnan(low) else f" (95% interval {low:+.2f} to {high:+.2f} over {len(found['each'])} seeds)"
    return f"On the same {BUDGETS[budget]} {says}: its test error differs by {value:+.2f} percentage points{interval}."


def tables(content: Mapping[str, Any], parameters: Any) -> tuple[Table, ...]:
    """Return the tables of a study.

    Args:
        content: its findings.
        parameters: `CReLUTable1Parameters`.
    """
    shown = (_errors(content, parameters), _sizes(content, parameters))
    return (*shown, _differences(content, parameters)) if content["comparisons"] else shown


def _errors(content: Mapping[str, Any], p: Any) -> Table:
    printed = PAPER.get(content["data"]["name"], {})
    rows = []
    for name, outcomes in content["cells"].items():
        test = 100 * np.array([1 - outcome["accuracy"] for outcome in outcomes])
        train = 100 * np.array([1 - outcome["train_accuracy"] for outcome in outcomes])
        paper = printed.get(name)
        rows.append(
            (
                LABELS[name],
                f"{content['networks'][name]['learned']:,}",
                _with_deviation(test),
                _with_deviation(train),
                f"{(test - train).mean():.2f}",
                "-" if paper is None else f"{paper.test:.2f}",
                "-" if paper is None or paper.train is None else f"{paper.train:.2f}",
                f"{np.mean([outcome['seconds'] for outcome in outcomes]):.0f}",
            )
        )
    return Table(
        "Shang et al. 2016, Tables 1 and 2: error, %",
        ("network", "parameters", "test", "training set", "gap", "paper: test", "paper: training", "seconds each"),
        tuple(rows),
        tuple(_notes(content, p)),
    )


def _notes(content: Mapping[str, Any], p: Any) -> list[str]:
    held = content["data"]
    seeds = f"{p.num_seeds} seed{'s' if p.num_seeds > 1 else ''}"
    budget = f"{p.epochs:g} epochs" if p.budget == "steps" else f"multiply-adds of {p.epochs:g} epochs of the first"
    notes = [
        f"{held['train']:,} training and {held['test']:,} test images ({held['source']}), {budget}, {seeds}; ± is the "
        f"standard deviation over seeds. Filters are {p.width:.4g} of the paper's.",
        *held["notes"],
    ]
    if held["name"] == "embedded":
        notes.append(STAND_IN)
    elif held["name"] not in PAPER:
        notes.append(f"The paper's numbers are of CIFAR-10 and CIFAR-100, these of {held['name']}.")
    else:
        notes.append(
            "The printed errors are of the full width, trained until the loss of a full training, with dropout tuned "
            "for every network: context, unless width, epochs and dropout here are as large."
        )
    if p.scores == "linear" and set(content["cells"]) & set(PAPER_PARAMETERS):
        notes.append("Scores are conv8's responses; the tables print a ReLU (AVR) behind them (--scores printed).")
    messages = [outcome["message"] for outcomes in content["cells"].values() for outcome in outcomes]
    notes.extend(message for message in messages if "not finite" in message)
    return notes


def _sizes(content: Mapping[str, Any], p: Any) -> Table:
    rows = []
    for name, size in content["networks"].items():
        printed = PAPER_PARAMETERS.get(name)
        rows.append(
            (
                LABELS[name],
                ", ".join(map(str, size["channels"])),
                f"{size['weights']:,}",
                f"{size['multiply_adds'] / 1e6:,.1f}",
                f"{size['steps']:,}",
                f"{size['full_weights'] / 1e6:.2f}",
                "-" if printed is None else f"{printed:.1f}",
            )
        )
    notes = []
    if set(PAPER_PARAMETERS) & set(content["networks"]):
        notes.append(
            "Tables S2 and S3 as printed have fewer weights than Table 1 says. Its 1.4 fits ConvPool-CNN-C with one "
            "more convolution of 96 channels (1.37); 5.6, 2.8 and 0.7 are 4, 2 and 1/2 times that."
        )
    if "half" in content["networks"]:
        notes.append("CReLU (half): conv3 has 48 filters, as printed; half of the baseline's would be 96 (half-192).")
    return Table(
        "Networks: filters, weights, cost",
        (
            "network", "filters", "weights", "10^6 multiply-adds per image", "steps", "10^6 weights at full width",
            "paper: 10^6 parameters",
        ),
        tuple(rows),
        tuple(notes),
    )  # fmt: skip


def _differences(content: Mapping[str, Any], p: Any) -> Table:
    printed = PAPER.get(content["data"]["name"], {})
    rows, notes = [], []
    for found in content["comparisons"]:
        before, after = found["before"], found["after"]
        each = np.asarray(found["each"])
        known = before in printed and after in printed
        rows.append(
            (
                f"{LABELS[after]} - {LABELS[before]}",
                f"{100 * found['value']:+.2f}",
                _interval(found),
                f"{int((each < 0).sum())} of {len(each)}",
                _verdict(found),
                f"{100 * found['gap']['value']:+.2f}",
                f"{printed[after].test - printed[before].test:+.2f}" if known else "-",
            )
        )
        if (before, after) == ("baseline", "half"):
            notes.append(answer(found, p.budget))
    notes.append(
        "Differences seed by seed: the same pictures in the same order, flipped alike. 95% intervals (Student) over "
        "seeds, for this data set; gap: test error less that of the training set."
    )
    return Table(
        "Who beats whom: differences in test error, percentage points",
        ("difference", "mean", "95% interval", "seeds that fall", "so it is", "gap", "paper"),
        tuple(rows),
        tuple(notes),
    )


def _verdict(found: Mapping[str, Any]) -> str:
    if np.isnan(found["low"]):
        return "one seed"
    return "lower" if found["high"] < 0 else "higher" if found["low"] > 0 else "undecided"


def _interval(found: Mapping[str, Any]) -> str:
    return "-" if np.isnan(found["low"]) else f"{100 * found['low']:+.2f} .. {100 * found['high']:+.2f}"


def _with_deviation(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


__all__ = [
    "BUDGETS",
    "LABELS",
    "PAIRS",
    "PAPER",
    "PAPER_PARAMETERS",
    "Model",
    "Printed",
    "answer",
    "compared",
    "tables",
]
