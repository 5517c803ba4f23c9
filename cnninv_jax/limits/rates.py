"""Theorems 2, 6 and 8 of Random DCN: how far a finite random CNN is from its limit, for l2 pooling and upsampling.

Theta is the angle between the output f and the limit f*. A network is counted as the paper does: X^(0) is the picture,
L - 1 layers lead to X^(L-1), the maps of the last convolution, whose mean over the channels is f. (z*^(i))^2 are the
sums of squares in the windows of layer i, counted from 0 (`square_maps`).

The proof of Theorem 8 follows (z^(i))^2 through the network. A convolution turns it by an angle alpha of

    sin alpha <= sqrt(K_2 / (N delta)),

and the windows of the next layer, a linear map phi, make an angle's sine at most lambda_i times larger,

    lambda_i = |phi| |(z*^(i))^2| / |phi((z*^(i))^2)|.

Lemma 7 is needed for |phi| alone: where the windows share no entry it is the root of their size, and lambda_i is
1 / sqrt(1 - |epsilon^(i)|^2 / |(z*^(i))^2|^2). So the proof asks for disjoint windows after the first convolution,
before whose answer there is no angle to grow. "At most one route" from a pixel to an output entry, the theorem's words,
does not imply that, and is not implied by it.
Where windows overlap, ``windows="any"`` takes their |phi|, the largest singular value of a matrix of zeros and ones.

Everything works under jit and vmap. What a bound cannot promise is infinity, and a bound of 1 or more says nothing;
what lies outside its domain is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, as_floats, norm
from cnninv_jax._typing import Array, Bool, Float
from cnninv_jax.limits._kernel import root
from cnninv_jax.limits.laws import Laws, moments_of
from cnninv_jax.limits.layers import Conv, Network, Step
from cnninv_jax.limits.routes import routed, square_maps, window_matrix, window_sums

#: Which layers a bound counts: those that are random, or all of them as the paper prints it.
Count: TypeAlias = Literal["convolutions", "layers"]
#: Whether windows that share entries are refused, as Lemma 7 asks, or their operator norm is taken.
Windows: TypeAlias = Literal["disjoint", "any"]
#: Up to so many entries along an axis the largest singular value is computed, above it is bounded.
SINGULAR_LIMIT = 1024


def theorem_6(width: ArrayLike, delta: ArrayLike, K1: ArrayLike = math.pi - 1) -> Float[Array, " *batch"]:
    """Return the bound of Theorem 6 on sin(Theta), sqrt(K_1 / (N delta)), for one convolution (Random DCN).

    Its proof has E|f - f*|^2 = K_1 |f*|^2 / N, exactly, and Markov's inequality.

    Args:
        width: N, filters of the convolution.
        delta: probability with which the bound may fail, in (0, 1].
        K1: relative variance of a ReLU's answer, `Moments.K1`; Gaussian filters have pi - 1.

    Returns:
        The bound; 1 or more says nothing, and NaN stands outside of the domain.
    """
    n, d, k = as_floats(width, delta, K1)
    return jnp.where(k > 0, jnp.sqrt(_over(k, n) / _probability(d)), jnp.nan)


def theorem_8(
    image: Float[ArrayLike, " M *D"],
    layers: Network,
    delta: ArrayLike,
    *,
    width: ArrayLike | None = None,
    filters: Laws = "gaussian",
    count: Count = "convolutions",
    windows: Windows = "disjoint",
) -> Float[Array, " *batch"]:
    """Return the bound of Theorem 8 on sin(Theta), for l2 pooling and upsampling (Random DCN).

    s + sqrt((L - 2) s prod lambda_i) with s^2 = (L - 1) / (N delta) = (K_1 / N_(L-1) + sum K_2 / N_i) / delta.

    Pooling and upsampling are not random, so that their angles alpha are zero: ``count="convolutions"`` gives them no
    share of delta and L - 2 is the number of convolutions but the last. ``count="layers"`` is the formula as printed,
    with L - 2 layers but the last and a K_2 / N_i for each of them: K_2 and N_i of the convolution before it, none for
    those before the first convolution. It is never below the other.

    Args:
        image: picture, [M, *D].
        layers: the network.
        delta: probability with which the bound may fail, in (0, 1].
        width: channels of the convolutions that do not say how many they have; may be an array, for a curve.
        filters: the law of the filters, or one for each convolution. For the sphere the K_1 and K_2 of many dimensions
            are taken after the first convolution, which are larger than those of few.
        count: which layers count.
        windows: ``"disjoint"`` refuses windows after the first convolution that share entries; ``"any"`` takes their
            norm.

    Returns:
        The bound, in the shape of delta and width together; infinite or NaN where f* or the picture is zero.

    Raises:
        ValueError: not a network, one that does not fit the picture, average pooling, a law that is not isotropic, a
            convolution without width, or windows that overlap.
    """
    return _variance_bound(image, layers, delta, width, filters, count, windows, squares=True)


def theorem_2(
    image: Float[ArrayLike, " M *D"],
    layers: Network,
    delta: ArrayLike,
    *,
    width: ArrayLike | None = None,
    filters: Laws = "gaussian",
    count: Count = "convolutions",
    windows: Windows = "disjoint",
) -> Float[Array, " *batch"]:
    """Return `theorem_8` with lambda_i of z* instead of z*^2, as Theorem 2 prints it: for comparison, not proved.

    Arguments, result and errors are those of `theorem_8`.
    """
    return _variance_bound(image, layers, delta, width, filters, count, windows, squares=False)


def theorem_8_refined(
    image: Float[ArrayLike, " M *D"],
    layers: Network,
    delta: ArrayLike,
    *,
    width: ArrayLike | None = None,
    filters: Laws = "gaussian",
    windows: Windows = "disjoint",
) -> Float[Array, " *batch"]:
    """Return a bound on sin(Theta) from the same proof that falls as 1 / sqrt(N), where Theorem 8's falls as N^(-1/4).

    s + min(sqrt(lambda_(L-2) T), |(z*)^2| / (min z* |z*|) T),  T = s * sum over hidden convolutions i of the product of
    lambda_i .. lambda_(L-3). A deviation that starts in a layer grows by the lambdas after it only; and from squares to
    roots |a - b| = |a^2 - b^2| / (a + b) loses at most 1 / min b, the smallest entry that is not zero, where
    Cauchy-Schwarz takes the root of the sine.

    Arguments, result and errors are those of `theorem_8`, whose bound is never below this.
    """
    dtype, variance, steps = _setting(image, layers, delta, width, filters, "convolutions")
    factors = local_variation(image, layers, windows=windows)
    tails = jnp.cumprod(factors[:-1][::-1])[::-1]
    hidden = [place for place, step in enumerate(steps[:-1]) if isinstance(step.layer, Conv)]
    angle = variance * (jnp.sum(tails[np.array(hidden)]) if hidden else jnp.zeros((), dtype))
    last = square_maps(image, layers)[-1]
    smallest = jnp.min(jnp.where(last > 0, last, jnp.inf))
    lipschitz = norm(last / smallest) / jnp.sqrt(jnp.sum(last / smallest))
    return variance + jnp.minimum(root(factors[-1] * angle), lipschitz * angle)


def local_variation(
    image: Float[ArrayLike, " M *D"], layers: Network, *, windows: Windows = "disjoint", squares: bool = True
) -> Float[Array, " layers"]:
    """Return lambda_0 .. lambda_(L-2) of Theorem 8, how much an angle can grow on its way through a layer's windows.

    lambda_i = 1 / sqrt(1 - |epsilon|^2 / |x|^2), x = (z*^(i))^2 and epsilon_j = x_j minus the mean of the window of
    layer i + 1 that x_j lies in (Lemma 7); the last one's window is the whole map. 1 for a picture that is flat, and
    before the first convolution, where there is no angle yet.

    Args:
        image: picture, [M, *D].
        layers: the network, of L - 1 layers.
        windows: as in `theorem_8`.
        squares: false takes x = z*^(i), as Theorem 2 prints it.

    Returns:
        L - 1 numbers of at least 1, infinite where nothing of x comes through.

    Raises:
        ValueError: as in `theorem_8`.
    """
    if windows not in ("disjoint", "any"):
        raise ValueError(f"expected windows to be 'disjoint' or 'any', got {windows!r}")
    picture = as_float(image)
    steps = routed(layers, picture.shape)
    gains = _gains(steps, windows)
    maps = square_maps(picture, layers)
    found = []
    for place, gain in enumerate(gains):
        if gain is None:
            found.append(jnp.ones((), picture.dtype))
            continue
        values = maps[place] if squares else root(maps[place])
        # The factor does not see the scale, and squares of large numbers might overflow.
        values = values / jax.lax.stop_gradient(jnp.max(values))
        through = norm(window_sums(values, steps[place + 1])) if place + 1 < len(steps) else jnp.sum(values)
        found.append(gain * norm(values) / through)
    return jnp.stack(found)


def _variance_bound(
    image: Float[ArrayLike, " M *D"],
    layers: Network,
    delta: ArrayLike,
    width: ArrayLike | None,
    filters: Laws,
    count: Count,
    windows: Windows,
    *,
    squares: bool,
) -> Float[Array, " *batch"]:
    dtype, variance, steps = _setting(image, layers, delta, width, filters, count)
    counted = sum(count == "layers" or isinstance(step.layer, Conv) for step in steps[:-1])
    product = jnp.prod(local_variation(image, layers, windows=windows, squares=squares))
    if not counted:
        return variance
    return variance + jnp.sqrt(jnp.asarray(counted, dtype) * variance * product)


def _setting(
    image: Float[ArrayLike, " M *D"],
    layers: Network,
    delta: ArrayLike,
    width: ArrayLike | None,
    filters: Laws,
    count: Count,
) -> tuple[jnp.dtype, Float[Array, " *batch"], tuple[Step, ...]]:
    """Return the picture's dtype, s = sqrt((K_1 / N_(L-1) + sum K_2 / N_i) / delta), and the planned network."""
    if count not in ("convolutions", "layers"):
        raise ValueError(f"expected count to be 'convolutions' or 'layers', got {count!r}")
    picture = as_float(image)
    steps = routed(layers, picture.shape)
    moments = moments_of(filters, steps, picture.shape[0])
    chance = _probability(jnp.asarray(delta, picture.dtype))
    fill = None if width is None else jnp.asarray(width, picture.dtype)
    total = jnp.zeros((), picture.dtype)
    term = total
    for place, step in enumerate(steps):
        if isinstance(step.layer, Conv):
            channels = fill if step.layer.channels is None else jnp.asarray(step.layer.channels, picture.dtype)
            if channels is None:
                raise ValueError(
                    f"expected the channels of layer {place + 1}, Conv; write Conv(..., channels=N), or give "
                    "width=N for all convolutions without"
                )
            law = moments[step.convolution]
            term = _over(jnp.asarray(law.K1 if step is steps[-1] else law.K2, picture.dtype), channels)
            total = _sum(total, term)
        elif count == "layers":
            total = _sum(total, term)
    total, chance = jnp.broadcast_arrays(total, chance)
    return picture.dtype, jnp.sqrt(total / chance), steps


