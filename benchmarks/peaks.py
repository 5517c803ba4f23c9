"""What the device at hand can do: random normals, products and memory traffic per second, each measured here and now.

Every microbenchmark runs on all local devices at once, in a loop inside one compiled program, so that neither dispatch
nor compilation is in it. The rates are the sum over devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.measure import compile_program, everywhere, place, time_calls
from cnninv_jax._numerics import PRODUCTS, Products, matmul
from cnninv_jax._random import normal_pairs

#: Products (m x q) @ (q x n) of one conditional draw of Gilbert et al. 2017, Fig. 2, at the paper's size.
FIG2_SHAPES = [
    (32, 50, 32), (50, 32, 32), (32, 32, 32), (30, 32, 32), (28, 28, 86), (30, 32, 32), (32, 80, 32), (32, 50, 32),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a microbenchmark is on a device.

    Attributes:
        normals: numbers of one step of a generator, one or more to try.
        large: side of the square products to try.
        lanes: products side by side.
        copies: smallest and largest array of a copy, in bytes.
    """

    normals: tuple[int, ...]
    large: tuple[int, ...]
    lanes: int
    copies: tuple[int, int]


CPU = Sizes((1 << 17, 1 << 19), (512, 1024, 2048), 64, (1 << 16, 1 << 28))
ACCELERATOR = Sizes((1 << 24, 1 << 26), (4096, 8192), 16384, (1 << 20, 1 << 30))
SMOKE = Sizes((1 << 12,), (64,), 4, (1 << 14, 1 << 14))


def _steps_per_second(body: Callable[..., Any], shared: Any, own: Any, seconds: float) -> float:
    """Return turns per second of the loop ``state = body(number, shared, state)``, all devices together.

    Args:
        body: one turn.
        shared: arrays that every device gets.
        own: the first state, one per device along a new leading axis.
        seconds: how long to measure.
    """

    def loop(shared: Any, turns: Any, state: Any) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], state)
        last = lax.fori_loop(0, turns, lambda number, held: body(number, shared, held), first)
        return jax.tree.map(lambda leaf: leaf[None], last)

    devices = jax.local_device_count()
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * devices), own)
    function = everywhere(loop, shared=2)
    program, _, _ = compile_program(function, *place((shared, jnp.int32(1)), (states,)))

    def run(turns: int) -> Callable[[], Any]:
        arguments = place((shared, jnp.int32(turns)), (states,))
        return lambda: program(*arguments)

    repeats = 3
    turns = 1
    while (took := min(time_calls(run(turns), 0.0, 2))) < min(0.02, seconds / repeats) and turns < 1 << 20:
        turns *= 4
    turns = max(1, round(turns * seconds / repeats / took))
    return devices * turns / min(time_calls(run(turns), 0.0, repeats))


