"""The least time a workload can take: random normals, operations and bytes of one draw over the device's own peaks.

``python -m benchmarks.floors [--smoke]`` measures the peaks and prints the floors of Fig. 2's draws.

The three terms are joined in two ways, and both are printed:

* **max** where the units that generate, multiply and move data work at the same time (GPU, TPU: thousands of threads
  hide one behind the other). Strictly a lower bound everywhere.
* **sum** on a CPU, where a core issues the instructions of all three through the same ports, one kernel after the
  other. It is the honest aim there, not a strict bound: an out-of-order core overlaps a little of it.

Operations are those of the mathematics, with k-sparse codes counted as sparse and symmetric matrices once, not those
of our own arrangement: a floor that grew with our detours would flatter us.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from benchmarks.peaks import Peaks, worth_measuring
from cnninv_jax._numerics import Products
from cnninv_jax.rip.conditional import Geometry


@dataclasses.dataclass(frozen=True)
class Work:
    """What one draw (or one example) needs.

    Attributes:
        normals: random normal numbers.
        operations: floating-point operations of products and sums of products, two per multiply-add.
        num_bytes: traffic between kernels: every random number and every array of the problem written once, read once.
        lanes: draws side by side, which decides the cache that the traffic fits into.
        products: precision of the products.
        parts: operations by part, for the record.
    """

    normals: float = 0.0
    operations: float = 0.0
    num_bytes: float = 0.0
    lanes: int = 1
    products: Products = "float32"
    parts: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Floor:
    """Seconds of one draw at the peaks, all devices together."""

    random: float
    product: float
    memory: float
    overlapped: bool

    @property
    def highest(self) -> float:
        """All three at the same time."""
        return max(self.random, self.product, self.memory)

    @property
    def total(self) -> float:
        """One after the other."""
        return self.random + self.product + self.memory

    @property
    def seconds(self) -> float:
        """The one that suits the device."""
        return self.highest if self.overlapped else self.total


def floor(work: Work, peaks: Peaks) -> Floor | None:
    """Return the floor of ``work``; None where nothing is counted."""
    if not (work.normals or work.operations or work.num_bytes):
        return None
    return Floor(
        random=work.normals / peaks.normals if work.normals else 0.0,
        product=work.operations / peaks.large(work.products) if work.operations else 0.0,
        memory=work.num_bytes / peaks.bandwidth(work.num_bytes * work.lanes / 2) if work.num_bytes else 0.0,
        overlapped=peaks.accelerator,
    )


def plain_draw(
    num_filters: int, channels: int, taps: int, shifts: int, signal: int, k: int, *, lanes: int, products: Products
) -> Work:
    """Return the work of one plain draw of the six readings.

    Args:
        num_filters: K.
        channels: M.
        taps: filter length, product over axes.
        shifts: n, product over axes.
        signal: D, product over axes.
        k: non-zeros.
        lanes: draws side by side.
        products: their precision.
    """
    size = channels * taps
    parts = {
        "x = W^T z, k filters": 2 * k * size,
        "h = W x": 2 * num_filters * shifts * size,
        # Support known: k filters; own switches and M_fixed: k winners less the k of x.
        "three errors": 2 * k * size + 2 * 2 * k * size + 2 * 2 * k * size,
        "norms": 2 * (num_filters * shifts + 4 * channels * signal),
    }
    numbers = num_filters * size
    return _work(numbers, parts, 8 * numbers, lanes, products)


def conditional_draw(geometry: Geometry, *, lanes: int, products: Products) -> Work:
    """Return the work of one conditional draw: `slots` inactive winners completed, as in all but 1 draw in 5,000."""
    geo = geometry
    n, size, inactive = geo.shifts, geo.channels * geo.length, geo.num_filters - geo.k
    parts = {
        "x = W^T z, k filters": 2 * geo.k * size,
        "responses of active and fresh filters": 2 * (geo.k + geo.slots) * n * size,
        "P P^T, by the symmetric x x^T": geo.signal_length * (geo.signal_length + 1) * geo.channels,
        "its factorisation and 2 solves per slot": n**3 / 3 + 2 * geo.slots * n**2,
        "responses of the inactive filters, triangular": n * (n + 1) * inactive,
        "completed winners": 2 * geo.slots * n * size,
        "three errors": 2 * geo.k * size + 2 * 2 * geo.k * size + 2 * 2 * geo.k * size,
        "norms": 2 * (geo.num_filters * n + 4 * geo.channels * geo.signal_length),
    }
    numbers = (geo.k + geo.slots) * size + n * inactive
    return _work(numbers, parts, 8 * numbers, lanes, products)


def layer(num_filters: int, channels: int, taps: int, shifts: int, signal: int, *, lanes: int, shared: bool) -> Work:
    """Return the work of one analysis or synthesis in float32; ``shared`` filters are read once for all examples."""
    operations = 2.0 * num_filters * channels * taps * shifts
    filters = num_filters * channels * taps / (lanes if shared else 1)
    numbers = filters + channels * signal + num_filters * shifts
    return _work(0, {"h = W x": operations}, 4 * numbers, lanes, "float32")


def _work(normals: float, parts: dict[str, float], num_bytes: float, lanes: int, products: Products) -> Work:
    return Work(normals, sum(parts.values()), num_bytes, lanes, products, tuple(parts.items()))


def fig2(sampling: str, *, lanes: int, products: Products = "float32", parameters: Any = None) -> Work:
    """Return the work of one draw of Fig. 2, at the paper's size or that of other `Fig2Parameters`."""
    from cnninv_jax.experiments.gilbert2017 import Fig2Parameters

    p = parameters or Fig2Parameters()
    geometry = Geometry(p.K, p.M, p.ell, p.D, p.stride, p.k)
    if sampling == "conditional":
        return conditional_draw(geometry, lanes=lanes, products=products)
    return plain_draw(p.K, p.M, p.ell, geometry.shifts, p.D, p.k, lanes=lanes, products=products)


