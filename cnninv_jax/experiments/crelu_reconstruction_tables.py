"""Tables of the study of reconstruction from CReLU features, and the arrays that are saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cnninv_jax import data
from cnninv_jax.crelu.joint import JointStatus
from cnninv_jax.experiments.crelu_reconstruction_draws import MEASURES, SOLVES, WAYS, Reconstruction
from cnninv_jax.experiments.studies import Table
from cnninv_jax.montecarlo import mean_interval

if TYPE_CHECKING:
    import xarray as xr

#: An error up to which a picture counts as found again.
FOUND = 0.01


class Held(NamedTuple):
    """What was found of one setting from one depth.

    Attributes:
        kind: ``given`` or ``random``.
        pooled: layers that max-pooling follows.
        depth: layers whose features are the top.
        found: by network, picture and way.
    """

    kind: str
    pooled: tuple[int, ...]
    depth: int
    found: list[list[dict[str, Reconstruction]]]

    def measure(self, way: str, name: str) -> Float[np.ndarray, "networks pictures"]:
        """Return one of the `MEASURES` of every network and picture; one layer is the same in all ways."""
        at, way = MEASURES.index(name), way if self.depth > 1 else WAYS[0]
        return np.array([[one[way].measures[at] for one in network] for network in self.found])


def label(kind: str, pooled: Sequence[int]) -> str:
    """Return a setting's name."""
    return f"{kind} kernels, {'max-pooled after ' + ' and '.join(map(str, pooled)) if pooled else 'no pooling'}"


def cells(held: Sequence[Held]) -> list[dict[str, Any]]:
    """Return what was found as the report holds it: means with 95% intervals, and least squares layer by layer."""
    content = []
    for one in held:
        solves = {way: np.array([[found[way].solves for found in row] for row in one.found]) for way in one.found[0][0]}
        content.append({
            "kind": one.kind, "pooled": list(one.pooled), "depth": one.depth,
            "networks": len(one.found), "pictures": len(one.found[0]),
            "ways": {
                way: {
                    **{name: summary(one.measure(way, name)) for name in MEASURES},
                    "change": summary(one.measure(way, "error") - one.measure(WAYS[0], "error")),
                    **(
                        {"layers": [], "joint": _ended(numbers[:, :, 0])} if way == "joint"
                        else {"layers": [_solves(numbers[:, :, layer]) for layer in range(one.depth)]}
                    ),
                }
                for way, numbers in solves.items()
            },
        })  # fmt: skip
    return content


def summary(values: Float[np.ndarray, "networks pictures"]) -> dict[str, Any]:
    """Return the mean and its 95% interval over networks, for these pictures; of one network over pictures.

    Returns:
        ``mean``, ``low``, ``high`` (NaN of one number alone), ``over`` and the ``values``.
    """
    over = "networks" if len(values) > 1 else "pictures"
    means = values.mean(axis=1) if len(values) > 1 else values[0]
    mean, variance = means.mean(), means.var(ddof=1) if len(means) > 1 else np.nan
    low, high = mean_interval(mean, variance, len(means))
    return {"mean": float(mean), "low": float(low), "high": float(high), "over": over, "values": values.tolist()}


def _solves(numbers: Float[np.ndarray, "networks pictures numbers"]) -> dict[str, Any]:
    """Return how a layer's least squares ended, over networks and pictures."""
    found = {name: numbers[..., at] for at, name in enumerate(SOLVES)}
    return {
        "error": summary(found["error"]),
        "steps_mean": float(found["steps"].mean()), "steps_most": int(found["steps"].max()),
        "residual_largest": float(found["residual"].max()),
        "unconverged": int((found["status"] != 0).sum()), "solves": int(found["status"].size),
    }  # fmt: skip


def _ended(numbers: Float[np.ndarray, "networks pictures numbers"]) -> dict[str, Any]:
    """Return how joint inversions ended, and how many of those with a small misfit are another picture."""
    found = {name: numbers[..., at] for at, name in enumerate(SOLVES)}
    converged = found["status"] == JointStatus.CONVERGED
    return {
        "misfit_largest": float(found["residual"].max()), "rounds_most": int(found["steps"].max()),
        "statuses": {one.name: int((found["status"] == one).sum()) for one in JointStatus},
        "found": int((converged & (found["error"] <= FOUND)).sum()),
        "other": int((converged & ~(found["error"] <= FOUND)).sum()), "solves": int(converged.size),
    }  # fmt: skip


