"""The compiled program of a run: one block of draws per device, no word exchanged between devices.

A block is a loop over slices of ``lanes`` vmapped draws; accumulator states are the loop's carry, so memory
is that of one slice. `jax.shard_map` gives each device its own block. Programs are cached by everything that
shapes them, and the draw's arrays are arguments: another filter bank, key or number of draws of the same
shapes neither traces nor compiles.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnninv_jax.montecarlo.accumulators import Accumulator, Leaf, Tally
from cnninv_jax.montecarlo.hosts import AXIS
from cnninv_jax.montecarlo.specification import computation_digest, setting

_CACHED_PROGRAMS = 64


@dataclasses.dataclass(frozen=True)
class Signature:
    """The static part of a draw: everything but the values of its arrays. Hashable; the key of all caches."""

    treedef: Any
    static: tuple[tuple[int, type, Any], ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    key_dtype: Any
    settings: tuple[Any, ...]

    def rebuild(self, arrays: tuple[Any, ...]) -> Callable[..., Any]:
        """Return the draw with ``arrays`` in the places of its own."""
        leaves, rest = [], iter(arrays)
        static = {position: value for position, _, value in self.static}
        for position in range(self.treedef.num_leaves):
            leaves.append(static[position] if position in static else next(rest))
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


def _settings() -> tuple[Any, ...]:
    return tuple(
        setting(name)
        for name in (
            "enable_x64",
            "default_matmul_precision",
            "threefry_partitionable",
            "numpy_dtype_promotion",
            "numpy_rank_promotion",
            "debug_nans",
        )
    )


def split_draw(draw: Callable[..., Any], key: jax.Array) -> tuple[Signature, tuple[jax.Array, ...]]:
    """Split a draw into its static signature and its arrays.

    ``draw`` may be a plain function (no arrays), a `jax.tree_util.Partial`, or any callable registered as a
    pytree. Array leaves become arguments of the compiled program; all other leaves are part of the signature.

    Raises:
        ValueError: not callable, or a leaf that is neither an array nor hashable.
    """
    if not callable(draw):
        raise ValueError(f"expected draw to be a function of one key, got {type(draw).__name__}")
    leaves, treedef = jax.tree_util.tree_flatten(draw)
    static, arrays = [], []
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array):
            arrays.append(leaf)
        elif isinstance(leaf, (np.ndarray, np.generic)):
            arrays.append(jnp.asarray(leaf))
        else:
            static.append((position, type(leaf), leaf))
    avals = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.aval.weak_type) for a in arrays)
    signature = Signature(treedef, tuple(static), avals, key.dtype, _settings())
    try:
        hash(signature)
    except TypeError as error:
        raise ValueError(
            f"expected draw to be hashable apart from its arrays, got {error}; "
            "hold arrays in a jax.tree_util.Partial or a registered pytree"
        ) from None
    return signature, tuple(arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class TracedDraw:
    """A draw's computation, its outputs by name, and the hash of it."""

    closed: ClosedJaxpr
    leaves: tuple[Leaf, ...]
    digest: str


