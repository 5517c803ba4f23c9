"""A bank's pairing filters beside those of random banks (Shang et al. 2016, Figs. 1-3), for `cnninv analyze`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnninv_jax.montecarlo import mean_interval

#: Bins of the histograms.
BINS = 40


def beside_random(own: ArrayLike, random: ArrayLike) -> dict[str, Any] | None:
    """Return mu_i = min over j of <phi_i, phi_j> of a bank beside that of random banks: means, p-value, histograms.

    The mu_i of one bank depend on each other; the test's unit is the bank: how often a random bank's mean mu is as low
    as this one's, (b + 1) / (n + 1).

    Args:
        own: mu of these filters, [K]; NaN where a filter has no angle, left out.
        random: mu of random banks, [n, K].

    Returns:
        Numbers for report.json; None where no filter has a pairing one.
    """
    mu, banks = np.asarray(own, np.float64), np.asarray(random, np.float64)
    kept = mu[np.isfinite(mu)]
    if not kept.size:
        return None
    means = np.nanmean(banks, axis=1)
    mean, variance = float(means.mean()), float(means.var(ddof=1))
    low, high = mean_interval(mean, variance, len(means))
    start, end = min(kept.min(), np.nanmin(banks)), max(kept.max(), np.nanmax(banks))
    margin = 0.02 * max(end - start, 1e-3)
    edges = np.linspace(start - margin, end + margin, BINS + 1)
    return {
        "mean": float(kept.mean()),
        "standard_deviation": float(kept.std()),
        "lowest": float(kept.min()),
        "highest": float(kept.max()),
        "left_out": int(mu.size - kept.size),
        "random_mean": mean,
        "random_standard_deviation": float(np.sqrt(variance)),
        "random_interval_95": [float(low), float(high)],
        "p_lower": float((np.sum(means <= kept.mean()) + 1) / (len(means) + 1)),
        "edges": edges,
        "filters": np.histogram(kept, edges)[0] / kept.size,
        "random": np.histogram(banks, edges)[0] / banks.size,
        "values": mu,
    }


def pairing_sentence(found: Mapping[str, Any] | None, banks: int) -> str:
    """Return what the table's line on pairs does not say."""
    if found is None:
        return "pairing filters: none, they take two filters that are not zero"
    left_out = f"; {found['left_out']} filters of zeros left out" if found["left_out"] else ""
    return (
        f"pairing filters (Shang et al. 2016): mu from {found['lowest']:.3f} to {found['highest']:.3f}{left_out}; mean "
        f"mu lower than random: p = {found['p_lower']:.2g} (not below {1 / (banks + 1):.2g} with {banks} random banks)"
    )


__all__ = ["BINS", "beside_random", "pairing_sentence"]
