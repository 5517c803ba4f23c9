"""Gilbert et al. 2017, Table 3, image space, beside what was found: the table and its readings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnninv_jax.experiments.studies import Table
from cnninv_jax.experiments.table3_tables import LABELS

#: Errors in image space as printed: learned filters, random filters, random activations; by layer i.
PAPER_IMAGES: Mapping[int, Mapping[str, float]] = {
    1: {"learned": 0.423, "random": 0.380, "activations": 0.610},
    2: {"learned": 0.692, "random": 0.438, "activations": 0.864},
    3: {"learned": 0.326, "random": 0.345, "activations": 0.652},
    4: {"learned": 0.379, "random": 0.357, "activations": 0.436},
}
#: What a decoded picture is compared with, the picture or what the decoder makes of f itself; relative to the norm of
#: RGB in [0, 1], or of RGB less the pictures' mean colour.
READINGS = ("picture.rgb", "picture.centred", "decoded.rgb", "decoded.centred")
MAIN_IMAGES = "picture.rgb"
_WORDS = {
    "picture.rgb": "picture, RGB", "picture.centred": "picture, mean colour taken off",
    "decoded.rgb": "decoded from f, RGB", "decoded.centred": "decoded from f, mean colour taken off",
}  # fmt: skip
#: Columns of the figure after the picture, as in Figs. 4 and 5.
SHOWN = ("original", "learned", "random", "activations")
IMAGE_LABELS = {**LABELS, "original": "original activations"}


def printed_images(layer: int, method: str) -> float | None:
    """Return the paper's number; None for the original activations, for which it has none."""
    return PAPER_IMAGES[layer].get("learned" if method == "learned as given" else method)


def image_tables(content: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the table of image space, and its readings.

    Args:
        content: of `image_space`, as report.json holds it.
    """
    return _paper(content), _all_readings(content)


def orders(content: Mapping[str, Any]) -> dict[str, int]:
    """Return in how many layers the paper's statements of 4.5 hold.

    Random filters are at most as far off as learned ones ("the best quantitatively"), and both nearer than random
    activations.
    """
    found = {"layers": 0, "random at most learned": 0, "both below random activations": 0}
    for layer in content["layers"].values():
        means = {method: errors[MAIN_IMAGES]["mean"] for method, errors in layer["errors"].items()}
        if "learned" not in means:
            continue
        found["layers"] += 1
        found["random at most learned"] += means["random"] <= means["learned"]
        found["both below random activations"] += max(means["random"], means["learned"]) < means["activations"]
    return found


def _paper(content: Mapping[str, Any]) -> Table:
    rows = []
    for layer, found in content["layers"].items():
        for method, errors in found["errors"].items():
            numbers, paper = errors[MAIN_IMAGES], printed_images(int(layer), method)
            low, high = numbers["interval_95"]
            activation = found["activations"].get(method)
            rows.append(
                (
                    f"{layer}: {found['input']}", IMAGE_LABELS[method],
                    f"{numbers['mean']:.3f} [{low:.3f}, {high:.3f}]", "-" if paper is None else f"{paper:.3f}",
                    "0" if activation is None else f"{activation['mean']:.3f}",
                )
            )  # fmt: skip
    notes = [
        f"{content['network']}; a what-where decoder for each pool, trained on {content['train']} pictures of "
        f"{content['side']} x {content['side']}; means over {content['test']} pictures that it did not see: "
        f"{content['pictures']}. Compared with the {_WORDS[MAIN_IMAGES]}.",
        "The paper's network, pictures and decoders are others: only which column is nearer can be compared, not the "
        "numbers.",
    ]
    if content["classifier"]:
        told = content["classifier"]["accuracy"]
        notes.append(
            f"The network learned to tell {content['classifier']['classes']} classes: "
            f"{100 * told['train']:.0f}% of training pictures, {100 * told['test']:.0f}% of the others."
        )
    counted = orders(content)
    if counted["layers"]:
        notes.append(
            f"Of {counted['layers']} layers, random filters are no further off than learned ones in "
            f"{counted['random at most learned']} (paper: 3 of 4), and both are nearer than random activations in "
            f"{counted['both below random activations']} (paper: 4 of 4)."
        )
    else:
        notes.append("No layer here has learned filters; --classifier-steps or --weights bring some.")
    messages = [content["classifier"], *(found["training"] for found in content["layers"].values())]
    notes += [training["message"] for training in messages if training and training["status"] != "finished"]
    notes += content["notes"]
    columns = ("layer", "given to the decoder", "error in image space [95%]", "paper", "|f - f_hat|/|f|")
    return Table("Relative errors in image space", columns, tuple(rows), tuple(notes))


def _all_readings(content: Mapping[str, Any]) -> Table:
    kinds = [(layer, method) for layer, found in content["layers"].items() for method in found["errors"]]
    rows = [
        (
            f"{layer}: {content['layers'][layer]['input']}", IMAGE_LABELS[method],
            *(f"{content['layers'][layer]['errors'][method][reading]['mean']:.3f}" for reading in READINGS),
        )
        for layer, method in kinds
    ]  # fmt: skip
    notes = (
        "Reading: what a decoded picture is compared with, and whether the norm below the line is that of RGB in "
        "[0, 1] or of RGB less the mean colour. The paper does not say.",
    )
    columns = ("layer", "given to the decoder", *(_WORDS[reading] for reading in READINGS))
    return Table("All readings of image space", columns, tuple(rows), notes)


__all__ = [
    "IMAGE_LABELS",
    "MAIN_IMAGES",
    "PAPER_IMAGES",
    "READINGS",
    "SHOWN",
    "image_tables",
    "orders",
    "printed_images",
]
