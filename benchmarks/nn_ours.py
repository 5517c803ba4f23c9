"""Our side of `benchmarks.nn`: networks of the library and of plain Flax, in a process that answers requests.

Requests come as lines of JSON on standard input, numbers travel as .npz files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import store
from benchmarks.measure import compile_program, device_peak_bytes
from benchmarks.peaks import Peaks
from benchmarks.peers.nn_peer import EPSILON, MOMENTUM, NORM_MOMENTUM, RATE, peak_mib, reset_peak
from cnninv_jax.nn.architectures import convpool_cnn_c, random_cnn, without_dropout
from cnninv_jax.nn.blocks import ConvBlock
from cnninv_jax.nn.classifiers import ConvNet
from cnninv_jax.nn.convolution import conv2d
from cnninv_jax.nn.objectives import classification_loss
from cnninv_jax.nn.recipes import Recipe
from cnninv_jax.nn.specs import ConvLayer, NetworkSpec, output_shapes
from cnninv_jax.nn.strips import in_strips, strip_of
from cnninv_jax.nn.training import Program, TrainState, train_step

METHODS = ("direct", "patches", "winograd2", "winograd4", "auto")
#: Name of a form: dtype, precision of products. What rounds is shown on an accelerator only.
FORMS: dict[str, tuple[str, str | None]] = {
    "ours": ("float32", None), "ours, default precision": ("float32", "default"), "ours, bfloat16": ("bfloat16", None),
}  # fmt: skip


def cnn(channels: tuple[int, ...], *, learned: bool) -> NetworkSpec:
    """Return the network of three layers with so many filters."""
    spec = without_dropout(random_cnn(3, learned=learned))
    counts = iter(channels)
    layers = [
        dataclasses.replace(one, channels=next(counts)) if isinstance(one, ConvLayer) else one for one in spec.layers
    ]
    return dataclasses.replace(spec, layers=tuple(layers))


def specs(channels: tuple[int, ...], width: float) -> dict[str, NetworkSpec]:
    """Return the networks by name."""
    return {
        "cnn": cnn(channels, learned=True), "frozen": cnn(channels, learned=False),
        "convpool": without_dropout(convpool_cnn_c(width=width)),
    }  # fmt: skip


def describe(spec: NetworkSpec) -> list[dict[str, Any]]:
    """Return a network's layers for the peer."""
    found = []
    for layer in spec.layers:
        if not isinstance(layer, ConvLayer):
            found.append({"kind": "dense"})
            continue
        pool = layer.pools[0] if layer.pools else None
        found.append({
            "kind": "convolution", "norm": layer.norm is not None, "relu": layer.activation == "relu",
            "padding": layer.kernel // 2 if layer.padding == "SAME" else layer.padding,
            "pool": [pool.window, pool.step, pool.ceil] if pool else None,
        })  # fmt: skip
    return found


def weights_of(model: ConvNet, name: str) -> dict[str, np.ndarray]:
    """Return the numbers of a network for the peer."""
    found = {}
    for place, layer in enumerate(model.spec.layers):
        block = getattr(model, layer.name)
        kernel = np.asarray(block.kernel[...])
        found[f"{name} {place} kernel"] = kernel
        found[f"{name} {place} bias"] = (
            np.zeros(kernel.shape[-1], kernel.dtype) if block.bias is None else np.asarray(block.bias[...])
        )
        if block.norm is not None:
            found[f"{name} {place} mean"] = np.asarray(block.norm.mean[...])
            found[f"{name} {place} variance"] = np.asarray(block.norm.var[...])
    return found


