"""Files in, arrays out: filters and networks from weight files, pictures, CIFAR, and the names of random ensembles."""

from cnninv_jax.data.architectures import ARCHITECTURES, PREPROCESSINGS, Architecture, ConvSpec, Pool, Preprocessing
from cnninv_jax.data.cifar import ImageClasses, LabelledImages, load_cifar
from cnninv_jax.data.ensembles import ENSEMBLES, EnsembleError, EnsembleSpec, parse_ensemble
from cnninv_jax.data.errors import CifarError
from cnninv_jax.data.fetch import PUBLIC_DATA_SETS, PUBLIC_FILES, fetch, fetch_data_set
from cnninv_jax.data.networks import ConvLayer, Network, load_network
from cnninv_jax.data.pictures import PictureError, Pictures, load_pictures, picture_files, read_picture
from cnninv_jax.data.weights import LAYOUTS, FilterFileError, LoadedFilters, check_filters, load_filters

__all__ = [
    "ARCHITECTURES",
    "ENSEMBLES",
    "LAYOUTS",
    "PREPROCESSINGS",
    "PUBLIC_DATA_SETS",
    "PUBLIC_FILES",
    "Architecture",
    "CifarError",
    "ConvLayer",
    "ConvSpec",
    "EnsembleError",
    "EnsembleSpec",
    "FilterFileError",
    "ImageClasses",
    "LabelledImages",
    "LoadedFilters",
    "Network",
    "PictureError",
    "Pictures",
    "Pool",
    "Preprocessing",
    "check_filters",
    "fetch",
    "fetch_data_set",
    "load_cifar",
    "load_filters",
    "load_network",
    "load_pictures",
    "parse_ensemble",
    "picture_files",
    "read_picture",
]
