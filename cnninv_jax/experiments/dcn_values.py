"""What a random CNN makes of a picture: convergence values (Random DCN, Thms 1 and 10) and finite networks beside them.

A network that ends with the mean over its channels converges to f* as it widens. The study shows f*, one output at each
width, and the angles of all draws: to f*, which falls as one over the root of the width, and to the picture in grey,
which falls to that between f* and the picture and no further.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cnninv_jax import data
from cnninv_jax.experiments.dcn_values_networks import FACTOR, Architecture, described, network, poolings
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, Table
from cnninv_jax.images import to_grey
from cnninv_jax.limits.angles import cosine_angle, sine_angle
from cnninv_jax.limits.draws import random_output
from cnninv_jax.limits.fidelity import theorem_9_multilayer
from cnninv_jax.limits.values import convergence_value
from cnninv_jax.montecarlo import mean_interval, run
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from cnninv_jax._typing import Array, Float, PRNGKeyArray
    from cnninv_jax.limits.layers import Network

#: How poolings are called.
NAMES: Mapping[str, str] = {"l2": "l2 pooling", "average": "average pooling", "none": "no pooling"}


@dataclasses.dataclass(frozen=True)
class DcnValuesParameters:
    """Picture, network and widths; filters are Gaussian, whose scale no angle depends on."""

    picture: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")] = None
    """File of a picture; by default a photograph inside scikit-image."""
    architecture: Architecture = "encoder-decoder"
    """encoder-decoder: conv, pool, conv, upsample, conv. cd1: the first block of VGG-16 and its mirror image, conv,
    conv, pool, upsample, conv, conv. conv: one convolution, the two-layer network of Thm 3. deep: five convolutions.
    The first two are shown with l2 and with average pooling; all end with the mean over the channels."""
    kernel: int = 3
    """Side of the filters; windows are padded with zeros."""
    size: int = 96
    """Side that the picture is brought to; even where the network pools."""
    widths: tuple[int, ...] = (16, 64, 256, 1024)
    """Channels N of every convolution."""
    num_draws: int = 6
    """Networks drawn at every width; the output shown is that of the first."""
    colour: bool = False
    """Let the network see three channels in place of the grey picture. Thm 9 is about one; its bound is shown for conv
    and deep."""


def _compute(p: DcnValuesParameters, options: StudyOptions, folder: Path) -> Findings:
    _check(p)
    file = p.picture or data.picture_files()[0]
    rgb = jnp.asarray(data.read_picture(file, p.size), options.precision)
    grey = to_grey(rgb)
    image = rgb if p.colour else grey[None]
    content: dict[str, Any] = {"picture": Path(file).name, "channels": len(image), "networks": {}}
    limits, shown, angles = [], [], []
    for pooling in poolings(p.architecture):
        layers = network(p.architecture, pooling, p.kernel)
        limit = jax.jit(functools.partial(convergence_value, layers=layers))(image)
        outputs = _outputs(p, options, folder, pooling, image, layers)
        found = {width: _angles(each, limit, grey) for width, each in outputs.items()}
        content["layers"] = described(layers)
        content["networks"][pooling] = {
            "limit_to_picture": float(angle(limit, grey)),
            "theorem_9": _theorem_9(p, grey, layers),
            "widths": {
                str(width): {name: _interval(values) for name, values in each.items()} for width, each in found.items()
            },
        }
        limits.append(np.asarray(limit))
        shown.append([each[0] for each in outputs.values()])
        angles.append([[each[name] for name in ("limit", "picture")] for each in found.values()])
    return Findings(content, _tables(p, content), _dataset(p, grey, limits, shown, angles))


def _check(p: DcnValuesParameters) -> None:
    """Refuse impossible parameters by the names of their flags."""
    if p.picture is not None and not p.picture.is_file():
        raise ValueError(f"expected PICTURE to be the file of a picture, found none at {p.picture}; check the path")
    for name in ("kernel", "size"):
        positive(getattr(p, name), f"--{name}", 1 << 16)
    if not p.widths or len(set(p.widths)) < len(p.widths):
        raise ValueError(f"expected --widths to be different widths, got {' '.join(map(str, p.widths)) or 'none'}")
    for width in p.widths:
        positive(width, "--widths", 1 << 24)
    if not 2 <= p.num_draws <= 1 << 32:
        raise ValueError(f"expected --num-draws of at least 2 for an interval, got {p.num_draws}")
    if poolings(p.architecture) != ("none",) and p.size % FACTOR:
        raise ValueError(
            f"expected an even --size for a network that pools, got {p.size}; take {p.size - 1} or {p.size + 1}"
        )


def angle(first: Array, second: Array) -> Array:
    """Return the angle between two arrays in degrees; both sine and cosine, since each is blind somewhere."""
    return jnp.degrees(jnp.arctan2(sine_angle(first, second), cosine_angle(first, second)))


def _one_output(key: PRNGKeyArray, image: Array, layers: Network, width: int) -> dict[str, Array]:
    return {"output": random_output(key, image, layers, width=width)}


def _outputs(
    p: DcnValuesParameters, options: StudyOptions, folder: Path, pooling: str, image: Array, layers: Network
) -> dict[int, Float[np.ndarray, "draws H W"]]:
    """Draw the networks of every width; a draw is a block of its own in the journal, since a wide one takes long."""
    found = {}
    key = jax.random.fold_in(jax.random.key(options.seed), list(NAMES).index(pooling))
    for width in p.widths:
        draw = jax.tree_util.Partial(_one_output, image=image, layers=layers, width=width)
        result = run(
            draw, jax.random.fold_in(key, width), p.num_draws, chunk_size=1, lanes=1, keep=("output",), statistics={},
            out=folder / "draws" / f"{pooling}-{width}", progress=not options.quiet,
            name=f"{NAMES[pooling]}, width {width}",
        )  # fmt: skip
        found[width] = result.draws["output"]
    return found


def _angles(outputs: np.ndarray, limit: Array, grey: Array) -> dict[str, np.ndarray]:
    """Return every output's angle to f* and to the picture, in degrees."""
    to = jax.vmap(angle, in_axes=(0, None))
    return {name: np.asarray(to(jnp.asarray(outputs), other)) for name, other in (("limit", limit), ("picture", grey))}