@functools.lru_cache(maxsize=_CACHED_PROGRAMS)
def trace(signature: Signature) -> TracedDraw:
    """Trace the draw once for its computation and the names, shapes and dtypes of what it returns.

    Raises:
        ValueError: outputs that are complex, keys, or share a name; or no outputs at all.
    """

    def call(arrays: tuple[Any, ...], key: jax.Array) -> Any:
        return signature.rebuild(arrays)(key)

    key = jax.ShapeDtypeStruct((), signature.key_dtype)
    closed, shapes = jax.make_jaxpr(call, return_shape=True)(signature.avals, key)
    leaves = []
    for path, aval in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if "/" in name:
            raise ValueError(f"expected output names without '/', got {name!r}; netCDF reads it as a group")
        if not (jnp.issubdtype(aval.dtype, jnp.number) or aval.dtype == np.bool_) or jnp.issubdtype(
            aval.dtype, jnp.complexfloating
        ):
            raise ValueError(
                f"expected real or bool outputs from draw, got {aval.dtype} for {name!r}; "
                "return real and imaginary parts (or magnitude) as leaves of their own"
            )
        leaves.append(Leaf(name, tuple(aval.shape), np.dtype(aval.dtype)))
    names = [leaf.name for leaf in leaves]
    if not names:
        raise ValueError("expected draw to return at least one array, got an empty pytree")
    if len(set(names)) != len(names):
        raise ValueError(f"expected distinct output names, got {sorted(names)}; rename one of the equal ones")
    return TracedDraw(closed, tuple(leaves), computation_digest(closed))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is computed from each draw, in the order of the draw's leaves; the `Tally` comes first."""

    leaves: tuple[Leaf, ...]
    accumulators: tuple[tuple[Accumulator, ...], ...]
    keep: tuple[str, ...]

    @property
    def kept(self) -> tuple[Leaf, ...]:
        """The leaves whose raw draws are kept."""
        return tuple(leaf for leaf in self.leaves if leaf.name in self.keep)

    def init(self) -> tuple[tuple[dict[str, jax.Array], ...], ...]:
        """Return the device state of an empty block."""
        return tuple(
            tuple(accumulator.init(leaf) for accumulator in group)
            for leaf, group in zip(self.leaves, self.accumulators, strict=True)
        )

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON-able entries of a run's specification."""
        return {
            "statistics": {
                leaf.name: [accumulator.describe() for accumulator in group]
                for leaf, group in zip(self.leaves, self.accumulators, strict=True)
            },
            "keep": list(self.keep),
            "outputs": {leaf.name: f"{leaf.dtype}{list(leaf.shape)}" for leaf in self.leaves},
        }

    @functools.cached_property
    def _state(self) -> tuple[list[tuple[str, tuple[int, ...]]], Any]:
        avals, structure = jax.tree_util.tree_flatten(jax.eval_shape(self.init))
        return [(np.dtype(aval.dtype).name, tuple(aval.shape)) for aval in avals], structure

    @functools.cached_property
    def packed(self) -> tuple[tuple[np.dtype, int], ...]:
        """Dtype and length of each packed array."""
        sizes: dict[str, int] = {}
        for name, shape in self._state[0]:
            sizes[name] = sizes.get(name, 0) + math.prod(shape)
        return tuple((np.dtype(name), sizes[name]) for name in sorted(sizes))

    def pack(self, states: Any) -> tuple[jax.Array, ...]:
        """Return the states end to end, one array per dtype: few transfers instead of one per number."""
        groups: dict[str, list[jax.Array]] = {dtype.name: [] for dtype, _ in self.packed}
        for leaf in jax.tree_util.tree_leaves(states):
            groups[leaf.dtype.name].append(leaf.ravel())
        return tuple(jnp.concatenate(group) for group in groups.values())

    def unpack(self, packed: Sequence[np.ndarray]) -> Any:
        """Return host views of packed states in their own shapes."""
        layout, structure = self._state
        pieces = {dtype.name: array for (dtype, _), array in zip(self.packed, packed, strict=True)}
        offsets = dict.fromkeys(pieces, 0)
        arrays = []
        for name, shape in layout:
            start, offsets[name] = offsets[name], offsets[name] + math.prod(shape)
            arrays.append(pieces[name][start : offsets[name]].reshape(shape))
        return jax.tree_util.tree_unflatten(structure, arrays)


def with_tally(accumulators: tuple[Accumulator, ...]) -> tuple[Accumulator, ...]:
    """Return the accumulators with a `Tally` in front."""
    return (Tally(), *(accumulator for accumulator in accumulators if not isinstance(accumulator, Tally)))


@dataclasses.dataclass(frozen=True, eq=False)
class BlockProgram:
    """A compiled superstep: ``(arrays, root, starts[devices], counts[devices], buffers) -> (packed, kept)``.

    The last argument is donated: outputs are written into the buffers of a superstep that the host is done with,
    or into new ones from `spare`.
    """

    compiled: Any
    mesh: Mesh
    spare: Callable[[], Any]
    compile_seconds: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int

    @property
    def resident_bytes(self) -> int:
        """Device memory with two supersteps in flight; the outputs' buffers are among the (donated) arguments."""
        return self.argument_bytes + self.output_bytes + 2 * self.temporary_bytes


