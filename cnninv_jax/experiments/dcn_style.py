"""Random DCN, 4.4 and A.4 (Figs. 9, 14-17): style transfer through random encoder-decoders, beside that of pixels.

For every random rrVGG (a seed), style and content weight the features of the content move for a fixed number of steps;
the decoder and a colour map make a picture of them. For the first seed the same losses are minimised over pixels
(Gatys et al. 2016), with the same optimiser and the same steps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import data, dcn, images
from cnninv_jax._files import write_whole
from cnninv_jax._typing import Array
from cnninv_jax.experiments.dcn_style_tables import summarised, tables
from cnninv_jax.experiments.files import writing
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Embedded photographs: the content's place, and those of the styles.
_CONTENT, _STYLES = 0, (1, 4, 2, 3)
#: Streams of the seed: the losses' network, and the first of the rrVGGs.
_LOSSES, _FIRST = 0, 1


@dataclasses.dataclass(frozen=True)
class StyleParameters:
    """Pictures, networks and steps."""

    content: Path | None = None
    """Content picture, a file; by default an embedded photograph."""
    styles: tuple[Path, ...] = ()
    """Style pictures, files; by default embedded photographs."""
    num_styles: int = 2
    """Embedded photographs that serve as styles, where there are no --styles."""
    size: int = 96
    """Side to which all pictures are brought."""
    channels: int = 32
    """Channels of rrVGG's conv1 and deconv1 (paper: 32 to 256); 64 with --weights."""
    length: int = 3
    """Filter length of rrVGG (paper: 3 and 5)."""
    content_weights: tuple[float, ...] = (0.01, 1.0, 10.0, 100.0)
    """alpha / beta, of losses relative to the squares of what they aim at."""
    num_seeds: int = 2
    """Random rrVGGs."""
    blocks: int = 2
    """Blocks of VGG-16 above conv1 in which activations are compared: conv2 up to conv5 for 4, as in the paper."""
    width: float = 1 / 8
    """Multiplies these blocks' filters; 1 with --weights."""
    weights: str | None = None
    """VGG-16's filters (.npz, .safetensors, .h5, or fetch:vgg16) for these blocks; random by default, and where the
    file lacks a layer."""
    statistic: Literal["gram", "moments"] = "gram"
    """What a style is: Gram matrices (eq. 4), or means and standard deviations."""
    colours: Literal["fit", "stretch"] = "fit"
    """Colours of the decoder's output: the affine map that suits the content picture best, or every channel
    stretched."""
    steps: int = 60
    """Steps of Adam."""
    rate: float = 0.05
    """Adam's rate, relative to the root mean square of the features."""


def _compute(p: StyleParameters, options: StudyOptions, folder: Path) -> Findings:
    _check(p, options)
    content, styles, notes = _pictures(p)
    work = _Work(p, options, folder, content[1], [picture for _, picture in styles])
    cells: dict[str, dict[str, Any]] = {}
    outputs: dict[str, np.ndarray] = {}
    total = len(styles) * len(p.content_weights) * (p.num_seeds + 1) * p.steps
    with progress_bar("style transfer", total, quiet=options.quiet) as bar:
        for seed in range(p.num_seeds):
            for variable in ("features", "pixels") if seed == 0 else ("features",):
                for place in range(len(styles)):
                    for weight in p.content_weights:
                        name = f"{variable}-seed{seed}-style{place}-weight{weight:g}"
                        found, outputs[name] = work.run(name, variable, seed, place, weight)
                        cells[name] = {"variable": variable, "seed": seed, "picture": place, "weight": weight, **found}
                        bar.advance(p.steps, note=f"{name}: SSIM {found['ssim']:.3f}")
    found = {
        "content": content[0],
        "styles": [name for name, _ in styles],
        "notes": [*notes, *work.notes],
        "cells": cells,
    }
    found["summary"] = summarised(found, p)
    return Findings(found, tables(found, p), _dataset(p, content[1], [picture for _, picture in styles], outputs))