class Plain(nnx.Module):
    """The network of three layers as a user of Flax writes it."""

    def __init__(self, channels: tuple[int, ...], rngs: nnx.Rngs) -> None:
        pairs = list(zip((3, *channels), channels, strict=False))
        norm = functools.partial(nnx.BatchNorm, momentum=NORM_MOMENTUM, epsilon=EPSILON, rngs=rngs)
        self.convolutions = nnx.List(
            [nnx.Conv(given, made, (3, 3), use_bias=False, rngs=rngs) for given, made in pairs]
        )
        self.norms = nnx.List([norm(made) for made in channels])
        self.head = nnx.Linear(4 * 4 * channels[-1], 10, rngs=rngs)

    def features(self, images: Any, train: bool = False) -> Any:
        """Return the last maps."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = nnx.relu(norm(convolution(images), use_running_average=not train))
            images = nnx.max_pool(images, (2, 2), (2, 2))
        return images

    def __call__(self, images: Any, *, train: bool = False, key: Any = None) -> Any:
        """Return scores."""
        del key
        return self.head(self.features(images, train).reshape(images.shape[0], -1))


class Server:
    """Ours: holds networks and a batch, compiles forms as they are asked for."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str], tuple[Callable[[], Any], dict[str, Any]]] = {}
        self.peaks: Peaks | None = None

    def load(
        self, problem: str, outputs: str, channels: list[int], width: float, smoke: bool = False
    ) -> dict[str, Any]:
        """Read a batch, make networks, write their numbers into the problem and what they return to ``outputs``."""
        self.channels, self.smoke = tuple(channels), smoke
        self.specs = specs(self.channels, width)
        with np.load(problem) as held:
            self.images, self.labels = jnp.asarray(held["images"]), jnp.asarray(held["labels"])
            given = {"images": held["images"], "labels": held["labels"]}
        self.models = {name: ConvNet(spec, rngs=nnx.Rngs(0)) for name, spec in self.specs.items()}
        self._calibrate()
        for name in ("cnn", "convpool"):
            given |= weights_of(self.models[name], name)
        np.savez(problem, **given)
        features = np.asarray(jax.jit(self._extract)(nnx.state(self.models["cnn"]), self.images))
        self.calls["learned step", "ours"] = self._learn(self.models["cnn"], "ours")
        step, _ = self.calls["learned step", "ours"]
        np.savez(outputs, features=features, losses=[float(step()) for _ in range(3)])
        networks = {name: describe(self.specs[name]) for name in ("cnn", "convpool")}
        return {"device": store.describe_device(), "versions": store.versions(), "networks": networks}

    def _calibrate(self) -> None:
        """Give batch norm statistics that are not the initial ones."""
        rng = np.random.default_rng(1)
        for name in ("cnn", "frozen"):
            for layer in self.specs[name].layers:
                block = getattr(self.models[name], layer.name)
                if isinstance(block, ConvBlock) and block.norm is not None:
                    size = math.prod(block.kernel[...].shape[:3]) if name == "frozen" else 1.0
                    shape = block.norm.mean[...].shape
                    block.norm.mean[...] = jnp.asarray(0.1 * rng.normal(size=shape), np.float32)
                    block.norm.var[...] = jnp.asarray(size * rng.uniform(0.5, 2, size=shape), np.float32)

    def _extract(self, state: Any, images: Any, model: ConvNet | None = None) -> Any:
        """Return the last maps at evaluation."""
        graph = nnx.graphdef(self.models["cnn"] if model is None else model)

        def part(images: Any) -> Any:
            return nnx.merge(graph, state).layers(images)[-2]

        return in_strips(part, strip_of(images.shape), images)

    def peak(self, products: str = "float32") -> dict[str, Any]:
        """Return operations per second of the device's best large product, measured again at every request."""
        if self.peaks is None:
            self.peaks = Peaks(smoke=self.smoke)
        else:
            self.peaks.again()
        return {"flop_per_second": self.peaks.large(products)}  # type: ignore[arg-type]

    def time(self, what: str, form: str, seconds: float) -> dict[str, Any]:
        """Return the seconds and the processor seconds of every call, and the largest memory meanwhile."""
        if (what, form) not in self.calls:
            self.calls[what, form] = self._call(what, form)
        call, facts = self.calls[what, form]
        reset_peak()
        jax.block_until_ready(call())
        wall, processor = [], []
        while sum(wall) < seconds:
            started, used = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            wall.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
        device = device_peak_bytes()
        return {
            "wall": wall, "processor": processor, "resident_MiB": peak_mib(),
            "device_MiB": None if device is None else device / 2**20, **facts,
        }  # fmt: skip

    def layers(self, seconds: float) -> dict[str, Any]:
        """Return what every form of every convolution takes, forward and both gradients, in turns."""
        rows = []
        shapes = output_shapes(self.specs["cnn"], self.images.shape[1])
        for place, (layer, sizes) in enumerate(zip(self.specs["cnn"].layers, shapes, strict=True)):
            if not isinstance(layer, ConvLayer):
                continue
            kernel = (
                self.models["cnn"].conv1.kernel[...]
                if place == 0
                else getattr(self.models["cnn"], layer.name).kernel[...]
            )
            size, _, inputs = sizes.inputs
            x = jax.random.normal(jax.random.key(place), (self.images.shape[0], size, size, inputs))
            operations = 2 * self.images.shape[0] * size * size * math.prod(kernel.shape)
            exact = jax.jit(functools.partial(conv2d, method="direct"))(x, kernel)
            found: dict[tuple[str, str], Any] = {}
            for method in METHODS if jax.default_backend() == "cpu" and not self.smoke else ("direct", "auto"):
                apply = functools.partial(conv2d, method=method)
                error = float(jnp.linalg.norm(jax.jit(apply)(x, kernel) - exact) / jnp.linalg.norm(exact))
                found["forward", method] = (compile_program(apply, x, kernel), (x, kernel), error)
                # The first layer's maps are images: nobody asks for their gradient.
                wanted = (1,) if place == 0 else (0, 1)
                gradient = jax.grad(lambda x, kernel, g, apply=apply: jnp.vdot(apply(x, kernel), g), wanted)
                found["gradients", method] = (compile_program(gradient, x, kernel, exact), (x, kernel, exact), None)
            times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in found}
            for _ in range(3):
                for key, ((program, _, _), arguments, _) in found.items():
                    times[key] += _repeat(functools.partial(program, *arguments), seconds / 3)
            for (way, method), ((_, compiling, memory), _, error) in found.items():
                wall, processor = (statistics.median(column) for column in zip(*times[way, method], strict=True))
                share = 1 if way == "forward" or place == 0 else 2
                rows.append({
                    "layer": f"{inputs} to {layer.channels} at {size} x {size}", "way": way, "method": method,
                    "wall": wall, "processor": processor, "operations": share * operations, "error": error,
                    "compile_seconds": round(compiling, 2),
                    "temporary_MiB": round(memory.temp_size_in_bytes / 2**20, 1) if memory else None,
                })  # fmt: skip
        return {"rows": rows}

    def _call(self, what: str, form: str) -> tuple[Callable[[], Any], dict[str, Any]]:
        model = self._model(what, form)
        if what == "features" or form == "features alone":
            extract = _plain_features(model) if form == "flax" else functools.partial(self._extract, model=model)
            dtype = FORMS.get(form, FORMS["ours"])[0]
            state, images = nnx.state(model), self.images.astype(dtype)
            program, compiling, memory = compile_program(extract, state, images)
            return lambda: program(state, images), _facts(compiling, memory)
        if what == "frozen step":
            return self._head(model, form)
        return self._learn(model, form)

    def _model(self, what: str, form: str) -> Any:
        if form == "flax":
            return Plain(self.channels, nnx.Rngs(0))
        name = "convpool" if what.startswith("ConvPool") else "frozen" if what == "live step" else "cnn"
        dtype, precision = FORMS.get(form, FORMS["ours"])
        if (dtype, precision) == FORMS["ours"]:
            return self.models[name]
        model = ConvNet(self.specs[name], dtype=dtype, precision=precision, rngs=nnx.Rngs(0))
        nnx.update(model, nnx.state(self.models[name]))
        return model

    def _head(self, model: Any, form: str) -> tuple[Callable[[], Any], dict[str, Any]]:
        """Learn the layer on top of features that nothing below it changes."""
        extract = _plain_features(model) if form == "flax" else functools.partial(self._extract, model=model)
        state = nnx.state(model)
        size = 4 * 4 * self.channels[-1]
        images = self.images.astype(FORMS.get(form, FORMS["ours"])[0])
        optimizer = optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)
        head = {"kernel": jnp.full((size, 10), 0.01), "bias": jnp.zeros(10)}

        def step(head: Any, moments: Any, state: Any, images: Any, labels: Any) -> Any:
            features = extract(state, images).reshape(len(images), -1).astype(jnp.float32)

            def loss(head: Any) -> Any:
                scores = jnp.matmul(features, head["kernel"]) + head["bias"]
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))

            value, gradient = jax.value_and_grad(loss)(head)
            updates, moments = optimizer.update(gradient, moments)
            return optax.apply_updates(head, updates), moments, value

        held = [head, optimizer.init(head)]
        program, compiling, memory = compile_program(step, *held, state, images, self.labels)

        def call() -> Any:
            held[0], held[1], value = program(*held, state, images, self.labels)
            return value

        return call, _facts(compiling, memory)

    def _learn(self, model: Any, form: str) -> tuple[Callable[[], Any], dict[str, Any]]:
        """Take steps of the library's own training on one batch again and again."""
        recipe = Recipe(1, len(self.images), rate=RATE, momentum=MOMENTUM)
        graph, params, batch_statistics, fixed = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
        program = Program(graph, classification_loss, None, recipe, 1, None)
        moments = program.optimizer.init(params)
        held = [jax.tree.map(jnp.array, TrainState(params, batch_statistics, moments, np.int32(-1)))]
        images = self.images.astype(FORMS.get(form, FORMS["ours"])[0])
        constants = ({"images": images, "labels": self.labels}, fixed)
        rest = (constants, jnp.arange(len(images)), jax.random.key(0), np.int32(0))
        started = time.perf_counter()
        compiled = train_step.lower(program, held[0], *rest).compile()
        facts = _facts(time.perf_counter() - started, compiled.memory_analysis())

        def call() -> Any:
            held[0], metrics = compiled(held[0], *rest)
            return metrics["loss"]

        return call, facts


def _plain_features(model: Plain) -> Callable[[Any, Any], Any]:
    graph = nnx.graphdef(model)
    return lambda state, images: nnx.merge(graph, state).features(images)


def _repeat(call: Callable[[], Any], seconds: float) -> list[tuple[float, float]]:
    jax.block_until_ready(call())
    found: list[tuple[float, float]] = []
    while sum(wall for wall, _ in found) < seconds or not found:
        started, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        found.append((time.perf_counter() - started, time.process_time() - used))
    return found


def _facts(seconds: float, memory: Any) -> dict[str, Any]:
    size = None if memory is None else round((memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20, 1)
    return {"compile_seconds": round(seconds, 2), "program_MiB": size}
