"""One training loop for every network here: jitted step, data on the device, checkpoints, exact resume.

A step is a pure function of (state, data, root key, step number): batches come from a permutation per epoch, noise from
``fold_in(key, step)``. So a training that was killed ends on the same bits as one that was not, on the same device.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cnninv_jax._progress import Progress, Reporter, make_reporter
from cnninv_jax._typing import Array, Float, PRNGKeyArray, Scalar
from cnninv_jax.nn._describe import describe_training
from cnninv_jax.nn.checkpoints import Checkpoints, open_checkpoints
from cnninv_jax.nn.recipes import Recipe

Model = TypeVar("Model", bound=nnx.Module)
#: ``loss(model, batch, key) -> (scalar, metrics)``, metrics a dict of scalars.
Loss: TypeAlias = Callable[[Any, Any, PRNGKeyArray], tuple[Scalar, Mapping[str, Scalar]]]
#: ``prepare(key, batch) -> batch``, on the device; key is None where nothing random may happen.
Prepare: TypeAlias = Callable[[PRNGKeyArray | None, Any], Any]
Status: TypeAlias = Literal["finished", "diverged"]

#: Steps between two looks at the losses: so late may a divergence be noticed, and so many steps run ahead of Python.
LOOK_EVERY = 16


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        params: what learns (`nnx.Param`).
        statistics: running statistics of batch normalisation (`nnx.BatchStat`).
        optimizer: the optimiser's own state.
        failed_at: the first step whose loss or gradient was not finite, or -1; from then on nothing changes.
    """

    params: Any
    statistics: Any
    optimizer: Any
    failed_at: Array


@dataclass(frozen=True, eq=False)
class Trained(Generic[Model]):
    """A training that has come to its end.

    Attributes:
        model: the trained module; after a divergence, as it was before the step that failed.
        history: ``loss`` and every metric of the loss function, one number a step; NaN where no step was taken.
        status: ``finished``, or ``diverged``.
        message: how it ended, one sentence.
        seconds: of all sessions together, compiling included.
        examples_per_second: of this session, compiling left out; NaN if no step was taken in it.
        complaints: damaged checkpoints that were passed over.
    """

    model: Model
    history: Mapping[str, Float[np.ndarray, " num_steps"]]
    status: Status
    message: str
    seconds: float
    examples_per_second: float = float("nan")
    complaints: tuple[str, ...] = field(default=())


