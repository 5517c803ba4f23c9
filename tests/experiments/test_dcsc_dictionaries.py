"""Dictionaries that the studies of D-CSC share, and what they measure, against NumPy and closed forms."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from cnninv_jax import dcsc
from cnninv_jax import montecarlo as mc
from cnninv_jax.dcsc.generate import coherences, generate
from cnninv_jax.experiments.dcsc_dictionaries import (
    Dictionaries,
    allowed,
    bound_of,
    build,
    capacity_of,
    check,
    describe,
    entering_noise,
    prepare,
)

SMALL = Dictionaries(D=12, M=6, num_filters=(6, 3, 1), ell=3, nonzeros=2)


@pytest.mark.parametrize(
    ("change", "depth", "flag"),
    [
        ({"rank": 3}, 1, "--rank"),
        ({"D": 0}, 1, "--D"),
        ({"design_steps": 0}, 1, "--design-steps"),
        ({"num_filters": (6, 3)}, 3, "--num-filters"),
        ({"num_filters": (6, 0)}, 2, "--num-filters"),
        ({"kind": "other"}, 1, "--kind"),
        ({"places": "other"}, 1, "--places"),
        ({"padding": "same"}, 1, "--padding"),
        ({"coherence": 1.0}, 1, "--coherence"),
        ({"coherence": 0.1, "kind": "designed"}, 1, "--kind designed and --coherence 0.1"),
        ({"ell": 13}, 1, "--ell"),
        ({"stride": 5}, 1, "--stride"),
        ({"padding": "valid", "D": 6}, 3, "--ell"),
        ({"nonzeros": 10, "num_filters": (3, 3)}, 2, "--nonzeros"),
        ({"kind": "orthogonal", "num_filters": (7,)}, 1, "--kind orthogonal"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_their_flags(change, depth, flag):
    with pytest.raises(ValueError, match=flag):
        check(dataclasses.replace(SMALL, **change), depth)


def test_captions_say_which_filters_they_are():
    mixed = dataclasses.replace(SMALL, coherence=0.3)
    assert describe(SMALL) == "gaussian filters"
    assert describe(dataclasses.replace(SMALL, kind="designed")) == "designed filters"
    assert describe(mixed) == describe(dataclasses.asdict(mixed)) == "filters mixed to mu = 0.3"


@pytest.mark.slow
def test_a_coherence_out_of_reach_is_refused_by_its_flag():
    with pytest.raises(ValueError, match="--coherence"):
        build(jax.random.key(0), dataclasses.replace(SMALL, M=1, coherence=1e-4, design_steps=2), 1)


@pytest.mark.slow
def test_dictionaries_are_what_they_are_called():
    key = jax.random.key(3)
    kinds = {
        kind: build(key, dataclasses.replace(SMALL, kind=kind, design_steps=40), 1)
        for kind in ("gaussian", "designed", "orthogonal")
    }
    mu = {kind: float(coherences(model)[0]) for kind, model in kinds.items()}
    assert mu["designed"] < 0.7 * mu["gaussian"]
    assert mu["orthogonal"] < 1e-6
    given = build(key, dataclasses.replace(SMALL, coherence=0.05), 1)
    assert math.isclose(float(coherences(given)[0]), 0.05, abs_tol=2e-6)


@pytest.mark.slow
def test_shallow_models_are_the_first_layers_of_deep_ones():
    key = jax.random.key(1)
    deep, shallow = build(key, SMALL, 3, "float32"), build(key, SMALL, 2, "float32")
    assert deep[0].op.dtype == np.float32
    assert [layer.op.code_shape for layer in deep] == [(6, 12), (3, 12), (1, 12)]
    for one, other in zip(deep, shallow, strict=False):
        np.testing.assert_array_equal(one.op.filters, other.op.filters)
    # Six filters, three atoms of two taps above them: no two share a channel.
    np.testing.assert_allclose(coherences(deep)[1:], 0, atol=1e-7)
    other = build(jax.random.key(2), SMALL, 1, "float32")
    assert not np.array_equal(other[0].op.filters, deep[0].op.filters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("padding", "rank", "stride"),
    [
        pytest.param("valid", 1, 1),
        ("circular", 1, 2),
        pytest.param("circular", 2, 1),
    ],
)
def test_capacity_is_enough_for_the_fullest_code(padding, rank, stride):
    sizes = dataclasses.replace(
        SMALL, padding=padding, rank=rank, D=(13 if padding == "valid" else 12) if rank == 1 else 6, stride=stride
    )
    model = build(jax.random.key(0), sizes, 2)
    for limit in (2, 5, 9):
        capacity = capacity_of(model, limit)
        for number in range(2):
            sample = generate(jax.random.key(number), model, sparsity=[limit, None])
            held = [int(np.count_nonzero(np.asarray(code))) for code in sample.path[1:]]
            assert all(have <= room for have, room in zip(held, capacity, strict=True))
            assert held[0] == 2 * held[1]
    assert capacity_of(model, 10**6)[0] == math.prod(model[0].op.code_shape)


@pytest.mark.slow
def test_what_is_prepared_is_what_the_path_says():
    model = build(jax.random.key(0), SMALL, 2)
    sample = generate(jax.random.key(1), model, sparsity=[5, None])
    noise = 0.01 * np.random.default_rng(0).standard_normal(model[0].op.input_shape)
    ready = prepare(model, sample.path[-1], noise)
    first = np.abs(np.asarray(sample.path[1]))
    beta = first[first > 1e-9].min() / 2
    np.testing.assert_allclose(ready.thresholds, [beta, 0.5], rtol=1e-6)
    patches = [np.linalg.norm(np.take(noise, np.arange(at, at + 3) % 12, axis=1)) for at in range(12)]
    assert math.isclose(ready.zeta_0, max(patches), rel_tol=1e-5)
    stripes = [np.count_nonzero(np.take(first > 1e-9, np.arange(at - 2, at + 3) % 12, axis=1)) for at in range(12)]
    assert int(ready.measured.sparsity[0]) == max(stripes) <= 5
    assert (ready.positions, ready.num_filters) == ((12, 12), (6, 3))
    with pytest.raises(ValueError, match="zeros only"):
        prepare(model, np.zeros(model[-1].op.code_shape))


@pytest.mark.slow
def test_bounds_take_the_noise_that_entered():
    sizes = dataclasses.replace(SMALL, coherence=0.01)
    model = build(jax.random.key(0), sizes, 2)
    sample = generate(jax.random.key(1), model, sparsity=[4, None])
    noise = np.zeros(model[0].op.input_shape)
    noise[0, 0] = 0.02
    ready = prepare(model, sample.path[-1], noise, measured=sample.measured)
    result = mc.run(ready.draw(), 0, 64, progress=False)
    largest = np.asarray(result["noise"]["max"])
    assert largest[0] > 0
    zetas = entering_noise(ready, largest)
    np.testing.assert_allclose(zetas, [0.02, largest[0]], rtol=1e-6)
    # A layer that no draw recovered: no response errs by beta_1, on at most so many entries of a patch.
    lost = entering_noise(ready, np.zeros(2))
    known = ready.measured
    np.testing.assert_allclose(
        lost, [0.02, math.sqrt(int(known.per_patch[0])) * float(known.smallest[0]) / 2], rtol=1e-6
    )
    by_hand = 0.0
    for layer, filters in enumerate((6, 3)):
        spread = float(known.largest[layer] * known.coherence[layer]) ** 2 * int(known.sparsity[layer])
        exponent = float(known.smallest[layer]) ** 2 / (8 * (spread + zetas[layer] ** 2))
        by_hand += 2 * 12 * filters * math.exp(-exponent)
    assert math.isclose(float(bound_of(ready, largest).log), math.log(by_hand), rel_tol=1e-4)
    assert math.isclose(float(bound_of(ready, largest, num_data=3).log), math.log(3 * by_hand), rel_tol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zeta", [0.0, 0.05, 0.15, 0.3])
def test_the_uniform_bound_follows_noise_through_the_layers(zeta):
    model = build(jax.random.key(0), dataclasses.replace(SMALL, coherence=0.02), 2)
    known = generate(jax.random.key(1), model, sparsity=[6, None]).measured
    promised, entering = True, zeta
    for layer in range(2):
        s, low, high, mu = (
            float(np.asarray(values)[layer])
            for values in (known.sparsity, known.smallest, known.largest, known.coherence)
        )
        gap = (low / 2 - entering) / high
        promised &= (gap > 0) if mu == 0 else s < gap / mu + 0.5
        entering = math.sqrt(int(known.per_patch[layer])) * (entering + mu * (s - 1) * high)
    assert allowed(known, zeta) == promised
    if zeta in (0.0, 0.3):
        assert promised == (zeta == 0.0)


def test_tables_of_one_capacity_share_a_program():
    from cnninv_jax.montecarlo import program

    model = build(jax.random.key(0), SMALL, 2)
    capacity = capacity_of(model, 8)
    before = program.trace.cache_info().misses
    for limit in (2, 4, 8):
        sample = generate(jax.random.key(limit), model, sparsity=[limit, None])
        mc.run(prepare(model, sample.path[-1], None, capacity).draw(), 0, 8, progress=False)
    assert program.trace.cache_info().misses == before + 1


def test_the_models_signs_do_not_matter():
    model = build(jax.random.key(0), SMALL, 2)
    code = generate(jax.random.key(1), model, sparsity=[6, None]).path[-1]
    one, other = (prepare(dcsc.draw_signs(jax.random.key(seed), model), code) for seed in (1, 2))
    for left, right in zip(jax.tree.leaves(one.measured), jax.tree.leaves(other.measured), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
