"""What a random CNN with l2 pooling makes of a picture in the limit: weighted norms over routes (Random DCN, Thm 1/4).

f* = k z*, z*_i = sqrt(sum over l of n_(l,i) |X_l|^2), where n_(l,i) counts the routes from pixel l to output entry i.
Windows are boxes, so that n is a product over the spatial axes, and z*^2 follows from sliding sums alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float
from cnninv_jax._typing import Array, Float, Int
from cnninv_jax.limits._kernel import insert_zeros, root, window_means
from cnninv_jax.limits.laws import Laws, moments_of
from cnninv_jax.limits.layers import AvgPool, Network, Step, Upsample, plan

#: The constant that the proof of Theorem 4 gives, and the one that it prints.
Formula: TypeAlias = Literal["proved", "printed"]
#: `route_counts` makes no more numbers than these (800 MB).
DENSE_LIMIT = 10**8


class ReceptiveField(NamedTuple):
    """What an output entry sees of the picture, per spatial axis.

    Attributes:
        size: pixels from the first to the last, margins of zeros included; the largest, where entries differ.
        stride: pixels between the fields of neighbouring outputs; a fraction where there is upsampling.
        offset: first pixel that output entry 0 sees; negative in a margin of zeros.
    """

    size: tuple[int, ...]
    stride: tuple[Fraction, ...]
    offset: tuple[int, ...]


def constant(
    layers: Network, image_shape: Sequence[int], *, filters: Laws = "gaussian", formula: Formula = "proved"
) -> float:
    """Return the k of f* = k z*: k_1 of the last convolution times sqrt(k_2) of every other (Random DCN, Thm 1/4).

    The recursion is one of squares, so that k_2 enters by its root; the paper's proof prints k_1 prod k_2.

    Args:
        layers: the network, without average pooling.
        image_shape: of the picture, (M, *D).
        filters: the law of the filters, or one for each convolution.
        formula: ``"proved"``, or ``"printed"`` for comparison.

    Raises:
        ValueError: not a network, average pooling, a law that is not isotropic, or an unknown formula.
    """
    if formula not in ("proved", "printed"):
        raise ValueError(f"expected the formula to be 'proved' or 'printed', got {formula!r}")
    *hidden, last = moments_of(filters, routed(layers, image_shape), image_shape[0])
    product = math.prod(each.k2 for each in hidden)
    return last.k1 * (product if formula == "printed" else math.sqrt(product))


def weighted_norm(image: Float[ArrayLike, " M *D"], layers: Network) -> Float[Array, " *D_out"]:
    """Return z*_i = sqrt(sum over l of n_(l,i) |X_l|^2), the norm over the channels (Random DCN, Thm 1/4).

    Args:
        image: picture X, [M, *D].
        layers: the network, without average pooling.

    Returns:
        z*, [*D_out]; its gradient is 0 where it is 0.

    Raises:
        ValueError: not a network, one that does not fit the picture, or average pooling.

    Cost: sliding sums, one after the other per axis; the matrix of routes never exists.
    """
    return root(square_maps(image, layers)[-1])


def square_maps(image: Float[ArrayLike, " M *D"], layers: Network) -> tuple[Float[Array, " *outputs"], ...]:
    """Return the sums of squares after every layer, with every k_2 left out: (z*^(i))^2 up to a factor.

    Args:
        image: picture X, [M, *D].
        layers: the network, without average pooling.

    Returns:
        One map per layer, [*outputs]; the last is the square of `weighted_norm`. After upsampling the inserted zeros
        are part of the map.

    Raises:
        ValueError: not a network, one that does not fit the picture, or average pooling.
    """
    picture = as_float(image)
    steps = routed(layers, picture.shape)
    squares = jnp.sum(picture * picture, axis=0)
    maps = []
    for step in steps:
        squares = window_sums(squares, step)
        maps.append(squares)
    return tuple(maps)


def window_sums(values: Float[Array, " *inputs"], step: Step) -> Float[Array, " *outputs"]:
    """Return the sum over every window of a layer, zeros around the values; for upsampling, zeros between them."""
    if isinstance(step.layer, Upsample):
        return insert_zeros(values, step.stride)
    return window_means(values, step.window, step.stride, step.margins) * math.prod(step.window)


def route_counts(layers: Network, image_shape: Sequence[int]) -> Float[np.ndarray, " *D_out_and_D"]:
    """Return n_(l,i), how many routes lead from pixel l to output entry i (Random DCN, Thm 1/4).

    Args:
        layers: the network, without average pooling.
        image_shape: of the picture, (M, *D).

    Returns:
        Counts, [*D_out, *D], whole numbers as float64 (exact up to 2^53).

    Raises:
        ValueError: not a network, one that does not fit the picture, average pooling, or more than
            `DENSE_LIMIT` counts.

    Cost: prod(D_out) prod(D) numbers: for small pictures. `route_factors` has them for any.
    """
    size = math.prod(routed(layers, image_shape)[-1].outputs) * math.prod(image_shape[1:])
    if size > DENSE_LIMIT:
        raise ValueError(
            f"expected a small picture, of at most {DENSE_LIMIT} counts, got {size}; take route_factors, whose "
            "products the counts are, or weighted_norm, which needs none"
        )
    factors = route_factors(layers, image_shape)
    counts = factors[0]
    for factor in factors[1:]:
        counts = np.multiply.outer(counts, factor)
    rank = len(factors)
    return counts.transpose(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))


def route_factors(layers: Network, image_shape: Sequence[int]) -> tuple[Float[np.ndarray, "D_out D"], ...]:
    """Return the factors of the route counts, one matrix per spatial axis: n_(l,i) is the product over the axes.

    Args:
        layers: the network, without average pooling.
        image_shape: of the picture, (M, *D).

    Raises:
        ValueError: not a network, one that does not fit the picture, or average pooling.
    """
    steps = routed(layers, image_shape)
    factors = []
    for axis, size in enumerate(image_shape[1:]):
        routes = np.eye(size)
        for step in steps:
            routes = window_matrix(step, axis) @ routes
        factors.append(routes)
    return tuple(factors)


def window_matrix(step: Step, axis: int) -> Float[np.ndarray, "outputs inputs"]:
    """Return what a layer's windows see along an axis: 1 where output entry i sees input entry j, else 0."""
    inputs, outputs, stride = step.inputs[axis], step.outputs[axis], step.stride[axis]
    matrix = np.zeros((outputs, inputs))
    if isinstance(step.layer, Upsample):
        matrix[np.arange(inputs) * stride, np.arange(inputs)] = 1
        return matrix
    before, _ = step.margins[axis]
    for start in range(outputs):
        first = start * stride - before
        matrix[start, max(first, 0) : max(first + step.window[axis], 0)] = 1
    return matrix


