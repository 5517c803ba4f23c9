"""Stopping on precision: where the looks are, what they spend, what the result says."""

import functools
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo.stopping import MARGIN, NEXT, PILOT, TARGET, Looks

from . import draws

quiet = functools.partial(mc.run, progress=False)


def normal_interval(looks, spread=1.0, centre=0.0):
    """The interval of a mean of known spread at the coming look."""

    def interval(level):
        half = float(ndtri(0.5 + level / 2)) * spread / math.sqrt(looks.draws)
        return centre, centre - half, centre + half

    return interval


def play(looks, **law):
    while not looks.look(normal_interval(looks, **law)):
        pass
    return looks.outcome()


def test_pilot_target_and_what_they_spend():
    looks = Looks(mc.Width("x", absolute=0.01, first=1000), 10**7, 1000)
    outcome = play(looks)
    # z(1 - 0.044 / 2) = 2.014: (2 * 2.014 / 0.01)^2 = 162 thousand draws, 203 with the margin: the look at 256,000.
    assert [look.draws for look in outcome.looks] == [1000, 256_000]
    alpha = 0.05
    np.testing.assert_allclose([look.error for look in outcome.looks], [alpha * PILOT / 2, alpha * TARGET])
    assert outcome.reached
    low, high = outcome.interval
    assert high - low <= 0.01
    np.testing.assert_allclose(high - low, 2 * ndtri(1 - alpha * TARGET / 2) / math.sqrt(256_000))


def test_a_target_that_disappoints_is_followed_by_more_looks():
    looks = Looks(mc.Width("x", absolute=0.01, first=1000), 10**8, 1000)
    assert not looks.look(normal_interval(looks))
    assert looks.draws == 256_000
    assert not looks.look(normal_interval(looks, spread=2.0))
    assert looks.draws == 512_000
    outcome = play(looks, spread=2.0)
    assert [look.draws for look in outcome.looks] == [1000, 256_000, 512_000, 1_024_000, 2_048_000]
    assert outcome.looks[2].error == pytest.approx(0.05 * NEXT)
    assert outcome.reached


@settings(deadline=None, max_examples=200)
@example(width=1e-4, spread=1.0, centre=5e-324, relative=True, first=2, block=1, num_draws=10, level=0.95)
@given(
    width=st.floats(1e-4, 10.0),
    spread=st.floats(1e-3, 1e3),
    centre=st.floats(-10.0, 10.0),
    relative=st.booleans(),
    first=st.integers(2, 5000),
    block=st.integers(1, 5000),
    num_draws=st.integers(1, 10**7),
    level=st.floats(0.5, 0.999),
)
def test_never_more_is_spent_than_stated(width, spread, centre, relative, first, block, num_draws, level):
    sizes = {"relative": width} if relative else {"absolute": width}
    looks = Looks(mc.Width("x", first=first, level=level, **sizes), num_draws, block)
    outcome = play(looks, spread=spread, centre=centre)
    assert sum(look.error for look in outcome.looks) <= (1 - level) * (1 + 1e-9)
    assert all(look.error > 0 for look in outcome.looks)
    counts = [look.draws for look in outcome.looks]
    assert counts == sorted(set(counts))
    assert counts[-1] <= num_draws
    assert all(count % block == 0 or count == num_draws for count in counts)
    # It stops at the first narrow look, and only the last draw ends it otherwise.
    assert [look.narrow for look in outcome.looks] == [False] * (len(counts) - 1) + [outcome.reached]
    assert outcome.reached or counts[-1] == num_draws


def test_state_travels():
    rule = mc.Width("x", absolute=0.01, first=1000)
    looks = Looks(rule, 10**7, 1000)
    looks.look(normal_interval(looks))
    other = Looks(rule, 10**7, 1000)
    other.restore(json.loads(json.dumps(looks.state())))
    assert other.draws == looks.draws
    assert play(other) == play(looks)


def test_a_stopped_run_is_a_prefix_of_the_whole(tmp_path):
    rule = mc.Width("x", absolute=0.06, first=500)
    options = {"chunk_size": 100, "lanes": 16, "keep": ("x",)}
    result = quiet(draws.mixed, 5, 100_000, until=rule, **options)
    draws_done = result.provenance["num_draws"]
    # (2 * 2.01 / 0.06)^2 * MARGIN = 5,600: the look at 8,000.
    assert draws_done == 8000
    assert result.stopping.reached
    assert [look.draws for look in result.stopping.looks] == [500, 8000]
    low, high = result.stopping.interval
    assert high - low <= 0.06
    np.testing.assert_allclose((low, high), result.mean_interval("x", 1 - 0.05 * TARGET))
    fixed = quiet(draws.mixed, 5, draws_done, **options)
    assert draws.variables_equal(result.to_xarray(), fixed.to_xarray())
    stored = json.loads(result.to_xarray().attrs["stopping"])
    assert stored["reached"]
    assert stored["rule"]["absolute"] == 0.06
    assert [look["draws"] for look in stored["looks"]] == [500, 8000]
    assert "stopped at 8,000 draws after 2 looks" in str(result.summary())
    assert result.provenance["spec"]["until"]["spending"]["margin"] == MARGIN