class _Work:
    """The networks, and one style transfer after the other; finished ones are on disk."""

    def __init__(
        self, p: StyleParameters, options: StudyOptions, folder: Path, content: np.ndarray, styles: list[np.ndarray]
    ) -> None:
        from cnninv_jax.nn import style

        self._p, self._folder = p, folder / "transfers"
        with writing(str(self._folder)):
            self._folder.mkdir(exist_ok=True)
        self._content, self._styles = content, styles
        pixels = b"".join(np.ascontiguousarray(picture).tobytes() for picture in (content, *styles))
        self._digest = hashlib.sha256(pixels).hexdigest()
        self._dtype = jnp.dtype(options.precision)
        self._key = jax.random.key(options.seed)
        given = None if p.weights is None else data.load_network(p.weights, architecture="vgg16")
        self.notes = [] if given is None else list(given.notes)
        self._net = dcn.architecture(1, channels=p.channels, length=p.length)
        self._losses = style.loss_network(
            jax.random.fold_in(self._key, _LOSSES), p.channels, blocks=range(2, 2 + p.blocks), width=p.width,
            network=given, dtype=self._dtype,
        )  # fmt: skip

    def run(self, name: str, variable: str, seed: int, place: int, weight: float) -> tuple[dict[str, Any], np.ndarray]:
        """Return what is to be told of a style transfer, and its picture; from disk if it is there."""
        kept = self._folder / f"{name}.npz"
        held = self._read(kept)
        if held is None:
            held = {**self._transferred(variable, seed, place, weight), "digest": np.array(self._digest)}
            stream = io.BytesIO()
            np.savez(stream, allow_pickle=False, **held)
            with writing(str(kept)):
                write_whole(kept, stream.getbuffer())
        picture = held["picture"]
        told = {
            **{part: held[part].tolist() for part in ("content", "style", "total")},
            **{part: float(held[part]) for part in ("seconds", "compile_seconds")},
            "ssim": float(images.similarity(self._content.astype(np.float32), picture)),
        }
        return told, picture

    def _read(self, kept: Path) -> dict[str, np.ndarray] | None:
        try:
            with np.load(io.BytesIO(kept.read_bytes())) as file:
                held = dict(file)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            return None
        return held if str(held.get("digest")) == self._digest else None

    def _transferred(self, variable: str, seed: int, place: int, weight: float) -> dict[str, np.ndarray]:
        from cnninv_jax.nn import colours, style

        p, net = self._p, self._net
        weights = dcn.random_weights(jax.random.fold_in(self._key, _FIRST + seed), net, dtype=self._dtype)
        content, wanted = (jnp.asarray(x, self._dtype) for x in (self._content, self._styles[place]))
        features = _encode(weights, net, content)
        targets = style.targets(self._losses, features, _encode(weights, net, wanted), kind=p.statistic)
        alpha, beta = style.relative_weights(targets, weight)
        problem = style.Problem(self._losses, weights, targets, alpha, beta)
        if variable == "pixels":
            found = style.transfer(problem, content, steps=p.steps, rate=p.rate, through=net, kind=p.statistic)
            picture = np.clip(np.asarray(found.variable), 0, 1)
        else:
            found = style.transfer(problem, features, steps=p.steps, rate=p.rate, kind=p.statistic)
            output = np.asarray(_decode(weights, net, found.variable, (p.size, p.size)))
            if p.colours == "fit":
                plain = np.asarray(_decode(weights, net, features, (p.size, p.size)))
                picture = colours.apply_colours(colours.fit_colours(plain, self._content), output)
            else:
                picture = colours.stretch_colours(output)
        total = float(alpha) * found.content.astype(float) + float(beta) * found.style.astype(float)
        return {
            "picture": picture.astype(np.float32),
            "content": float(1 / style.sum_of_squares(targets.content)) * found.content.astype(float),
            "style": found.style.astype(float) / float(found.style[0]),
            "total": total / total[0],
            "seconds": np.array(found.seconds),
            "compile_seconds": np.array(found.compile_seconds),
        }


