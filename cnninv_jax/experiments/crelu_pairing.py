"""Shang et al. 2016, Figs. 1-3 and Table 6: do filters come in pairs of opposite phase, and what becomes of the pairs?

Every filter's lowest cosine with another one, mu_i, against that of random filters of the same size, and against that
of the same filters with new signs. The paper compares histograms by eye; here stand tests whose unit is the bank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cnninv_jax import data
from cnninv_jax._typing import PRNGKeyArray
from cnninv_jax.crelu.filters import OutgoingCorrelation, outgoing_correlation
from cnninv_jax.experiments.crelu_pairing_banks import PLANTED, Bank, default_banks, network_banks
from cnninv_jax.experiments.crelu_pairing_draws import compare, draw_banks, group_pairing
from cnninv_jax.experiments.crelu_pairing_tables import tables
from cnninv_jax.experiments.files import results_folder
from cnninv_jax.experiments.studies import Findings, Study, StudyOptions, progress_bar
from cnninv_jax.montecarlo.arguments import positive

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Fewest banks that can speak at the 5% level: p is at least 1 / (n + 1).
FEWEST_DRAWS = 19
#: Most filters whose pictures are kept.
SHOWN = 96


@dataclasses.dataclass(frozen=True)
class PairingParameters:
    """Filters, and what they are compared with."""

    weights: str | None = None
    """Checkpoint (.npz, .safetensors, .h5, .caffemodel), or fetch:NAME; by default filters learned from patches of
    pictures, and planted pairs in AlexNet's sizes."""
    layers: tuple[str, ...] = ()
    """Names of layers; by default a network's first five, as in the paper's Fig. 2."""
    num_draws: int = 299
    """Random banks, and draws of new signs, for every layer; the smallest p-value is 1 / (this + 1)."""
    pictures: str = "embedded"
    """Without --weights: folder of pictures whose patches filters are learned from, or embedded."""
    planted_share: float = 0.25
    """Without --weights: share of the filters of the planted banks that stand in pairs."""
    planted_cosine: float = -0.7
    """Without --weights: cosine of the planted pairs on average."""


def _compute(parameters: PairingParameters, options: StudyOptions, folder: Path) -> Findings:
    p = parameters
    _checked(p)
    root = jax.random.key(options.seed)
    dtype = np.dtype(options.precision)
    banks, origin = _bring(p, jax.random.fold_in(root, 0))
    found: list[dict[str, Any]] = []
    with results_folder(folder), progress_bar("pairs of filters", len(banks), quiet=options.quiet) as bar:
        for place, bank in enumerate(banks):
            filters = bank.filters.astype(dtype)
            index, mu = group_pairing(filters, bank.groups)
            if np.sum(np.isfinite(mu)) < 2:
                raise ValueError(f"expected --layers with two filters that are not zero, got {bank.name}: leave it out")
            key = _size_key(jax.random.fold_in(root, 1), filters.shape, bank.groups)
            draws = draw_banks(key, filters, bank.groups, p.num_draws, dtype, folder / f"{place:03d}")
            layer = {
                "layer": bank.name, "shape": list(filters.shape), "groups": bank.groups, "mu": mu, "pairs": index,
                **compare(mu, draws), "outgoing": _outgoing(bank, index, dtype), "no_outgoing": bank.reason,
            }  # fmt: skip
            found.append(layer)
            bar.advance(1, note=f"{bank.name}: mean {layer['mean']:.3f}, random {layer['random']['mean']:.3f}")
    content = {**origin, "num_draws": p.num_draws, "layers": found}
    return Findings(content, tables(content), _shown(banks))


