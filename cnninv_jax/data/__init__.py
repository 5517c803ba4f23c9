"""Files in, arrays out: filter banks and networks from weight files, pictures, and the names of random ensembles."""

from cnninv_jax.data.architectures import ARCHITECTURES, PREPROCESSINGS, Architecture, ConvSpec, Pool, Preprocessing
from cnninv_jax.data.ensembles import ENSEMBLES, EnsembleError, EnsembleSpec, parse_ensemble
from cnninv_jax.data.fetch import PUBLIC_FILES, fetch
from cnninv_jax.data.networks import ConvLayer, Network, load_network
from cnninv_jax.data.pictures import PictureError, Pictures, load_pictures, picture_files, read_picture
from cnninv_jax.data.weights import LAYOUTS, FilterFileError, LoadedFilters, check_filters, load_filters

__all__ = [
    "ARCHITECTURES",
    "ENSEMBLES",
    "LAYOUTS",
    "PREPROCESSINGS",
    "PUBLIC_FILES",
    "Architecture",
    "ConvLayer",
    "ConvSpec",
    "EnsembleError",
    "EnsembleSpec",
    "FilterFileError",
    "LoadedFilters",
    "Network",
    "PictureError",
    "Pictures",
    "Pool",
    "Preprocessing",
    "check_filters",
    "fetch",
    "load_filters",
    "load_network",
    "load_pictures",
    "parse_ensemble",
    "picture_files",
    "read_picture",
]
