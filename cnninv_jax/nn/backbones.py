"""VGG-16 and AlexNet as feature extractors: random or given filters, and every layer's output by name.

h = W x + b, x = pool(relu(h)); AlexNet of 2012 normalises between ReLU and pool. Filters are frozen unless asked for
otherwise (Random DCN, 3.2: only the decoder learns; Gilbert et al. 2017, 4.5).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from cnninv_jax import filters
from cnninv_jax._typing import Array, Float, PRNGKeyArray, Shaped
from cnninv_jax.data import PREPROCESSINGS, ConvSpec, Network
from cnninv_jax.nn.blocks import Frozen
from cnninv_jax.nn.convolution import conv2d
from cnninv_jax.nn.geometry import layers_of, map_sizes
from cnninv_jax.nn.pooling import max_pool
from cnninv_jax.operators import to_flax_kernel

#: Laws of random filters: He et al. 2015, and those of `cnninv_jax.filters.ENSEMBLES`.
Law: TypeAlias = Literal["msra", "gaussian", "uniform", "logistic", "laplace", "sphere"]
#: Caffe's local response normalisation in AlexNet: channels in a window, factor, exponent.
_WINDOW, _FACTOR, _EXPONENT = 5, 1e-4, 0.75


class Convolution(nnx.Module):
    """A convolution with a bias, in groups where there are some.

    Args:
        kernel: filters [*ell, M / groups, K].
        bias: [K].
        stride: per axis.
        margins: zeros before and behind, per axis.
        groups: into which input and output channels fall.
        frozen: whether it never learns (`Frozen` variables).
        dtype: of computation.
    """

    def __init__(
        self,
        kernel: Array,
        bias: Array,
        *,
        stride: Sequence[int] = (1, 1),
        margins: Sequence[tuple[int, int]],
        groups: int = 1,
        frozen: bool,
        dtype: DTypeLike,
    ) -> None:
        kind = Frozen if frozen else nnx.Param
        self.kernel = kind(kernel)
        self.bias = kind(bias)
        # Tuples: a module's description has to be hashable.
        self.stride, self.margins, self.groups, self.dtype = tuple(stride), tuple(margins), groups, dtype

    def __call__(self, maps: Float[Array, "B H W M"]) -> Float[Array, "B h w K"]:
        """Return responses, bias added."""
        kernel, bias = (variable[...].astype(self.dtype) for variable in (self.kernel, self.bias))
        # Groups one by one: XLA computes a grouped convolution slowly on a CPU.
        inputs, kernels = jnp.split(maps, self.groups, axis=-1), jnp.split(kernel, self.groups, axis=-1)
        found = [
            conv2d(part, weights, stride=self.stride, padding=self.margins)
            for part, weights in zip(inputs, kernels, strict=True)
        ]
        return jnp.concatenate(found, axis=-1) + bias[None, None, None, :]


class Backbone(nnx.Module):
    """The convolutional part of VGG-16 or AlexNet, with named taps.

    Args:
        name: ``vgg16``, ``alexnet`` (torchvision's) or ``alexnet-caffe`` (groups and local response normalisation).
        network: filters from a file, see `data.load_network`; layers it lacks are random, and `notes` names them.
        last: conv3_1 or pool3, the last layer wanted; by default the whole convolutional part.
        width: factor of the numbers of filters (1/8 for an eighth); 1 where filters are given.
        law: of random filters: ``"msra"``, N(0, 2 / fan_in), which keeps maps at one scale through any depth; or an
            ensemble of `filters.ENSEMBLES`.
        scale: the ensemble's parameter; None for that of Random DCN, A.1.2 (Gaussian deviation 0.015, uniform on
            [-0.04, 0.04], logistic and Laplace scale 0.015; the sphere's radius is 1). Not for ``"msra"``.
        ceil: whether pools keep windows that stick out at the lower right, as Caffe and `dcn.features` do; without,
            as `data.Pool` says and torchvision does.
        preprocessing: of pictures, a name of `data.PREPROCESSINGS`; None for that of the given network, and none for a
            random one.
        trainable: whether filters and biases are `nnx.Param`; `Frozen` otherwise.
        dtype: of computation.
        param_dtype: of what is stored.
        rngs: source of the random filters.

    Attributes:
        layers: their sizes, in order.
        given: names of the layers whose filters were given.
        notes: what was assumed, one sentence each; show them to the user.

    Raises:
        ValueError: names, width, law or network that do not fit.
    """

    def __init__(
        self,
        name: str = "vgg16",
        *,
        network: Network | None = None,
        last: str | None = None,
        width: float | Fraction = 1,
        law: Law = "msra",
        scale: float | None = None,
        ceil: bool = False,
        preprocessing: str | None = None,
        trainable: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.layers = layers_of(name, last=last, width=width)
        held = _given(name, network, width)
        if law not in get_args(Law):
            raise ValueError(f"expected a law among {', '.join(get_args(Law))}, got {law!r}")
        if law == "msra" and scale is not None:
            raise ValueError(f"expected no scale with law='msra', got {scale}; name an ensemble such as 'gaussian'")
        usual = None if network is None or network.preprocessing is None else network.preprocessing.name
        chosen = preprocessing or usual or "none"
        if chosen not in PREPROCESSINGS:
            raise ValueError(f"expected preprocessing to be one of {', '.join(PREPROCESSINGS)}, got {chosen!r}")
        self.name, self.ceil, self.preprocessing, self.dtype = name, ceil, chosen, dtype
        self.given = tuple(spec.name for spec in self.layers if spec.name in held)
        drawn = [spec.name for spec in self.layers if spec.name not in held]
        self.notes = () if network is None else network.notes
        if drawn:
            words = "N(0, 2 / fan_in)" if law == "msra" else f"{law}, scale {_scale(law, scale):g}"
            self.notes = (*self.notes, f"random filters ({words}), no biases: {', '.join(drawn)}")
        convolutions = {}
        for spec in self.layers:
            bank, bias = held.get(spec.name, (None, None))
            if bank is None:
                bank = _draw(rngs.params(), spec, law, scale, param_dtype)
            convolutions[spec.name] = Convolution(
                to_flax_kernel(bank).astype(param_dtype),
                jnp.zeros(spec.shape[0], param_dtype) if bias is None else jnp.asarray(bias, param_dtype),
                stride=spec.stride,
                margins=[(margin, margin) for margin in spec.padding],
                groups=spec.groups,
                frozen=not trainable,
                dtype=dtype,
            )
        self.convolutions = nnx.Dict(convolutions)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all that can be asked for, in order: conv1_1, conv1_2, pool1, switches1, ..."""
        found = []
        for spec in self.layers:
            found.append(spec.name)
            if spec.pool is not None:
                found += [spec.pool.name, switches_name(spec.pool.name)]
        return tuple(found)

    def __call__(
        self, images: Float[Array, "B H W 3"], taps: Sequence[str] | None = None
    ) -> dict[str, Shaped[Array, "B h w K"]]:
        """Return the outputs asked for, by name.

        Args:
            images: RGB in [0, 1]; prepared here as the network expects it.
            taps: conv(i, j), behind its ReLU; pool(i); switches(i), where the maxima of pool(i) stood in their windows
                (see `pooling.max_pool`). By default the last output. Layers above the highest tap are not computed.

        Raises:
            ValueError: an unknown tap, or images of another shape, of integers, or too small.
        """
        known = self.taps
        if taps is None:
            taps = [tap for tap in known if not tap.startswith("switches")][-1:]
        unknown = [tap for tap in taps if tap not in known]
        if unknown or not taps:
            raise ValueError(f"expected taps of {self.name} out of {', '.join(known)}, got {unknown[0]!r}" if unknown
                             else f"expected at least one tap of {', '.join(known)}, got none")  # fmt: skip
        if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"expected float images [B, H, W, 3] in [0, 1], got {images.dtype} of shape {images.shape}"
            )
        map_sizes(self.layers, images.shape[1:3], ceil=self.ceil)
        outputs: dict[str, Array] = {}
        maps = self._prepared(images.astype(self.dtype))
        for spec in self.layers:
            if len(outputs) == len(set(taps)):
                break
            maps = jnp.maximum(self.convolutions[spec.name](maps), 0)
            found = {spec.name: maps}
            if spec.normalize:
                maps = local_response_norm(maps)
            if spec.pool is not None:
                maps, switches = max_pool(maps, spec.pool.window, spec.pool.stride, ceil=self.ceil)
                found |= {spec.pool.name: maps, switches_name(spec.pool.name): switches}
            outputs |= {tap: value for tap, value in found.items() if tap in taps}
        return outputs

    def _prepared(self, images: Array) -> Array:
        way = PREPROCESSINGS[self.preprocessing]
        if way.name == "none":
            return images
        channels = images[..., ::-1] if way.reverse else images
        mean, deviation = (np.asarray(values, images.dtype)[None, None, None] for values in (way.mean, way.deviation))
        return (channels * way.scale - mean) / deviation