def train(
    model: Model,
    loss: Loss,
    data: Any,
    recipe: Recipe,
    *,
    key: PRNGKeyArray,
    prepare: Prepare | None = None,
    folder: Path | None = None,
    mesh: Mesh | None = None,
    checkpoint_seconds: float = 30.0,
    quiet: bool = False,
    progress: bool | Callable[[Progress], object] | None = None,
    name: str = "training",
) -> Trained[Model]:
    """Train a Flax NNX module.

    What is an `nnx.Param` learns, `nnx.BatchStat` follows, everything else (frozen filters) stays as it is.

    Args:
        model: the module; it is not changed. ``model(images, train=True, key=key)`` is for ``loss`` to call.
        loss: ``loss(model, batch, key)`` returns a scalar and a dict of scalars to be recorded. A function of a
            module's own level (not a lambda made anew) is compiled once for trainings of one architecture.
        data: pytree of arrays with one leading axis of examples; it is put on the device as it is, uint8 included.
        recipe: optimiser and schedule. An epoch leaves out the last N mod batch_size examples of its permutation.
        key: random key; every batch and all noise follow from it.
        prepare: ``prepare(key, batch)``, inside the compiled step: standardisation, flips. Hashable, to be compiled
            once.
        folder: where checkpoints are kept; a training of the same name, recipe, data, key and shapes goes on there
            where it stood, and a finished one is only read. None keeps nothing.
        mesh: devices with an axis ``batch``, over which every batch is split; gradients and batch statistics are those
            of the whole batch. None uses the default device.
        checkpoint_seconds: time between checkpoints, so much may be lost.
        quiet: no progress.
        progress: in place of ``quiet``: a function that receives every report.
        name: what progress and error messages call it, and part of what the folder is checked against.

    Returns:
        The trained module, losses and metrics of every step, and how it ended: a loss or gradient that is not finite
        ends the training early with status ``diverged`` and the state before that step.

    Raises:
        ValueError: fewer examples than a batch, axes that differ, a batch that the mesh does not divide.
        CheckpointError: the folder belongs to another training, or cannot be written.

    Cost: data stay on the device; the state is donated from step to step, so that it is held once.
    """
    leaves = jax.tree.leaves(data)
    num_examples = _check(leaves, recipe, mesh)
    if mesh is not None:  # the compiler places everything but the batch, whatever kind of axes the mesh was made with
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    graphdef, params, statistics, fixed = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    program = Program(graphdef, loss, prepare, recipe, num_examples // recipe.batch_size, mesh)
    # Copies: the first step donates its state, and the caller keeps the module.
    state = jax.tree.map(
        jnp.array, TrainState(params, statistics, program.optimizer.init(params), jnp.array(-1, jnp.int32))
    )
    session = _Session(program, num_examples, name, key, jax.tree.map(jnp.asarray, (data, fixed)))
    session.begin(state)
    if folder is not None:
        spec = describe_training(name, recipe, key, data, (params, statistics, fixed))
        session.open(open_checkpoints(Path(folder), spec))
    reporter = make_reporter(not quiet if progress is None else progress, name)
    try:
        session.run(reporter, checkpoint_seconds)
    finally:
        reporter.close()
    trained = nnx.merge(graphdef, session.state.params, session.state.statistics, fixed)
    return session.outcome(trained)


@dataclass(frozen=True)
class Program:
    """What one compiled step depends on; hashable, so that equal trainings share it."""

    graphdef: Any
    loss: Loss
    prepare: Prepare | None
    recipe: Recipe
    steps_per_epoch: int
    mesh: Mesh | None

    @property
    def optimizer(self) -> Any:
        """The optimiser."""
        return self.recipe.transformation()


@functools.partial(jax.jit, static_argnames=("program",), donate_argnames=("state",))
def train_step(
    program: Program,
    state: TrainState,
    constants: tuple[Any, Any],
    order: Array,
    key: PRNGKeyArray,
    step: Array,
) -> tuple[TrainState, dict[str, Scalar]]:
    """Take one step; see `train`."""
    data, fixed = constants
    size = program.recipe.batch_size
    index = jax.lax.dynamic_slice_in_dim(order, (step % program.steps_per_epoch) * size, size)
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), step))
    if program.mesh is not None:
        index = jax.lax.with_sharding_constraint(index, NamedSharding(program.mesh, PartitionSpec("batch")))
    batch = jax.tree.map(lambda leaf: leaf[index], data)
    if program.prepare is not None:
        batch = program.prepare(prepare_key, batch)

    def objective(params: Any) -> tuple[Scalar, tuple[Any, Any]]:
        model = nnx.merge(program.graphdef, params, state.statistics, fixed, copy=True)
        value, metrics = program.loss(model, batch, loss_key)
        return value, (dict(metrics), nnx.state(model, nnx.BatchStat))

    (value, (metrics, statistics)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers and multiplies them with floats
        updates, optimizer = program.optimizer.update(gradient, state.optimizer, state.params)
    params = jax.tree.map(lambda leaf, change: leaf + change.astype(leaf.dtype), state.params, updates)
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
    sound = jnp.isfinite(value) & functools.reduce(jnp.logical_and, map(jnp.isfinite, squares), jnp.array(True))
    alive = sound & (state.failed_at < 0)
    failed_at = jnp.where((state.failed_at < 0) & ~sound, step.astype(state.failed_at.dtype), state.failed_at)
    new = TrainState(params, statistics, optimizer, failed_at)
    kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), new[:3], state[:3])
    return TrainState(kept[0], kept[1], kept[2], failed_at), {"loss": value, **metrics}


