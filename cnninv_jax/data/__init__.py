"""Files in, arrays out: filter banks from weight files, and the one-line names of random ensembles."""

from cnninv_jax.data.ensembles import ENSEMBLES, EnsembleError, EnsembleSpec, parse_ensemble
from cnninv_jax.data.weights import LAYOUTS, FilterFileError, LoadedFilters, check_filters, load_filters

__all__ = [
    "ENSEMBLES",
    "LAYOUTS",
    "EnsembleError",
    "EnsembleSpec",
    "FilterFileError",
    "LoadedFilters",
    "check_filters",
    "load_filters",
    "parse_ensemble",
]
