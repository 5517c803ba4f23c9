"""Signals of the model: supports against loops over dense dictionaries, and what is measured against the same."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnninv_jax.dcsc.generate import Measured, coherences, generate, measure
from cnninv_jax.dcsc.model import draw_signs, layers, reverse_pass, shapes
from tests.dcsc.dcsc_oracles import Dense, patch

DEFAULT = np.dtype(jnp.zeros(()).dtype)

# (filters of every layer, channels), lengths, taps of deep atoms, signal, strides, padding.
GEOMETRIES = {
    "one layer": ((4, 2), ((3,),), 2, (12,), (1,), "valid"),
    "two layers": ((5, 6, 2), ((3,), (3,)), 2, (14,), (1, 1), "valid"),
    "three layers": ((4, 6, 6, 2), ((3,), (2,), (3,)), 2, (21,), (2, 1, 1), "valid"),
    "three around a circle": ((4, 5, 5, 2), ((3,), (2,), (3,)), 2, (8,), (1, 2, 1), "circular"),
    "pictures": ((5, 5, 2), ((2, 3), (2, 2)), 3, (7, 8), (1, 1), "valid"),
    "pictures on a torus": ((4, 5, 5, 2), ((2, 2), (2, 3), (2, 2)), 2, (8, 6), (2, 1, 1), "circular"),
}
MEASURED = jnp.zeros(3, DEFAULT)


@functools.cache
def model_of(name):
    """Filters next to the signal are dense; the others have taps of one size in different channels."""
    widths, lengths, taps, signal, strides, padding = GEOMETRIES[name]
    rng = np.random.default_rng(0)
    banks = []
    for above, below, length in zip(widths[-2::-1], widths[:0:-1], lengths, strict=True):
        bank = rng.standard_normal((above, below, *length))
        if banks:
            bank = np.zeros_like(bank)
            for atom in bank:
                for channel in rng.choice(below, taps, replace=False):
                    atom[(channel, *rng.integers(length))] = rng.choice([-1, 1])
        banks.append(bank.astype(DEFAULT))
    return layers(banks, signal, strides=strides, padding=padding)


@functools.cache
def dense_of(name):
    return Dense(model_of(name))


def sample(seed, model, **options):
    return generate(jax.random.key(seed), model, coherence=MEASURED[: len(model)], **options)


def most(counts):
    """How often an entry of X^(l), 1 <= l < L, is touched at most."""
    return max((int(count.max()) for count in counts[:-1]), default=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", GEOMETRIES)
def test_supports_keep_their_limits_and_no_place_is_left(name):
    model, dense = model_of(name), dense_of(name)
    for limits in ([None] * (len(model) - 1) + [2], [16, 6, 3][-len(model) :]):
        found = sample(3, model, sparsity=limits)
        code = np.asarray(found.path[-1])
        counts = dense.touched(code)
        assert np.count_nonzero(code)
        assert most(counts) == 1
        reached = dense.fullest(counts)
        assert all(limit is None or stripe <= limit for stripe, limit in zip(reached, limits, strict=True))
        np.testing.assert_array_equal(found.measured.sparsity, reached)
        # Any place more would break a limit or meet an atom that stands.
        for place in zip(*np.nonzero(code == 0), strict=True):
            more = code.copy()
            more[place] = 1
            counts = dense.touched(more)
            full = any(limit and stripe > limit for stripe, limit in zip(dense.fullest(counts), limits, strict=True))
            assert full or most(counts) > 1


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_request_is_kept(data):
    name = data.draw(st.sampled_from(["two layers", "three around a circle", "pictures"]))
    model, dense = model_of(name), dense_of(name)
    # One non-zero always fits: it fills a stripe with as many entries as it touches.
    alone = [
        max(taps.sum(axis=0).max() for taps in dense.taps) ** (len(model) - level) for level in range(1, 1 + len(model))
    ]
    limits = [data.draw(st.none() | st.integers(int(least), 2 * int(least))) for least in alone]
    wanted = data.draw(st.none() | st.integers(1, 6))
    disjoint = data.draw(st.booleans())
    found = sample(data.draw(st.integers(0, 2**31 - 1)), model, sparsity=limits, num_nonzeros=wanted, disjoint=disjoint)
    code = np.asarray(found.path[-1])
    counts = dense.touched(code)
    assert 1 <= np.count_nonzero(code) <= (wanted or code.size)
    if disjoint:
        assert most(counts) == 1
    for limit, stripe, value in zip(limits, dense.fullest(counts), np.asarray(found.measured.sparsity), strict=True):
        assert limit is None or stripe <= limit
        assert value == stripe if disjoint else value <= stripe


@pytest.mark.slow
def test_disjoint_atoms_have_the_same_magnitudes_for_all_signs():
    model = model_of("three layers")
    code = sample(1, model, sparsity=2, magnitudes=(0.5, 2.0)).path[-1]
    reference = reverse_pass(model, code)
    passes = jax.jit(reverse_pass)
    for seed in range(5):
        path = passes(draw_signs(jax.random.key(seed), model), code)
        for one, other in zip(path[1:], reference[1:], strict=True):
            np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-6)
        assert np.abs(np.abs(path[0]) - np.abs(reference[0])).max() > 1e-3
    # Taps of +-1/sqrt(2): each layer below divides magnitudes by sqrt(2).
    size = np.abs(np.asarray(code)[np.asarray(code) != 0])
    found = measure(model, reference, coherence=MEASURED)
    for level, factor in enumerate((0.5, 0.5**0.5, 1.0)):
        np.testing.assert_allclose(found.smallest[level], factor * size.min(), rtol=1e-5)
        np.testing.assert_allclose(found.largest[level], factor * size.max(), rtol=1e-5)


def test_values_are_uniform_with_random_signs():
    model = model_of("one layer")
    values = np.asarray(sample(0, model, sparsity=50, magnitudes=(1.0, 3.0), columns=40).path[-1])
    size = np.abs(values[values != 0])
    assert size.size > 1000
    assert size.min() >= 1
    assert size.max() <= 3
    assert abs(size.mean() - 2) < 5 * np.sqrt(1 / 3 / size.size)
    assert abs(np.sign(values).sum()) < 5 * np.sqrt(size.size)
    positive = np.asarray(sample(0, model, sparsity=5, nonnegative=True).path[-1])
    assert set(np.unique(positive)) == {0.0, 1.0}


def test_supports_are_drawn_evenly():
    """On a circle no filter and no shift is preferred."""
    model = model_of("three around a circle")[:1]
    codes = np.asarray(sample(5, model, num_nonzeros=2, columns=600).path[-1]) != 0
    counts = codes.sum(axis=0)
    share = counts.sum() / counts.size
    assert codes.sum() == 1200
    assert np.abs(counts - share).max() < 5 * np.sqrt(share)


def test_columns_are_the_draws_of_split_keys():
    model = model_of("two layers")
    options = {"sparsity": [None, 2], "magnitudes": (1.0, 2.0)}
    matrix = sample(4, model, columns=3, **options)
    singles = [
        generate(key, model, coherence=MEASURED[:2], **options) for key in jax.random.split(jax.random.key(4), 3)
    ]
    for number, stacked in enumerate(matrix.path):
        assert stacked.shape == (3, *shapes(model)[number])
        np.testing.assert_allclose(stacked, np.stack([single.path[number] for single in singles]), atol=1e-6)
    measured = [single.measured for single in singles]
    np.testing.assert_array_equal(matrix.measured.sparsity, np.max([one.sparsity for one in measured], axis=0))
    np.testing.assert_array_equal(matrix.measured.per_patch, np.max([one.per_patch for one in measured], axis=0))
    np.testing.assert_allclose(matrix.measured.smallest, np.min([one.smallest for one in measured], axis=0))
    np.testing.assert_allclose(matrix.measured.largest, np.max([one.largest for one in measured], axis=0))

    def signal(key):
        return generate(key, model, coherence=MEASURED[:2], **options).path[0]

    batched = jax.jit(jax.vmap(signal))(jax.random.split(jax.random.key(4), 3))
    np.testing.assert_allclose(batched, matrix.path[0], atol=1e-6)


def test_new_keys_filters_and_limits_compile_nothing():
    model = model_of("two layers")
    sample(0, model, sparsity=2)
    module = importlib.import_module("cnninv_jax.dcsc.generate")  # dcsc.generate is the function
    compiled = module._draw._cache_size()
    for seed, limit in ((1, 2), (2, 3), (3, [20, 4])):
        found = sample(seed, draw_signs(jax.random.key(seed), model), sparsity=limit, magnitudes=(1.0, 1.0 + seed))
        assert found.measured.sparsity[-1] <= 4
    assert module._draw._cache_size() == compiled


@pytest.mark.parametrize("name", ["three around a circle", "pictures"])
def test_measured_equals_loops(name):
    model = model_of(name)
    found = sample(2, model, sparsity=3, magnitudes=(1.0, 2.0), num_nonzeros=5)
    np.testing.assert_array_equal(found.measured.sparsity, dense_of(name).fullest(found.path[1:]))
    for level in range(len(model)):
        code = np.asarray(found.path[level + 1])
        size = np.abs(code[code != 0])
        np.testing.assert_allclose(found.measured.smallest[level], size.min())
        np.testing.assert_allclose(found.measured.largest[level], size.max())
        seen = patch(code, model[level + 1])[0] if level + 1 < len(model) else 1
        assert found.measured.per_patch[level] == seen


@pytest.mark.parametrize("name", ["two layers", "three around a circle"])
def test_coherences_are_those_of_the_dictionaries(name):
    model = model_of(name)
    expected = [oracles.coherence(matrix) for matrix in dense_of(name).matrices]
    np.testing.assert_allclose(coherences(model), expected, atol=1e-6)
    path = reverse_pass(model, jnp.ones(shapes(model)[-1]))
    np.testing.assert_allclose(measure(model, path).coherence, expected, atol=1e-6)


def test_a_code_of_zeros_is_measured_as_such():
    model = model_of("two layers")
    found = measure(model, reverse_pass(model, jnp.zeros(shapes(model)[-1])), coherence=[0.1, 0.2])
    np.testing.assert_array_equal(found.sparsity, [0, 0])
    np.testing.assert_array_equal(found.per_patch, [0, 0])
    np.testing.assert_array_equal(found.smallest, [np.inf, np.inf])
    np.testing.assert_array_equal(found.largest, [0, 0])
    np.testing.assert_allclose(found.coherence, [0.1, 0.2])
    assert isinstance(found, Measured)


def test_one_atom_has_no_coherence():
    (layer,) = model = layers([np.ones((1, 1, 3))], 3)
    assert layer.positions == 1
    np.testing.assert_array_equal(coherences(model), [0])


@pytest.mark.slow
def test_five_layers_and_their_precision():
    rng, atoms = np.random.default_rng(1), np.arange(16)
    banks = [rng.standard_normal((16, 1, 3)), *(np.zeros((16, 16, 2)) for _ in range(4))]
    for level, bank in enumerate(banks[1:]):
        # Sums of different powers of 2 differ: no two taps below one atom meet.
        bank[atoms, atoms, rng.integers(2, size=16)] = 1
        bank[atoms, (atoms + 2**level) % 16, rng.integers(2, size=16)] = -1
    model = layers([bank.astype(np.float32) for bank in banks], 20)
    found = generate(jax.random.key(0), model, coherence=jnp.zeros(5, np.float32))
    dense = Dense(model)
    counts = dense.touched(found.path[-1])
    assert all(count.max() == 1 for count in counts)
    np.testing.assert_array_equal(found.measured.sparsity, dense.fullest(counts))
    assert all(signal.dtype == np.float32 for signal in found.path)
    assert found.measured.smallest.dtype == found.measured.coherence.dtype == np.float32


def test_a_traced_model_that_cannot_fit_gives_an_empty_code():
    model = model_of("two layers")
    found = jax.jit(lambda key, traced: generate(key, traced, sparsity=[1, None], coherence=MEASURED[:2]))(
        jax.random.key(0), model
    )
    assert not np.any(found.path[-1])
    np.testing.assert_array_equal(found.measured.sparsity, [0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": [1, None]}, r"fills stripes up to \[2, 1\] in layers 1 to 2, got \[1, None\]"),
        ({"sparsity": 0}, "sparsity to consist of integers of at least 1, got 0"),
        ({"sparsity": [1, 2, 3]}, "one for each of 2 layers"),
        ({"num_nonzeros": 0}, "num_nonzeros"),
        ({"magnitudes": (2.0, 1.0)}, "0 < smallest <= largest, got 2 and 1"),
        ({"magnitudes": (0.0, 1.0)}, "0 < smallest <= largest"),
        ({"magnitudes": (1.0,)}, "two magnitudes"),
        ({"columns": 0}, "columns"),
        ({"coherence": jnp.zeros(3)}, "one coherence for each of 2 layers"),
    ],
    ids=["impossible", "zero", "number", "none", "order", "vanishing", "one", "columns", "coherence"],
)
def test_generate_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        generate(jax.random.key(0), model_of("two layers"), **options)


def test_models_that_leave_no_disjoint_atoms_are_refused():
    dense = layers([np.ones((2, 1, 2)), np.ones((2, 2, 2)), np.ones((2, 2, 2))], 9)
    with pytest.raises(ValueError, match="own atoms below it do not meet, got none"):
        generate(jax.random.key(0), dense)
    valid, circular = model_of("one layer"), layers([np.ones((2, 4, 2))], 10, padding="circular")
    with pytest.raises(ValueError, match="all layers to have padding 'valid' or all 'circular'"):
        generate(jax.random.key(0), (*valid, *circular))


def test_measure_refuses_other_signals():
    model = model_of("two layers")
    path = [jnp.zeros(shape) for shape in shapes(model)]
    with pytest.raises(ValueError, match="expected signals of shapes"):
        measure(model, path[1:])
    with pytest.raises(ValueError, match="one more leading axis"):
        measure(model, [path[0][None], *path[1:]])