def main(arguments: list[str] | None = None) -> None:
    """Print peaks and floors."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.measure import use_all_cores
    from benchmarks.store import describe_device, engineering

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="per microbenchmark (default 0.5)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args(arguments)
    use_all_cores()
    peaks = Peaks(given.seconds, smoke=given.smoke)
    lanes = 64 if not peaks.accelerator else 8192
    choices = worth_measuring(peaks.accelerator)
    console = Console(width=150)
    table = Table(title=f"Peaks of {describe_device()['name']}, all devices together")
    for title in ("what", "per second"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for name, rate in peaks.generators.items():
        table.add_row(f"normals: {name}", engineering(rate))
    for products in choices:
        table.add_row(f"large product, {products}", f"{engineering(peaks.large(products))}FLOP")
        table.add_row(f"Fig. 2's products, {products}", f"{engineering(peaks.small(products))}FLOP")
    works = {
        f"{sampling}, {products}": fig2(sampling, lanes=lanes, products=products)
        for sampling in ("conditional", "plain")
        for products in choices
    }
    floors = {name: floor(work, peaks) for name, work in works.items()}
    for size, rate in peaks.measured()["copy_bytes_per_second"].items():
        table.add_row(f"copy of {int(size) / 2**20:g} MiB, read and written", f"{engineering(rate)}B")
    console.print(table)
    table = Table(
        title="Floors of Fig. 2's draw (K, M, l, D, k = 96, 32, 5, 32, 10); ns per draw, all devices together"
    )
    titles = (
        "draw",
        "normals",
        "kFLOP",
        "kB",
        "random",
        "products",
        "memory",
        "max",
        "sum",
        "draws/s at max",
        "at sum",
    )
    for title in titles:
        table.add_column(title, justify="left" if title == "draw" else "right")
    for name, work in works.items():
        found = floors[name]
        assert found is not None
        times = (found.random, found.product, found.memory, found.highest, found.total)
        counts = (f"{work.normals:,.0f}", f"{work.operations / 1e3:,.0f}", f"{work.num_bytes / 1e3:,.0f}")
        speeds = (engineering(1 / found.highest), engineering(1 / found.total))
        table.add_row(name, *counts, *(f"{1e9 * t:,.0f}" for t in times), *speeds)
    console.print(table)
    for name in ("conditional", "plain"):
        parts = works[f"{name}, float32"].parts
        share = math.fsum(value for _, value in parts)
        console.print(f"{name}: " + "; ".join(f"{part} {100 * value / share:.0f}%" for part, value in parts))
    aim = "max: units that overlap" if peaks.accelerator else "sum: one core issues all three"
    console.print(f"The table of `python -m benchmarks` takes {aim}.")


if __name__ == "__main__":
    main()