def receptive_field(layers: Network, image_shape: Sequence[int]) -> ReceptiveField:
    """Return size, stride and offset of what an output entry sees of the picture, per spatial axis.

    Args:
        layers: the network; average pooling is welcome here.
        image_shape: of the picture, (M, *D).

    Raises:
        ValueError: not a network, or one that does not fit the picture.
    """
    steps = plan(layers, image_shape)
    sizes, strides, offsets = [], [], []
    for axis in range(len(image_shape) - 1):
        seen = [_seen(steps, axis, entry) for entry in range(steps[-1].outputs[axis])]
        sizes.append(max(int(pixels[-1] - pixels[0]) + 1 if pixels.size else 0 for pixels in seen))
        strides.append(math.prod((_stride(step, axis) for step in steps), start=Fraction(1)))
        # Output 0 sees entry 0 of every layer, and upsampling puts the value there.
        offsets.append(int(seen[0][0]))
    return ReceptiveField(tuple(sizes), tuple(strides), tuple(offsets))


def routed(layers: Network, image_shape: Sequence[int]) -> tuple[Step, ...]:
    """Return the planned network.

    Raises:
        ValueError: not a network, or average pooling, whose maps are no weighted norms.
    """
    steps = plan(layers, image_shape)
    for place, step in enumerate(steps):
        if isinstance(step.layer, AvgPool):
            raise ValueError(
                f"expected convolutions, l2 pooling and upsampling, got layer {place + 1}, AvgPool: after average "
                "pooling the limit depends on angles too (Random DCN, Thm 10); take convergence_value, or L2Pool"
            )
    return steps


def _stride(step: Step, axis: int) -> Fraction:
    return Fraction(1, step.stride[axis]) if isinstance(step.layer, Upsample) else Fraction(step.stride[axis])


def _seen(steps: Sequence[Step], axis: int, entry: int) -> Int[np.ndarray, " pixels"]:
    """Return the pixels that an output entry sees, margins of zeros included; none where all are inserted zeros."""
    entries = np.array([entry])
    for step in reversed(steps):
        stride = step.stride[axis]
        if isinstance(step.layer, Upsample):
            entries = entries[entries % stride == 0] // stride
        else:
            first = entries * stride - step.margins[axis][0]
            entries = np.unique(first[:, None] + np.arange(step.window[axis]))
    return entries


__all__ = [
    "DENSE_LIMIT",
    "Formula",
    "ReceptiveField",
    "constant",
    "receptive_field",
    "route_counts",
    "route_factors",
    "routed",
    "square_maps",
    "weighted_norm",
    "window_matrix",
    "window_sums",
]
