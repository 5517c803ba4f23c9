"""Several codes on one bank: single readings, unbiased means in every design, the control's expectation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh

from cnninv_jax import filters
from cnninv_jax import montecarlo as mc
from cnninv_jax.operators import conv_operator, synthesis_sparse
from cnninv_jax.rip import (
    READINGS,
    designs,
    draw_ratios,
    draw_ratios_of_codes,
    model_rip_energy_mean,
    ratios_of_code,
    ratios_of_codes,
    with_energy,
)
from cnninv_jax.sparsity import sample_codes, window

from .paths import assert_equal_means, keys_of, run, wide

SIZES = {"num_filters": 9, "channels": 3, "length": 3, "signal_shape": 10, "k": 3}
DESIGNS = {
    "independent": {},
    "stratified": {"supports": "stratified"},
    "antithetic": {"signs": "antithetic"},
    "both": {"supports": "stratified", "signs": "antithetic"},
}
needs_x64 = pytest.mark.skipif(not jax.config.read("jax_enable_x64"), reason="64-bit types are off")


def energies(key, op, k, codes, **design):
    """The codes and |W^T z|^2 of each: cheaper to compile than all the readings."""
    drawn = sample_codes(key, codes, op.num_filters, op.shifts, k, dtype=op.dtype, **design)
    return drawn, jax.vmap(lambda code: jnp.sum(synthesis_sparse(op, code) ** 2))(drawn)


def bank_of(seed, shape):
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(wide())


@pytest.mark.slow
def test_every_code_has_the_readings_of_a_single_one():
    op = conv_operator(bank_of(0, (6, 2, 3)), 9)
    key = jax.random.key(1)
    options = {"values": "gaussian", **DESIGNS["both"]}
    got = jax.jit(functools.partial(ratios_of_codes, k=3, codes=4, pool=(3,), **options))(key, op)
    codes = sample_codes(jax.random.clone(key), 4, 6, op.shifts, 3, pool=(3,), dtype=op.dtype, **options)
    assert set(got) == {*READINGS, "model_rip_energy"}
    alone = jax.jit(ratios_of_code)
    for c in range(4):
        want = alone(op, jax.tree.map(lambda array, c=c: array[c], codes))
        for name in READINGS:
            np.testing.assert_allclose(got[name][c], want[name], rtol=1e-12 if wide() is np.float64 else 2e-5)
    np.testing.assert_allclose(got["model_rip_energy"], np.square(got["model_rip"]))


def test_a_cluster_is_the_mean_and_the_variance_of_its_codes(monkeypatch):
    """Against the engine's own nesting of a bank and its codes, draw by draw; two cheap readings stand for the six."""

    def two(op, code):
        return {"model_rip": jnp.linalg.norm(synthesis_sparse(op, code)), "full_gram": code.values[0]}

    monkeypatch.setattr(designs, "ratios_of_code", two)
    outer = lambda key: conv_operator(filters.gaussian(key, 9, 3, 3, dtype=np.float32), 10)  # noqa: E731
    inner = functools.partial(ratios_of_codes, k=3, codes=4, supports="stratified")
    nested = mc.nested(outer, inner, 4, joint=True)
    draw = functools.partial(draw_ratios_of_codes, **SIZES, codes=4, supports="stratified", dtype=np.float32)
    got, want = (run(one, keys_of(3, 40)) for one in (draw, nested))
    assert set(got) == {"model_rip", "model_rip_within", "full_gram", "full_gram_within", "model_rip_energy"}
    assert set(want) == {*got, "model_rip_energy_within"}
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_outputs():
    for codes, names in [(1, READINGS), (2, [*READINGS, *(f"{name}_within" for name in READINGS)])]:
        found = jax.eval_shape(functools.partial(draw_ratios_of_codes, **SIZES, codes=codes), jax.random.key(0))
        assert set(found) == {*names, "model_rip_energy"}
        assert all(value.shape == () and value.dtype == wide() for value in found.values())


