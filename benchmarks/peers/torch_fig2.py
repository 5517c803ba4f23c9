"""Fig. 2 in torch, batched over draws, float32, on the CPU.

The arrays are laid out as in `numpy_fig2`: filters [B, K, l, M] and x [B, D, M], so that a window of x is one
contiguous row.

Tried, draws per second of one worker on a 2-core AVX-512 CPU that had other work to do (best of several runs;
repeated runs differ by up to 10%, more where the other work was heavy):

| form | batch | rate |
| --- | ---: | ---: |
| eager, bmm with h as [n, K], bmm placement (the default) | 16 | 11,000 |
| | 32 | 11,800 |
| | 64 | 12,100 |
| | 128 | 11,900 |
| | 256 | 10,300 |
| | 512 | 10,700 |
| | 1024 | 10,800 |
| index_add placement | 64 | 12,600 |
| h as [K, n] | 64 | 10,600 |
| baddbmm per tap, no unfolding | 64 | 9,700 |
| einsum | 64 | 12,000 |
| grouped conv1d | 64 | 10,500 |
| torch.compile of everything but the random numbers | 128 | 12,000 |
| eager, normals from `numpy_fig2.BoxMuller` | 128 | 16,000 |
| torch.compile, normals from `numpy_fig2.BoxMuller` | 64 | 16,300 |

The best single batches of 64 took, per draw: eager 79 us, compiled 75, eager with NumPy normals 60, compiled with
NumPy normals 56. Of the 79, normal_ takes 52 (298 million normals a second, and on one thread only, which is why
workers with a generator each beat torch's own threads) and the product W x 10 (h as [K, n]: 15; one group of conv1d
per draw: 12-15; padded to 32 shifts: 11.5).

Without gain: mode "max-autotune-no-cudagraphs" (it chooses bmm), placement matrices kept between calls or made by
comparison, a Fisher-Yates support in place of topk, exponential_ and Box-Muller in torch (80 million a second).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.peers.fig2 import (
    CHANNELS,
    FILTERS,
    LENGTH,
    SCALE,
    SHIFTS,
    SIGNAL,
    SPARSITY,
    TAPS,
    measure,
)

if TYPE_CHECKING:
    import torch
else:
    try:
        import torch
    except ImportError:
        torch = None

#: Why this peer cannot run, or None.
UNAVAILABLE = "torch is not installed" if torch is None else None


class Statistics:
    """The six numbers of a batch of draws.

    Args:
        batch: Draws per call.
        product: How h = W x is computed: ``"n K"`` and ``"K n"`` are bmm with h as [n, K] or [K, n];
            ``"baddbmm"`` adds up one product per tap without unfolding x; ``"einsum"``; ``"conv"`` is conv1d
            with a group per draw.
        place: How W^T z is put together: ``"bmm"`` with a matrix of shifted values, or ``"index_add"``.
    """

    def __init__(
        self,
        batch: int,
        product: Literal["n K", "K n", "baddbmm", "einsum", "conv"] = "n K",
        place: Literal["bmm", "index_add"] = "bmm",
    ) -> None:
        self.batch, self.product, self.place = batch, product, place
        draw = torch.arange(batch)[:, None]
        self.first_filter = draw * FILTERS
        tap = torch.arange(LENGTH)
        self.signal_row = draw[:, :, None] * SIGNAL + tap
        self.diagonal = torch.arange(SPARSITY * LENGTH).view(SPARSITY, LENGTH) * SIGNAL + tap

    def synthesis(self, rows: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Add values[j] * rows[j] at positions[j], for each draw: [B, D, M]."""
        batch = self.batch
        if self.place == "index_add":
            x = torch.zeros(batch * SIGNAL, CHANNELS)
            where = (self.signal_row + positions[:, :, None]).view(-1)
            x.index_add_(0, where, (rows.view(batch, SPARSITY, TAPS) * values[:, :, None]).view(-1, CHANNELS))
            return x.view(batch, SIGNAL, CHANNELS)
        placement = torch.zeros(batch, SPARSITY * LENGTH * SIGNAL)
        where = (self.diagonal + positions[:, :, None]).view(batch, -1)
        placement.scatter_(1, where, values[:, :, None].expand(-1, -1, LENGTH).reshape(batch, -1))
        placement = placement.view(batch, SPARSITY * LENGTH, SIGNAL).transpose(1, 2)
        return torch.bmm(placement, rows.view(batch, SPARSITY * LENGTH, CHANNELS))

    def responses(self, filters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Compute W x, [B, n, K] or a view of it."""
        batch = self.batch
        if self.product == "conv":
            kernels = filters.view(batch * FILTERS, LENGTH, CHANNELS).transpose(1, 2)
            signal = x.transpose(1, 2).reshape(1, batch * CHANNELS, SIGNAL)
            h = torch.nn.functional.conv1d(signal, kernels, groups=batch)
            return h.view(batch, FILTERS, SHIFTS).transpose(1, 2)
        if self.product == "baddbmm":
            taps = filters.view(batch, FILTERS, LENGTH, CHANNELS)
            h = torch.bmm(x[:, :SHIFTS], taps[:, :, 0].transpose(1, 2))
            for s in range(1, LENGTH):
                h.baddbmm_(x[:, s : s + SHIFTS], taps[:, :, s].transpose(1, 2))
            return h
        patches = x.as_strided((batch, SHIFTS, TAPS), (SIGNAL * CHANNELS, CHANNELS, 1)).contiguous()
        if self.product == "einsum":
            return torch.einsum("bnt,bkt->bnk", patches, filters)
        if self.product == "K n":
            return torch.bmm(filters, patches.transpose(1, 2)).transpose(1, 2)
        return torch.bmm(patches, filters.transpose(1, 2))

    def __call__(
        self, filters: torch.Tensor, support: torch.Tensor, positions: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Take ``filters`` [B, K, l M] of N(0, 1), not yet scaled; the others are [B, k]."""
        batch, taps = self.batch, filters.view(-1, TAPS)
        norm = torch.linalg.vector_norm
        rows = taps.index_select(0, (self.first_filter + support).view(-1))
        x = self.synthesis(rows, positions, values)
        h = self.responses(filters, x)
        if self.product in ("K n", "conv"):
            flat = h.transpose(1, 2).reshape(batch, -1)
            on_support = flat.gather(1, support * SHIFTS + positions)
        else:
            flat = h.view(batch, -1)
            on_support = flat.gather(1, positions * FILTERS + support)

        # The largest magnitude per filter first; its place is looked up for the k winners only.
        pooled = torch.maximum(h.amax(1), -h.amin(1))
        winners = pooled.topk(SPARSITY, sorted=False).indices
        candidates = h.gather(2, winners[:, None, :].expand(-1, SHIFTS, -1))
        switches = candidates.abs().argmax(1)
        # h is too large by 1 / SCALE**2; a reconstruction then has x's own factor.
        pooled = candidates.gather(1, switches[:, None, :]).squeeze(1) * SCALE**2
        known_values = on_support * SCALE**2

        winning = taps.index_select(0, (self.first_filter + winners).view(-1))
        known = self.synthesis(rows, positions, known_values).sub_(x)
        model = self.synthesis(winning, switches, pooled).sub_(x)
        flat_x = x.view(batch, -1)
        signal, size = norm(flat_x, dim=1), norm(values, dim=1)
        start = torch.bmm(pooled[:, None, :], winning.view(batch, SPARSITY, TAPS)).view(batch, TAPS)
        flat_x[:, :TAPS].sub_(start)
        return {
            "synthesis_ratio": signal / size * SCALE,
            "restricted_ratio": norm(known_values, dim=1) / size,
            "full_ratio": norm(flat, dim=1) / size * SCALE**2,
            "error_known_support": norm(known.view(batch, -1), dim=1) / signal,
            "error_model": norm(model.view(batch, -1), dim=1) / signal,
            "error_fixed": norm(flat_x, dim=1) / signal,
        }


class Draws:
    """A worker: new filters and codes in every call.

    Args:
        generator: This worker's stream.
        batch: Draws per call.
        normals: ``"torch"`` is normal_ into one buffer; ``"numpy"`` has `numpy_fig2.BoxMuller` fill it.
        compiled: Whether everything after the random numbers goes through torch.compile.
        options: For `Statistics`.
    """

    def __init__(
        self,
        generator: torch.Generator,
        batch: int,
        normals: Literal["torch", "numpy"] = "torch",
        compiled: bool = False,
        **options: Any,
    ) -> None:
        self.generator, self.batch = generator, batch
        self.uniform = torch.empty(batch, FILTERS)
        self.fill: Callable[[], Any]
        if normals == "numpy":
            from benchmarks.peers.numpy_fig2 import BoxMuller

            self.fill = BoxMuller(generator.initial_seed(), batch * FILTERS * TAPS)
            self.filters = torch.from_numpy(self.fill.out).view(batch, FILTERS, TAPS)
        else:
            self.filters = torch.empty(batch, FILTERS, TAPS)
            self.fill = lambda: self.filters.normal_(generator=generator)
        self.statistics = Statistics(batch, **options)
        if compiled:
            self.statistics = torch.compile(self.statistics, fullgraph=True, dynamic=False)

    def __call__(self) -> dict[str, torch.Tensor]:
        """Compute one batch."""
        batch, generator = self.batch, self.generator
        with torch.inference_mode():
            self.fill()
            support = self.uniform.uniform_(generator=generator).topk(SPARSITY, sorted=False).indices
            positions = torch.randint(SHIFTS, (batch, SPARSITY), generator=generator)
            values = torch.rand(batch, SPARSITY, generator=generator).mul_(2).sub_(1)
            return self.statistics(self.filters, support, positions, values)


def draws(generator: torch.Generator, batch: int, **options: Any) -> dict[str, torch.Tensor]:
    """Compute one batch of draws."""
    return Draws(generator, batch, **options)()


def rate(seconds: float, batch: int, threads: int, *, inner_threads: int = 1, **options: Any) -> float:
    """Measure draws per second with ``threads`` workers of ``inner_threads`` torch threads each."""
    torch.set_num_threads(inner_threads)

    def make(seed: int) -> Draws:
        return Draws(torch.Generator().manual_seed(seed), batch, **options)

    return measure(make, seconds, batch, threads)
