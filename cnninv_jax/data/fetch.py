"""Public weight files and data sets, fetched once, compared with their checksums, and kept in a cache folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnninv_jax.data.errors import CifarError, FilterFileError, did_you_mean

#: Names another cache folder than the user's own.
CACHE_VARIABLE = "CNNINV_CACHE"


@dataclass(frozen=True)
class PublicFile:
    """A file on the net.

    Attributes:
        address: where it is.
        checksum: ``algorithm:hexadecimal digest``.
        megabytes: about.
        what: one line for people.
        architecture: of the network in it; empty for a data set.
    """

    address: str
    checksum: str
    megabytes: int
    what: str
    architecture: str = ""

    @property
    def file_name(self) -> str:
        """Last part of the address."""
        return self.address.rpartition("/")[2]


#: Checksums as the publishers name them: Keras' own loader, and the model card in Caffe's repository.
PUBLIC_FILES = {
    "vgg16": PublicFile(
        "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:6d6bbae143d832006294945121d1f1fc",
        59,
        "VGG-16 (Simonyan and Zisserman 2015) as distributed with Keras, convolutional layers",
        "vgg16",
    ),
    "alexnet-caffe": PublicFile(
        "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",
        "sha1:9116a64c0fbe4459d18f4bb6b56d647b63920377",
        244,
        "AlexNet of Caffe's model zoo, two halves",
        "alexnet-caffe",
    ),
}

#: Binary versions; checksums as the page of the data sets names them.
PUBLIC_DATA_SETS = {
    "cifar10": PublicFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
        162,
        "CIFAR-10 (Krizhevsky 2009)",
    ),
    "cifar100": PublicFile(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "md5:03b5dce01913d631647c71ecec9e9cb8",
        161,
        "CIFAR-100 (Krizhevsky 2009)",
    ),
}

#: Where only a pickle is published: how to make a file that can be read.
_TORCH = (
    "torchvision publishes it as a pickle, which is not read; convert it once with "
    "`from torchvision.models import alexnet; from safetensors.torch import save_file` and "
    "`save_file(alexnet(weights='IMAGENET1K_V1').state_dict(), 'alexnet.safetensors')`, then give that file"
)


def fetch(name: str) -> Path:
    """Return the path of a public file, downloading it if it is not in the cache yet.

    The cache is the user's cache folder for ``cnninv_jax``, or what CNNINV_CACHE names.

    Args:
        name: one of `PUBLIC_FILES`.

    Raises:
        FilterFileError: an unknown name, no connection, or a download that is not the file it should be.
    """
    if name == "alexnet":
        raise FilterFileError(f"'alexnet' cannot be fetched: {_TORCH}; 'alexnet-caffe' can be fetched")
    return _fetched(name, PUBLIC_FILES, FilterFileError)


def fetch_data_set(name: str) -> Path:
    """Return the path of a public data set's archive, downloading it if it is not in the cache yet.

    The cache is the one of `fetch`.

    Args:
        name: one of `PUBLIC_DATA_SETS`.

    Raises:
        CifarError: an unknown name, no connection, or a download that is not the file it should be.
    """
    return _fetched(name, PUBLIC_DATA_SETS, CifarError)


def _fetched(name: str, files: Mapping[str, PublicFile], failure: type[ValueError]) -> Path:
    """Return the path of ``files[name]`` in the cache; whatever goes wrong becomes a ``failure`` of one sentence."""
    file = files.get(name)
    if file is None:
        raise failure(f"expected one of {', '.join(files)} to fetch, got {name!r}{did_you_mean(name, files)}")
    import pooch

    folder = Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("cnninv_jax"))
    # Said beforehand, since the library's own sentence about it is long.
    cached = folder / file.file_name
    if not cached.exists():
        pooch.get_logger().info("fetching %s, about %d MB", file.what, file.megabytes)
    try:
        return Path(pooch.retrieve(file.address, file.checksum, fname=file.file_name, path=folder))
    except ValueError as error:  # pooch: another checksum than the known one
        raise failure(
            f"the download of {name!r} is not the file it should be ({file.checksum}): try again later, or get "
            f"{file.address} by hand and give its path"
        ) from error
    except Exception as error:  # requests, urllib3 and sockets have a family of errors each
        raise failure(
            f"{name!r} could not be fetched ({type(error).__name__}): connect to the net, or get {file.address} "
            f"elsewhere and put it into {str(folder)!r}"
        ) from error


__all__ = ["CACHE_VARIABLE", "PUBLIC_DATA_SETS", "PUBLIC_FILES", "PublicFile", "fetch", "fetch_data_set"]