def _interval(values: np.ndarray) -> dict[str, float]:
    held = np.asarray(values, np.float64)
    low, high = mean_interval(held.mean(), held.var(ddof=1), held.size)
    return {"mean": float(held.mean()), "low": float(low), "high": float(high), "first": float(held[0])}


def _theorem_9(p: DcnValuesParameters, grey: Array, layers: Network) -> float | None:
    """Return Theorem 9's bound on the angle between f* and the picture in degrees, where it applies."""
    if p.architecture not in ("conv", "deep") or p.colour:
        return None
    return math.degrees(math.acos(min(1.0, max(-1.0, float(theorem_9_multilayer(grey[None], layers))))))


def _dataset(p: DcnValuesParameters, grey: Array, limits: list, shown: list, angles: list) -> xr.Dataset:
    import xarray as xr

    names = list(poolings(p.architecture))
    place = ("pooling", "width", "y", "x")
    return xr.Dataset(
        {
            "picture": (("y", "x"), np.asarray(grey), {"long_name": "the picture in grey"}),
            "limit": (("pooling", "y", "x"), np.stack(limits), {"long_name": "convergence value f*"}),
            "output": (place, np.array(shown), {"long_name": "output of the first draw"}),
            "angle": (
                ("pooling", "width", "to", "draw"), np.array(angles), {"long_name": "angle", "units": "degree"},
            ),
        },
        {"pooling": names, "width": list(p.widths), "to": ["limit", "picture"]},
    )  # fmt: skip


def _tables(p: DcnValuesParameters, content: Mapping[str, Any]) -> tuple[Table, ...]:
    rows = []
    for pooling, found in content["networks"].items():
        for width, held in found["widths"].items():
            cells = ("{mean:.2f} ({low:.2f}-{high:.2f})".format(**held[name]) for name in ("limit", "picture"))
            rows.append((f"{NAMES[pooling]}, N = {width}", *cells))
        rows.append((f"{NAMES[pooling]}, limit f*", "0", f"{found['limit_to_picture']:.2f}"))
    notes = [
        f"{content['picture']}, {p.size} x {p.size}, {'in colour' if p.colour else 'in grey'}; {content['layers']}, "
        f"mean over channels; {p.num_draws} draws a width, 95% intervals of the mean.",
        "The angle to the picture is that to its grey version.",
    ]
    if "upsample" in content["layers"]:
        notes.append(
            "Upsampling inserts zeros, so windows hold more or fewer values from place to place: f* has a lattice of "
            "that period, and its angle to the picture counts it."
        )
    bounds = [found["theorem_9"] for found in content["networks"].values()]
    if bounds[0] is not None:
        extended = " (as extended in A.3.3)" if p.architecture == "deep" else ""
        notes.append(f"Theorem 9{extended}: the angle between f* and the picture is at most {bounds[0]:.2f} degrees.")
    elif p.colour and p.architecture in ("conv", "deep"):
        notes.append("Theorem 9 is about pictures of one channel: leave --colour out to have its bound.")
    title = "angles in degrees: outputs of finite networks, f*, and the picture"
    return (Table(title, ("", "to f*", "to the picture"), tuple(rows), tuple(notes)),)


def _figure(report: Mapping[str, Any], dataset: xr.Dataset) -> Figure:
    from cnninv_jax.experiments.dcn_values_figure import values_figure

    return values_figure(report, dataset)


DCN_VALUES = Study(
    name="dcn-values",
    title="A picture, its convergence values, and what finite random networks make of it",
    source="Random DCN, Thms 1, 3 and 10",
    parameters=DcnValuesParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_VALUES", "DcnValuesParameters"]
