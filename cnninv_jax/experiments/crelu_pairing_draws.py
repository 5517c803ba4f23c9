"""The law of mu under two hypotheses, drawn bank by bank, and what a bank's mu says against it.

Random: independent Gaussian filters of the bank's size (Shang et al. 2016, footnote 1); mu depends on their Gram matrix
only, so a factor of it is drawn. Signs: the bank's own filters, each times -1 or 1 at random. Learned filters resemble
each other, which lowers the lowest cosine without any pairs; new signs keep all of that, every |cosine|, and forget
which of two filters alike in shape are opposite in phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from cnninv_jax._typing import Array, PRNGKeyArray
from cnninv_jax.crelu.filters import pairing
from cnninv_jax.experiments.random_coherence import LANE_NUMBERS, gaussian_factor
from cnninv_jax.montecarlo import Moments, mean_interval, run

#: The hypotheses, by the names of the draw's outputs.
HYPOTHESES = ("random", "signs")
#: Draws in a block of the journal.
BLOCK = 32
#: Bartlett's factor replaces the filters where they are so many times as long as they are many; it compiles slower.
LONG = 4
#: Bins of the histograms.
BINS = 40


def group_pairing(bank: Float[np.ndarray, "K M *ell"], groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every filter's pairing filter and cosine within its group, [K] each; -1 and NaN where there is none."""
    each = len(bank) // groups
    index = np.asarray(jax.jit(jax.vmap(pairing))(bank.reshape(groups, each, -1)).index)
    shifted = np.where(index < 0, -1, index + each * np.arange(groups)[:, None])
    # Cosines of the Gram matrix whose signs are drawn, to the last digit: few filters have few signs, many draws are
    # the bank itself, and rounding may not part them from it.
    gram, alive = _gram(bank, groups)
    compared = alive[:, None, :] & ~np.eye(each, dtype=bool)
    lowest = np.min(np.where(compared, gram.astype(bank.dtype), np.inf), axis=2)
    return shifted.reshape(-1), np.where(index < 0, np.nan, lowest).astype(np.float64).reshape(-1)


def draw_banks(
    key: PRNGKeyArray, bank: Float[np.ndarray, "K M *ell"], groups: int, num_draws: int, dtype: np.dtype, out: Path
) -> dict[str, Float[np.ndarray, "draws K"]]:
    """Draw mu of random banks and of new signs; NaN for filters that have no angle in the bank, which are left out.

    Args:
        key: random key.
        bank: filters.
        groups: into which filters fall.
        num_draws: how many banks of either kind.
        dtype: of the draws.
        out: folder of the journal.
    """
    each, size = len(bank) // groups, math.prod(bank.shape[1:])
    gram, alive = _gram(bank, groups)
    draw = jax.tree_util.Partial(
        _draw, gram=jnp.asarray(gram, dtype), alive=jnp.asarray(alive), size=size, dtype=np.dtype(dtype)
    )
    numbers = groups * each * (3 * each if size > LONG * each else size + 2 * each)
    lanes = 1 << max(0, min(4, math.frexp(LANE_NUMBERS / numbers)[1] - 1))
    result = run(
        draw, key, num_draws, chunk_size=BLOCK, lanes=lanes, statistics=dict.fromkeys(HYPOTHESES, (Moments(),)),
        keep=HYPOTHESES, out=out, progress=False, name="pairing of random filters",
    )  # fmt: skip
    return {name: np.asarray(result.draws[name], np.float64) for name in HYPOTHESES}


def _draw(
    key: PRNGKeyArray, *, gram: Float[Array, "G K K"], alive: Bool[Array, "G K"], size: int, dtype: np.dtype
) -> dict[str, Array]:
    groups, each = alive.shape
    random_key, sign_key = jax.random.split(key)
    kind = jnp.dtype(dtype)
    method = "bartlett" if size > LONG * each else "direct"
    random = jnp.stack([gaussian_factor(one, each, size, kind, method) for one in jax.random.split(random_key, groups)])
    # The same filters have no angle in every draw: the others are as many as in the bank.
    drawn = jax.vmap(pairing)(jnp.where(alive[..., None], random, 0)).cosine
    signs = jnp.where(jax.random.bits(sign_key, (groups, each), np.uint8) < 128, 1, -1).astype(kind)
    others = signs[:, :, None] * gram * signs[:, None, :]
    compared = alive[:, None, :] & ~np.eye(each, dtype=bool)[None]
    lowest = jnp.min(jnp.where(compared, others, jnp.inf), axis=2)
    signed = jnp.where(alive & jnp.isfinite(lowest), lowest, jnp.nan)
    return {"random": drawn.reshape(-1), "signs": signed.reshape(-1)}