def _encode(weights: dcn.Weights, net: dcn.ConvDeconv, picture: Array) -> Array:
    from cnninv_jax.nn import style

    return jax.jit(style.encode, static_argnums=1)(weights, net, picture)


def _decode(weights: dcn.Weights, net: dcn.ConvDeconv, features: Array, size: tuple[int, int]) -> Array:
    from cnninv_jax.nn import style

    return jax.jit(style.decode, static_argnums=(1, 3))(weights, net, features, size)


def _pictures(p: StyleParameters) -> tuple[tuple[str, np.ndarray], list[tuple[str, np.ndarray]], tuple[str, ...]]:
    """Return content and styles by name."""
    embedded = data.load_pictures(size=p.size)

    def shipped(place: int) -> tuple[str, np.ndarray]:
        return embedded.names[place], embedded.images[place]

    content = shipped(_CONTENT) if p.content is None else (p.content.name, data.read_picture(p.content, p.size))
    styles = [(Path(file).name, data.read_picture(file, p.size)) for file in p.styles]
    return content, styles or [shipped(place) for place in _STYLES[: p.num_styles]], embedded.notes


def _dataset(
    p: StyleParameters, content: np.ndarray, styles: list[np.ndarray], outputs: Mapping[str, np.ndarray]
) -> Any:
    import xarray as xr

    axes = ("channel", "row", "column")

    def grid(variable: str, seeds: int) -> np.ndarray:
        return np.stack([
            [[_bytes(outputs[f"{variable}-seed{seed}-style{place}-weight{weight:g}"]) for weight in p.content_weights]
             for place in range(len(styles))] for seed in range(seeds)
        ])  # fmt: skip

    return xr.Dataset(
        {
            "content": (axes, _bytes(content)),
            "style_picture": (("style", *axes), np.stack([_bytes(picture) for picture in styles])),
            "features": (("seed", "style", "weight", *axes), grid("features", p.num_seeds)),
            "pixels": (("style", "weight", *axes), grid("pixels", 1)[0]),
        },
        {"weight": list(p.content_weights)},
    )


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def _check(p: StyleParameters, options: StudyOptions) -> None:
    """Refuse parameters that do not fit, in the words of the command line."""
    del options
    for name in ("size", "channels", "length", "num_seeds", "steps"):
        positive(getattr(p, name), f"--{name.replace('_', '-')}", 1 << 20)
    positive(p.num_styles, "--num-styles", len(_STYLES))
    positive(p.blocks, "--blocks", 4)
    least = max(11, 2**p.blocks)  # SSIM's window; one position behind the last pool
    if p.size < least:
        raise ValueError(f"expected --size of at least {least}, got {p.size}; take larger pictures")
    if p.length > p.size:
        raise ValueError(f"expected --length of at most --size, {p.size}, got {p.length}")
    values = p.content_weights
    if not values or any(not (math.isfinite(value) and value > 0) for value in values):
        raise ValueError(f"expected --content-weights to be positive, got {' '.join(map(str, values)) or 'none'}")
    if list(values) != sorted(set(values)):
        raise ValueError(f"expected --content-weights to ascend, got {' '.join(map(str, values))}")
    for name in ("width", "rate"):
        value = getattr(p, name)
        if not (math.isfinite(value) and 0 < value <= 4):
            raise ValueError(f"expected --{name} above 0 and at most 4, got {value}")
    if p.weights is not None and (p.channels != 64 or p.width != 1):
        raise ValueError(
            f"expected --channels 64 and --width 1 with --weights, as VGG-16 has them, got {p.channels} and {p.width:g}"
        )


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.dcn_style_figure import style_figure

    return style_figure(report, dataset)


DCN_STYLE = Study(
    name="dcn-style",
    title="Style transfer through a random encoder-decoder",
    source="Random DCN, Sec. 4.4 and A.4 (Figs. 9, 14-17)",
    parameters=StyleParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["DCN_STYLE", "StyleParameters"]