def _sum(first: Array, second: Array) -> Array:
    first, second = jnp.broadcast_arrays(first, second)
    return first + second


def _probability(delta: Array) -> Array:
    return jnp.where((delta > 0) & (delta <= 1), delta, jnp.nan)


def _over(variance: Array, width: Array) -> Array:
    """Return K / N, NaN for what is no number of filters."""
    inside = width > 0
    return jnp.where(inside, variance / jnp.where(inside, width, 1.0), jnp.nan)


def _gains(steps: Sequence[Step], windows: Windows) -> tuple[float | None, ...]:
    """Return |phi| of layers 1 .. L - 2 and of the sum over the last map, each over the entries that can be non-zero.

    None stands for the layers up to the first convolution.

    Raises:
        ValueError: windows that share entries, where they are refused.
    """
    reached: list[Bool[np.ndarray, " entries"]] = [np.ones(size, bool) for size in steps[0].inputs]
    gains: list[float | None] = []
    turned = False
    for place, step in enumerate(steps):
        matrices = [window_matrix(step, axis)[:, mask] for axis, mask in enumerate(reached)]
        reached = [matrix.sum(axis=1) > 0 for matrix in matrices]
        for axis, matrix in enumerate(matrices):
            if turned and windows == "disjoint" and matrix.sum(axis=0).max(initial=0) > 1:
                raise ValueError(
                    f"expected windows after the first convolution that share no entry (Random DCN, Lemma 7), got "
                    f"layer {place + 1}, {type(step.layer).__name__} with window {step.window[axis]} at stride "
                    f"{step.stride[axis]} on axis {axis}; use a stride as long as the window, or windows='any' for the "
                    "bound with their operator norm"
                )
        gains.append(math.prod(map(_largest_singular_value, matrices)) if turned else None)
        turned = turned or isinstance(step.layer, Conv)
    return (*gains[1:], math.sqrt(math.prod(int(mask.sum()) for mask in reached)))


def _largest_singular_value(matrix: Float[np.ndarray, "outputs inputs"]) -> float:
    """Return it for a matrix of zeros and ones; bounded by row and column sums where they say it, or it is large."""
    rows, columns = matrix.sum(axis=1).max(initial=0), matrix.sum(axis=0).max(initial=0)
    if min(rows, columns) <= 1 or max(matrix.shape) > SINGULAR_LIMIT:
        return math.sqrt(rows * columns)
    return float(np.linalg.norm(matrix, 2))


__all__ = [
    "Count",
    "Windows",
    "local_variation",
    "theorem_2",
    "theorem_6",
    "theorem_8",
    "theorem_8_refined",
]
