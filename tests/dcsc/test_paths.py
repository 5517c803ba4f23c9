"""The tables of a path against the pass itself, draw by draw."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.dcsc.forward import forward
from cnninv_jax.dcsc.model import layers, reverse_pass, shapes
from cnninv_jax.dcsc.paths import PathOutcome, path_outcome, path_score, path_signs, path_tables, signs_of_latent
from tests.oracles import dense_matrix

DRAWS = 128


def sparse(rng, num_filters, channels, length, nonzeros, plain):
    bank = np.zeros((num_filters, channels * int(np.prod(length))))
    for row in bank:
        places = rng.choice(row.size, nonzeros, replace=False)
        row[places] = 1 if plain else rng.choice([-1, 1], nonzeros) * rng.uniform(0.8, 1.2, nonzeros)
    return bank.reshape(num_filters, channels, *length)


def case(signal, banks, places, seed, *, plain=False, dtype=np.float64, **geometry):
    """A wide first layer and sparse atoms above it, a deepest code and noise: every layer sometimes loses its support.

    Plain atoms and codes have entries of one magnitude, so that some of X^(1) cancel.
    """
    rng = np.random.default_rng(seed)
    first, *others = banks
    drawn = [rng.standard_normal(first), *(sparse(rng, *bank, plain) for bank in others)]
    model = layers([bank.astype(dtype) for bank in drawn], signal, **geometry)
    rng = np.random.default_rng(seed + 10)
    code = np.zeros(shapes(model)[-1], dtype)
    chosen = rng.choice(code.size, places, replace=False)
    code.ravel()[chosen] = 1 if plain else rng.uniform(0.9, 1.1, places)
    noise = (0.02 * rng.standard_normal(shapes(model)[0])).astype(dtype)
    return model, code, noise


def made(*arguments, **options):
    return functools.cache(functools.partial(*arguments, **options))


#: Models and thresholds; models are made once.
CASES = {
    "circular-strided": (
        functools.partial(
            case, (60,), [(8, 30, 9), (7, 8, (6,), 4)], 3, 1, strides=[2, 1], padding="circular"
        ),
        [0.192, 0.463],
    ),
    "2-d-float32": (
        functools.partial(
            case, (15, 12), [(6, 12, 5, 4), (5, 6, (3, 3), 4)], 2, 7, strides=[(2, 1), 1], dtype=np.float32
        ),
        [0.18, 0.5],
    ),
    "three-layers": (
        made(case, (30,), [(8, 60, 9), (6, 8, (6,), 3), (4, 6, (5,), 3)], 2, 4, plain=True),
        [0.2, 0.346, 0.9],
    ),
    "blocks": (made(case, (240,), [(4, 30, 5), (5, 4, (8,), 4)], 9, 1), [0.236, 0.543]),
}  # fmt: skip


def at_places(signs, tables):
    """The signs of the whole layers at the places of the tables, 1 where there is none."""
    flat = [np.column_stack([batch.reshape(DRAWS, -1), np.ones(DRAWS, batch.dtype)]) for batch in signs]
    return tuple(batch[:, np.asarray(where)] for batch, where in zip(flat, tables.support, strict=True))


def dense_reference(model, signs, code, noise, betas, *, soft=False):
    """Eq. (1) with dense A^(l) D^(l) for all draws, in float64: scores from the pass's own estimates."""
    matrices = [
        dense_matrix(layer.op.filters, layer.op.signal_shape, layer.op.stride, layer.op.padding) for layer in model
    ]
    diagonals = [batch.reshape(DRAWS, -1).astype(np.float64) for batch in signs]
    truth = [np.broadcast_to(code.ravel().astype(np.float64), diagonals[-1].shape)]
    for matrix, diagonal in zip(matrices[::-1], diagonals[::-1], strict=True):
        truth.insert(0, (diagonal * truth[0]) @ matrix)
    estimate, columns, kept = truth[0] + noise.ravel(), [], []
    for number, (matrix, diagonal) in enumerate(zip(matrices, diagonals, strict=True)):
        own, beta = np.where(np.abs(truth[number + 1]) > 1e-9, truth[number + 1], 0), float(betas[number])
        h, active = diagonal * (estimate @ matrix.T), own != 0
        score = np.maximum(
            np.where(active, 0, np.abs(h)).max(1) / beta, 2 - np.where(active, np.abs(h), np.inf).min(1) / beta
        )
        estimate = np.where(np.abs(h) > beta, h - soft * beta * np.sign(h), 0)
        kept.append(np.all((estimate != 0) == active, axis=1))
        energy = (estimate - own) ** 2
        if number + 1 < len(model):
            above = model[number + 1].op
            ones = np.ones((1, *above.filters.shape[1:]))
            energy = energy @ dense_matrix(ones, above.signal_shape, above.stride, above.padding).T
        size = np.abs(own)
        columns.append((score, np.sqrt(energy.max(1)), np.where(active, size, np.inf).min(1), size.max(1)))
    return PathOutcome(*(np.stack(column, 1) for column in zip(*columns, strict=True))), np.stack(kept, 1)