def test_devices_and_interruptions_do_not_change_where_it_stops(tmp_path):
    rule = mc.Width("x", absolute=0.1, first=300)
    run = functools.partial(mc.run, draws.mixed, 5, 50_000, chunk_size=100, lanes=16, keep=("x",), until=rule)
    expected = run(progress=False, mesh=draws.mesh(1))

    class Enough(Exception):
        pass

    for stop_at in (100, 300, 900):

        def stop(progress, stop_at=stop_at):
            if progress.done >= stop_at:
                raise Enough

        folder = tmp_path / str(stop_at)
        with pytest.raises(Enough):
            run(progress=stop, out=folder, mesh=draws.mesh(3))
        resumed = run(progress=False, out=folder)
        assert resumed.provenance["resumed_blocks"] > 0
        assert draws.variables_equal(resumed.to_xarray(), expected.to_xarray())
        assert resumed.stopping == expected.stopping
        again = run(progress=False, out=folder)
        assert again.provenance["compile_seconds"] == 0.0
        assert again.stopping == expected.stopping


def test_the_maximum_is_said_not_to_be_enough():
    result = quiet(draws.scalar, 5, 2000, until=mc.Width("value", absolute=1e-4), chunk_size=500)
    assert not result.stopping.reached
    assert result.provenance["num_draws"] == 2000
    assert "NOT reached in 2,000 draws" in str(result.summary())
    assert sum(look.error for look in result.stopping.looks) == pytest.approx(0.05)


@pytest.mark.slow
def test_proportion_relative_and_quantile_widths():
    statistics = {"x": (mc.Moments(), mc.Proportion(above=2.0), mc.Histogram(-5, 5, 2000))}
    run = functools.partial(quiet, draws.mixed, 5, 400_000, chunk_size=1000, statistics=statistics)
    proportion = run(until=mc.Width("x", relative=0.2, statistic="proportion"))
    estimate, low, high = proportion.interval("x", "proportion", level=1 - 0.05 * TARGET)
    assert high - low <= 0.2 * estimate
    assert low < 0.02275 < high
    quantile = run(until=mc.Width("x", absolute=0.05, statistic="quantile", q=0.9))
    low, high = quantile.stopping.interval
    assert high - low <= 0.05
    assert low < 1.2816 < high
    # A pilot with few successes predicts nothing: a second one is taken before the target.
    rare = {"x": (mc.Proportion(above=3.0),)}
    looks = quiet(
        draws.mixed, 5, 4_000_000, chunk_size=1000, statistics=rare, until=mc.Width("x", None, 0.2, "proportion")
    ).stopping.looks
    assert len(looks) > 2
    assert looks[1].error == pytest.approx(0.05 * PILOT / 4)


def test_progress_aims_at_the_next_look():
    seen = []
    mc.run(
        draws.scalar, 5, 10**6, chunk_size=500, until=mc.Width("value", absolute=0.1, first=500), progress=seen.append
    )
    totals = [report.total for report in seen if report.stage == "running"]
    assert totals[0] == 500
    assert max(totals) < 10**5
    assert seen[-1].stage == "finished"
    assert seen[-1].done == seen[-1].total


def test_no_new_compilation_between_looks():
    traces = []

    def counted(key):
        traces.append(1)
        return jax.random.normal(key)

    quiet(counted, 5, 10**5, chunk_size=500, until=mc.Width("value", absolute=0.05, first=500))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "either an absolute or a relative"),
        ({"absolute": 1.0, "relative": 1.0}, "either an absolute or a relative"),
        ({"absolute": 0.0}, "positive width"),
        ({"absolute": math.nan}, "positive width"),
        ({"absolute": 1.0, "statistic": "median"}, "'mean', 'proportion' or 'quantile'"),
        ({"absolute": 1.0, "statistic": "quantile"}, "expected q"),
        ({"absolute": 1.0, "q": 0.5}, "expected q"),
        ({"absolute": 1.0, "statistic": "quantile", "q": 1.0}, "between 0 and 1"),
        ({"absolute": 1.0, "level": 95.0}, "confidence level"),
        ({"absolute": 1.0, "first": 1}, "first"),
    ],
)
def test_impossible_rules_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        mc.Width("x", **arguments)


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (mc.Width("y", absolute=1.0), "one of the outputs"),
        (mc.Width("x", absolute=1.0, statistic="proportion"), "gives the proportion"),
        (mc.Width("x", absolute=1.0, statistic="quantile", q=0.5), "Histogram or kept"),
        (mc.Width("positive", absolute=1.0), "gives the mean"),
        (mc.Width("v", absolute=1.0), "scalar"),
    ],
)
def test_rules_that_do_not_fit_the_run_are_named(rule, match):
    with pytest.raises(ValueError, match=match):
        quiet(draws.mixed, 5, 1000, until=rule)
