"""Noise V^(0) on the data: of a given patch norm |V|_{2,inf}^P, or of a given ratio to a signal (Murray 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, float_dtype, norm, per_axis
from cnninv_jax._typing import Array, Float, PerAxis, PRNGKeyArray, Signal
from cnninv_jax.dcsc.model import Layer
from cnninv_jax.operators import synthesis
from cnninv_jax.sparsity.norms import patch_norm as largest_patch

NoiseLaw: TypeAlias = Literal["gaussian", "modulus"]


def noise(
    key: PRNGKeyArray,
    shape: Sequence[int],
    length: PerAxis,
    *,
    patch_norm: ArrayLike | None = None,
    snr: ArrayLike | None = None,
    signal: ArrayLike | None = None,
    stride: PerAxis = 1,
    padding: str = "valid",
    law: str = "gaussian",
    dtype: jax.typing.DTypeLike | None = None,
) -> Signal:
    """Draw noise V^(0) with |V|_{2,inf}^P = zeta, or with a signal-to-noise ratio (Murray 2018, section 4).

    Args:
        key: random key.
        shape: (M, *D) of the signal.
        length: ell of the first layer, whose patches count.
        patch_norm: zeta, the largest l2 norm of a patch, at least 0.
        snr: 20 log10(|X| / |V|) in decibels, in place of ``patch_norm``; needs the signal.
        signal: X^(0), [M, *D]; only for ``snr``.
        stride: t of the first layer.
        padding: of the first layer, ``"valid"`` or ``"circular"``.
        law: ``"gaussian"`` draws a direction at random; ``"modulus"`` random signs of one magnitude, which fill
            every patch up to zeta.
        dtype: of the noise; the signal's if there is one, otherwise JAX's default float for None.

    Returns:
        Noise, [M, *D].

    Raises:
        ValueError: neither patch norm nor ratio, or both; a ratio without a signal of this shape; a negative patch
            norm; a ratio that is no finite number; an unknown law.
    """
    if (patch_norm is None) == (snr is None):
        raise ValueError("expected either patch_norm or snr, got both or neither")
    if law not in get_args(NoiseLaw):
        raise ValueError(f"expected a law among {', '.join(get_args(NoiseLaw))}, got {law!r}")
    if not isinstance(shape, Sequence):
        raise ValueError(f"expected the shape (M, *D) of the signal, got {shape}")
    size = tuple(per_axis(tuple(shape), len(shape), "shape"))
    clean = None if signal is None else as_float(signal)
    if (snr is None) != (clean is None) or (clean is not None and clean.shape != size):
        raise ValueError(
            f"expected a signal of shape {size} with snr and none without, got "
            f"{'none' if clean is None else clean.shape}"
        )
    kind = clean.dtype if dtype is None and clean is not None else float_dtype(dtype)
    draw = jax.random.normal if law == "gaussian" else jax.random.rademacher
    direction = draw(key, size, kind)
    if clean is not None and snr is not None:
        ratio = jnp.asarray(snr)
        if ratio.ndim or (not isinstance(ratio, Tracer) and not np.isfinite(np.asarray(ratio, np.float64))):
            raise ValueError(f"expected snr to be one finite number of decibels, got {snr}")
        level = norm(clean.astype(kind)) * 10 ** (-ratio.astype(kind) / 20)
        return direction * (level / norm(direction))
    assert patch_norm is not None
    return direction * (_level(patch_norm, kind) / largest_patch(direction, length, stride=stride, padding=padding))


def aligned_noise(key: PRNGKeyArray, layer: Layer, patch_norm: ArrayLike) -> Signal:
    """Draw noise that puts all of zeta into the direction of single atoms: the worst case of the theorems' proofs.

    Random atoms with random signs stand so far apart that no patch sees two of them: |V|_{2,inf}^P = zeta, and the
    response of each of these atoms to V is +-zeta, the most that such noise can do.

    Args:
        key: random key.
        layer: the first layer.
        patch_norm: zeta.

    Returns:
        Noise, [M, *D].

    Raises:
        ValueError: a negative patch norm.
    """
    op = layer.op
    level = _level(patch_norm, op.dtype)
    kind_key, shift_key, sign_key = jax.random.split(key, 3)
    code = jnp.zeros(op.code_shape, op.dtype)
    apart = []
    for reach, shifts in zip(layer.reach, op.shifts, strict=True):
        # A patch within reach of two atoms sees both, so two reaches and one more lie between them.
        gap = 2 * reach + 1
        room = max(shifts // gap, 1) if op.padding == "circular" else (shifts - 1) // gap + 1
        apart.append(np.arange(room) * gap)
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*apart, indexing="ij")])
    free = [
        shifts if op.padding == "circular" else shifts - int(axis[-1])
        for axis, shifts in zip(apart, op.shifts, strict=True)
    ]
    start = jax.random.randint(shift_key, (len(free),), 0, jnp.asarray(free))
    shift = (jnp.asarray(grid) + start[:, None]) % jnp.asarray(op.shifts)[:, None]
    count = grid.shape[1]
    kind = jax.random.randint(kind_key, (count,), 0, op.num_filters)
    signs = jax.random.rademacher(sign_key, (count,), op.dtype)
    return synthesis(op, code.at[(kind, *shift)].set(level * signs))


def _level(patch_norm: ArrayLike, dtype: jnp.dtype) -> Float[Array, ""]:
    level = jnp.asarray(patch_norm)
    if level.shape or (not isinstance(level, Tracer) and not 0 <= float(level) < np.inf):
        raise ValueError(f"expected a patch norm of at least 0, got {patch_norm}")
    return level.astype(dtype)


__all__ = ["NoiseLaw", "aligned_noise", "noise"]