@functools.partial(jax.jit, static_argnames="soft")
def outcomes(tables, signs, betas, soft=False):
    outcome = jax.vmap(lambda own: path_outcome(tables, own, betas, soft=soft))(signs)
    return outcome, outcome.failed, outcome.recovered


def assert_equal_passes(model, code, noise, betas, tables, *, soft=False):
    """Everything up to the first layer that fails, and which one that is; return how many draws end where."""
    rng = np.random.default_rng(0)
    dtype = code.dtype
    betas = np.asarray(betas, dtype)
    signs = tuple(rng.choice([-1, 1], (DRAWS, *layer.op.code_shape)).astype(dtype) for layer in model)
    expected, kept = dense_reference(model, signs, code, noise, betas, soft=soft)
    found, failed, recovered = jax.device_get(outcomes(tables, at_places(signs, tables), betas, soft))
    assert found.score.dtype == dtype
    before = np.cumprod(np.column_stack([np.ones(DRAWS, bool), kept]), axis=1).astype(bool)
    np.testing.assert_array_equal(failed, before[:, :-1] & ~kept)
    np.testing.assert_array_equal(recovered, before[:, -1])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9 if dtype == np.float64 else 1e-3, atol=1e-6)
    for name in ("smallest", "largest"):
        close(getattr(found, name), getattr(expected, name), err_msg=name)
    close(found.score[before[:, :-1]], expected.score[before[:, :-1]])
    close(found.noise[before[:, 1:]], expected.noise[before[:, 1:]])
    return [*failed.sum(0), recovered.sum()]


@pytest.mark.parametrize("name", CASES)
def test_path_outcome_equals_the_dense_pass(name):
    make, betas = CASES[name]
    model, code, noise = make()
    tables = path_tables(model, code, noise=noise)
    ends = assert_equal_passes(model, code, noise, betas, tables)
    # Every layer is the first to fail in some draws, and some draws recover all.
    assert min(ends) > 0, ends
    # Only the longest signal has blocks that hear less than half of the places.
    assert [answer.heard is None for answer in tables.responses] == [name != "blocks", *(True,) * (len(betas) - 1)]


