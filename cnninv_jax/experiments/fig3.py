"""Gilbert et al. 2017, 4.4 and Fig. 3: 2-D model-RIP ratios of VGG-16's filters and of random ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import filters
from cnninv_jax.experiments import fig3_draws, fig3_tables
from cnninv_jax.experiments.fig3_sources import Chosen, choose
from cnninv_jax.experiments.layer_inputs import TABLE_2, capped_size, input_name, inputs_before_relu
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo import run
from cnninv_jax.montecarlo.arguments import positive
from cnninv_jax.sparsity import num_blocks

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from cnninv_jax._typing import Array, FilterBank, Float, PRNGKeyArray
    from cnninv_jax.operators import ConvOperator

#: Draws per block, the unit of the journals.
BLOCK, RECOVERED_BLOCK = 64, 8


@dataclasses.dataclass(frozen=True)
class Fig3Parameters:
    """Filters, codes and pictures; sizes, sparsity and number of codes are the paper's, what it leaves open says so."""

    weights: str | None = None
    """File with the filters (.npz, .safetensors, .h5, .caffemodel, or .npy for one layer), or fetch:vgg16. VGG-16 is
    recognised, of anything else panel (a) is drawn. By default filters are random: (a) at the size of conv5_2, (b) and
    (c) for conv2_2 of a VGG-16 of random filters, a sixteenth of the paper's conv5_2 in work."""
    layer: str | None = None
    """Layer whose filters are tested, conv5_2 or the name of a tensor; by default conv5_2 (the paper's) where the file
    has it, else the deepest layer it has from conv1_1 on."""
    pictures: str = "embedded"
    """Folder of pictures that pass through the network; by default the photographs inside scikit-image."""
    panels: Literal["abc", "a", "bc"] = "abc"
    """What to compute: (a) synthetic codes, (b) and (c) codes recovered from activations."""
    num_draws: int = 1000
    """Codes of panel (a) for each filter bank."""
    banks: int = 1
    """Random banks of panel (a)."""
    size: int = 15
    """Side of the maps: of the codes in (a), of the pieces cut out of activations in (b) and (c)."""
    pool: int = 2
    """Pooling window; partial regions at the far border count (ceil mode)."""
    sparsity: float | None = None
    """Share of the code's entries that are non-zero, at most one per pooling region; by default what Table 2 has for
    the layer. The figure's caption says that of conv(5,2), 0.206, the text that of conv(5,1), 0.239."""
    values: Literal["uniform", "gaussian", "signs"] = "uniform"
    """Law of the non-zeros of (a): uniform on [-1, 1], N(0, 1), or +-1."""
    num_pictures: int = 8
    """Most pictures used."""
    picture_size: int = 224
    """Side the pictures are brought to."""
    pieces: int = 24
    """Pieces of the activations, at random places of random pictures, from which codes are recovered."""
    whole_maps: bool = False
    """Recover one code from each picture's whole map in place of pieces; slow."""
    lam: float = 0.1
    """lambda of Algorithm 2 as a fraction of 2 |W x|_inf, above which codes are zero; the paper names none."""
    other_lams: tuple[float, ...] = (0.3, 0.03)
    """Further fractions, to see what hangs on that choice."""
    tol: float = 1e-3
    """Relative duality gap at which Algorithm 2's problems are solved."""
    max_steps: int = 5000
    """Most steps of each."""


def _compute(p: Fig3Parameters, options: StudyOptions, folder: Path) -> Findings:
    _check(p)
    dtype = jnp.dtype(options.precision)
    bank_key, network_key, code_key, piece_key = jax.random.split(jax.random.key(options.seed), 4)
    chosen = choose(p.weights, p.layer, p.panels, network_key, dtype)
    content: dict[str, Any] = {"notes": list(chosen.notes), "synthetic": {}, "recovered": {}, "setting": {}}
    arrays: dict[str, Any] = {}
    if "a" in p.panels:
        banks = {} if chosen.learned is None else {"learned": _unit(chosen.learned, dtype)}
        shape = chosen.shape
        for index in range(p.banks):
            key = jax.random.fold_in(bank_key, index)
            drawn = filters.gaussian(key, shape[0], shape[1], shape[2:], normalize=True, dtype=dtype)
            banks["random" if p.banks == 1 else f"random {index + 1}"] = drawn
        _synthetic(p, options, folder, chosen, banks, code_key, content, arrays)
    if "b" in p.panels and chosen.network is not None:
        _recovered(p, options, folder, chosen, jax.random.fold_in(bank_key, 0), piece_key, content, arrays)
    tables = fig3_tables.tables(content)
    return Findings(content, tables, _dataset(arrays))


