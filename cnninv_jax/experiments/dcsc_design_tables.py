"""What `dcsc-design` found, as limits of S and tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cnninv_jax.dcsc.bounds import uniform_bound
from cnninv_jax.dcsc.orthogonal import most_orthogonal
from cnninv_jax.experiments.studies import Table

if TYPE_CHECKING:
    from cnninv_jax.experiments.dcsc_design import Cell, DesignParameters

#: The two dictionaries.
BANKS = ("start", "designed")
#: Where the designed filters are kept, for `cnninv analyze` and as a later start.
FILTERS = "filters.npz"


def limits_of(p: DesignParameters, mu: float, cells: Sequence[Cell], name: str) -> dict[str, float | int | None]:
    """Return up to which S the uniform bound holds, and the S reached where few and where half of the draws lose.

    ``safe`` is the least S of the supports, ``half`` lies between their averages.
    """
    own = [cell for cell in cells if cell.bank == name]
    half = None
    for below, above in itertools.pairwise(own):
        if below.rate < 0.5 <= above.rate:
            share = (0.5 - below.rate) / (above.rate - below.rate)
            half = below.sparsity + share * (above.sparsity - below.sparsity)
            break
    uniform = uniform_bound(mu, 1.0, 1.0, p.noise / 2, threshold="half")
    safe = 0
    for cell in own:
        if cell.interval[1] >= 0.01:
            break
        safe = min(cell.reached)
    return {"uniform": int(uniform.largest_sparsity), "half": half, "safe": safe}


def tables_of(p: DesignParameters, content: Mapping[str, Any], cells: Sequence[Cell]) -> tuple[Table, ...]:
    """Return what people read."""
    shape, banks, welch = content["shape"], content["banks"], content["welch"]
    rows = []
    for name in BANKS:
        facts = banks[name]
        ratio = f"{facts['coherence'] / welch:.2f}" if welch else "bound is 0"
        half = "-" if facts["half"] is None else f"{facts['half']:.1f}"
        rows.append((name, f"{facts['coherence']:.5f}", ratio, f"{facts['rms']:.5f}", f"{facts['energy']:.3f}",
                     str(facts["uniform"]), str(facts["safe"]) if facts["safe"] else "-", half))  # fmt: skip
    size = "x".join(map(str, shape[2:]))
    least = max(shape[0] / most_orthogonal(shape[1], shape[2:], content["stride"]) - 1, 0.0)
    first = Table(
        f"{shape[0]} filters of {shape[1]} channels and {size} taps, stride {p.stride}, from {content['origin']}",
        ("filters", "mu", "mu / Welch", "rms", "energy", "S uniform", "S simulated", "S at 1/2"),
        tuple(rows),
        (
            f"No filters of this size have a mu below {welch:.5f} (Welch's bound over shifts).",
            "rms: root mean square of an atom's correlations with all atoms that overlap it; energy: their sum of "
            f"squares, on average at least {least:.3f}.",
            "S: most non-zeros in a stripe, as supports reached it. S uniform: up to it the uniform bound (2), for the "
            "threshold |X| / 2, promises success. S simulated: up to it fewer than 1% of the draws lost the support, "
            "at 95% confidence. S at 1/2: half of them did.",
            f"The designed filters are in {FILTERS}: cnninv analyze reads it, and --start goes on from it.",
        ),
    )
    by = {(cell.bank, cell.asked): cell for cell in cells}
    texts = []
    for asked in p.S:
        least, most = (limit(limit(by[name, asked].reached) for name in BANKS) for limit in (min, max))
        row = [str(asked), f"{most}" if least == most else f"{least} to {most}"]
        for name in BANKS:
            cell = by[name, asked]
            low, high = cell.interval
            bound = "vacuous" if cell.bound >= 1 else f"{cell.bound:.2g}"
            row += [f"{cell.rate:.4f} [{low:.4f}, {high:.4f}]", bound]
        texts.append(tuple(row))
    second = Table(
        "P(support lost) by one thresholding pass over random signs",
        ("S asked", "S", "start", "bound (3)", "designed", "bound (3)"),
        tuple(texts),
        (
            f"{p.supports} supports of {p.num_draws:,} draws each, the same for both; 95% intervals are over signs, "
            "for these supports. |X| = 1, threshold 1/2, "
            + (f"Gaussian noise of patch norm {p.noise / 2:g}." if p.noise else "no noise."),
        ),
    )
    return first, second