def _checked(p: PairingParameters) -> None:
    """Refuse parameters that do not fit, in the words of the command line."""
    positive(p.num_draws, "--num-draws", 1 << 20)
    if p.num_draws < FEWEST_DRAWS:
        raise ValueError(
            f"expected --num-draws of at least {FEWEST_DRAWS}, for a p-value of 0.05 or less, got {p.num_draws}"
        )
    if len(set(p.layers)) != len(p.layers):
        raise ValueError(f"expected --layers to be different names, got {' '.join(p.layers)}")
    if not 0 <= p.planted_share <= 1:
        raise ValueError(f"expected --planted-share from 0 to 1, got {p.planted_share}")
    if not -1 <= p.planted_cosine <= 1:
        raise ValueError(f"expected --planted-cosine from -1 to 1, got {p.planted_cosine}")
    if p.weights is not None:
        default = PairingParameters()
        names = ("pictures", "planted_share", "planted_cosine")
        given = [name for name in names if getattr(p, name) != getattr(default, name)]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"expected {flags} without --weights only, which names the filters; leave out one of them")


def _bring(p: PairingParameters, key: PRNGKeyArray) -> tuple[list[Bank], dict[str, Any]]:
    """Return the banks, and where they come from."""
    if p.weights is not None:
        network = data.load_network(p.weights)
        return network_banks(network, p.layers), {"source": network.source, "notes": list(network.notes)}
    names = ["kmeans-one-sided", "kmeans-two-sided", *(f"planted-{spec.name}" for spec in PLANTED)]
    unknown = [name for name in p.layers if name not in names]
    if unknown:
        raise ValueError(
            f"expected --layers among {', '.join(names)} where there is no --weights, got {', '.join(unknown)}"
        )
    banks = {bank.name: bank for bank in default_banks(p.pictures, p.planted_share, p.planted_cosine, key)}
    planted = {"share": p.planted_share, "cosine": p.planted_cosine}
    return [banks[name] for name in p.layers or names], {"source": None, "notes": [], "planted": planted}


def _size_key(key: PRNGKeyArray, shape: tuple[int, ...], groups: int) -> PRNGKeyArray:
    """Return the key of random banks of one size, wherever in the list it stands."""
    for value in (shape[0], math.prod(shape[1:]), groups):
        key = jax.random.fold_in(key, value)
    return key


def _outgoing(bank: Bank, index: np.ndarray, dtype: np.dtype) -> dict[str, Any] | None:
    """Return the correlations of outgoing weights: of phases after a CReLU, else of filters and their pairing ones."""
    if bank.outgoing is None:
        return None
    phases = bank.outgoing.shape[1] == 2 * len(bank.filters)
    kernel = bank.outgoing.astype(dtype)
    result: OutgoingCorrelation = jax.jit(outgoing_correlation)(kernel, None if phases else index)
    return {
        "kind": "phases" if phases else "pairing filters",
        **{
            name: {label: float(value) for label, value in getattr(result, name)._asdict().items()}
            for name in ("pair", "non_pair")
        },
    }


def _shown(banks: list[Bank]) -> xr.Dataset | None:
    """Return the filters that can be seen: two axes, one channel or three."""
    import xarray as xr

    found = {}
    for place, bank in enumerate(banks):
        if bank.filters.ndim == 4 and bank.filters.shape[1] in (1, 3) and not bank.name.startswith("planted"):
            axes = (f"filter_{place}", f"channel_{place}", f"row_{place}", f"column_{place}")
            # As they look: red first.
            ordered = bank.filters[:, ::-1] if bank.reverse else bank.filters
            found[f"filters_{place}"] = (axes, np.asarray(ordered, np.float32))
    return xr.Dataset(found) if found else None


def _figure(report: Mapping[str, Any], dataset: Any) -> Figure:
    from cnninv_jax.experiments.crelu_pairing_figure import pairing_figure

    return pairing_figure(report, dataset)


CRELU_PAIRING = Study(
    name="crelu-pairing",
    title="Filters and their pairing filters, beside random ones",
    source="Shang et al. 2016, Figs. 1-3, Table 6",
    parameters=PairingParameters,
    compute=_compute,
    figure=_figure,
)

__all__ = ["CRELU_PAIRING", "PairingParameters"]