@functools.partial(jax.jit, static_argnums=(2,))
def epoch_order(key: PRNGKeyArray, epoch: Array, num_examples: int) -> Array:
    """Return the order of the examples in one epoch."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 0), epoch), num_examples)


class _Session:
    """The host side of one training."""

    def __init__(self, program: Program, num_examples: int, name: str, key: PRNGKeyArray, constants: Any) -> None:
        self._program, self._num_examples, self._name, self._key = program, num_examples, name, key
        self._checkpoints: Checkpoints | None = None
        mesh = program.mesh
        self._place = (lambda tree: tree) if mesh is None else functools.partial(_replicated, mesh)
        self._constants = self._place(constants)
        self.step = self._saved = 0
        self.seconds = 0.0
        self._pending: list[tuple[int, dict[str, Scalar]]] = []
        self._began = self._warm = float("nan")
        self._first = self._warm_step = 0

    def begin(self, state: TrainState) -> None:
        """Start from a state, with an empty history."""
        self.state: TrainState = self._place(state)
        shapes = jax.eval_shape(
            functools.partial(train_step, self._program), state, self._constants, *self._arguments(0)
        )
        self.history = {metric: np.full(self._program.recipe.num_steps, np.nan, np.float32) for metric in shapes[1]}

    def open(self, checkpoints: Checkpoints) -> None:
        """Go on where a folder says."""
        self._checkpoints = checkpoints
        held = checkpoints.restore({"state": self.state, "history": self.history})
        for complaint in checkpoints.complaints:
            sys.stderr.write(f"{self._name}: {complaint}\n")  # whoever asked for quiet has to know, too
        if held is not None:
            self.step, content, facts = held
            self._saved = self.step
            # By way of the host: restored arrays are committed to a device, which would be another program.
            self.state = self._place(jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), content["state"]))
            self.history = {metric: np.array(values) for metric, values in content["history"].items()}
            self.seconds = float(facts["seconds"])

    @property
    def failed_at(self) -> int:
        return int(self.state.failed_at)

    def run(self, reporter: Reporter, checkpoint_seconds: float) -> None:
        """Take the steps that are left."""
        recipe = self._program.recipe
        self._began, self._first = time.perf_counter(), self.step
        written = time.monotonic()
        if self.step < recipe.num_steps and self.failed_at < 0:
            reporter.report(Progress("compiling", self.step, recipe.num_steps, unit="steps"))
        epoch, order = -1, None
        try:
            while self.step < recipe.num_steps and self.failed_at < 0:
                for _ in range(min(LOOK_EVERY, recipe.num_steps - self.step)):
                    if self.step // self._program.steps_per_epoch != epoch:
                        epoch = self.step // self._program.steps_per_epoch
                        order = self._place(epoch_order(self._key, np.int32(epoch), self._num_examples))
                    arguments = self._arguments(self.step, order)
                    self.state, metrics = train_step(self._program, self.state, self._constants, *arguments)
                    self._pending.append((self.step, metrics))
                    self.step += 1
                self._look()
                reporter.report(self._progress())
                if time.monotonic() - written > checkpoint_seconds:
                    self._save()
                    written = time.monotonic()
        except BaseException:
            # Ctrl-C, a termination request, a full disk: keep what is whole, and say what happened.
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
                self._look()
                self._save()
            raise
        if self.step != self._saved:
            self._save()

    def _arguments(self, step: int, order: Array | None = None) -> tuple[Any, PRNGKeyArray, np.int32]:
        found = epoch_order(self._key, np.int32(0), self._num_examples) if order is None else order
        return found, self._key, np.int32(step)

    def _look(self) -> None:
        """Fetch what the last steps said, and end at a step that failed."""
        for step, metrics in self._pending:
            for metric, value in metrics.items():
                self.history[metric][step] = value
        self._pending.clear()
        if self._warm != self._warm:
            self._warm, self._warm_step = time.perf_counter(), self.step
        if self.failed_at >= 0:
            for values in self.history.values():
                values[self.failed_at + 1 :] = np.nan
            self.step = min(self.step, self.failed_at + 1)

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        spent = self.seconds + time.perf_counter() - self._began
        self._checkpoints.save(self.step, {"state": self.state, "history": self.history}, {"seconds": spent})
        self._saved = self.step

    def _speed(self) -> float:
        """Return examples per second since the first look, which waited for compilation."""
        taken, elapsed = self.step - self._warm_step, time.perf_counter() - self._warm
        return taken * self._program.recipe.batch_size / elapsed if taken > 0 else float("nan")

    def _progress(self) -> Progress:
        total = self._program.recipe.num_steps
        speed, batch = self._speed(), self._program.recipe.batch_size
        rate = f"{speed:,.0f} examples/s" if speed == speed else ""
        recent = self.history["loss"][max(0, self.step - 50) : self.step]
        left = (total - self.step) * batch / speed
        ended = self.step >= total or self.failed_at >= 0
        return Progress(
            "finished" if ended else "running", self.step, total, seconds_left=left,
            headline=f"loss {np.nanmean(recent):.4g}" if np.isfinite(recent).any() else "", unit="steps", rate=rate,
        )  # fmt: skip

    def outcome(self, model: Model) -> Trained[Model]:
        """Return how it ended."""
        failed, recipe = self.failed_at, self._program.recipe
        complaints = () if self._checkpoints is None else tuple(self._checkpoints.complaints)
        if failed >= 0:
            status: Status = "diverged"
            message = (
                f"{self._name}: the loss or its gradient was not finite at step {failed + 1} of {recipe.num_steps}; "
                f"the state before it is kept: lower the rate ({recipe.rate:g}) or lengthen its warm-up"
            )
        else:
            status, message = "finished", f"{self._name}: {recipe.num_steps} steps"
        spent = self.seconds + time.perf_counter() - self._began
        return Trained(model, self.history, status, message, spent, self._speed(), complaints)


def _replicated(mesh: Mesh, tree: Any) -> Any:
    """Put a pytree whole on every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _check(leaves: list[Any], recipe: Recipe, mesh: Mesh | None) -> int:
    """Return the number of examples, or say what does not fit."""
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(counts) != 1:
        raise ValueError(
            f"expected arrays with one number of examples on their first axis, got {sorted(counts) or 'no arrays'}"
        )
    (count,) = counts
    if count < recipe.batch_size:
        raise ValueError(
            f"expected at least one batch of {recipe.batch_size} examples, got {count}; lower batch_size or bring more"
        )
    if mesh is not None:
        if "batch" not in mesh.axis_names:
            raise ValueError(f"expected a mesh with an axis named batch, got {mesh.axis_names}")
        if recipe.batch_size % mesh.shape["batch"]:
            raise ValueError(
                f"expected a batch that {mesh.shape['batch']} devices divide, got {recipe.batch_size}; change one"
            )
    return count


__all__ = ["Loss", "Prepare", "Trained", "train"]
