"""Layers of the papers' networks: a convolution or dense product, batch norm, activation, pooling and dropout in a row.

Channels come last: images [B, H, W, C], kernels [*ell, M, K].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from cnninv_jax import crelu
from cnninv_jax._numerics import PRECISION, wider
from cnninv_jax._typing import Array, Float, PRNGKeyArray
from cnninv_jax.nn._parameters import Frozen, ParameterCounts, count_parameters
from cnninv_jax.nn._pool import Pool
from cnninv_jax.nn.convolution import conv2d
from cnninv_jax.nn.normalised_pooling import normalised_max_pool
from cnninv_jax.nn.pooling import max_pool

Activation: TypeAlias = Literal["relu", "avr", "crelu", "leaky_relu", "linear"]
#: "learned": batch norm with learnable scale and bias; "fixed": scale 1 and bias 0 for ever.
Norm: TypeAlias = Literal["learned", "fixed"]
Padding: TypeAlias = int | Literal["SAME", "VALID"]
Initialiser: TypeAlias = Callable[[PRNGKeyArray, tuple[int, ...], Any], Array]

#: Slope of the leaky ReLU below 0 (Random DCN, A.2).
LEAKY_SLOPE = 0.2
#: Slopes below 0, for initialisation; |x| has -1. Both phases of a CReLU together keep the energy as a ReLU does.
_SLOPES = {"leaky_relu": LEAKY_SLOPE, "avr": -1.0}
#: Weight of the past in running statistics, and what is added to variances.
MOMENTUM, EPSILON = 0.9, 1e-5


def msra(slope: float = 0.0) -> Initialiser:
    """Return the initialiser N(0, 2 / ((1 + a^2) fan_in)), fan_in = M prod(ell) (He et al. 2015, eqs. 10 and 15).

    Args:
        slope: a, of the activation below 0: 0 for ReLU, `LEAKY_SLOPE` for the leaky one, -1 for AVR.
    """

    def initialise(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
        deviation = math.sqrt(2 / ((1 + slope**2) * math.prod(shape[:-1])))
        return deviation * jax.random.normal(key, shape, dtype)

    return initialise


def unit_normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return i.i.d. N(0, 1) entries: the random filters of Gilbert et al. 2017, 4.1."""
    return jax.random.normal(key, shape, dtype)


def activate(x: Float[Array, "*axes C"], activation: Activation) -> Float[Array, "*axes C2"]:
    """Return the activation; CReLU doubles the channels: all positive phases, then all negative ones.

    Raises:
        ValueError: an unknown name.
    """
    if activation == "relu":
        return jnp.maximum(x, 0)
    if activation == "crelu":
        return crelu.crelu(x, axis=-1)
    if activation == "avr":
        return jnp.abs(x)
    if activation == "leaky_relu":
        return jnp.where(x >= 0, x, LEAKY_SLOPE * x)
    _checked_activation(activation)
    return x


def channels_after(channels: int, activation: Activation) -> int:
    """Return how many channels an activation hands on: twice as many for CReLU."""
    return 2 * channels if _checked_activation(activation) == "crelu" else channels


def pooled(x: Float[Array, "B H W C"], pool: Pool) -> Float[Array, "B h w C"]:
    """Return maxima or means over windows; a mean over what a window that sticks out holds.

    Raises:
        ValueError: a window longer than the maps.
    """
    if pool.kind == "max":
        return max_pool(x, pool.window, pool.step, ceil=pool.ceil)[0]
    counts = [pool.regions(size) for size in x.shape[1:3]]
    if min(counts) < 1:
        raise ValueError(
            f"expected maps of at least {pool.window} x {pool.window} for pooling, got {x.shape[1]} x {x.shape[2]}; "
            "take larger images"
        )
    ends = [(count - 1) * pool.step + pool.window for count in counts]
    kept = x[:, : ends[0], : ends[1]]
    if pool.step == pool.window and kept.shape[1:3] == tuple(ends):
        # Several times quicker on a CPU than a window that slides, above all in the gradient.
        blocks = kept.reshape(x.shape[0], counts[0], pool.window, counts[1], pool.window, x.shape[3])
        return jnp.mean(blocks, axis=(2, 4))
    sides = [(0, 0), *((0, end - size) for end, size in zip(ends, kept.shape[1:3], strict=True)), (0, 0)]

    def sums(values: Array) -> Array:
        window, steps = (1, pool.window, pool.window, 1), (1, pool.step, pool.step, 1)
        return lax.reduce_window(values, jnp.zeros((), values.dtype), lax.add, window, steps, sides)

    return sums(kept) / sums(jnp.ones((1, *kept.shape[1:3], 1), x.dtype))


