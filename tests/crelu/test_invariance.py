"""Invariance scores against brute force, closed forms of Gaussian responses, and whatever the chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnninv_jax.crelu import invariance, stimuli

RNG = np.random.default_rng(8)
PICTURES = RNG.standard_normal((11, 2, 12, 10)).astype(np.float32)
BANK = RNG.standard_normal((5, 2, 3, 3)).astype(np.float32)


@jax.jit
def features(pictures):
    """Two layers: responses of a convolution, and of strided pooling."""
    h = jax.lax.conv(pictures, jnp.asarray(BANK, pictures.dtype), (1, 1), "VALID")
    return {"conv": h, "pool": h[:, :, ::2, ::2] - 1.0}


VIEWS = (stimuli.flip((12, 10), 8), stimuli.translation((12, 10), 8, shift=(1, 0)))
MIDDLE = stimuli.original((12, 10), 8)


def by_hand(reading, rate):
    """Thresholds by sorting, firings place by place."""
    read = (lambda h: max(h, 0.0)) if reading == "relu" else abs
    maps = {
        name: [jax.tree.map(np.asarray, features(view(PICTURES)))[name] for view in (MIDDLE, *VIEWS)]
        for name in ("conv", "pool")
    }
    found = {}
    for name, (first, *others) in maps.items():
        for i in range(5):
            values = sorted((read(h) for h in first[:, i].ravel()), reverse=True)
            t = values[int(rate * len(values))]
            sums = np.zeros((len(PICTURES), 1 + 2 * len(others)), int)
            for p in range(len(PICTURES)):
                for place in np.ndindex(first.shape[2:]):
                    fires = read(first[(p, i, *place)]) > t
                    sums[p, 0] += fires
                    for at, other in enumerate(others):
                        again = read(other[(p, i, *place)]) > t
                        sums[p, 1 + 2 * at : 3 + 2 * at] += again, again and fires
            found[name, i] = t, sums
    return found


@pytest.mark.parametrize("reading", ["relu", "crelu"])
def test_brute_force(reading):
    rate = 0.1
    found = invariance.firings(features, PICTURES, VIEWS, rate=rate, reading=reading, original=MIDDLE, chunk=4)
    for (name, i), (t, sums) in by_hand(reading, rate).items():
        held = found[name]
        assert held.thresholds[i] == np.float32(t)
        np.testing.assert_array_equal(held.fired[:, i], sums[:, 0])
        np.testing.assert_array_equal(held.transformed[:, :, i].T, sums[:, 1::2])
        np.testing.assert_array_equal(held.both[:, :, i].T, sums[:, 2::2])
        fired, both = sums[:, 0].sum(), sums[:, 2::2].sum(axis=0)
        np.testing.assert_allclose(invariance.local_rate(held).value[:, i], both / fired)
        rate_of = fired / held.locations.sum()
        np.testing.assert_allclose(invariance.global_rate(held)[i], rate_of)
        np.testing.assert_allclose(invariance.invariance_score(held).value[:, i], both / fired / rate_of)
    assert found["conv"].names == ("flip", "shift by +1, +0")
    # No ties in noise: exactly the rate asked for, rounded down.
    np.testing.assert_array_equal(found["conv"].fired.sum(axis=0), int(rate * 11 * 36))


def test_chunks_and_trees_do_not_matter():
    whole = invariance.firings(features, PICTURES, VIEWS, rate=0.05, original=MIDDLE, chunk=11)
    for chunk in (1, 3):
        part = invariance.firings(features, PICTURES, VIEWS, rate=0.05, original=MIDDLE, chunk=chunk)
        for name in ("conv", "pool"):
            np.testing.assert_array_equal(whole[name].thresholds, part[name].thresholds)
            np.testing.assert_array_equal(whole[name].both, part[name].both)
    alone = invariance.firings(lambda x: features(x)["conv"], PICTURES, VIEWS, rate=0.05, original=MIDDLE)
    np.testing.assert_array_equal(alone.both, whole["conv"].both)
    grouped = invariance.firings(features, PICTURES, VIEWS, rate=0.05, original=MIDDLE, groups=4)["conv"]
    np.testing.assert_array_equal(grouped.both[:, 1], whole["conv"].both[:, 1::4].sum(axis=1))
    np.testing.assert_allclose(
        invariance.local_rate(grouped).value, invariance.local_rate(whole["conv"]).value, rtol=1e-12
    )


@pytest.mark.parametrize("number", [1, 2, 7, 40])
def test_streamed_thresholds_are_order_statistics(number):
    """Many chunks, so that the kept responses are thinned out again and again; ties among integers."""
    values = RNG.integers(0, 50, (number, 3, 5, 4)).astype(np.float32)
    for rate in (0.05, 0.29, 0.9):
        found = invariance.firing_thresholds(lambda x: jnp.asarray(x), values, rate=rate)
        ordered = np.sort(np.moveaxis(values, 1, 0).reshape(3, -1), axis=1)[:, ::-1]
        # 0.29 x 100 in binary is below 29.
        allowed = int(round(rate * 100) * ordered.shape[1] // 100)
        np.testing.assert_array_equal(found, ordered[:, allowed])
        assert np.all((np.moveaxis(values, 1, 0).reshape(3, -1) > found[:, None]).sum(axis=1) <= allowed)


def test_what_cannot_tell_stimuli_apart_has_the_highest_score():
    """A 1 x 1 filter on pictures that are symmetric, under the flip; and the same stimulus again."""
    symmetric = np.concatenate([PICTURES, PICTURES[..., ::-1]], axis=-1)
    views = {"same": lambda x: x, "flip": stimuli.flip((12, 20))}
    found = invariance.firings(lambda x: jnp.asarray(x), symmetric, views, rate=0.01)
    np.testing.assert_array_equal(invariance.local_rate(found).value, 1.0)
    np.testing.assert_allclose(invariance.invariance_score(found).value * invariance.global_rate(found), 1.0)
    assert invariance.layer_mean(invariance.local_rate(found)).standard_error == 0


def conditional(correlation, rate, reading):
    """P(second fires | first fires) of two standard normal responses at the threshold of this global rate."""
    t = stats.norm.isf(rate if reading == "relu" else rate / 2)
    same, opposite = (
        stats.multivariate_normal.cdf([-t, -t], cov=[[1, c], [c, 1]]) for c in (correlation, -correlation)
    )
    return same / rate if reading == "relu" else 2 * (same + opposite) / rate


@pytest.mark.parametrize("reading", ["relu", "crelu"])
def test_gaussian_responses_in_closed_form(reading):
    """White noise through sums of three pixels: shifted by one, two, three, responses correlate by 2/3, 1/3 and 0."""
    noise = np.random.default_rng(21).standard_normal((150, 1, 40, 40)).astype(np.float32)
    kernel = np.ones((1, 1, 1, 3), np.float32)
    summed = jax.jit(lambda x: jax.lax.conv(x, jnp.asarray(kernel, x.dtype), (1, 1), "VALID"))
    views = [stimuli.translation(40, (40, 32), shift=(0, step)) for step in (1, 2, 3)]
    found = invariance.firings(
        summed, noise, views, rate=0.02, reading=reading, original=stimuli.original(40, (40, 32)), chunk=10
    )
    local, score = invariance.local_rate(found), invariance.invariance_score(found)
    for at, correlation in enumerate((2 / 3, 1 / 3, 0.0)):
        wanted = conditional(correlation, 0.02, reading)
        # Simulated above the noise of a threshold that is estimated: 5 standard errors.
        assert abs(local.value[at, 0] - wanted) < 5 * local.standard_error[at, 0], correlation
        assert abs(score.value[at, 0] - wanted / 0.02) < 5 * score.standard_error[at, 0], correlation
    np.testing.assert_allclose(conditional(0.0, 0.02, reading) / 0.02, 1.0, rtol=1e-6)
    assert local.standard_error[0, 0] < 0.02


def test_standard_errors_against_repeated_samples():
    """Rates of 300 samples of 40 pictures with differing brightness scatter as much as their standard errors say."""
    rng = np.random.default_rng(5)
    loud = np.exp(rng.standard_normal((12000, 1, 1, 1)) / 2)
    first = rng.standard_normal((12000, 1, 8, 8)) * loud
    second = 0.8 * first + 0.6 * rng.standard_normal(first.shape) * loud
    both = np.concatenate([first, second], axis=1).astype(np.float32)
    values, errors = [], []
    for sample in both.reshape(300, 40, 2, 8, 8):
        found = invariance.firings(
            lambda x: jnp.asarray(x), sample, {"other": lambda x: x[:, 1:]}, rate=0.05, original=lambda x: x[:, :1],
            chunk=40,
        )  # fmt: skip
        estimate = invariance.layer_mean(invariance.local_rate(found))
        values.append(estimate.value)
        errors.append(estimate.standard_error)
    np.testing.assert_allclose(np.std(values), np.mean(errors), rtol=0.2)


def test_silent_constant_and_broken_filters():
    maps = np.zeros((6, 5, 10, 10), np.float32)
    maps[:, 1] = 3.0  # fires nowhere: all responses tie at the threshold
    maps[2, 2, 0, :3] = 1.0  # three of 600 places, in one picture
    maps[:, 3] = RNG.standard_normal((6, 10, 10))
    maps[:, 4] = maps[:, 3]
    maps[0, 4, 0, 0] = np.nan
    found = invariance.firings(lambda x: jnp.asarray(x), maps, {"same": lambda x: x}, rate=0.01)
    np.testing.assert_array_equal(found.thresholds[:3], [0.0, 3.0, 0.0])
    np.testing.assert_array_equal(found.tuned, [False, True, False, True, False])
    local, score = invariance.local_rate(found), invariance.invariance_score(found)
    np.testing.assert_array_equal(np.isnan(local.value), [[True, True, False, False, True]])
    np.testing.assert_array_equal(np.isnan(score.value), np.isnan(local.value))
    np.testing.assert_allclose(invariance.global_rate(found)[:4], [0, 0, 0.005, 0.01])
    assert np.isnan(invariance.global_rate(found)[4])
    np.testing.assert_allclose(score.value[0, 2:4], [200, 100])
    np.testing.assert_allclose(invariance.layer_mean(score).value, 150)
    np.testing.assert_allclose(invariance.layer_mean(score, where=found.tuned).value, 100)
    assert np.isnan(invariance.layer_mean(score, where=np.zeros(5, bool)).value)
    np.testing.assert_array_equal(invariance.seen_once(found), [False, False, True, False, False])
    # The rare filter's rate is known to no better than one picture in six tells.
    assert score.standard_error[0, 2] > 100
    # A transformed stimulus alone may break a filter, too.
    bad = invariance.firings(lambda x: jnp.asarray(x), maps[:, 3:4], {"bad": lambda x: x * np.inf}, rate=0.01)
    assert np.isnan(invariance.local_rate(bad).value).all()


def test_influences_add_up_and_pair():
    found = invariance.firings(features, PICTURES, VIEWS, rate=0.05, original=MIDDLE)["conv"]
    for estimate in (invariance.local_rate(found), invariance.invariance_score(found)):
        np.testing.assert_allclose(estimate.influence.sum(axis=-1), 0, atol=1e-9)
        # To first order, leaving a picture out changes the rate by minus its influence.
        np.testing.assert_allclose(invariance.layer_mean(estimate).value, invariance.filter_mean(estimate).value.mean())
    fired, both = (np.delete(part, 4, axis=-2).sum(axis=-2) for part in (found.fired, found.both))
    local = invariance.local_rate(found)
    change, share = both / fired - local.value, found.fired[4] / found.fired.sum(axis=0)
    np.testing.assert_allclose(change, -local.influence[..., 4] / (1 - share), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.0}, "firing rate between 0 and 1"),
        ({"rate": 1e-4}, "at least 10000 locations"),
        ({"reading": "avr"}, "one of relu, crelu"),
        ({"chunk": 0}, "chunk >= 1"),
        ({"pictures": PICTURES[:0]}, "expected pictures"),
        ({"transforms": {}}, "transforms with names"),
        ({"transforms": [lambda x: x]}, "mapping of names to transforms, or a sequence of stimuli.View, got function"),
        ({"transforms": VIEWS[0]}, "sequence of stimuli.View, got View"),
        ({"groups": 0}, "groups >= 1, got 0"),
        ({"transforms": (VIEWS[0], VIEWS[0])}, "names of their own"),
        ({"transforms": {"smaller": lambda x: MIDDLE(x)[..., 1:]}}, "size of the original"),
        ({"features": lambda x: jnp.zeros((3, 2, 4))}, "pictures first"),
        ({"features": lambda x: jnp.zeros((len(x), 2, 4), jnp.int32)}, "real maps"),
    ],
    ids=[
        "rate",
        "few",
        "reading",
        "chunk",
        "none",
        "no views",
        "function",
        "view",
        "groups",
        "twice",
        "shape",
        "batch",
        "integers",
    ],
)
def test_refusals(change, message):
    given = (
        {"features": features, "pictures": PICTURES, "transforms": VIEWS} | {"original": MIDDLE, "rate": 0.05} | change
    )
    first = (given.pop("features"), given.pop("pictures"), given.pop("transforms"))
    with pytest.raises((TypeError, ValueError), match=message):
        invariance.firings(*first, **given)


def test_thresholds_of_another_structure():
    with pytest.raises(ValueError, match="structure of the maps"):
        invariance.count_firings(features, PICTURES, VIEWS, np.zeros(5, np.float32), original=MIDDLE)
    sizes = iter((5, 5, 5, 6))
    with pytest.raises(ValueError, match="for all pictures"):
        invariance.firing_thresholds(lambda x: jnp.ones((1, 2, next(sizes))), np.zeros((4, 1)), rate=0.1)