def _check(p: Fig3Parameters) -> None:
    """Refuse impossible parameters by the names of their flags."""
    for name in ("num_draws", "pieces"):
        positive(getattr(p, name), f"--{name.replace('_', '-')}", 1 << 32)
        if getattr(p, name) < 2:
            raise ValueError(f"expected --{name.replace('_', '-')} of at least 2 for an interval, got 1")
    for name in ("banks", "size", "pool", "num_pictures", "picture_size", "max_steps"):
        positive(getattr(p, name), f"--{name.replace('_', '-')}", 1 << 30)
    if p.sparsity is not None and not 0.0 < p.sparsity <= 1.0:
        raise ValueError(f"expected --sparsity to be a share of the entries, above 0 and at most 1, got {p.sparsity}")
    if not all(0.0 < value < 1.0 for value in (p.lam, *p.other_lams)):
        raise ValueError(
            f"expected --lam and --other-lams between 0 and 1 (fractions of 2 |W x|_inf), got {p.lam} and "
            f"{' '.join(map(str, p.other_lams)) or 'none'}"
        )
    if not p.tol > 0.0:
        raise ValueError(f"expected --tol to be positive, got {p.tol}")


def _unit(bank: np.ndarray, dtype: jnp.dtype) -> FilterBank:
    return filters.normalize(jnp.asarray(bank, dtype))


def _size_of(p: Fig3Parameters, layer: str, code_shape: tuple[int, ...]) -> tuple[int, dict[str, Any]]:
    """Return k, and what the report says of it."""
    share = TABLE_2.get(layer) if p.sparsity is None else p.sparsity
    if share is None:
        raise ValueError(f"expected --sparsity for {layer}, which Table 2 of the paper does not have")
    k, capped = capped_size(share, code_shape, p.pool)
    entries, blocks = int(np.prod(code_shape)), num_blocks(code_shape, p.pool)
    return k, {
        "layer": layer, "K": code_shape[0], "map": list(code_shape[1:]), "sparsity": share, "k": k, "entries": entries,
        "blocks": blocks, "capped": capped,
    }  # fmt: skip


def _synthetic(
    p: Fig3Parameters,
    options: StudyOptions,
    folder: Path,
    chosen: Chosen,
    banks: Mapping[str, FilterBank],
    key: PRNGKeyArray,
    content: dict[str, Any],
    arrays: dict[str, Any],
) -> None:
    """Panel (a): draws for every bank, the same codes for all."""
    found: dict[str, list[np.ndarray]] = {"cut": [], "uncut": []}
    for name, bank in banks.items():
        op = fig3_draws.layer(bank, p.size)
        k, setting = _size_of(p, chosen.layer, op.code_shape)
        content["setting"]["synthetic"] = {**setting, "M": op.channels, "ell": list(op.length), "values": p.values}
        # A Partial: the filters are data, all banks share one program.
        draw = jax.tree_util.Partial(fig3_draws.synthetic, op=op, k=k, pool=p.pool, values=p.values)
        result = run(
            draw, key, p.num_draws, chunk_size=BLOCK, lanes=fig3_draws.lanes(op), keep=tuple(found),
            out=folder / "synthetic" / name.replace(" ", "-"), progress=not options.quiet,
            name=f"Fig. 3 (a), {name} filters", headline="cut",
        )  # fmt: skip
        expected = fig3_draws.expected_square(bank, p.size, p.pool)
        unit = float(np.mean(np.sum(np.square(np.asarray(bank, np.float64)), axis=tuple(range(1, bank.ndim)))))
        content["synthetic"][name] = {
            reading: {**fig3_tables.describe(result.draws[reading]), "expected": float(np.sqrt(square))}
            for reading, square in (("cut", expected), ("uncut", unit))
        }
        for reading, values in found.items():
            values.append(result.draws[reading])
    arrays["bank"] = ("bank", list(banks))
    for reading, values in found.items():
        arrays[f"synthetic_{reading}"] = (("bank", "draw"), np.stack(values))