def test_path_outcome_equals_forward():
    make, betas = CASES["three-layers"]
    model, code, noise = make()
    tables = path_tables(model, code, noise=noise)

    @jax.jit
    @jax.vmap
    def run(signs):
        signed = tuple(dataclasses.replace(layer, signs=own) for layer, own in zip(model, signs, strict=True))
        truth = reverse_pass(signed, code)
        picked = [own.ravel()[where] for own, where in zip(signs, tables.support, strict=True)]
        found = forward(signed, truth[0] + noise, thresholds=betas, truth=truth)
        return found, path_outcome(tables, picked, betas)

    rng = np.random.default_rng(1)
    found, outcome = run(tuple(rng.choice([-1.0, 1.0], (DRAWS, *layer.op.code_shape)) for layer in model))
    before = np.cumprod(np.column_stack([np.ones(DRAWS, bool), found.recovered]), axis=1).astype(bool)
    np.testing.assert_array_equal(outcome.failed, before[:, :-1] & ~np.asarray(found.recovered))
    np.testing.assert_array_equal(outcome.recovered, found.path_recovered)
    after = before[:, 1:]
    np.testing.assert_allclose(np.asarray(outcome.noise)[after], np.asarray(found.noise)[:, 1:][after], rtol=1e-9)
    assert min(after[:, 1].sum(), (~after[:, 1]).sum()) > 0


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_capacities_change_nothing(soft):
    make, betas = CASES["circular-strided"]
    model, code, noise = make()
    tables = path_tables(model, code, noise=noise, capacity=[20, 4])
    assert tables.places == (20, 4)
    ends = assert_equal_passes(model, code, noise, betas, tables, soft=soft)
    assert np.count_nonzero(ends) >= 2, ends


def test_equal_capacities_compile_once():
    make, _ = CASES["circular-strided"]
    model, code, noise = make()
    traces = []

    @jax.jit
    def score(key, tables):
        traces.append(1)
        return path_score(tables, path_signs(key, tables), [0.1, 0.1])

    scores = []
    for place in range(3):
        moved = np.roll(code, place, axis=1)
        tables = path_tables(model, moved, noise=noise if place == 1 else None, capacity=[20, 4])
        scores.append(float(score(jax.random.key(0), tables)))
    assert len(traces) == 1
    # Without noise a circular layer knows no place from another.
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-9)
    assert abs(scores[1] - scores[0]) > 1e-3


def test_outcome_of_atoms_that_cancel():
    """Two atoms of one tap on one place of X^(1): it is 2 or, when their signs differ, no place of the support."""
    first, second = np.ones((1, 1, 1)), np.ones((2, 1, 1))
    model = layers([first, second], (3,))
    code = np.zeros((2, 3))
    code[:, 1] = 0.3
    tables = path_tables(model, code)
    assert tables.places == (1, 2)
    pairs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    outcome, failed, recovered = outcomes(tables, (np.ones((3, 1)), pairs), np.array([0.1, 0.1]))
    np.testing.assert_allclose(outcome.smallest[:, 0], [0.6, np.inf, 0.6])
    np.testing.assert_allclose(outcome.largest[:, 0], [0.6, 0, 0.6])
    # Layer 1 recovers each time; both filters of layer 2 then answer 0.6, or nothing at all.
    np.testing.assert_array_equal(failed, [[False, False], [False, True], [False, False]])
    np.testing.assert_array_equal(recovered, [True, False, True])


def test_a_response_of_exactly_the_threshold():
    """Off the support it does no harm and on it the entry is lost, as by hard_threshold."""
    bank = np.array([[[1.0, 0.0]], [[0.6, 0.8]]])
    model = layers([bank], (2,))
    code = np.array([[1.0], [0.0]])
    tables = path_tables(model, code)
    ones = (np.ones((1, 1)),)
    inner = float(np.dot(model[0].op.filters[0, 0], model[0].op.filters[1, 0]))
    for beta, expected in ((inner, True), (np.nextafter(inner, 0), False), (1.0, False), (np.nextafter(1.0, 0), True)):
        _, _, recovered = outcomes(tables, ones, np.array([beta]))
        assert bool(recovered[0]) is expected, beta


def test_signs_are_fair_and_independent():
    make, _ = CASES["three-layers"]
    tables = path_tables(*make()[:2])
    draws = 4096
    signs = jax.jit(jax.vmap(lambda key: path_signs(key, tables)))(jax.random.split(jax.random.key(2), draws))
    assert tuple(array.shape[1] for array in signs) == tables.places
    every = np.column_stack(signs)
    assert set(np.unique(every)) == {-1.0, 1.0}
    # Means and correlations at 5 standard errors.
    assert np.abs(every.mean(0)).max() < 5 / np.sqrt(draws)
    gram = every.T @ every / draws
    assert np.abs(gram - np.eye(len(gram))).max() < 5 / np.sqrt(draws)


