"""Features of fixed random filters, computed once and kept on disk.

A network whose filters never learn hands the same features to its classifier at every epoch, if nothing below learns or
looks at the batch either. Batch norm does both, so there are two ways to train on random filters:

- *live*: the network runs at every step; scale and bias of every batch norm learn (Gilbert et al. 2017, 4.1).
- *cached*: batch norm keeps scale 1, bias 0 and the statistics of `calibrated`; then the features are a fixed function
  of the picture, and training on the kept ones is training the network, exactly. What is lost are learned scales and
  biases (of the paper's footnote 5). Mirrored pictures are a second copy.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from cnninv_jax._files import write_whole
from cnninv_jax._typing import Array, Float, PRNGKeyArray
from cnninv_jax.nn._describe import digest
from cnninv_jax.nn.blocks import Dense, dropout
from cnninv_jax.nn.checkpoints import CheckpointError
from cnninv_jax.nn.evaluation import evaluate
from cnninv_jax.nn.training import Prepare

Model = TypeVar("Model", bound=nnx.Module)

#: What is in a folder of features, and the features.
SPEC, FEATURES = "features.json", "features.npy"


def calibrated(model: Model, images: Float[Array, "B H W C"]) -> Model:
    """Return the network with the running statistics of one batch, layer upon layer.

    Batch norm then is a fixed function: every layer's responses to these images have mean 0 and variance 1. The larger
    the batch, the nearer these are to the statistics of all images; a thousand images of 32 x 32 give every channel
    10^6 responses.

    Args:
        model: a module with `nnx.BatchNorm` of any momentum; it is not changed.
        images: prepared as for the network.
    """
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, _with_statistics(graphdef, state, images))


def _with_statistics(graphdef: Any, state: Any, images: Array) -> Any:
    @jax.jit
    def run(state: Any, images: Array) -> Any:
        model = nnx.merge(graphdef, state, copy=True)
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.BatchNorm):
                module.momentum = 0.0  # nothing of the past
        model(images, train=True, key=jax.random.key(0))
        return nnx.state(model)

    return run(state, images)


def cached_features(
    model: nnx.Module,
    extract: Callable[[Any, Any], Array],
    data: Any,
    folder: Path,
    *,
    prepare: Prepare | None = None,
    batch_size: int = 500,
    dtype: DTypeLike = np.float32,
    progress: Callable[[int], object] | None = None,
) -> Float[np.ndarray, "N ..."]:
    """Return the features of every example, from the disk where they are there already.

    They are written block by block as ``features.npy``, which NumPy reads; what was written before a kill is kept.

    Args:
        model: the network.
        extract: ``extract(model, batch)`` returns features [B, ...] at evaluation.
        data: pytree of arrays with one leading axis of examples.
        folder: made if it is not there; features of another network or of other data are refused.
        prepare: ``prepare(None, batch)``, see `augmentation`.
        batch_size: examples at once, and the block that is written.
        dtype: of what is stored.
        progress: called with the number of examples done.

    Returns:
        A read-only memory map of the file.

    Raises:
        CheckpointError: the folder holds other features, or cannot be written.

    Cost: N times the features on disk: 4 x 4 maps of 2048 channels for 50,000 images are 6.6 GB in float32.
    """
    count = jax.tree.leaves(data)[0].shape[0]
    first = jax.tree.map(lambda leaf: np.asarray(leaf[:1]), data)
    shape = _extract(model, extract, first, prepare).shape[1:]
    spec = {
        "model": digest(nnx.state(model)),
        "data": digest(data),
        "prepare": repr(prepare),
        "shape": [count, *shape],
        "dtype": np.dtype(dtype).name,
        "jax": jax.__version__,
    }
    file = Path(folder) / FEATURES
    try:
        done, offset = _begin(Path(folder), spec, shape, np.dtype(dtype))
        if done >= count:
            return np.load(file, mmap_mode="r")
        with file.open("r+b") as stream:
            row = math.prod(shape) * np.dtype(dtype).itemsize
            stream.truncate(offset + done * row)
            stream.seek(0, os.SEEK_END)
            for start in range(done, count, batch_size):
                stop = min(start + batch_size, count)
                # The last block is filled up, so that one program serves.
                index = np.minimum(np.arange(start, start + batch_size), count - 1)
                batch = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), data)
                found = _extract(model, extract, batch, prepare)[: stop - start]
                stream.write(np.ascontiguousarray(found, dtype).tobytes())
                if progress is not None:
                    progress(stop)
    except OSError as error:
        raise CheckpointError(
            f"features were not written into {str(folder)!r} ({error.strerror or error}); what is there is kept: make "
            "room and start again"
        ) from error
    return np.load(file, mmap_mode="r")


def _extract(model: nnx.Module, extract: Any, batch: Any, prepare: Prepare | None) -> np.ndarray:
    size = jax.tree.leaves(batch)[0].shape[0]
    return evaluate(model, _Named(extract), batch, batch_size=size, prepare=prepare)["features"]


class _Named:
    """``extract`` as a metric; equal for equal functions, so that it is compiled once."""

    def __init__(self, extract: Callable[[Any, Any], Array]) -> None:
        self._extract = extract

    def __call__(self, model: Any, batch: Any) -> dict[str, Array]:
        return {"features": self._extract(model, batch)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and other._extract == self._extract

    def __hash__(self) -> int:
        return hash(self._extract)


def _begin(folder: Path, spec: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int]:
    """Return how many rows are there, and where the first one begins."""
    folder.mkdir(parents=True, exist_ok=True)
    note, file = folder / SPEC, folder / FEATURES
    try:
        held = json.loads(note.read_text(encoding="utf-8")) if note.exists() else None
    except ValueError:
        held = {}
    if held is not None and held != spec:
        names = ", ".join(sorted(name for name in spec if held.get(name) != spec[name]))
        raise CheckpointError(
            f"{str(folder)!r} holds features of something else ({names} differ); choose another folder, or remove it"
        )
    row = math.prod(shape) * dtype.itemsize
    if held is not None and file.exists():
        with file.open("rb") as stream:
            try:
                version = np.lib.format.read_magic(stream)
                if version == (1, 0):
                    np.lib.format.read_array_header_1_0(stream)
                    return (file.stat().st_size - stream.tell()) // row, stream.tell()
            except ValueError:  # the header was being written when it was stopped
                pass
    with file.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(spec["shape"])}
        np.lib.format.write_array_header_1_0(stream, header)
        offset = stream.tell()
    write_whole(note, json.dumps(spec, indent=2).encode())
    return 0, offset


class FeatureClassifier(nnx.Module):
    """Dropout and a dense layer on kept features: what stands above the filters in Gilbert et al. 2017, Table 5.

    Args:
        num_features: of one example, flattened.
        num_classes: scores.
        dropout: probability with which a feature is dropped while training.
        dtype: of computation.
        rngs: source of the weights.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        dropout: float = 0.5,
        dtype: DTypeLike = np.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.dropout = dropout
        self.dtype = dtype
        self.softmax = Dense(num_features, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: Float[Array, "B ..."], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B C"]:
        """Return scores."""
        flat = features.reshape(features.shape[0], -1).astype(self.dtype)
        return self.softmax(dropout(flat, self.dropout, train=train, key=key))


__all__ = ["FeatureClassifier", "cached_features", "calibrated"]
