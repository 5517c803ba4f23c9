r"""Rademacher complexity of a layer conv or linear + CReLU + linear map (Shang et al. 2016, Sec. 4.1 and Appendix B).

Definition B.1, with the supremum that its print lost: R^_L(F) = E_sigma sup_f |(2 / L) sum_i sigma_i f(x_i)|. Theorem
4.1 says R^_L(H o rho_c o G) <= sqrt(d_in) B R^_L(F), for G = d_in functions out of F and H = {W: |W|_2 <= B}. It does
not hold.

What the left side is. For a function f and signs sigma write, without 2 / L,

    p = sum_i sigma_i [f(x_i)]_+,  q = sum_i sigma_i [-f(x_i)]_+,  lin = sum_i sigma_i f(x_i) = p - q,
    avr = sum_i sigma_i |f(x_i)| = p + q.

The supremum over W is B |(p_j, q_j)_j|_2 by Cauchy-Schwarz, with equality, and the d_in functions are free of each
other, so that each takes the same supremum: the left side is exactly sqrt(d_in) B E sup_f sqrt(p^2 + q^2). Step (S4)
to (S5) of the proof puts |p - q| for sqrt(p^2 + q^2), which is no upper bound. What is true is

    sqrt(p^2 + q^2) = sqrt((lin^2 + avr^2) / 2),   max(|p|, |q|) = (|lin| + |avr|) / 2.                              (1)

Counterexample: F = {x -> w x, |w| <= A}, x = (1, -1). The left side is sqrt(2) A B sqrt(d_in) for all signs, the
right side A B sqrt(d_in): |sigma_1 - sigma_2| is 2 for half of the signs and 0 for the others. For many points of a
symmetric law the ratio is pi / (2 sqrt 2) = 1.1107 (p and q are then independent normals).

What holds for every class F. Write X = sup |lin|, Y = sup |avr|, U = sup sqrt(p^2 + q^2) over F; 0 may be added to F.
Contraction (Ledoux and Talagrand 1991, proof of Theorem 4.12, with the convex increasing function ([u]_+)^2 and the
contraction |.|) gives E([sup avr]_+)^2 <= E X^2, the same for sup(-avr), and Y is the larger of the two: E Y^2 <= 2 E
X^2. By (1) E U^2 <= E(X^2 + Y^2) / 2 <= (3 / 2) E X^2, and by Kahane's inequality with the best constant (Latala and
Oleszkiewicz 1994), E X^2 <= 2 (E X)^2:

    R^_L(H o rho_c o G) <= sqrt(3) sqrt(d_in) B R^_L(F),   and no constant below sqrt(2) will do.                    (2)

Lemma B.1 is wrong as well. As an equality it fails for any f < 0, whose ReLU is 0. As an inequality it holds with the
factor 2 of Ledoux and Talagrand (Theorem 4.12), and not without one, because of the absolute value in Definition B.1:
for the class of e_1 - e_2, e_2 - e_3 and e_3 - e_1 over three points, R^(|F|) = (4 / 3) R^(F), and for e_1 + e_3, e_2
+ e_3 and e_1 - e_2 R^(ReLU o F) = (7 / 6) R^(F). Hence R^(|F|) <= 2 R^(F), and with (1) max(R^(ReLU o F), R^(ReLU o
-F)) <= (3 / 2) R^(F). A linear class of three points of the plane has 1.219 and 1.106 (`LEMMA_B_1_POINTS`).

For F = {x -> <w, x>, |w|_2 <= A}, with s = sum_i sigma_i x_i: X = A |s|, E |s|^2 = T = sum_i |x_i|^2. Half of the
ball makes the same |f|. For the half {<w, n> >= 0} the largest lin is A |s| where <s, n> >= 0, and the part of s
across n elsewhere; with n the first principal direction, lambda its second moment sum_i <x_i, n>^2 and rho = T /
lambda (stable rank) contraction gives E Y^2 <= A^2 T (2 - 1 / rho), and

    E U^2 <= A^2 T (3 - 1 / rho) / 2                                                                                 (3)

so that the constant is sqrt((3 - 1 / rho) / 2 kappa), kappa = E |s|^2 / (E |s|)^2 <= min(2, E|s|^4 / T^2) (Hoelder),
and E |s|^4 = T^2 + 2 sum_{i != j} <x_i, x_j>^2 <= T^2 (1 + 2 / rho). It is sqrt(2) for inputs on a line, which the
counterexample attains, and at most sqrt(5 / 2) whatever the data. First moments give E Y <= E X + E sup over the ball
across n, so that R^(|F|) and R^(ReLU o F) equal R^(F) for inputs on a line.

Whether (2) holds with sqrt(2) is open here: classes of up to 6 functions over 5 points never came above it.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cnninv_jax._numerics import as_float, as_floats, matmul
from cnninv_jax._typing import Array, Float, Int, PRNGKeyArray
from cnninv_jax.crelu.arrangement import Faces

#: Three points of the plane where R^(|F|) and R^(ReLU o F) exceed R^(F) for F = {<w, x>, |w|_2 <= A}.
LEMMA_B_1_POINTS = ((0.76, 0.49), (0.17, 1.2), (-0.59, 0.7))
#: Most points whose signs are all gone through.
MOST_ENUMERATED = 16
#: How far the last step of `ascent` turns towards the gradient.
_LAST_STEP = 0.01


class Complexity(NamedTuple):
    """Suprema, or expectations of them, of the four readings of a class F; or factors that bound them by the first.

    Attributes:
        linear: sup |lin|, that is R^(F).
        relu: sup max(|p|, |q|), R^(ReLU o F) of a class that holds -f with f.
        avr: sup |avr|, R^(|F|).
        crelu: sup sqrt(p^2 + q^2), what a linear map on a CReLU can make.
    """

    linear: Float[Array, " *batch"]
    relu: Float[Array, " *batch"]
    avr: Float[Array, " *batch"]
    crelu: Float[Array, " *batch"]


class LayerBound(NamedTuple):
    """Right sides of Theorem 4.1, as printed and as it holds for every class; see `theorem_4_1`."""

    printed: Float[Array, " *batch"]
    corrected: Float[Array, " *batch"]


def theorem_4_1(complexity: ArrayLike, width: ArrayLike, norm: ArrayLike = 1.0) -> LayerBound:
    """Return sqrt(d_in) B R^_L(F) (Shang et al. 2016, Theorem 4.1), which does not hold, and sqrt(3) times it, eq. (2).

    Args:
        complexity: R^_L(F).
        width: d_in.
        norm: B.

    Returns:
        Both right sides; NaN where an argument is negative.
    """
    printed = layer_complexity(complexity, width, norm)
    return LayerBound(printed, math.sqrt(3.0) * printed)


def layer_complexity(complexity: ArrayLike, width: ArrayLike, norm: ArrayLike = 1.0) -> Float[Array, " *batch"]:
    """Return sqrt(d_in) B R, the complexity of H o rho o G from that of one unit: an equality for free units.

    Args:
        complexity: of one unit, `Complexity.crelu` for a CReLU.
        width: d_in.
        norm: B.
    """
    one, units, most = as_floats(complexity, width, norm)
    return jnp.where((one >= 0) & (units >= 0) & (most >= 0), jnp.sqrt(jnp.maximum(units, 0)) * most * one, jnp.nan)


def linear_supremum(x: Float[ArrayLike, "L d"], sigma: Float[ArrayLike, " L"], radius: float = 1.0) -> Float[Array, ""]:
    """Return (2 A / L) |sum_i sigma_i x_i|_2, the supremum of Definition B.1 over <w, x>, |w| <= A, for given signs."""
    points, signs = _sample(x, sigma)
    return (2 * radius / len(signs)) * _length(matmul(signs, points))


def suprema(arrangement: Faces, sigma: Float[ArrayLike, " L"], radius: float = 1.0) -> Complexity:
    """Return the suprema of Definition B.1 over |w|_2 <= A for given signs, exactly, face by face.

    On a face p = <w, a> and q = <w, b>: (p, q) is longest at the first right singular vector of (a, b), projected to
    the face's span; the candidate is counted with the value that it really has, inside its face or not.

    Args:
        arrangement: `arrangement.faces` of the sample.
        sigma: signs.
        radius: A.

    Returns:
        Scalars, times 2 / L. Rounded like sums of L terms, and by some 1e-9 where hyperplanes nearly coincide.

    Cost: faces (6 L r + 4 r^2) multiply-adds.
    """
    points, signs = _sample(arrangement.points, sigma)
    signed = signs[:, None] * points
    a = jnp.einsum("fij,fj->fi", arrangement.projectors, matmul(arrangement.positive, signed), precision="highest")
    b = -jnp.einsum("fij,fj->fi", arrangement.projectors, matmul(arrangement.negative, signed), precision="highest")
    values = _values(points, signs, jnp.concatenate([_longest(a, b), a, b, a + b]))
    return _scaled(values, _length(jnp.sum(signed, axis=0)), radius, len(signs))


def ascent(
    key: PRNGKeyArray,
    x: Float[ArrayLike, "L d"],
    sigma: Float[ArrayLike, " L"],
    radius: float = 1.0,
    *,
    starts: int = 16,
    steps: int = 32,
) -> Complexity:
    """Return lower bounds of the suprema of Definition B.1 over |w|_2 <= A: the best w that ascent came upon.

    w turns towards the gradient of each reading, all the way at first and less and less, since many of the largest
    values lie on a kink; the linear supremum is exact.

    Args:
        key: of the starts.
        x: sample, of any dimension.
        sigma: signs.
        radius: A.
        starts: random directions; s = sum_i sigma_i x_i and its halves over either sign are taken as well.
        steps: moves.

    Returns:
        Scalars, times 2 / L; all but ``linear`` are lower bounds.

    Cost: 3 (starts + 3) steps moves of 4 L d multiply-adds.
    """
    points, signs = _sample(x, sigma)
    signed = signs[:, None] * points
    total = jnp.sum(signed, axis=0)
    some = jax.random.normal(key, (starts, points.shape[1]), points.dtype)
    first = jnp.concatenate([
        some, total[None], jnp.sum(jnp.where(signs[:, None] > 0, points, 0), axis=0)[None],
        jnp.sum(jnp.where(signs[:, None] < 0, points, 0), axis=0)[None],
    ])  # fmt: skip

    up, forward, across = jnp.split(jnp.arange(3 * len(first)), 3)

    def move(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        w, best = state
        responses = matmul(w, points.T)
        a = matmul((responses > 0).astype(points.dtype), signed)
        b = -matmul((responses < 0).astype(points.dtype), signed)
        p, q = (jnp.sum(one * w, axis=1, keepdims=True) for one in (a, b))
        larger = jnp.where(jnp.abs(p) >= jnp.abs(q), jnp.sign(p) * a, jnp.sign(q) * b)
        uphill = jnp.concatenate([(p * a + q * b)[up], larger[forward], (jnp.sign(p + q) * (a + b))[across]])
        pace = (_LAST_STEP ** (step / steps)).astype(points.dtype)
        w = _unit((1 - pace) * w + pace * _unit(uphill))
        return w, jnp.maximum(best, _values(points, signs, w))

    w = _unit(jnp.concatenate([first, first, first]))
    _, best = lax.fori_loop(0, steps, move, (w, _values(points, signs, w)))
    return _scaled(best, _length(total), radius, len(signs))


def sign_vectors(count: int) -> Int[np.ndarray, "vectors L"]:
    """Return all signs of so many points whose first is +1; the others give the same suprema.

    Raises:
        ValueError: more than `MOST_ENUMERATED` points, or none.
    """
    if not 1 <= count <= MOST_ENUMERATED:
        raise ValueError(f"expected 1 to {MOST_ENUMERATED} points to go through all signs of, got {count}")
    return np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=count - 1)], np.int8)


def exact_complexities(arrangement: Faces, radius: float = 1.0) -> Complexity:
    """Return the empirical complexities of Definition B.1 of <w, x>, |w| <= A: the mean over all 2^L signs.

    Args:
        arrangement: `arrangement.faces` of the sample.
        radius: A.

    Raises:
        ValueError: more points than `MOST_ENUMERATED`.

    Cost: 2^(L - 1) times `suprema`.
    """
    signs = jnp.asarray(sign_vectors(arrangement.points.shape[0]), arrangement.points.dtype)
    return jax.tree.map(lambda mean: radius * mean, _mean_suprema(arrangement, signs))


def finite_complexities(values: Float[ArrayLike, "functions L"]) -> Complexity:
    """Return the empirical complexities of Definition B.1 of a finite class, over all signs.

    Args:
        values: f(x_i) for every function and point. ``relu`` is that of the class with -f added to every f.

    Raises:
        ValueError: another shape, or more points than `MOST_ENUMERATED`.
    """
    table = as_float(values)
    if table.ndim != 2:
        raise ValueError(f"expected values of shape [functions, L], got {table.shape}")
    signs = jnp.asarray(sign_vectors(table.shape[1]), table.dtype)
    found = _readings(matmul(signs, table.T), matmul(signs, jnp.abs(table).T))
    return Complexity(*(2 / table.shape[1] * jnp.mean(jnp.max(one, axis=-1)) for one in found))


def constants(x: Float[ArrayLike, "L d"]) -> Complexity:
    """Return c with R^(... o F) <= c R^(F), proved, for F = {<w, x>, |w|_2 <= A} over this sample (module's text).

    Args:
        x: sample, not all zeros.

    Returns:
        The factors by reading: 1 for ``linear``; at most 3 / 2 for ``relu``, 2 for ``avr`` and sqrt(5 / 2) for
        ``crelu``. NaN for a sample of zeros.

    Cost: a singular value decomposition; not for use inside of draws.
    """
    trace, rank, kappa = _moments(x)
    across = jnp.sqrt(jnp.maximum(1 - 1 / rank, 0) * kappa)
    avr = jnp.minimum(jnp.minimum(jnp.sqrt((2 - 1 / rank) * kappa), 1 + across), 2.0)
    crelu = jnp.sqrt((3 - 1 / rank) / 2 * kappa)
    one = jnp.where(trace > 0, jnp.ones_like(trace), jnp.nan)
    return Complexity(one, one * (1 + avr) / 2, one * avr, one * crelu)


def upper_bounds(x: Float[ArrayLike, "L d"], radius: float = 1.0) -> Complexity:
    """Return upper bounds of the empirical complexities of F = {<w, x>, |w|_2 <= A} from second moments, eq. (3).

    Args:
        x: sample.
        radius: A.

    Returns:
        (2 A / L) sqrt(T) for ``linear``, times sqrt(2 - 1 / rho) for ``avr``, sqrt((3 - 1 / rho) / 2) for ``crelu``,
        and the mean of the first two for ``relu``.

    Cost: a singular value decomposition; not for use inside of draws.
    """
    trace, rank, _ = _moments(x)
    rank = jnp.where(trace > 0, rank, 1.0)
    linear = 2 * radius / np.shape(x)[0] * jnp.sqrt(trace)
    avr = linear * jnp.sqrt(2 - 1 / rank)
    return Complexity(linear, (linear + avr) / 2, avr, linear * jnp.sqrt((3 - 1 / rank) / 2))


def stable_rank(x: Float[ArrayLike, "L d"]) -> Float[Array, ""]:
    """Return rho = sum_i |x_i|^2 / lambda_max(sum_i x_i x_i^T); 1 for points on a line through 0, NaN for zeros."""
    return _moments(x)[1]


@jax.jit
def _mean_suprema(arrangement: Faces, signs: Array) -> Complexity:
    return jax.tree.map(jnp.mean, lax.map(lambda sigma: suprema(arrangement, sigma), signs, batch_size=64))


def _moments(x: ArrayLike) -> tuple[Array, Array, Array]:
    """Return T, rho and the bound of kappa."""
    points = as_float(x)
    if points.ndim != 2 or not points.size:
        raise ValueError(f"expected a sample of shape [L, d], got {points.shape}")
    trace = jnp.sum(jnp.square(points))
    rank = trace / jnp.square(jnp.linalg.norm(points, ord=2))
    gram = matmul(points, points.T)
    mixed = jnp.sum(jnp.square(gram)) - jnp.sum(jnp.square(jnp.diagonal(gram)))
    return trace, rank, jnp.minimum(1 + 2 * mixed / jnp.square(trace), 2.0)


def _sample(x: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    points = as_float(x)
    signs = jnp.asarray(sigma).astype(points.dtype)
    if points.ndim != 2 or signs.shape != points.shape[:1]:
        raise ValueError(f"expected a sample [L, d] and L signs, got shapes {points.shape} and {signs.shape}")
    return points, signs


def _length(vectors: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1))


def _unit(vectors: Array) -> Array:
    length = _length(vectors)[..., None]
    return vectors / jnp.where(length > 0, length, 1)


def _longest(a: Array, b: Array) -> Array:
    """Return the direction w in which (<w, a>, <w, b>) is longest, row by row: the 2 x 2 Gram's first eigenvector."""
    aa, bb, ab = (jnp.sum(one * other, axis=1) for one, other in ((a, a), (b, b), (a, b)))
    angle = jnp.arctan2(2 * ab, aa - bb)[:, None] / 2
    return jnp.cos(angle) * a + jnp.sin(angle) * b


def _readings(linear: Array, avr: Array) -> tuple[Array, Array, Array, Array]:
    """Return |lin|, max(|p|, |q|), |avr| and sqrt(p^2 + q^2) by eq. (1)."""
    linear, avr = jnp.abs(linear), jnp.abs(avr)
    return linear, (linear + avr) / 2, avr, jnp.sqrt((jnp.square(linear) + jnp.square(avr)) / 2)


def _values(points: Array, signs: Array, directions: Array) -> Array:
    """Return the largest value of every reading but the first over directions, [3]."""
    responses = matmul(_unit(directions), points.T)
    found = _readings(matmul(responses, signs), matmul(jnp.abs(responses), signs))
    return jnp.stack([jnp.max(one) for one in found[1:]])


def _scaled(values: Array, linear: Array, radius: float, count: int) -> Complexity:
    scale = 2 * radius / count
    return Complexity(scale * linear, *(scale * value for value in values))
