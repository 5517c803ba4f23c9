"""The draw of Theorem A.5: against NumPy, through the engine, and how it counts violations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax import filters
from cnninv_jax import montecarlo as mc
from cnninv_jax.crelu.frames import PooledFrames, pooled_frames, sample_shifts
from cnninv_jax.experiments.crelu_bound_draws import SLACK, BoundDraw, outcome, verdicts
from cnninv_jax.operators import conv_operator
from tests import oracles

X64 = jax.config.jax_enable_x64
PRECISION = "float64" if X64 else "float32"
pytestmark = pytest.mark.skipif(not X64, reason="one width is enough")
SMALL = BoundDraw(5, 4, 16, 4, precision=PRECISION)


def numpy_draw(bank, code, signal_length):
    """ratio, bound, signs and the proof's step, by numpy.linalg; one shift per filter."""
    bank = np.asarray(bank, np.float64)
    w = oracles.dense_matrix(bank, (signal_length,), (1,)).reshape(len(bank), -1, signal_length)
    c, i, j = (np.asarray(a) for a in (code.values, code.filter_indices, code.shifts[:, 0]))
    w_x = w[i, j]
    x = c @ w_x
    h = w @ x
    hat = np.concatenate([w[np.arange(len(w)), (sign * h).argmax(axis=1)] for sign in (1, -1)])
    hat = hat[np.concatenate([(sign * h).max(axis=1) > 0 for sign in (1, -1)])]
    chosen = [w[f, (np.sign(v) * h[f]).argmax()] for f, v in zip(i, c, strict=True) if (np.sign(v) * h[f]).max() > 0]
    low = np.linalg.svd(w_x, compute_uv=False)[-1] ** 2
    high = np.linalg.svd(np.stack(chosen), compute_uv=False)[0] ** 2
    ratio = np.linalg.norm(x - np.linalg.pinv(hat) @ hat @ x) / np.linalg.norm(x)
    step = np.sum((np.stack(chosen) @ x) ** 2) / np.sum((w_x @ x) ** 2)
    return {
        "ratio": ratio,
        "bound": np.sqrt((high - low) / low),
        "tightness": ratio / np.sqrt((high - low) / low),
        "margin": 1 - (1 + ratio**2) * low / high,
        "wrong_part": np.mean(c * h[i, j] < 0),
        "step": step,
        "step_fails": step < 1 - 1e-12,
    }


JUDGE = jax.jit(outcome)
KEPT = (
    "ratio", "bound", "bound_every", "refined", "tightness", "margin", "margin_refined", "violated", "violated_refined",
    "undefined", "informative", "wrong_part", "wrong_sign", "step", "step_fails",
)  # fmt: skip


@pytest.fixture(scope="module")
def draws():
    """Two thousand draws of `SMALL`, through the engine on the four devices: a LAPACK call in a draw would hang."""
    return mc.run(SMALL, 0, 2048, chunk_size=512, lanes=16, progress=False, keep=KEPT).draws


def test_draws_equal_numpy(draws):
    found = draws
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(2048))

    @jax.jit
    def made(key):
        bank_key, code_key, _, _ = jax.random.split(key, 4)
        bank = filters.gaussian(bank_key, 5, 1, 4, normalize=True, dtype=PRECISION)
        return bank, sample_shifts(code_key, conv_operator(bank, 16), 4)

    failing = np.flatnonzero(found["step_fails"])
    assert failing.size
    for at in (*range(8), *failing[:4]):
        for name, value in numpy_draw(*made(keys[at]), 16).items():
            np.testing.assert_allclose(found[name][at], value, rtol=1e-8, atol=1e-10, err_msg=name)


def test_the_bound_holds_in_every_draw_and_the_step_does_not(draws):
    found = draws
    assert not np.any(found["violated"] | found["violated_refined"] | found["undefined"])
    assert np.all(found["margin"] >= 0)
    assert np.all(found["margin_refined"] >= -1e-13)
    assert np.all(found["refined"] <= np.minimum(found["bound"], 1) + 1e-13)
    assert np.all(found["bound"] <= found["bound_every"] + 1e-13)
    assert np.mean(found["wrong_sign"]) > 0.1
    assert 0 < np.mean(found["step_fails"]) < np.mean(found["wrong_sign"])
    assert np.mean(found["informative"]) > 0.005


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        BoundDraw(4, 3, 40, 3, per_filter=2, values="negative", precision=PRECISION),
        BoundDraw(4, 3, 40, 2, noise=2.0, precision=PRECISION),
    ],
    ids=["two shifts", "noise"],
)
def test_signals_outside_of_the_assumption_violate_the_bound(draw):
    found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 256))
    violated = np.asarray(found["violated"])
    assert 0.01 < violated.mean() < 1
    margin, ratio = np.asarray(found["margin"]), np.asarray(found["ratio"])
    assert np.all(margin[violated] < 0)
    inside = violated & ~np.asarray(found["undefined"])
    assert np.all(ratio[inside] > np.asarray(found["bound"])[inside])


