"""The engine: the same draws and statistics whatever the block, the lanes, the devices."""

import dataclasses
import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from cnninv_jax import montecarlo as mc
from cnninv_jax.montecarlo import program as program_module
from cnninv_jax.montecarlo.arguments import make_plan
from cnninv_jax.montecarlo.engine import run
from cnninv_jax.montecarlo.hosts import Hosts

from . import draws

quiet = functools.partial(run, progress=False)
KEY = 7


def root():
    return jax.random.key(KEY)


def test_chunked_equals_one_shot_in_float64():
    n = 3000
    result = quiet(draws.mixed, KEY, n, chunk_size=256, lanes=32, keep=("x", "v", "positive", "level"))
    expected = draws.raw(draws.mixed, root(), n)
    for name in ("x", "v", "level"):
        values = np.asarray(expected[name], np.float64)
        numbers = result[name]
        np.testing.assert_allclose(result.draws[name], expected[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(numbers["mean"], values.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(numbers["variance"], values.var(0, ddof=1), rtol=1e-6)
        np.testing.assert_allclose(numbers["standard_error"], values.std(0, ddof=1) / np.sqrt(n), rtol=1e-6)
        np.testing.assert_allclose(numbers["min"], values.min(0), rtol=1e-6)
        np.testing.assert_allclose(numbers["max"], values.max(0), rtol=1e-6)
        np.testing.assert_array_equal(numbers["count"], n)
        np.testing.assert_array_equal(numbers["non_finite"], 0)
    assert result["positive"]["successes"] == expected["positive"].sum()
    assert result["positive"]["proportion"] == expected["positive"].mean()
    assert result.draws["level"].dtype == expected["level"].dtype


@pytest.mark.slow
def test_block_size_changes_only_the_rounding():
    results = [quiet(draws.mixed, KEY, 600, chunk_size=size, keep=("x", "v")) for size in (1, 7, 256)]
    for other in results[1:]:
        for name in ("x", "v"):
            assert other.draws[name].tobytes() == results[0].draws[name].tobytes()
        for name, numbers in results[0].statistics.items():
            for statistic, value in numbers.items():
                np.testing.assert_allclose(other[name][statistic], value, rtol=1e-6)


@pytest.mark.timeout(120)
def test_devices_do_not_change_a_bit():
    def once(count):
        options = {"chunk_size": 100, "lanes": 16, "keep": ("x",), "mesh": draws.mesh(count)}
        return quiet(draws.mixed, KEY, 1234, **options).to_xarray()

    one = once(1)
    assert draws.variables_equal(one, once(2))
    assert draws.variables_equal(one, once(4))


@pytest.mark.parametrize("num_draws", [1, 2, 99, 100, 101, 399, 401])
@pytest.mark.timeout(120)
def test_partial_last_block(num_draws):
    result = quiet(draws.scalar, KEY, num_draws, chunk_size=100, lanes=8, keep="value")
    expected = draws.raw(draws.scalar, root(), num_draws)
    np.testing.assert_allclose(result.draws["value"], expected, rtol=1e-6)
    np.testing.assert_allclose(result["value"]["mean"], np.mean(expected, dtype=np.float64), rtol=1e-6)
    assert result["value"]["count"] == num_draws
    assert np.isnan(result["value"]["variance"]) == (num_draws == 1)


def test_draw_is_a_function_of_key_and_index_only():
    long = quiet(draws.scalar, KEY, 500, keep=("value",)).draws["value"]
    short = quiet(draws.scalar, jax.random.key(KEY), 130, keep=("value",)).draws["value"]
    assert long[:130].tobytes() == short.tobytes()


def test_new_banks_keys_and_counts_trace_nothing():
    traces = []

    def counted(bank, key):
        traces.append(bank.shape)
        return draws.with_bank(bank, key)

    for seed in range(50):
        bank = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
        key = jax.random.key(seed, impl="threefry2x32")
        result = quiet(jax.tree_util.Partial(counted, bank), key, 200 + seed, chunk_size=64)
        assert result.provenance["spec"]["num_draws"] == 200 + seed
        if seed in (0, 49):
            reference = draws.raw(functools.partial(draws.with_bank, jnp.asarray(bank)), key, 200 + seed)
            np.testing.assert_allclose(result["ratio"]["mean"], reference["ratio"].mean(), rtol=1e-4, atol=1e-5)
    assert traces == [(4, 3)]
    quiet(jax.tree_util.Partial(counted, np.zeros((5, 3), np.float32)), 0, 200, chunk_size=64)
    assert traces == [(4, 3), (5, 3)]


def test_registered_pytree_callable():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        scale: jax.Array

        def __call__(self, key):
            return self.scale * jax.random.normal(key, dtype=self.scale.dtype)

    small, large = (quiet(Scaled(jnp.float32(s)), KEY, 200, keep="value").draws["value"] for s in (1.0, 2.0))
    np.testing.assert_array_equal(2 * small, large)


def compiled_text(count):
    signature, _ = program_module.split_draw(draws.sorting, root())
    traced = program_module.trace(signature)
    plan = make_plan(traced.leaves, None, ("x",))
    return program_module.compile_blocks(signature, plan, 64, 16, draws.mesh(count)).compiled.as_text()


@pytest.mark.timeout(120)
def test_no_collectives():
    text = compiled_text(4)
    assert "while" in text
    assert not [word for word in draws.COLLECTIVES if word in text]


def test_outputs_are_written_into_donated_buffers():
    # One alias per packed dtype (float, integer) and one for the kept leaf.
    (aliases,) = re.findall(r"input_output_alias=\{(.*?) \}", compiled_text(2))
    assert aliases.count("alias") == 3


def test_memory_does_not_grow_with_the_number_of_draws():
    small = quiet(draws.mixed, KEY, 2_000, chunk_size=64, lanes=16).provenance["memory_bytes"]
    assert small == quiet(draws.mixed, KEY, 20_000, chunk_size=64, lanes=16).provenance["memory_bytes"]


@pytest.mark.timeout(120)
def test_at_most_two_supersteps_in_flight(monkeypatch):
    flying, most = [0], [0]
    original = program_module.compile_blocks

    def compile_blocks(*args):
        program = original(*args)

        def counted(*inputs):
            flying[0] += 1
            most[0] = max(most[0], flying[0])
            return program.compiled(*inputs)

        return dataclasses.replace(program, compiled=counted)

    def fetch(hosts, value):
        flying[0] -= 1
        return original_fetch(hosts, value)

    original_fetch = Hosts.fetch
    monkeypatch.setattr("cnninv_jax.montecarlo.sizing.compile_blocks", compile_blocks)
    monkeypatch.setattr(Hosts, "fetch", fetch)
    quiet(draws.scalar, KEY, 5000, chunk_size=64, mesh=draws.mesh(2))
    assert (flying, most) == ([0], [2])


@pytest.mark.slow
def test_memory_limit_halves_lanes_then_says_so():
    def large(key):
        x = jax.random.normal(key, (64, 256))
        return jnp.sort(x, axis=0).sum()

    free = quiet(large, KEY, 256, chunk_size=256).provenance
    assert free["spec"]["lanes"] == 128
    limited = quiet(large, KEY, 256, chunk_size=256, memory_limit=free["memory_bytes"] // 4).provenance
    assert limited["spec"]["lanes"] < 128
    assert limited["spec"]["block"] == 256
    assert limited["memory_bytes"] <= free["memory_bytes"] // 4
    with pytest.raises(ValueError, match="raise memory_limit"):
        quiet(large, KEY, 256, chunk_size=256, memory_limit=1000)
    with pytest.raises(ValueError, match="lanes=128"):
        quiet(large, KEY, 256, chunk_size=256, lanes=128, memory_limit=free["memory_bytes"] // 4)


@pytest.mark.slow
def test_memory_limit_halves_the_block_where_kept_draws_are_the_load():
    def wide(key):
        return jax.random.normal(key, (1000,), jnp.float32)

    limit = 2 * 400 * 4000
    provenance = quiet(wide, KEY, 600, keep="value", memory_limit=2 * limit).provenance
    assert provenance["spec"]["block"] < 1024
    assert provenance["memory_bytes"] <= 2 * limit


def test_non_finite_draws_are_counted_and_left_out():
    def sometimes(key):
        x = jax.random.normal(key, (2,))
        return {
            "x": jnp.where(x > jnp.asarray([1.0, 9.0]), jnp.asarray([jnp.nan, jnp.inf]), x),
            "never": jnp.nan * x[0],
        }

    result = quiet(
        sometimes,
        KEY,
        2000,
        chunk_size=300,
        keep="x",
        statistics={"x": (mc.Moments(), mc.Extremes(), mc.Histogram(-4, 4, 8))},
    )
    x = result.draws["x"][:, 0]
    good = x[np.isfinite(x)]
    assert 0 < result["x"]["non_finite"][0] == 2000 - len(good)
    assert result["x"]["non_finite"][1] == 0
    assert result["x"]["count"][0] == len(good) == result["x"]["histogram"][0].sum()
    np.testing.assert_allclose(result["x"]["mean"][0], good.mean(), rtol=1e-6)
    np.testing.assert_allclose(result["x"]["variance"][0], good.var(ddof=1), rtol=1e-6)
    assert result["never"]["count"] == 0
    assert result["never"]["non_finite"] == 2000
    assert all(np.isnan(result["never"][key]) for key in ("mean", "variance", "min", "max"))
    assert "2000 non-finite values" in str(result.summary()).replace(",", "")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_draws": 0}, "num_draws"),
        ({"num_draws": 1.5}, "num_draws"),
        ({"num_draws": 2**32 + 1}, "num_draws"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"lanes": 3}, "power of two"),
        ({"lanes": 64, "chunk_size": 32}, "at most one block"),
        ({"key": np.zeros(2, np.uint32)}, "typed key"),
        ({"key": True}, "typed key"),
        ({"draw": 3}, "function of one key"),
        ({"draw": lambda key: {}}, "at least one array"),
        ({"draw": lambda key: jax.random.normal(key, dtype=complex)}, "real or bool"),
        ({"draw": lambda key: key}, "real or bool"),
        ({"draw": lambda key: {"a.b": jnp.ones(()), "a": {"b": jnp.ones(())}}}, "distinct"),
        ({"draw": lambda key: {"a/b": jnp.ones(())}}, "without '/'"),
        ({"statistics": {"y": mc.Moments()}}, r"statistics, got \['y'\]; there are \['value'\]"),
        ({"statistics": {"value": (mc.Moments(), mc.Moments())}}, "one accumulator of a kind"),
        ({"statistics": {"value": "mean"}}, "expected accumulators"),
        ({"statistics": {"value": mc.Proportion()}}, "above"),
        ({"statistics": {"value": mc.Histogram(1e9, 1e9 + 1e-6, 50)}}, "fewer bins"),
        ({"keep": ("y",)}, r"keep, got \['y'\]"),
        ({"keep": ("value", "value")}, "once"),
        ({"headline": "y"}, r"got 'y'; there are \['value'\]"),
        ({"spec": {"a": object()}}, "plain numbers"),
    ],
)
def test_mistakes_are_named(change, match):
    arguments = {"draw": draws.scalar, "key": KEY, "num_draws": 10, "progress": False, **change}
    with pytest.raises(ValueError, match=match):
        run(**arguments)


def test_mesh_needs_the_draws_axis():
    with pytest.raises(ValueError, match="one axis 'draws'"):
        quiet(draws.scalar, KEY, 10, mesh=Mesh(np.asarray(jax.devices()), ("data",)))
    made = jax.make_mesh((2,), ("draws",))
    assert quiet(draws.scalar, KEY, 10, mesh=made).provenance["device_count"] == 2


def test_unhashable_closure_is_explained():
    class Unhashable:
        __hash__ = None

        def __call__(self, key):
            return jax.random.normal(key)

    with pytest.raises(ValueError, match="Partial"):
        quiet(Unhashable(), KEY, 10)


def test_import_stays_light():
    code = (
        "import sys, cnninv_jax.montecarlo; "
        "print([name for name in ('xarray', 'rich', 'h5netcdf', 'scipy.stats') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
