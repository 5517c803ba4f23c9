"""Several codes on one filter bank: better estimators of the means in Gilbert et al. 2017, Fig. 2.

Where every filter is drawn, the bank is a large part of a draw's cost. Several codes on it share that cost; means over
them are unbiased whatever the codes' dependence, as each has the law of a single draw (`cnninv_jax.sparsity.designs`).
The energy |W^T z|^2 / |z|^2, whose mean is known, is a control variate for all readings, with one code or several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cnninv_jax import filters as ensembles
from cnninv_jax._numerics import float_dtype
from cnninv_jax._typing import Array, Float, PerAxis, PRNGKeyArray
from cnninv_jax.operators import ConvOperator, conv_operator
from cnninv_jax.rip.ratios import ratios_of_code
from cnninv_jax.sparsity import regions, sample_codes, window

#: The output that serves as a control variate: |W^T z|^2 / |z|^2, of expectation `model_rip_energy_mean`.
ENERGY = "model_rip_energy"


def ratios_of_codes(
    key: PRNGKeyArray,
    op: ConvOperator,
    k: float,
    *,
    codes: int,
    supports: str = "independent",
    signs: str = "independent",
    group: int | None = None,
    pool: PerAxis | None = None,
    values: str = "uniform",
) -> dict[str, Float[Array, " codes"]]:
    """Draw several codes of M_k together and return the ratios of each under one layer.

    Args:
        key: typed key.
        op: the layer W, shared by all codes.
        k: number of non-zeros, or a fraction of the code's entries; static.
        codes: how many codes; static.
        supports: ``"independent"`` or ``"stratified"``, see `sample_codes`.
        signs: ``"independent"`` or ``"antithetic"``, see `sample_codes`.
        group: codes per antithetic group, see `sample_codes`.
        pool: pooling window of M_k; None for whole filter responses.
        values: distribution of the non-zeros, see `sample_code`.

    Returns:
        The six readings of `READINGS` and ``model_rip_energy`` = |W^T z|^2 / |z|^2, one of each per code.

    Raises:
        ValueError: sizes that do not fit, or an unknown name.
    """
    drawn = sample_codes(
        key,
        codes,
        op.num_filters,
        op.shifts,
        k,
        pool=pool,
        values=values,
        supports=supports,
        signs=signs,
        group=group,
        dtype=op.dtype,
    )
    found = jax.vmap(lambda code: ratios_of_code(op, code))(drawn)
    return {**found, ENERGY: jnp.square(found["model_rip"])}


def draw_ratios_of_codes(
    key: PRNGKeyArray,
    num_filters: int,
    channels: int,
    length: PerAxis,
    signal_shape: PerAxis,
    k: float,
    *,
    codes: int = 8,
    supports: str = "independent",
    signs: str = "independent",
    group: int | None = None,
    stride: PerAxis = 1,
    padding: str = "valid",
    pool: PerAxis | None = None,
    ensemble: str = "gaussian",
    normalize: bool = False,
    values: str = "uniform",
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, Float[Array, ""]]:
    """Draw one filter bank and several codes; return the mean over the codes of each ratio of Fig. 2.

    The draws of a run are then independent clusters of codes: standard errors over them are right, for every design.

    Args:
        key: typed key.
        num_filters: K.
        channels: M.
        length: filter length ell, one integer (1-D) or one per axis.
        signal_shape: signal length D, likewise.
        k: number of non-zeros, or a fraction of the code's entries; static.
        codes: how many codes share the bank; static.
        supports: ``"independent"`` or ``"stratified"``, see `sample_codes`.
        signs: ``"independent"`` or ``"antithetic"``, see `sample_codes`.
        group: codes per antithetic group, see `sample_codes`.
        stride: t.
        padding: ``"valid"``, ``"same"`` or ``"circular"``.
        pool: pooling window of M_k; None for whole filter responses.
        ensemble: distribution of the filters' entries, a name in `cnninv_jax.filters.ENSEMBLES`.
        normalize: scale every filter to unit norm.
        values: distribution of the non-zeros of z, see `sample_code`.
        dtype: of filters and code; JAX's default float for None.

    Returns:
        For every reading of `READINGS` its mean over the codes and, with more than one code, "<reading>_within", its
        unbiased variance over them (what `montecarlo.variance_components` reads; of no such meaning for dependent
        codes). ``model_rip_energy``, the mean of |W^T z|^2 / |z|^2, has the expectation `model_rip_energy_mean`: 1 with
        valid padding. It is a control variate for all of them.

    Raises:
        ValueError: sizes that do not fit, or an unknown name.

    Cost: one filter bank, and per code what `ratios_of_code` costs.
    """
    kind = float_dtype(dtype)
    if ensemble not in ensembles.ENSEMBLES:
        raise ValueError(f"expected ensemble to be one of {', '.join(ensembles.ENSEMBLES)}, got {ensemble!r}")
    filter_key, code_key = jax.random.split(key)
    bank = ensembles.ENSEMBLES[ensemble](filter_key, num_filters, channels, length, normalize=normalize, dtype=kind)
    op = conv_operator(bank, signal_shape, stride=stride, padding=padding)
    found = ratios_of_codes(
        code_key, op, k, codes=codes, supports=supports, signs=signs, group=group, pool=pool, values=values
    )
    outputs = {name: jnp.mean(value) for name, value in found.items()}
    if codes > 1:
        outputs |= {f"{name}_within": jnp.var(value, ddof=1) for name, value in found.items() if name != ENERGY}
    return outputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _WithEnergy:
    """The callable of `with_energy`: a pytree, so that the arrays of the draw inside stay traced arguments."""

    draw: Callable[[PRNGKeyArray], Any]

    @property
    def func(self) -> Callable[[PRNGKeyArray], Any]:
        """The draw inside, by whose name a run is called."""
        return self.draw

    def __call__(self, key: PRNGKeyArray) -> dict[str, Any]:
        outputs = self.draw(key)
        return {**outputs, ENERGY: jnp.square(outputs["model_rip"])}


def with_energy(draw: Callable[[PRNGKeyArray], Any]) -> Callable[[PRNGKeyArray], dict[str, Any]]:
    """Return a draw that also returns ``model_rip_energy`` = |W^T z|^2 / |z|^2, a control variate that costs nothing.

    Args:
        draw: function of one key that returns the reading ``model_rip`` of a single code, such as `draw_ratios` with
            its sizes bound.
    """
    return _WithEnergy(draw)


def model_rip_energy_mean(
    length: PerAxis, signal_shape: PerAxis, *, stride: PerAxis = 1, padding: str = "valid", pool: PerAxis | None = None
) -> float:
    """Return E |W^T z|^2 / |z|^2 over filters and codes: 1 with valid padding (Gilbert et al. 2017, eq. 1).

    The signs of z take the cross terms away, and E |w_i|^2 = 1 leaves 1. With same padding a filter near the border is
    cut: what is left of it is the mean over the positions of z of the fraction of its taps inside the signal. With
    circular padding nothing is cut.

    Args:
        length: filter length ell, one integer (1-D) or one per axis.
        signal_shape: signal length D, likewise.
        stride: t.
        padding: ``"valid"``, ``"same"`` or ``"circular"``.
        pool: pooling window of M_k; None for whole filter responses.
    """
    taps = (length,) if isinstance(length, int) else tuple(length)
    shape = jax.ShapeDtypeStruct((1, 1, *taps), jnp.float32)
    op = jax.eval_shape(lambda bank: conv_operator(bank, signal_shape, stride=stride, padding=padding), shape)
    n, mean = op.shifts, 1.0
    if op.padding == "circular":
        return mean
    axes = zip(op.signal_shape, op.length, op.stride, op.margins, n, window(n, pool), regions(n, pool), strict=True)
    for size, ell, step, (before, _), count, cell, parts in axes:
        starts = [shift * step - before for shift in range(count)]
        inside = [(min(start + ell, size) - max(start, 0)) / ell for start in starts]
        blocks = [inside[part * cell : (part + 1) * cell] for part in range(parts)]
        mean *= sum(sum(block) / len(block) for block in blocks) / parts
    return mean