def dropout(x: Float[Array, " *axes"], rate: float, *, train: bool, key: PRNGKeyArray | None) -> Float[Array, " *axes"]:
    """Return x with entries set to 0 with probability ``rate`` and the others divided by 1 - rate; x if not training.

    Raises:
        ValueError: a rate to apply, and no key.
    """
    if not train or rate == 0:
        return x
    if key is None:
        raise ValueError("expected a key for dropout while training, got none; pass key=jax.random.key(...)")
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


class _Block(nnx.Module):
    """What a convolution and a dense layer share: kernel, bias, norm, activation, dropout."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        bias: bool,
        norm: Norm | None,
        activation: Activation,
        dropout: float,
        frozen: bool,
        initialise: Initialiser | None,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        precision: lax.PrecisionLike,
        rngs: nnx.Rngs,
    ) -> None:
        if min(shape) < 1:
            raise ValueError(f"expected kernel and channels of at least 1, got {shape}")
        if norm is not None and norm not in get_args(Norm):
            raise ValueError(f"expected norm to be 'learned', 'fixed' or None, got {norm!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"expected dropout from 0 to below 1, got {dropout}")
        _checked_activation(activation)
        chosen = initialise or (unit_normal if frozen else msra(_SLOPES.get(activation, 0.0)))
        kind = Frozen if frozen else nnx.Param
        self.kernel = kind(chosen(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros(shape[-1], param_dtype)) if bias else nnx.data(None)
        self.norm = _batch_norm(shape[-1], norm, dtype, param_dtype, rngs) if norm else nnx.data(None)
        self.activation: Activation = activation
        self.dropout = dropout
        self.dtype = dtype
        self.precision = precision
        self.channels_out = channels_after(shape[-1], activation)

    def responses_to_features(self, responses: Array, train: bool) -> Array:
        """Return what follows the product: bias, norm, activation."""
        if self.bias is not None:
            responses = responses + self.bias[...].astype(self.dtype)[(None,) * (responses.ndim - 1)]
        if self.norm is not None:
            # Flax widens bfloat16 to float32 for the statistics and leaves that to promotion.
            with jax.numpy_dtype_promotion("standard"):
                responses = self.norm(responses, use_running_average=not train)
        return activate(responses, self.activation)

    def _checked(self, x: Array, rank: int) -> Array:
        channels = self.kernel[...].shape[-2]
        if x.ndim != rank or x.shape[-1] != channels or not jnp.issubdtype(x.dtype, jnp.floating):
            axes = "[B, H, W, C]" if rank == 4 else "[B, C]"
            raise ValueError(f"expected floats {axes} with C = {channels}, got {x.dtype} of shape {x.shape}")
        return x.astype(self.dtype)


def _commutes(activation: Activation, pools: tuple[Pool, ...], shape: tuple[int, ...]) -> bool:
    """Return whether maxima may be taken before norm and activation: windows side by side, nothing that falls."""
    if not pools or activation not in ("relu", "leaky_relu", "linear"):
        return False
    pool, sides = pools[0], shape[1:3]
    cut = pool.ceil and any(side % pool.window for side in sides)
    return pool.kind == "max" and pool.step == pool.window and min(sides) >= pool.window and not cut


class ConvBlock(_Block):
    """Convolution, batch norm, activation, pooling, dropout, in this order.

    The norm stands before the activation, as in Gilbert et al. 2017 (4.1, footnote: "a batch normalization layer
    together with a learnable scale and bias before the activation").

    Args:
        channels_in: M.
        channels: K, filters; with CReLU 2 K channels come out (`channels_out`).
        kernel: side of the filters.
        stride: of the convolution.
        padding: samples added on every side, "SAME" or "VALID".
        bias: whether one is added; by default only without a norm, which would take it off again.
        norm: batch norm with learned scale and bias, with fixed ones, or none.
        activation: of the responses.
        pool: pooling of the features; several are done one after the other.
        dropout: probability with which a feature is dropped, behind pooling.
        frozen: random filters that never learn (`Frozen`), by default N(0, 1).
        initialise: of the filters; by default `msra` or, for frozen ones, `unit_normal`.
        dtype: of computation.
        param_dtype: of what is stored.
        precision: of products; None for full float32, "default" for what the device does at its quickest.
        rngs: source of the filters.

    Raises:
        ValueError: sizes, names or rates that do not fit.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        bias: bool | None = None,
        norm: Norm | None = None,
        activation: Activation = "relu",
        pool: Pool | tuple[Pool, ...] = (),
        dropout: float = 0.0,
        frozen: bool = False,
        initialise: Initialiser | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            (kernel, kernel, channels_in, channels),
            bias=norm is None if bias is None else bias,
            norm=norm,
            activation=activation,
            dropout=dropout,
            frozen=frozen,
            initialise=initialise,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.stride = stride
        self.padding: Padding = padding
        self.pools = pool if isinstance(pool, tuple) else (pool,)

    def __call__(
        self, images: Float[Array, "B H W M"], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B h w C"]:
        """Return features.

        Args:
            images: maps.
            train: use and keep the batch's statistics, and drop features.
            key: of dropout.

        Raises:
            ValueError: other channels than the filters have, integers, or dropout without a key.
        """
        responses, pools = self.responses(images), self.pools
        if self.norm is not None and self.bias is None and _commutes(self.activation, pools, responses.shape):
            responses = normalised_max_pool(responses, self.norm, pools[0].window, train)
            features, pools = activate(responses, self.activation), pools[1:]
        else:
            features = self.responses_to_features(responses, train)
        for pool in pools:
            features = pooled(features, pool)
        return dropout(features, self.dropout, train=train, key=key)

    def responses(self, images: Float[Array, "B H W M"]) -> Float[Array, "B h w K"]:
        """Return the filters' responses alone, without a bias: what never changes where filters are frozen."""
        images = self._checked(images, 4)
        padding = self.padding if isinstance(self.padding, str) else ((self.padding, self.padding),) * 2
        kernel = self.kernel[...].astype(self.dtype)
        return conv2d(images, kernel, stride=self.stride, padding=padding, precision=self.precision)


class Dense(_Block):
    """Dense product, batch norm, activation, dropout, in this order; arguments as for `ConvBlock`.

    Linear without a norm is the classifier on top, whose soft-max stands in the loss.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        bias: bool | None = None,
        norm: Norm | None = None,
        activation: Activation = "linear",
        dropout: float = 0.0,
        frozen: bool = False,
        initialise: Initialiser | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            (channels_in, channels),
            bias=norm is None if bias is None else bias,
            norm=norm,
            activation=activation,
            dropout=dropout,
            frozen=frozen,
            initialise=initialise,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )

    def __call__(
        self, features: Float[Array, "B M"], *, train: bool = False, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B C"]:
        """Return features, or scores where this is the last layer; see `ConvBlock`."""
        features = self._checked(features, 2)
        precision = PRECISION if self.precision is None else self.precision
        responses = jnp.matmul(features, self.kernel[...].astype(self.dtype), precision=precision)
        out = self.responses_to_features(responses, train)
        return dropout(out, self.dropout, train=train, key=key)


def _batch_norm(channels: int, norm: Norm, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.BatchNorm:
    learned = norm == "learned"
    layer = nnx.BatchNorm(
        channels,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        use_bias=learned,
        use_scale=learned,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
    # Flax keeps statistics in float32, also those of a float64 network.
    kept = wider(param_dtype, jnp.float32)
    layer.mean, layer.var = nnx.BatchStat(jnp.zeros(channels, kept)), nnx.BatchStat(jnp.ones(channels, kept))
    return layer


def _checked_activation(activation: str) -> str:
    if activation not in get_args(Activation):
        raise ValueError(f"expected an activation of {', '.join(get_args(Activation))}, got {activation!r}")
    return activation


__all__ = [
    "EPSILON",
    "LEAKY_SLOPE",
    "MOMENTUM",
    "Activation",
    "ConvBlock",
    "Dense",
    "Frozen",
    "Initialiser",
    "Norm",
    "Padding",
    "ParameterCounts",
    "Pool",
    "activate",
    "channels_after",
    "count_parameters",
    "dropout",
    "msra",
    "pooled",
    "unit_normal",
]