def tables(content: Mapping[str, Any], parameters: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return the tables of what was found."""
    joint = _joint_table(content, parameters)
    return (_error_table(content, parameters), *([joint] if joint.rows else []), _layer_table(content, parameters))


def _error_table(content: Mapping[str, Any], parameters: Mapping[str, Any]) -> Table:
    rows, unconverged, solves = [], 0, 0
    for cell in content["cells"]:
        for way, found in cell["ways"].items():
            ended, count = (sum(layer[name] for layer in found["layers"]) for name in ("unconverged", "solves"))
            unconverged, solves = unconverged + ended, solves + count
            if way == "joint":
                count = found["joint"]["solves"]
                ended = count - found["joint"]["statuses"]["CONVERGED"]
            measures = (("picture_error", 3), ("psnr", 1), ("ssim", 2))
            rows.append((
                f"{label(cell['kind'], cell['pooled'])}, {layers_of(cell['depth'])}, {way}",
                with_interval(found["error"]),
                "-" if way == WAYS[0] else with_interval(found["change"], signed=True),
                with_interval(found["scaled_error"]),
                *(f"{found[name]['mean']:.{digits}f}" for name, digits in measures),
                f"{ended} of {count}",
            ))  # fmt: skip
    further = "; joint, all layers at once, see below." if parameters["joint_rounds"] else "."
    kinds = {cell["kind"] for cell in content["cells"]}
    notes = [
        f"{len(content['pictures'])} picture(s) at {parameters['size']} x {parameters['size']}. Error: |x - x'| / |x| "
        f"of the network's input ({content['preprocessing']}: {_way(content['preprocessing'])}); best scale: the "
        "least |x - a x'| / |x|, since a projection comes out too faint; of the picture, with PSNR (dB) and SSIM "
        "(colour): after it was cut to [0, 1].",
        "Linear: the paper's Algorithms 1 and 2, layer by layer. Not in the paper: nearest, where an estimate of "
        "features is replaced by the nearest that a CReLU gives before the layer below is inverted; early, where least "
        f"squares below the top start from zero and stop at a residual of {parameters['tol_below']:g}, a number chosen "
        f"by trial and not by theory: minus linear, whether it helps here{further}",
        "95% intervals, every one by itself: of random kernels over networks, for these pictures; of given kernels "
        "over pictures. (?): one alone.",
        f"{unconverged} of {solves} least squares ended (most steps {parameters['max_steps']}) with a residual above "
        f"the tolerance ({parameters['tol']:g}; early, below the top, {parameters['tol_below']:g})" + (
            ": what rests on them is a truncated iteration and not the projection. It need not be worse for that: the "
            "pseudo-inverse of a layer whose least singular values are small takes what an estimate of features has "
            "wrong for signal and enlarges it, and does so the more the longer it iterates." if unconverged else "."
        ),
    ]  # fmt: skip
    if "given" in kinds:
        notes.append(f"Given kernels: {content['given']}.")
    if "random" in kinds:
        notes.append("Random kernels: N(0, 2 / (M l^2)), no biases.")
    return Table(
        "Pictures reconstructed from conv + CReLU features",
        ("features of", "error", "minus linear", "best scale", "of the picture", "PSNR", "SSIM", "unconverged"),
        tuple(rows), tuple(notes),
    )  # fmt: skip


def _joint_table(content: Mapping[str, Any], parameters: Mapping[str, Any]) -> Table:
    rows = []
    for cell in content["cells"]:
        if "joint" not in cell["ways"]:
            continue
        way = cell["ways"]["joint"]
        ended = way["joint"]
        statuses = ", ".join(f"{name.lower()} {count}" for name, count in ended["statuses"].items() if count)
        rows.append((
            f"{label(cell['kind'], cell['pooled'])}, {layers_of(cell['depth'])}", with_interval(way["error"]),
            f"{ended['misfit_largest']:.1e}", str(ended["rounds_most"]), statuses,
            f"{ended['found']} of {ended['solves']}", f"{ended['other']} of {ended['solves']}",
        ))  # fmt: skip
    notes = (
        "Not in the paper: Gauss-Newton on the responses of the top layer, from what early gives; its unknowns are the "
        f"network's input alone. At most {parameters['joint_rounds']} rounds of {parameters['joint_steps']} "
        "conjugate-gradient steps. Misfit: |z(x') - z| / |z| of the top layer's responses z. Converged: the misfit is "
        "at most the tolerance; cap: the rounds were used up; stalled: no step lessened it.",
        f"Back: converged with an error of at most {FOUND:g}. Another picture: converged with a larger error, so that "
        "the features fit and the picture is another; a small misfit alone is no proof of the right one.",
    )
    return Table(
        "All layers inverted at once",
        ("features of", "error", "largest misfit", "most rounds", "ended", "back", "another picture"),
        tuple(rows), notes,
    )  # fmt: skip


def _layer_table(content: Mapping[str, Any], parameters: Mapping[str, Any]) -> Table:
    rows = []
    for layer in content["layers"]:
        own = [
            cell for cell in content["cells"]
            if cell["kind"] == layer["kind"] and cell["pooled"] == layer["pooled"]
        ]  # fmt: skip
        alone = next((c["ways"]["linear"]["layers"][-1] for c in own if c["depth"] == layer["layer"]), None)
        every = [
            way["layers"][layer["layer"] - 1]
            for cell in own if cell["depth"] >= layer["layer"]
            for name, way in cell["ways"].items() if name in ("linear", "nearest")
        ]  # fmt: skip
        if not every:
            continue
        steps = sum(one["steps_mean"] * one["solves"] for one in every) / sum(one["solves"] for one in every)
        count, width, *length = layer["filters"]
        rows.append((
            f"{label(layer['kind'], layer['pooled'])}, {layer['name']}",
            f"{count} x {width} x {' x '.join(map(str, length))}" + (
                f", stride {layer['stride'][0]}" if max(layer["stride"]) > 1 else ""
            ),
            f"{layer['unknowns']:,}", f"{layer['equations']:,.0f}", f"{layer['ratio']:.2f}",
            f"{math.sqrt(max(0.0, 1 - layer['ratio'])):.3f}",
            "-" if alone is None else with_interval(alone["error"]),
            f"{steps:.0f} ({max(one['steps_most'] for one in every)})",
            f"{max(one['residual_largest'] for one in every):.1e}",
            f"{sum(one['unconverged'] for one in every)} of {sum(one['solves'] for one in every)}",
        ))  # fmt: skip
    notes = (
        "Unknowns: M D numbers of the layer's input, M = 2 K of the layer below. Equations: K n responses, or with "
        "max-pooling the windows that fire (mean over pictures, network 1). Fewer equations than unknowns leave a part "
        "of the input that the layer's features do not determine, and sqrt(1 - equations / unknowns) is its "
        "root-mean-square share for a projection onto a uniformly random subspace (Shang et al. 2016, App. C; no bound "
        "for an input and filters that know of each other). More equations than unknowns may still be dependent.",
        "Own error: of the layer's input from its own exact features, which depth adds up. Least squares: of all "
        f"depths, linear and nearest; tolerance {parameters['tol']:g}.",
    )
    return Table(
        "What each layer determines of its input",
        ("layer", "K x M x l", "unknowns", "equations", "ratio", "random subspace", "own error", "steps, mean (most)",
         "largest residual", "unconverged"),
        tuple(rows), notes,
    )  # fmt: skip


def dataset(held: Sequence[Held], pictures: data.Pictures, show: int) -> xr.Dataset:
    """Return pictures and their reconstructions as bytes, [row, depth, shown, 3, H, W]; zeros where there is none."""
    import xarray as xr

    count = min(show, len(pictures.names))
    depths = sorted({one.depth for one in held})
    ways = [way for way in WAYS if any(way in one.found[0][0] for one in held)]
    names = list(dict.fromkeys((one.kind, one.pooled, way) for one in held for way in ways))
    size = pictures.images.shape[1:]
    shown = np.zeros((len(names), len(depths), count, *size), np.uint8)
    there = np.zeros((len(names), len(depths)), np.int8)
    error = np.full((len(names), len(depths), count), np.nan)
    similarity = error.copy()
    for one in held:
        column = depths.index(one.depth)
        for way in one.found[0][0]:
            row = names.index((one.kind, one.pooled, way))
            there[row, column] = 1
            for picture in range(count):
                found = one.found[0][picture][way]
                shown[row, column, picture] = found.shown
                error[row, column, picture] = found.measures[MEASURES.index("error")]
                similarity[row, column, picture] = found.measures[MEASURES.index("ssim")]
    axes = ("row", "depth", "shown")
    originals = np.round(255 * np.clip(pictures.images[:count], 0.0, 1.0)).astype(np.uint8)
    return xr.Dataset(
        {
            "original": (("shown", "channel", "y", "x"), originals),
            "reconstruction": ((*axes, "channel", "y", "x"), shown, {"long_name": "cut to [0, 1], 8 bits a channel"}),
            "there": (axes[:2], there),
            "error": (axes, error, {"long_name": "|x - x'| / |x| of the network's input", "units": "1"}),
            "ssim": (axes, similarity, {"units": "1"}),
        },
        {
            "row": [f"{label(kind, pooled)}, {way}" for kind, pooled, way in names],
            "depth": depths, "shown": list(pictures.names[:count]), "channel": ["red", "green", "blue"],
        },
    )  # fmt: skip


def layers_of(depth: int) -> str:
    """Return ``1 layer`` or ``2 layers``."""
    return f"{depth} layer{'s' if depth > 1 else ''}"


def with_interval(found: Mapping[str, Any], *, signed: bool = False) -> str:
    """Return ``0.123 ± 0.004``."""
    mean, low, high = (float("nan") if found[name] is None else found[name] for name in ("mean", "low", "high"))
    half = "?" if math.isnan(high) else f"{(high - low) / 2:.3f}"
    return f"{mean:{'+' if signed else ''}.3f} ± {half}"


def _way(name: str) -> str:
    way = data.PREPROCESSINGS[name]
    if name == "none":
        return "RGB in [0, 1]"
    return f"{'BGR' if way.reverse else 'RGB'}, 0 to {way.scale:g}, minus the mean" + (
        ", divided by the deviation" if set(way.deviation) != {1.0} else ""
    )


__all__ = ["Held", "cells", "dataset", "label", "layers_of", "summary", "tables",
           "with_interval"]  # fmt: skip