@functools.cache
def plain():
    return run(functools.partial(draw_ratios, **SIZES, sampling="plain", dtype=np.float32), keys_of(5, 10_240))


@pytest.mark.slow
@pytest.mark.parametrize(
    "design", [pytest.param(name, marks=() if name in ("stratified", "both") else pytest.mark.slow) for name in DESIGNS]
)
def test_means_are_those_of_single_codes(design):
    draw = functools.partial(draw_ratios_of_codes, **SIZES, codes=4, dtype=np.float32, **DESIGNS[design])
    got = run(draw, keys_of(6, 5_120))
    for name in READINGS:
        values, reference = got[name].astype(np.float64), plain()[name].astype(np.float64)
        assert_equal_means(values, reference)
        # All the variance of one code, within and between: exact for independent codes only, the sum of both in all.
        total = values.var() + (got[f"{name}_within"].astype(np.float64) * 3 / 4).mean()
        assert total == pytest.approx(reference.var(), rel=0.1)
        if design != "antithetic":
            assert values.var() < reference.var() / 1.5
    energy = got["model_rip_energy"].astype(np.float64)
    assert abs(energy.mean() - 1) < 5 * energy.std() / np.sqrt(len(energy))


@pytest.mark.slow
@needs_x64
def test_cross_terms_cancel_over_an_antithetic_group():
    """The mean of |W^T z|^2 over a group is the sum of v_i^2 |row i of W|^2, for any bank; not so without it."""
    op = conv_operator(bank_of(2, (12, 2, 5)), 12, padding="same")
    rows = oracles.dense_matrix(op.filters, op.signal_shape, op.stride, "same")
    squares = (rows**2).sum(axis=1).reshape(op.code_shape)

    def terms(**design):
        draw = functools.partial(energies, op=op, k=10, codes=16, **design)
        codes, found = jax.device_get(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20)))
        return found, np.sum(codes.values**2 * squares[codes.blocks, codes.shifts[..., 0]], axis=-1)

    found, own = terms(signs="antithetic")
    np.testing.assert_allclose(found.mean(axis=1), own.mean(axis=1), rtol=1e-12)
    assert np.all(np.abs(found / own - 1).max(axis=1) > 1e-2)
    found, own = terms()
    assert np.median(np.abs(found.mean(axis=1) / own.mean(axis=1) - 1)) > 1e-3


@pytest.mark.slow
def test_antithetic_signs_pay_where_supports_coincide_anyway():
    """One shift and k = K: every code has the same support, and cross terms are most of the variance."""

    def draw(key, signs):
        bank_key, key = jax.random.split(key)
        op = conv_operator(filters.gaussian(bank_key, 8, 2, 4, dtype=np.float32), 4)
        return {"energy": jnp.mean(energies(key, op, 8, 8, values="signs", signs=signs)[1]) / 8}

    variances = [
        run(functools.partial(draw, signs=signs), keys_of(7))["energy"].var() for signs in ("independent", "antithetic")
    ]
    # |w_i|^2 averaged over 8 filters of 8 taps varies by 2 / 64; the cross terms of one code by 2 (7 / 8) / 8.
    want = 2 / 64 + 2 * (7 / 8) / 8 / 8, 2 / 64
    np.testing.assert_allclose(variances, want, rtol=0.06)


@pytest.mark.parametrize(
    ("length", "size", "stride", "padding", "pool"),
    [
        ((3,), (9,), (1,), "same", None),
        ((5,), (11,), (1,), "same", (4,)),
        ((3,), (10,), (3,), "same", (3,)),
        ((2, 3), (5, 4), (2, 1), "same", (2, 3)),
        ((3,), (9,), (2,), "valid", (2,)),
        ((4,), (6,), (2,), "circular", (2,)),
    ],
    ids=str,
)
def test_the_expectation_of_the_energy(length, size, stride, padding, pool):
    """By enumeration: each block equally likely, each position in it equally likely, rows of unit filters cut."""
    filters = np.ones((1, 1, *length)) / np.sqrt(np.prod(length))
    rows = oracles.dense_matrix(filters, size, stride, padding)
    op = conv_operator(filters.astype(np.float32), size, stride=stride, padding=padding)
    squares = (rows**2).sum(axis=1).reshape(op.code_shape)
    blocks = oracles.blocks(op.code_shape, None if pool is None else window(op.shifts, pool))
    want = np.mean([np.mean([squares[entry] for entry in block]) for block in blocks])
    got = model_rip_energy_mean(length, size, stride=stride, padding=padding, pool=pool)
    assert got == pytest.approx(want, rel=1e-12)
    assert (got == 1.0) == (padding != "same")