def _generators() -> dict[str, Callable[[jax.Array, int], jax.Array]]:
    def by_device(key: jax.Array, count: int) -> jax.Array:
        # The device's own generator: no draw may use it (under vmap it forgets all keys but one), a floor may.
        words = jax.random.key_data(key)
        return jax.random.normal(
            jax.random.wrap_key_data(jnp.concatenate([words, words]), impl="rbg"), (count,), np.float32
        )

    return {
        "Box-Muller on both words (this library)": lambda key, count: jnp.concatenate(
            normal_pairs(key, count // 2, jnp.dtype(np.float32))
        ),
        "jax.random.normal": lambda key, count: jax.random.normal(key, (count,), np.float32),
        "jax.random.normal, rbg": by_device,
    }


def normals(sizes: Sizes, seconds: float) -> dict[str, float]:
    """Return normals per second by generator, written to memory or summed on the spot; the best of the sizes."""
    rates: dict[str, float] = {}
    for name, generate in _generators().items():
        for count in sizes.normals:

            def stored(number: Any, key: Any, held: Any, generate: Any = generate, count: int = count) -> Any:
                del held
                return generate(jax.random.fold_in(key, number), count)

            def summed(number: Any, key: Any, held: Any, generate: Any = generate, count: int = count) -> Any:
                return held + jnp.sum(generate(jax.random.fold_in(key, number), count))

            starts = {"stored": jnp.zeros(count, np.float32), "summed": jnp.zeros((), np.float32)}
            for form, body in (("stored", stored), ("summed", summed)):
                rate = count * _steps_per_second(body, jax.random.key(0), starts[form], seconds)
                rates[f"{name}, {form}"] = max(rates.get(f"{name}, {form}", 0.0), rate)
    return rates


def large_product(products: Products, sizes: Sizes, seconds: float) -> float:
    """Return operations per second (two per multiply-add) of a large square product; the best of the sizes."""
    best = 0.0
    for side in sizes.large:
        matrix = jax.random.normal(jax.random.key(0), (side, side), np.float32) / math.sqrt(side)

        def body(number: Any, matrix: Any, held: Any) -> Any:
            del number
            return matmul(matrix, held, products)

        best = max(best, 2.0 * side**3 * _steps_per_second(body, matrix, matrix, seconds))
    return best


def small_products(products: Products, sizes: Sizes, seconds: float) -> float:
    """Return operations per second of the products of Fig. 2's draw, batched over the lanes."""
    keys = jax.random.split(jax.random.key(0), 2 * len(FIG2_SHAPES))
    pairs = [
        (
            jax.random.normal(keys[2 * i], (sizes.lanes, m, q), np.float32),
            jax.random.normal(keys[2 * i + 1], (sizes.lanes, q, n), np.float32),
        )
        for i, (m, q, n) in enumerate(FIG2_SHAPES)
    ]

    def body(number: Any, pairs: Any, held: Any) -> Any:
        del number
        # The last turn's number enters every product: otherwise the compiler would move them out of the loop.
        results = [matmul(first + held, second, products) for first, second in pairs]
        return sum(result[0, 0, 0] for result in results) * 1e-30

    operations = 2.0 * sizes.lanes * sum(math.prod(shape) for shape in FIG2_SHAPES)
    return operations * _steps_per_second(body, pairs, jnp.zeros((), np.float32), seconds)


def copy(num_bytes: int, seconds: float) -> float:
    """Return bytes per second, read and written, of scaling an array of ``num_bytes`` in place."""
    array = jnp.ones(max(num_bytes // 4, 1), np.float32)

    def body(number: Any, scale: Any, held: Any) -> Any:
        del number
        return held * scale

    return 2.0 * array.nbytes * _steps_per_second(body, jnp.float32(1.0), array, seconds)


class Peaks:
    """The device's measured rates, each measured when first asked for; the best one seen counts."""

    def __init__(self, seconds: float = 0.3, *, smoke: bool = False) -> None:
        self.seconds = 0.01 if smoke else seconds
        self.accelerator = jax.default_backend() != "cpu"
        self.sizes = SMOKE if smoke else ACCELERATOR if self.accelerator else CPU
        self._generators: dict[str, float] = {}
        self._copies: dict[int, float] = {}
        self._large: dict[Products, float] = {}
        self._small: dict[Products, float] = {}

    @property
    def generators(self) -> dict[str, float]:
        """Normals per second by generator."""
        if not self._generators:
            self._generators = normals(self.sizes, self.seconds)
        return self._generators

    @property
    def normals(self) -> float:
        """Normals per second of the fastest generator."""
        return max(self.generators.values())

    def large(self, products: Products) -> float:
        """Operations per second of a large product."""
        if products not in self._large:
            self._large[products] = large_product(products, self.sizes, self.seconds)
        return self._large[products]

    def small(self, products: Products) -> float:
        """Operations per second of Fig. 2's products."""
        if products not in self._small:
            self._small[products] = small_products(products, self.sizes, self.seconds)
        return self._small[products]

    def bandwidth(self, num_bytes: float) -> float:
        """Bytes per second of a copy about as large as ``num_bytes``: cached where that fits a cache."""
        low, high = self.sizes.copies
        size = min(high, max(low, 1 << round(math.log2(max(num_bytes, 1.0)))))
        if size not in self._copies:
            self._copies[size] = copy(size, self.seconds)
        return self._copies[size]

    def again(self) -> None:
        """Measure once more what has been measured: on a machine with other work, one moment is not the device."""
        for name, rate in (normals(self.sizes, self.seconds) if self._generators else {}).items():
            self._generators[name] = max(self._generators[name], rate)
        for held, measure in ((self._large, large_product), (self._small, small_products)):
            for products, rate in held.items():
                held[products] = max(rate, measure(products, self.sizes, self.seconds))
        for size, rate in self._copies.items():
            self._copies[size] = max(rate, copy(size, self.seconds))

    def measured(self) -> dict[str, Any]:
        """Return all rates measured so far, for a file."""
        return {
            "normals_per_second": {name: _short(rate) for name, rate in self.generators.items()},
            "large_product_flop_per_second": {name: _short(rate) for name, rate in self._large.items()},
            "fig2_products_flop_per_second": {name: _short(rate) for name, rate in self._small.items()},
            "copy_bytes_per_second": {str(size): _short(rate) for size, rate in sorted(self._copies.items())},
        }


def worth_measuring(accelerator: bool) -> tuple[Products, ...]:
    """Return the precisions that a device multiplies at a speed of their own: elsewhere rounding is emulated."""
    if jax.default_backend() == "tpu":
        return ("float32", "bfloat16")
    nvidia = accelerator and "cuda" in jax.local_devices()[0].client.platform_version.lower()
    return PRODUCTS if nvidia else ("float32",)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