def _gram(bank: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gram matrix of the unit filters, group by group, and which filters have an angle."""
    rows = bank.reshape(groups, len(bank) // groups, -1).astype(np.float64)
    rows = rows / np.maximum(np.max(np.abs(rows), axis=-1, keepdims=True), np.finfo(float).tiny)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    return np.clip(unit @ np.swapaxes(unit, 1, 2), -1.0, 1.0), norms[..., 0] > 0


def compare(mu: Float[np.ndarray, " K"], draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return tests and effect sizes of a bank's mu against drawn banks, and histograms.

    Filters share pairing filters, so that the mu of one bank are dependent and a test that takes them for a sample is
    not valid. Here a whole bank is one observation: its statistic is ranked among those of n drawn banks, which is
    exact under the hypothesis, p = (b + 1) / (n + 1) with b banks as extreme or more. The distance and Cliff's delta
    take no test with them; beside them stands where 95% of random banks have theirs.

    Args:
        mu: of the bank; NaN are left out.
        draws: of `draw_banks`.
    """
    kept = np.isfinite(mu)
    own = np.sort(mu[kept])
    found: dict[str, Any] = {
        "filters": int(kept.sum()), "left_out": int((~kept).sum()), "mean": float(own.mean()),
        "standard_deviation": float(own.std()), "lowest": float(own[0]), "median": float(np.median(own)),
        "highest": float(own[-1]),
    }  # fmt: skip
    for name in HYPOTHESES:
        banks = np.sort(draws[name][:, kept], axis=1)
        found[name] = {**_means(own, banks), **_shapes(own, banks)}
    lowest = np.quantile(draws["random"][:, kept], 0.01)
    found["below_percent"] = float(100 * np.mean(own < lowest))
    found["histogram"] = _histogram(own, {name: draws[name][:, kept] for name in HYPOTHESES})
    return found


def _means(own: np.ndarray, banks: np.ndarray) -> dict[str, float]:
    """Compare the mean: lower than that of random banks?"""
    # In one array, so that a bank that is this one has its mean to the last digit.
    observed, *drawn = np.vstack([own, banks]).mean(axis=1)
    means = np.asarray(drawn)
    variance = float(means.var(ddof=1))
    low, high = mean_interval(means.mean(), variance, len(means))
    return {
        "mean": float(means.mean()),
        "mean_low": float(low),
        "mean_high": float(high),
        "deviation_of_means": math.sqrt(variance),
        "middle_low": float(np.quantile(means, 0.025)),
        "middle_high": float(np.quantile(means, 0.975)),
        "p_lower": float((np.sum(means <= observed) + 1) / (len(means) + 1)),
    }


def _shapes(own: np.ndarray, banks: np.ndarray) -> dict[str, float]:
    """Compare the distributions: Kolmogorov and Smirnov's distance, Cliff's delta."""
    from scipy.stats import ks_2samp, mannwhitneyu

    pool = banks.ravel()
    distance = float(ks_2samp(own, pool, method="asymp").statistic)  # type: ignore[attr-defined]
    # Above: how many of the pool each filter lies below, ties by half.
    above = float(mannwhitneyu(pool, own, method="asymptotic").statistic) / (len(pool) * len(own))
    # All banks, this one too, against all together: exchangeable under the hypothesis, so that ranks are exact.
    everyone = np.vstack([own, banks])
    distances, deltas = _against_pool(everyone)
    return {
        "distance": distance,
        "distance_random_high": float(np.quantile(distances[1:], 0.95)),
        "p_distance": float((np.sum(distances[1:] >= distances[0]) + 1) / len(everyone)),
        "cliffs_delta": 2 * above - 1,
        "cliffs_delta_random": float(np.quantile(np.abs(deltas[1:]), 0.95)),
    }


def _against_pool(banks: Float[np.ndarray, "banks K"]) -> tuple[np.ndarray, np.ndarray]:
    """Return every bank's distance from the pool of all, and its Cliff's delta; banks are sorted."""
    pool = np.sort(banks.ravel())
    right, left = (np.searchsorted(pool, banks, side=side) / len(pool) for side in ("right", "left"))
    steps = np.arange(banks.shape[1] + 1) / banks.shape[1]
    # A bank of ties has one step there; between its own steps the distance is largest at their ends.
    distances = np.maximum(np.max(steps[1:] - right, axis=1), np.max(left - steps[:-1], axis=1))
    return distances, 1 - np.mean(left + right, axis=1)


def _histogram(own: np.ndarray, draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return shares of filters by bins, of the bank and of drawn banks: mean, and the middle 95% bin by bin."""
    # Of drawn banks all but the last 1 in 1000 on either side, which the outermost bins take in.
    low, high = (
        pick([own[end], *(np.quantile(banks, tail) for banks in draws.values())])
        for pick, end, tail in ((min, 0, 1e-3), (max, -1, 1 - 1e-3))
    )
    margin = 0.02 * max(high - low, 1e-3)
    edges = np.linspace(max(low - margin, -1.0), min(high + margin, 1.0), BINS + 1)
    # Cosines of float32 are -1 to seven digits; the last bin is closed.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    found: dict[str, Any] = {"edges": edges, "filters": np.histogram(own, edges)[0] / len(own)}
    for name, banks in draws.items():
        places = np.clip(np.searchsorted(edges, banks, side="right") - 1, 0, BINS - 1)
        shares = np.stack([np.bincount(row, minlength=BINS) for row in places]) / banks.shape[1]
        found[name] = shares.mean(axis=0)
        found[f"{name}_low"], found[f"{name}_high"] = np.quantile(shares, (0.025, 0.975), axis=0)
    return found


__all__ = ["HYPOTHESES", "compare", "draw_banks", "group_pairing"]