def test_the_energy_has_its_expectation_with_same_padding_and_several_blocks_per_filter():
    def draw(key):
        bank_key, key = jax.random.split(key)
        bank = filters.gaussian(bank_key, 2, 2, (3, 3), normalize=True, dtype=np.float32)
        codes, found = energies(key, conv_operator(bank, (6, 7), stride=2, padding="same"), 4, 2, pool=(2, 2))
        return {"energy": jnp.mean(found / jnp.sum(codes.values**2, axis=-1))}

    energy = run(draw, keys_of(8))["energy"].astype(np.float64)
    mean = model_rip_energy_mean((3, 3), (6, 7), stride=2, padding="same", pool=(2, 2))
    assert mean < 0.9
    assert abs(energy.mean() - mean) < 5 * energy.std() / np.sqrt(len(energy))


@pytest.mark.slow
def test_a_control_on_plain_draws():
    draw = functools.partial(draw_ratios, **SIZES, sampling="plain", dtype=np.float32)
    controls = {name: {"model_rip_energy": 1.0} for name in READINGS}
    found = mc.run(
        mc.with_controls(with_energy(draw), controls),
        1,
        4096,
        statistics=mc.controlled_statistics(controls),
        progress=False,
        mesh=Mesh(np.asarray(jax.devices()[:1]), ("draws",)),
    )
    assert found.provenance["spec"]["name"] == "draw_ratios"
    for name in READINGS:
        numbers, reference = found[f"{name}_controlled"], plain()[name].astype(np.float64)
        error = np.hypot(numbers["standard_error"], reference.std() / np.sqrt(len(reference)))
        assert abs(numbers["mean"] - reference.mean()) < 5 * error
        assert numbers["variance_reduction"] > 0.99
        assert np.all(np.abs(numbers["control_deviation"]) < 5)
    # |W^T z| / |z| is nearly linear in its square.
    assert found["model_rip_controlled"]["variance_reduction"] > 10


def test_new_banks_and_keys_trace_nothing_anew():
    traces = []

    @jax.jit
    def traced(key, op):
        traces.append(1)
        return ratios_of_codes(key, op, 2, codes=4, **DESIGNS["both"])["model_rip"]

    outcomes = {float(traced(jax.random.key(seed), conv_operator(bank_of(seed, (5, 2, 3)), 8))[0]) for seed in range(5)}
    assert len(traces) == 1
    assert len(outcomes) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "cauchy"}, "expected ensemble to be one of gaussian.* got 'cauchy'"),
        ({"codes": 0}, "expected count to consist of integers of at least 1, got 0"),
        ({"supports": "disjoint"}, "'independent' or 'stratified', got 'disjoint'"),
        ({"signs": "antithetic", "group": 8}, "at most .* = 4, got 8"),
        ({"k": 10}, "expected 1 <= k <= 9"),
        ({"num_filters": 0}, "num_filters .* got 0"),
        ({"signal_shape": 2}, "at least as long as the filter"),
        ({"values": "ones"}, "'uniform', 'gaussian' or 'signs', got 'ones'"),
        ({"dtype": np.int32}, "expected a floating-point dtype, got int32"),
    ],
    ids=str,
)
def test_bad_arguments_give_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(draw_ratios_of_codes, **{**SIZES, **changes}), jax.random.key(0))