def _superstep(traced: TracedDraw, plan: Plan, block: int, lanes: int) -> Callable[..., Any]:
    evaluate = jaxpr_as_fun(traced.closed)

    def one_block(arrays: tuple[Any, ...], root: jax.Array, starts: jax.Array, counts: jax.Array, spare: Any) -> Any:
        start, count = starts[0], counts[0]
        lane = jnp.arange(lanes, dtype=np.int32)

        def one_draw(index: jax.Array) -> list[jax.Array]:
            return evaluate(*arrays, jax.random.fold_in(root, index))

        def one_slice(number: jax.Array, carry: Any) -> Any:
            states, buffers = carry
            offset = number * lanes + lane
            values = jax.vmap(one_draw)(start + offset.astype(np.uint32))
            mask = offset < count
            new_states = tuple(
                tuple(acc.update(state, value, mask) for acc, state in zip(group, held, strict=True))
                for group, held, value in zip(plan.accumulators, states, values, strict=True)
            )
            kept = [value for leaf, value in zip(plan.leaves, values, strict=True) if leaf.name in plan.keep]
            new_buffers = tuple(
                jax.lax.dynamic_update_slice_in_dim(buffer, value, number * lanes, axis=0)
                for buffer, value in zip(buffers, kept, strict=True)
            )
            return new_states, new_buffers

        # What an earlier superstep left in the buffers lies beyond the valid draws, and the host never reads it.
        buffers = tuple(buffer[0] for buffer in spare[1])
        # The number of slices follows the number of valid draws: blocks past the end cost nothing.
        slices = (count + (lanes - 1)) // lanes
        states, buffers = jax.lax.fori_loop(0, slices, one_slice, (plan.init(), buffers))
        return jax.tree.map(lambda x: x[None], (plan.pack(states), buffers))

    return one_block


@functools.lru_cache(maxsize=_CACHED_PROGRAMS)
def compile_blocks(signature: Signature, plan: Plan, block: int, lanes: int, mesh: Mesh) -> BlockProgram:
    """Compile the superstep ahead of time for ``mesh`` (one axis, "draws")."""
    began = time.perf_counter()
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        _superstep(trace(signature), plan, block, lanes),
        mesh=mesh,
        in_specs=(everywhere, everywhere, split, split, split),
        out_specs=split,
        check_vma=False,
    )

    def aval(shape: tuple[int, ...], dtype: Any, spec: PartitionSpec, weak: bool = False) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec), weak_type=weak)

    arrays = tuple(aval(a.shape, a.dtype, everywhere, a.weak_type) for a in signature.avals)
    root = aval((), signature.key_dtype, everywhere)
    starts, counts = aval((mesh.size,), np.uint32, split), aval((mesh.size,), np.int32, split)
    slots = -(-block // lanes) * lanes
    shapes = (
        tuple(((mesh.size, length), dtype) for dtype, length in plan.packed),
        tuple(((mesh.size, slots, *leaf.shape), leaf.dtype) for leaf in plan.kept),
    )
    spare = tuple(tuple(aval(shape, dtype, split) for shape, dtype in group) for group in shapes)
    compiled = jax.jit(mapped, donate_argnums=4, keep_unused=True).lower(arrays, root, starts, counts, spare).compile()

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, split))
    def fresh() -> Any:
        return tuple(tuple(jnp.zeros(shape, dtype) for shape, dtype in group) for group in shapes)

    analysis = compiled.memory_analysis()

    def size(name: str) -> int:
        return int(getattr(analysis, name, 0) or 0)

    return BlockProgram(
        compiled=compiled,
        mesh=mesh,
        spare=fresh,
        compile_seconds=time.perf_counter() - began,
        argument_bytes=size("argument_size_in_bytes"),
        output_bytes=size("output_size_in_bytes"),
        temporary_bytes=size("temp_size_in_bytes"),
    )


def clear_cache() -> None:
    """Forget all traced draws and compiled programs (they hold on to the functions they were made from)."""
    compile_blocks.cache_clear()
    trace.cache_clear()
