"""Several processes as one run: who leads, what all must agree on, how block summaries travel.

JAX's distributed runtime (`jax.distributed.initialize`) is the cluster; every process calls `run` with the same
arguments. A superstep computes one block per device without a word exchanged; then its small summaries are
gathered, so that every process holds the same totals and takes the same decisions. Files belong to the leader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnninv_jax.montecarlo import errors
from cnninv_jax.montecarlo.errors import HostLostError, MonteCarloError
from cnninv_jax.montecarlo.specification import canonical_json

T = TypeVar("T")
AXIS = "draws"
#: Bytes broadcast at once; bounds the device memory that a resumed run's state takes.
_PIECE = 32 << 20


@functools.lru_cache(maxsize=8)
def _gatherer(mesh: Mesh) -> Callable[[Any], Any]:
    """Return the one collective of a run: block summaries from every device to every device."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes whose devices make up a mesh.

    Attributes:
        mesh: the devices, one axis "draws".
        count: processes that take part.
        index: this process among them.
    """

    mesh: Mesh
    count: int
    index: int

    @classmethod
    def of(cls, mesh: Mesh) -> Hosts:
        """Return the processes behind ``mesh``: this one alone, or all of them.

        Raises:
            ValueError: the mesh leaves out this process, or takes some other processes but not all.
        """
        owners = sorted({device.process_index for device in mesh.devices.flat})
        mine = jax.process_index()
        if owners == [mine]:
            return cls(mesh, 1, 0)
        if owners != list(range(jax.process_count())):
            raise ValueError(
                f"expected a mesh of this process's devices or of all {jax.process_count()} processes', got devices of "
                f"processes {owners} in process {mine}; leave mesh out to use them all"
            )
        return cls(mesh, len(owners), mine)

    @property
    def leads(self) -> bool:
        """Whether this process owns journal, progress and files."""
        return self.index == 0

    def share(self, work: Callable[[], Any]) -> Any:
        """Return the leader's ``work()`` (JSON-able) in every process; its refusal is raised in every process."""
        if self.count == 1:
            return work()
        failure: Exception | None = None
        content: dict[str, Any] = {}
        if self.leads:
            try:
                content = {"value": work()}
            except (ValueError, MonteCarloError) as error:
                failure, content = error, _described(error)
        content = json.loads(self._broadcast(canonical_json(content).encode()))
        if failure is not None:
            raise failure
        return _value(content)

    def agree(self, work: Callable[[], T]) -> list[T]:
        """Run ``work`` in every process and return all values (JSON-able), in the order of the processes.

        A refusal in one process is raised in all of them, so that none waits for ever.
        """
        if self.count == 1:
            return [work()]
        failure: Exception | None = None
        try:
            content: dict[str, Any] = {"value": work()}
        except (ValueError, MonteCarloError) as error:
            failure, content = error, _described(error)
        with _watched():
            everyone = self._collect(canonical_json(content).encode())
        if failure is not None:
            raise failure
        return [_value(json.loads(text)) for text in everyone]

    def share_arrays(self, arrays: list[np.ndarray] | None) -> list[np.ndarray]:
        """Return the leader's arrays in every process; the others pass None."""
        if self.count == 1:
            assert arrays is not None
            return arrays
        packed = b""
        if self.leads:
            assert arrays is not None
            buffer = io.BytesIO()
            np.savez(buffer, *arrays)
            packed = buffer.getvalue()
        with np.load(io.BytesIO(self._broadcast(packed))) as held:
            return [held[f"arr_{number}"] for number in range(len(held.files))]

    def gather(self, outputs: Any) -> Any:
        """Return the arrays of all devices on every device; in a single process they are where they should be."""
        return outputs if self.count == 1 else _gatherer(self.mesh)(outputs)

    def fetch(self, outputs: Any) -> Any:
        """Copy gathered arrays to NumPy, a row per device; never a view, for their buffers are used again.

        Raises:
            HostLostError: another process has gone.
        """
        if self.count == 1:
            return jax.tree.map(_rows, outputs)
        with _watched():
            return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), outputs)

    def place(self, tree: Any) -> Any:
        """Copy arrays that every process holds alike to every device of the mesh."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        if self.count == 1:
            return jax.device_put(tree, everywhere)

        def one(array: jax.Array) -> jax.Array:
            if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
                implementation = str(jax.random.key_impl(array))
                return jax.random.wrap_key_data(one(jax.random.key_data(array)), impl=implementation)
            host = np.asarray(array)
            return jax.make_array_from_process_local_data(everywhere, host, host.shape)

        return jax.tree.map(one, tree)

    def deal(self, values: np.ndarray) -> Any:
        """Return one entry of ``values`` per device of the mesh."""
        if self.count == 1:
            return values
        split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.make_array_from_callback(values.shape, split, lambda index: values[index])

    def _broadcast(self, content: bytes) -> bytes:
        from jax.experimental import multihost_utils

        with _watched():
            size = multihost_utils.broadcast_one_to_all(np.array(divmod(len(content), _PIECE), np.int32))
            total = int(size[0]) * _PIECE + int(size[1])
            pieces = []
            for start in range(0, total, _PIECE):
                length = min(_PIECE, total - start)
                piece = np.zeros(length, np.uint8)
                if self.leads:
                    piece[:] = np.frombuffer(content, np.uint8, count=length, offset=start)
                pieces.append(np.asarray(multihost_utils.broadcast_one_to_all(piece)).tobytes())
            return b"".join(pieces)

    def _collect(self, content: bytes) -> list[bytes]:
        from jax.experimental import multihost_utils

        sizes = np.asarray(multihost_utils.process_allgather(np.array([len(content)], np.int32))).ravel()
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _rows(array: jax.Array) -> np.ndarray:
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _described(error: Exception) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error)}


def _value(content: dict[str, Any]) -> Any:
    if "error" in content:
        kind = ValueError if content["error"] == "ValueError" else getattr(errors, content["error"], MonteCarloError)
        raise kind(content["message"])
    return content["value"]


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Turn a broken collective into one sentence."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise HostLostError(f"another process of this run has gone, or cannot be reached ({first[:200]})") from None