def _recovered(
    p: Fig3Parameters,
    options: StudyOptions,
    folder: Path,
    chosen: Chosen,
    bank_key: PRNGKeyArray,
    key: PRNGKeyArray,
    content: dict[str, Any],
    arrays: dict[str, Any],
) -> None:
    """Panels (b) and (c): codes of pieces of activations, the same pieces for learned and random filters."""
    from cnninv_jax import data

    assert chosen.network is not None
    network, layer, dtype = chosen.network.network, chosen.recovered_layer, jnp.dtype(options.precision)
    pictures = data.load_pictures(p.pictures, size=p.picture_size, limit=p.num_pictures)
    maps = inputs_before_relu(network, layer, pictures, dtype, quiet=options.quiet)
    if not p.whole_maps and p.size > min(maps.shape[2:]):
        raise ValueError(
            f"expected --size of at most {min(maps.shape[2:])}, the maps that enter {layer}, got {p.size}; "
            "raise --picture-size"
        )
    own = _unit(network.layer(layer).filters, dtype)
    banks = {"learned" if layer in chosen.network.given else "random": own}
    if "learned" in banks:
        banks["random"] = filters.gaussian(
            bank_key, own.shape[0], own.shape[1], own.shape[2:], normalize=True, dtype=dtype
        )
    fractions = (p.lam, *(other for other in p.other_lams if other != p.lam))
    found = []
    for name, bank in banks.items():
        op = fig3_draws.layer(bank, maps.shape[-1] if p.whole_maps else p.size)
        k, setting = _size_of(p, layer, op.code_shape)
        content["setting"]["recovered"] = {
            **setting, "M": op.channels, "input": input_name(network, layer), "pictures": list(pictures.names),
            "source": pictures.source, "network": chosen.network.origin(layer), "lam": p.lam, "tol": p.tol,
            "pieces": len(maps) if p.whole_maps else p.pieces, "whole_maps": p.whole_maps,
        }  # fmt: skip
        settings = {"k": k, "pool": p.pool, "fractions": fractions, "tol": p.tol, "max_steps": p.max_steps}
        label = f"Fig. 3 (b, c), {name} filters"
        if p.whole_maps:
            found.append(_each_picture(op, maps, settings, label, options))
        else:
            keep = tuple(f"{panel}.{reading}" for panel in fig3_draws.PANELS for reading in fig3_draws.READINGS)
            # One lane on a CPU: a slice waits for its slowest lasso.
            result = run(
                jax.tree_util.Partial(fig3_draws.recovered, op=op, maps=maps, **settings), key, p.pieces,
                chunk_size=RECOVERED_BLOCK, lanes=1 if jax.default_backend() == "cpu" else None, keep=keep,
                out=folder / "recovered" / name, progress=not options.quiet, name=label,
            )  # fmt: skip
            found.append({leaf: np.asarray(result.draws[leaf]) for leaf in keep})
        content["recovered"][name] = {
            panel: [
                {"fraction": fraction}
                | {
                    reading: fig3_tables.describe(found[-1][f"{panel}.{reading}"][:, place])
                    for reading in fig3_draws.READINGS
                }
                for place, fraction in enumerate(fractions)
            ]
            for panel in fig3_draws.PANELS
        }
    arrays |= {"filters": ("filters", list(banks)), "panel": ("panel", list(fig3_draws.PANELS))}
    arrays["fraction"] = ("fraction", list(fractions))
    for reading in fig3_draws.READINGS:
        values = np.stack([[one[f"{panel}.{reading}"] for panel in fig3_draws.PANELS] for one in found])
        arrays[f"recovered_{reading}"] = (("filters", "panel", "piece", "fraction"), values)


def _each_picture(
    op: ConvOperator, maps: Float[Array, "N M *D"], settings: Mapping[str, Any], label: str, options: StudyOptions
) -> dict[str, np.ndarray]:
    """Return the readings for every picture's whole map, the only piece of full size."""
    program = jax.jit(functools.partial(fig3_draws.recovered, **settings))
    results = []
    with progress_bar(label, len(maps), quiet=options.quiet) as bar:
        for index in range(len(maps)):
            found = jax.device_get(program(jax.random.key(index), op=op, maps=maps[index : index + 1]))
            results.append({f"{panel}.{name}": value for panel, part in found.items() for name, value in part.items()})
            bar.advance(note=f"after the ReLU: {results[-1]['after.cut'][0]:.3f}")
    return {name: np.stack([one[name] for one in results]) for name in results[0]}


def _dataset(arrays: Mapping[str, Any]) -> xr.Dataset | None:
    import xarray as xr

    if not arrays:
        return None
    axes = {name: entry for name, entry in arrays.items() if name in ("bank", "filters", "panel", "fraction")}
    return xr.Dataset({name: entry for name, entry in arrays.items() if name not in axes}, axes)


def _figure(report: Mapping[str, Any], dataset: xr.Dataset | None) -> Figure:
    from cnninv_jax.experiments.fig3_figure import fig3_figure

    return fig3_figure(report, dataset)


FIG3 = Study(
    name="gilbert-fig3",
    title="2-D model-RIP ratios of VGG-16's filters and of random ones",
    source="Gilbert et al. 2017, Fig. 3",
    parameters=Fig3Parameters,
    compute=_compute,
    figure=_figure,
)
