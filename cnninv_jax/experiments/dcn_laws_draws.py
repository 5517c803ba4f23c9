"""What dcn-laws simulates, one draw at a time, and the means it is held against.

An antithetic pair of filters, w and -w, answers relu(w y) + relu(-w y) = |w y|. All laws here are symmetric, so half of
that has the mean of relu(w y) and, for a Gaussian, a quarter of its variance.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import filters
from cnninv_jax._numerics import matmul
from cnninv_jax._typing import Array, Float, PRNGKeyArray
from cnninv_jax.limits.draws import random_maps
from cnninv_jax.limits.laws import ISOTROPIC, FilterLaw, Moments
from cnninv_jax.limits.layers import AvgPool, Conv, L2Pool, Network

#: Side of the filters whose entries the simulated k_m come from; their number of entries is the sphere's dimension.
ENTRY_LENGTH = 3
#: Orders of k_m, as `Moments` has them.
ORDERS = (1, 2, 4)
#: Side of the patch that a network below brings to one output.
NETWORK_SIDE = 4
#: Filters of the last convolution of those networks; each with its negative.
LAST = 64


def paper_law(name: str) -> FilterLaw:
    """Return an ensemble at the scale of Random DCN, A.1.2; the sphere has the Gaussian's deviation, 0.015."""
    scale = filters.RANDOM_DCN_SCALES[name if name in filters.RANDOM_DCN_SCALES else "gaussian"]
    return FilterLaw(name, scale if name == "sphere" else scale / filters.unit_scale(name, 1))


def own_moments(law: FilterLaw, dimension: int) -> Moments:
    """Return k_1, k_2, k_4 of an entry of a filter of so many entries, whether or not Lemma 5 holds for the law."""
    return Moments.of(law.name, scale=law.scale(dimension), dimension=dimension)


def gaussian_moments(law: FilterLaw) -> Moments:
    """Return k_1, k_2, k_4 of a Gaussian of the same variance: what the central limit theorem makes of w y."""
    return Moments.of("gaussian", scale=law.deviation)


def one_draw(
    key: PRNGKeyArray,
    patches: tuple[Float[Array, "inputs 1 ell ell"], ...],
    inputs: Float[Array, "inputs 1 side side"],
    law: FilterLaw,
    num_filters: int,
    width: int,
) -> dict[str, Array]:
    """Return `answers` and `network_outputs` together, since one program compiles faster than two."""
    first_key, second_key = jax.random.split(key)
    return {
        **answers(first_key, patches, law, num_filters),
        **network_outputs(second_key, inputs, law, width),
    }


def answers(
    key: PRNGKeyArray, patches: tuple[Float[Array, "inputs 1 ell ell"], ...], law: FilterLaw, num_filters: int
) -> dict[str, Array]:
    """Draw filters for every kernel size and return the means of relu(w y) and of its square.

    Args:
        key: random key.
        patches: what the filters see, an array for each kernel size.
        law: of the filters.
        num_filters: N, each with its negative.

    Returns:
        ``first`` and ``second``, [kernel, input], means over the filters; ``moments``, [3], means of |w_1|^m / 2 over
        the entries of other filters, of ENTRY_LENGTH^2 entries.
    """
    sizes = [each[0].size for each in patches]
    *banks, other = _banks(key, law, num_filters, (*sizes, ENTRY_LENGTH**2), patches[0].dtype)
    answered = [_pairs(bank, each.reshape(len(each), -1)) for bank, each in zip(banks, patches, strict=True)]
    entries = jnp.abs(other)
    return {
        "first": jnp.stack([jnp.mean(answer, axis=1) for answer in answered]),
        "second": jnp.stack([2 * jnp.mean(jnp.square(answer), axis=1) for answer in answered]),
        "moments": jnp.stack([jnp.mean(entries**m) / 2 for m in ORDERS]),
    }


def _pairs(bank: Float[Array, "N size"], inputs: Float[Array, "inputs size"]) -> Float[Array, "inputs N"]:
    """Return (relu(w y) + relu(-w y)) / 2 = |w y| / 2; half of the sum of the squares is twice its square."""
    return jnp.abs(matmul(inputs, bank.T)) / 2