def test_signs_of_latent_numbers():
    found = signs_of_latent((np.array([-0.3, 2.0], np.float32), np.array([0.0])))
    assert [array.tolist() for array in found] == [[-1.0, 1.0], [1.0]]
    assert found[0].dtype == np.float32


def test_score_is_the_largest_of_all_layers():
    make, betas = CASES["circular-strided"]
    model, code, noise = make()
    tables = path_tables(model, code, noise=noise, capacity=[20, 4])
    keys = jax.random.split(jax.random.key(1), DRAWS)
    signs = jax.jit(jax.vmap(lambda key: path_signs(key, tables)))(keys)
    scores = jax.jit(jax.vmap(lambda own: path_score(tables, own, betas)))(signs)
    outcome, _, recovered = outcomes(tables, signs, np.array(betas))
    np.testing.assert_allclose(scores, np.max(outcome.score, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(scores < 1, recovered)
    assert 0 < np.mean(recovered) < 1


def test_a_threshold_that_is_no_number_recovers_nothing():
    outcome = PathOutcome(jnp.array([0.5, jnp.nan]), *jnp.ones((3, 2)))
    assert outcome.failed.tolist() == [False, True]
    assert not bool(outcome.recovered)


def plain_tables():
    """One tap, two layers, one place: every estimate is exact."""
    return path_tables(layers([np.ones((1, 1, 1))] * 2, (3,)), np.array([[0.0, 0.5, 0.0]]))


def test_an_estimate_that_is_not_finite_is_lost():
    tables = plain_tables()
    tables = dataclasses.replace(tables, values=jnp.array([np.inf]))
    outcome = path_outcome(tables, (np.ones(1), np.ones(1)), [0.1, 0.1])
    assert outcome.score[0] == np.inf
    assert not bool(outcome.recovered)
    nan = path_outcome(plain_tables(), (np.ones(1), np.ones(1)), [0.1, np.nan])
    assert nan.failed.tolist() == [False, True]


def test_derivatives_where_there_is_no_noise():
    tables = plain_tables()
    slope = jax.grad(lambda signs: jnp.sum(path_outcome(tables, signs, [0.1, 0.1]).noise))((jnp.ones(1), jnp.ones(1)))
    assert [own.tolist() for own in slope] == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("signs", "thresholds", "message"),
    [
        ((1, 1), [0.1], r"thresholds of shape \(2,\), one per layer, got \(1,\)"),
        ((1, 1), 0.1, r"thresholds of shape \(2,\)"),
        ((1, 1), [0.1] * 3, r"thresholds of shape \(2,\)"),
        ((1,), [0.1, 0.1], "one array of signs for every layer"),
        ((2, 1), [0.1, 0.1], r"of lengths \(1, 1\), got shapes \(\(2,\), \(1,\)\)"),
    ],
    ids=["few", "scalar", "many", "layers", "places"],
)
def test_outcomes_refuse(signs, thresholds, message):
    for call in (path_outcome, path_score):
        with pytest.raises(ValueError, match=message):
            call(plain_tables(), tuple(np.ones(count) for count in signs), thresholds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": [1, 1]}, "capacity of at least 12 for layer 1"),
        ({"capacity": [20]}, "one capacity for each of 2 layers"),
        ({"code": np.zeros((7, 30))}, "non-zero entry, got zeros only"),
        ({"code": np.zeros((7, 29))}, r"deepest code of shape \(7, 30\), got \(7, 29\)"),
        ({"noise": np.zeros(60)}, r"noise of the signal's shape \(30, 60\), got \(60,\)"),
    ],
    ids=["too-small", "count", "zeros", "shape", "noise"],
)
def test_refusals(change, message):
    make, _ = CASES["circular-strided"]
    model, code, noise = make()
    arguments = {"code": code, "noise": noise, **change}
    with pytest.raises(ValueError, match=message):
        path_tables(model, **arguments)