def local_response_norm(maps: Float[Array, "B H W K"]) -> Float[Array, "B H W K"]:
    """Return x / (1 + 1e-4 / 5 * sum of x^2 over 5 channels)^0.75 (Krizhevsky et al. 2012, with Caffe's constants)."""
    half = _WINDOW // 2
    squares = lax.pad(maps * maps, jnp.zeros((), maps.dtype), [(0, 0, 0)] * 3 + [(half, half, 0)])
    total = functools.reduce(
        jnp.add, [lax.slice_in_dim(squares, start, start + maps.shape[-1], axis=-1) for start in range(_WINDOW)]
    )
    return maps * (1.0 + _FACTOR / _WINDOW * total) ** -_EXPONENT


def switches_name(pool: str) -> str:
    """Return the tap of a pool's switches: switches3 for pool3."""
    return pool.replace("pool", "switches")


def _given(
    name: str, network: Network | None, width: float | Fraction
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return filters and biases of a network by the layers' names."""
    if network is None:
        return {}
    if network.name != name:
        raise ValueError(f"expected filters of {name}, got those of {network.name!r}; name the network they belong to")
    if width != 1:
        raise ValueError(f"expected width 1 with given filters, got {width}; leave it out, or the filters")
    return {layer.name: (layer.filters, layer.bias) for layer in network.layers}


def _scale(law: Law, scale: float | None) -> float:
    return filters.RANDOM_DCN_SCALES.get(law, 1.0) if scale is None else scale


def _draw(key: PRNGKeyArray, spec: ConvSpec, law: Law, scale: float | None, dtype: DTypeLike) -> jax.Array:
    count, channels, *length = spec.shape
    if law == "msra":
        deviation = math.sqrt(2 / (channels * math.prod(length)))
        return filters.gaussian(key, count, channels, length, scale=deviation, dtype=dtype)
    return filters.ENSEMBLES[law](key, count, channels, length, scale=_scale(law, scale), dtype=dtype)


__all__ = ["Backbone", "Convolution", "Law", "local_response_norm", "switches_name"]