def _banks(
    key: PRNGKeyArray, law: FilterLaw, num_filters: int, sizes: tuple[int, ...], dtype: jnp.dtype
) -> list[Float[Array, "N size"]]:
    """Draw banks of several sizes of filters, all entries at once: a sampler for each takes XLA long to compile."""
    on_sphere = law.name == "sphere"
    drawn = FilterLaw("gaussian") if on_sphere else law
    entries = drawn.sample(key, num_filters, 1, (sum(sizes),), dtype)[:, 0]
    parts = jnp.split(entries, np.cumsum(sizes)[:-1].tolist(), axis=1)
    return [filters.normalize(part) * law.scale(part.shape[1]) for part in parts] if on_sphere else parts


def networks(width: int | None = None) -> dict[str, Network]:
    """Return networks of two convolutions that bring a patch of NETWORK_SIDE^2 to one number.

    Args:
        width: filters of the first convolution, and one in the last; None for the limit.
    """
    first, last = Conv(NETWORK_SIDE - 1, width), Conv(1, None if width is None else 1)
    return {"l2 pooling": (first, L2Pool(2), last), "average pooling": (first, AvgPool(2), last)}


def network_outputs(
    key: PRNGKeyArray, inputs: Float[Array, "inputs 1 side side"], law: FilterLaw, width: int
) -> dict[str, Float[Array, " inputs"]]:
    """Draw both networks and return what they make of every input, all inputs through the same filters.

    The last convolution has LAST filters, each with its negative, in place of the one that `random_maps` draws.
    """
    *keys, last_key = jax.random.split(key, 3)
    (last,) = _banks(last_key, law, LAST, (width,), inputs.dtype)
    found = {}
    for one, (name, layers) in zip(keys, networks(width).items(), strict=True):
        maps = jax.vmap(lambda image, one=one, layers=layers: random_maps(one, image, layers, filters=law)[-2])(inputs)
        found[name] = jnp.mean(_pairs(last, maps.reshape(len(inputs), width)), axis=1)
    return found


def expected_network_ratio(law: FilterLaw, pooling: str, name: str) -> float | None:
    """Return the limit of those outputs over f* with a Gaussian's k_m; None where there is no closed form.

    In the limit the second convolution sums very many terms, so that its k_1 is a Gaussian's. l2 pooling takes of the
    first only E g_i^2 = k_2 |y_i|^2, which any such law has. Average pooling takes E g_i g_j too: where one pixel is
    all there is, each of the four windows sees it through another entry of w, and E g_i g_j is k_1^2 for independent
    entries, k_2 / pi for isotropic laws.
    """
    if pooling == "l2 pooling" or law.name in ISOTROPIC:
        return 1.0
    if name != "one pixel":
        return None
    own = own_moments(law, 1)
    return math.sqrt((4 * own.k2 + 12 * own.k1**2) / (4 * own.k2 + 12 * own.k2 / math.pi))


def expected_answer(law: FilterLaw, patch: np.ndarray) -> float:
    """Return E relu(w y) exactly: from the characteristic function of w y, by quadrature in float64.

    E|S| = (2 / pi) times the integral over t > 0 of (1 - E cos(t S)) / t^2, for S of mean |y|_2 / deviation one.

    Args:
        law: one of symmetric independent entries, or the sphere, which Lemma 5 covers.
        patch: y, any shape.
    """
    from scipy.integrate import quad

    y = np.asarray(patch, np.float64).ravel()
    size = float(np.linalg.norm(y))
    if law.name in ("gaussian", "sphere"):
        return own_moments(law, y.size).k1 * size
    weights = np.abs(y[y != 0]) / size

    def lost(t: float) -> float:
        return 1.0 - math.prod(_characteristic(law.name, t * weights))

    near = quad(lambda t: lost(t) / t**2, 0.0, 1.0, epsabs=1e-10, limit=200)[0]
    far = quad(lambda u: lost(1 / u), 0.0, 1.0, epsabs=1e-7, limit=2000)[0]
    return law.deviation * size * (near + far) / math.pi


def _characteristic(name: str, t: np.ndarray) -> list[float]:
    """Return E cos(t w) of an entry of deviation one."""
    if name == "uniform":
        return np.sinc(math.sqrt(3) * t / math.pi).tolist()
    if name == "laplace":
        return (1 / (1 + np.square(t) / 2)).tolist()
    # x / sinh x = 2 x e^-x / (1 - e^-2x) does not overflow.
    x = math.sqrt(3) * t
    return (2 * x * np.exp(-x) / -np.expm1(-2 * x)).tolist()