@pytest.mark.slow
def test_given_signals_are_drawn_from():
    rng = np.random.default_rng(0)
    draw = jax.jit(jax.vmap(BoundDraw(3, 4, 12, 1, signals="any", precision=PRECISION), in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(2), 32)
    signals = jnp.asarray(rng.standard_normal((1, 1, 12)) * np.array([1.0, 2.0, 5.0])[:, None, None])
    found = draw(jax.random.clone(keys), signals)
    # A ratio knows no scale: all three signals give the same.
    alone = draw(jax.random.clone(keys), signals[:1].repeat(3, 0))
    np.testing.assert_allclose(found["ratio"], alone["ratio"], rtol=1e-9)
    other = draw(keys, jnp.asarray(rng.standard_normal((3, 1, 12))))
    assert not np.allclose(found["ratio"], other["ratio"])
    assert np.all(found["violated"] == (found["margin"] < -1e-12))


def frames_of(ratio, smallest, largest, dtype):
    numbers = {"ratio": ratio, "smallest": smallest, "largest": largest, "largest_every": largest,
               "largest_right": largest, "step": 1.0}  # fmt: skip
    counts = dict.fromkeys(("taking_part", "wrong", "silent"), jnp.asarray(1, np.int32))
    return PooledFrames(**{name: jnp.asarray(value, dtype) for name, value in numbers.items()}, **counts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_planted_violation_is_counted_and_rounding_is_not(dtype):
    eps = float(np.finfo(dtype).eps)
    planted = JUDGE(frames_of(0.5, 1.0, 1.2, dtype))
    assert planted["violated"]
    assert planted["violated_refined"]
    np.testing.assert_allclose(planted["margin"], 1 - 1.25 / 1.2, rtol=1e-4)
    # Printed bound 0.5, refined bound 0.447.
    between = JUDGE(frames_of(0.46, 1.0, 1.25, dtype))
    assert not between["violated"]
    assert between["violated_refined"]
    # At the bound, and off it by rounding: sqrt(1.25 - 1).
    for ratio in (0.5, 0.5 * (1 + 8 * eps)):
        assert not JUDGE(frames_of(ratio, 1.0, 1.25, dtype))["violated"]
    assert JUDGE(frames_of(0.5 * (1 + 8 * SLACK * eps), 1.0, 1.25, dtype))["violated"]
    # One filter: both eigenvalues are one, the ratio is rounding.
    for high in (1.0, 1.0 - 4 * eps, 1.0 + 4 * eps):
        alone = JUDGE(frames_of(4 * eps, 1.0, high, dtype))
        assert not any(alone[name] for name in ("violated", "violated_refined", "undefined"))
        assert alone["bound"] < 1e-2
    # No column at all, or columns below lambda_min.
    for high in (0.0, 0.5):
        nothing = JUDGE(frames_of(0.0, 1.0, high, dtype))
        assert nothing["violated"]
        assert nothing["undefined"]
        assert np.isnan(nothing["bound"])
    dependent = JUDGE(frames_of(0.9, 0.0, 1.0, dtype))
    assert dependent["bound"] == np.inf
    assert not dependent["violated"]


@pytest.mark.slow
def test_float32_and_float64_agree_on_the_same_signals():
    """The same filters and coefficients, rounded to float32: margins agree to float32's rounding of eigenvalues."""

    def both(key):
        bank_key, code_key = jax.random.split(key)
        op = conv_operator(filters.gaussian(bank_key, 5, 1, 4, dtype=np.float32), 16)
        return op, sample_shifts(code_key, op, 4)

    narrow = jax.jit(jax.vmap(both))(jax.random.split(jax.random.key(4), 500))
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, narrow)
    judge = jax.jit(jax.vmap(lambda op, code: verdicts(pooled_frames(op, code))))
    one, two = judge(*narrow), judge(*wide)
    assert one["margin"].dtype == np.float32
    # The correlation of a filter with itself is the same at lags +m and -m: where nothing else is near, two shifts tie,
    # rounding chooses the winner, and another winner is another reconstruction.
    for name in ("margin", "margin_refined"):
        close = np.abs(np.asarray(one[name], np.float64) - np.asarray(two[name])) <= SLACK * np.finfo(np.float32).eps
        assert np.mean(close) > 0.98
    for found in (one, two):
        assert not np.any(found["violated"] | found["violated_refined"])
