"""The forward pass against dense matrices, layer by layer in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.dcsc.forward import compare, crelu_threshold, default_thresholds, forward, support, supports
from cnninv_jax.dcsc.model import layers, reverse_pass, shapes
from cnninv_jax.sparsity.stripes import project_stripes
from cnninv_jax.sparsity.thresholds import soft_threshold
from tests.oracles import dense_matrix

RULES = {
    "hard": lambda h, b: np.where(np.abs(h) > b, h, 0),
    "soft": lambda h, b: np.sign(h) * np.maximum(np.abs(h) - b, 0),
    "relu": lambda h, b: np.where(h > b, h, 0),
    "shifted_relu": lambda h, b: np.maximum(h - b, 0),
    "crelu": lambda h, b: np.maximum(h - b, 0) - np.maximum(-h - b, 0),
}
BETAS = np.array([0.1, 0.06, 0.03])


def signed(model, seed=5):
    """The layers with signs drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)
    return tuple(
        dataclasses.replace(layer, signs=jnp.asarray(rng.choice([-1.0, 1.0], layer.op.code_shape), layer.op.dtype))
        for layer in model
    )


@functools.cache
def deep_model(signal=(20,), strides=(1, 1, 1), dtype=np.float64, padding="valid"):
    """Three layers with signs; the atoms of the deeper ones are sparse."""
    rng = np.random.default_rng(7)
    banks = []
    for filters, channels in [(5, 3), (4, 5), (3, 4)]:
        bank = rng.standard_normal((filters, channels, *(4,) * len(signal)))
        banks.append((bank if not banks else bank * (rng.random(bank.shape) < 0.2)).astype(dtype))
    return signed(layers(banks, signal, strides=strides, padding=padding))


def columns(layer):
    """A^(l) D^(l), dense."""
    op = layer.op
    return dense_matrix(op.filters, op.signal_shape, op.stride, op.padding).T * np.asarray(layer.signs).ravel()


def path_of(model, places=3):
    rng = np.random.default_rng(1)
    deepest = np.zeros(shapes(model)[-1])
    deepest.ravel()[rng.choice(deepest.size, places, replace=False)] = rng.choice([-1, 1], places)
    path = [deepest]
    for layer in model[::-1]:
        path.insert(0, (columns(layer) @ path[0].ravel()).reshape(layer.op.input_shape))
    return [code.astype(model[0].op.dtype) for code in path]


def noisy(path, level=0.05):
    rng = np.random.default_rng(2)
    return path[0] + level * rng.standard_normal(path[0].shape)


def dense_pass(model, x, rule, betas):
    """Eq. (1) with dense A^(l) D^(l)."""
    codes, estimate = [], np.asarray(x)
    for layer, beta in zip(model, betas, strict=True):
        estimate = rule((columns(layer).T @ np.ravel(estimate)).reshape(layer.op.code_shape), beta)
        codes.append(estimate)
    return codes


def patch_norm_by_hand(v, op):
    """The largest norm of what one atom sees."""
    largest = 0.0
    for shift in np.ndindex(*op.shifts):
        axes = zip(shift, op.stride, op.length, op.signal_shape, strict=True)
        window = [np.arange(s * t, s * t + ell) % size for s, t, ell, size in axes]
        largest = max(largest, np.linalg.norm(v[np.ix_(range(len(v)), *window)]))
    return largest


def test_codes_equal_dense_products():
    model = deep_model()
    x = noisy(path_of(model))
    found = jax.jit(lambda x: {name: forward(model, x, name, thresholds=BETAS) for name in RULES})(x)
    for name, rule in RULES.items():
        for mine, other in zip(found[name].codes, dense_pass(model, x, rule, BETAS), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12, err_msg=name)
            assert np.any(other != 0)
        assert found[name].hits is None
        assert found[name].noise is None


def test_both_halves_of_a_crelu_are_the_soft_threshold():
    h = np.random.default_rng(0).standard_normal((4, 50))
    h[0, :3] = [0.5, -0.5, 0.0]
    np.testing.assert_array_equal(crelu_threshold(h, 0.5), soft_threshold(h, 0.5))


@pytest.mark.parametrize(
    ("signal", "strides", "padding"),
    [
        ((20,), (1, 1, 1), "valid"),
        pytest.param((12, 18), ((1, 2), 1, 1), "valid", marks=pytest.mark.slow),
        ((16,), (2, 1, 2), "circular"),
    ],
    ids=["1-d", "2-d", "circular"],
)
def test_comparison_with_the_truth(signal, strides, padding):
    model = deep_model(signal, strides, padding=padding)
    path = path_of(model)
    x = noisy(path)
    betas = np.asarray(default_thresholds(path))
    found = jax.jit(lambda x: forward(model, x, thresholds=betas, truth=path))(x)
    codes = dense_pass(model, x, RULES["hard"], betas)
    for level, (code, truth) in enumerate(zip(codes, path[1:], strict=True)):
        assert betas[level] == np.abs(truth[truth != 0]).min() / 2
        assert found.hits[level] == np.sum((code != 0) & (truth != 0))
        assert found.misses[level] == np.sum((code == 0) & (truth != 0))
        assert found.false_alarms[level] == np.sum((code != 0) & (truth == 0))
        assert found.recovered[level] == np.array_equal(code != 0, truth != 0)
    # Something to compare in every number.
    assert np.all(found.hits + found.misses > 0)
    assert np.any(found.false_alarms > 0)
    errors = [a - b for a, b in zip([x, *codes], path, strict=True)]
    expected = [patch_norm_by_hand(error, layer.op) for error, layer in zip(errors, model, strict=False)]
    np.testing.assert_allclose(found.noise, [*expected, np.abs(errors[-1]).max()], rtol=1e-10)


def test_an_exact_pass_recovers_its_path():
    """Atoms that do not meet, in layers of one tap each: the pass undoes the model."""
    banks = [np.eye(4)[:, :, None], np.eye(4)[::-1, :, None]]
    model = signed(layers(banks, (6,)))
    path = jax.jit(reverse_pass)(model, path_of(model)[-1])
    found = jax.jit(lambda path: forward(model, path[0], thresholds=default_thresholds(path), truth=path))(path)
    assert bool(found.path_recovered)
    assert found.recovered.tolist() == [True, True]
    assert found.hits.tolist() == [3, 3]
    np.testing.assert_array_equal(found.noise, 0)
    np.testing.assert_array_equal(found.codes[-1], path[-1])


def test_stripes_keep_the_largest_of_every_stripe():
    model = deep_model()
    path = path_of(model)
    x = noisy(path)
    first, second = (columns(layer).T for layer in model[:2])

    @jax.jit
    def run(budget):
        codes = forward(model, x, "stripes", sparsity=budget).codes
        lower = (first @ x.ravel()).reshape(codes[0].shape)
        upper = (second @ codes[0].ravel()).reshape(codes[1].shape)
        return codes, (project_stripes(lower, 4, 4), project_stripes(upper, 3, 4))

    codes, expected = run(np.array([4, 3, 2]))
    for mine, other in zip(codes, expected, strict=False):
        np.testing.assert_allclose(mine, other, atol=1e-12)
        assert 0 < np.count_nonzero(mine) < mine.size / 2


def equal_layers(depth, start=0):
    """Layers of one shape: as many filters as channels, atoms that wrap around."""
    rng = np.random.default_rng(start)
    banks = [rng.standard_normal((3, 3, 5)) for _ in range(depth)]
    return signed(layers(banks, (12,), padding="circular"))


def scan_lengths(program):
    """Layers in every scan of a program, those in its jitted parts too."""
    found = []
    for equation in program.eqns:
        if equation.primitive.name == "scan":
            found.append(equation.params["length"])
        elif "jaxpr" in equation.params:
            found += scan_lengths(equation.params["jaxpr"].jaxpr)
    return found


def test_equal_layers_are_traced_once_and_scanned():
    model = equal_layers(5)
    x = np.random.default_rng(4).standard_normal((3, 12))
    betas = np.linspace(0.05, 0.01, 5)
    traced = []

    def rule(h, beta):
        traced.append(h.shape)
        return soft_threshold(h, beta)

    program = jax.make_jaxpr(lambda model, x, betas: forward(model, x, rule, thresholds=betas).codes)(model, x, betas)
    assert len(traced) == 1
    assert scan_lengths(program) == [5]
    assert str(program).count("dot_general[") == 1
    found = jax.jit(lambda model: forward(model, x, "soft", thresholds=betas).codes)(model)
    for mine, other in zip(found, dense_pass(model, x, RULES["soft"], betas), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    assert np.any(found[-1] != 0)


def test_only_neighbours_of_one_shape_are_scanned():
    """1 -> 3 channels, two equal layers, a stride, two equal layers: every layer gets its own filters and threshold."""
    rng = np.random.default_rng(6)
    banks = [rng.standard_normal((3, channels, 4)) for channels in (1, 3, 3, 3, 3, 3)]
    model = signed(layers(banks, (16,), strides=[1, 1, 1, 2, 1, 1], padding="circular"))
    x = rng.standard_normal((1, 16))
    betas = np.linspace(0.6, 0.1, 6)

    def run(model, x):
        return forward(model, x, "soft", thresholds=betas).codes

    program = jax.make_jaxpr(run)(model, x)
    assert scan_lengths(program) == [2, 2]
    for mine, other in zip(jax.jit(run)(model, x), dense_pass(model, x, RULES["soft"], betas), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)


def test_a_second_call_without_jit_compiles_nothing(caplog):
    model, traced = equal_layers(3), []
    x, betas = np.random.default_rng(4).standard_normal((3, 12)), jnp.array([0.3, 0.2, 0.1])

    def rule(h, beta):
        traced.append(h.shape)
        return soft_threshold(h, beta)

    codes = [forward(model, x, rule, thresholds=betas).codes for _ in range(2)]
    assert len(traced) == 1
    np.testing.assert_array_equal(*(found[-1] for found in codes))
    again = {"x": 2 * x, "projection": rule, "thresholds": betas / 2, "truth": [x] * 4}
    other = signed(model, 6)
    forward(other, **again)
    with jax.log_compiles():
        caplog.clear()
        forward(other, **again)
        assert not caplog.records
        jax.jit(lambda value: value + 1)(betas)
        assert caplog.records
    assert len(traced) == 1


def test_a_projection_without_a_hash_and_one_that_closes_over_traced_numbers():
    @dataclasses.dataclass
    class Rule:
        share: float

        def __call__(self, h, beta):
            return soft_threshold(h, self.share * beta)

    model, x = equal_layers(2), np.random.default_rng(4).standard_normal((3, 12))
    betas = jnp.array([0.6, 0.2])
    expected = forward(model, x, "soft", thresholds=betas / 2).codes
    found = forward(model, x, Rule(0.5), thresholds=betas).codes
    shares = jnp.array([0.5, 1.0])
    closed = jax.vmap(lambda share: forward(model, x, lambda h, b: soft_threshold(h, share * b), thresholds=betas))
    for mine, other, batch in zip(found, expected, closed(shares).codes, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)
        np.testing.assert_allclose(batch[0], other, rtol=1e-12)


def test_vmap_over_signals_signs_and_thresholds():
    models = [signed(equal_layers(2), seed) for seed in range(2)]
    signals = np.random.default_rng(8).standard_normal((2, 3, 12))
    betas = np.array([[0.5, 0.4], [0.2, 0.1]])
    signs = [jnp.stack(pair) for pair in zip(*([layer.signs for layer in model] for model in models), strict=True)]

    def run(signs, x, beta):
        model = [dataclasses.replace(layer, signs=own) for layer, own in zip(models[0], signs, strict=True)]
        return forward(tuple(model), x, thresholds=beta).codes

    batch = jax.jit(jax.vmap(run))(signs, signals, betas)
    for number in range(2):
        expected = dense_pass(models[number], signals[number], RULES["hard"], betas[number])
        for mine, other in zip(batch, expected, strict=True):
            np.testing.assert_allclose(mine[number], other, atol=1e-12)


def test_dtype_is_the_wider_of_filters_and_signal():
    model = deep_model(dtype=np.float32)
    path = path_of(model)
    run = jax.jit(lambda x: forward(model, x, thresholds=[0.1, 0.06, 0.03], truth=path))
    found, wide = run(path[0]), run(path[0].astype(np.float64))
    assert {code.dtype for code in found.codes} == {jnp.dtype(np.float32)}
    assert found.noise.dtype == np.float32
    assert {code.dtype for code in wide.codes} == {jnp.dtype(np.float64)}
    for narrow, other in zip(found.codes, wide.codes, strict=True):
        np.testing.assert_allclose(narrow, other, atol=1e-5)


def test_what_rounding_leaves_of_a_cancellation_is_no_support():
    residue = 1 / 3 - 0.1 - (1 / 3 - 0.1 - 1e-17) + 1e-17
    assert support([0.3, -2.0, residue, 0.0]).tolist() == [True, True, False, False]
    assert not np.any(support(np.zeros(3)))
    # 1e-6 is not rounding in float64 and is in float32.
    small = np.array([1.0, 1e-6])
    assert support(small).tolist() == [True, True]
    assert support(small.astype(np.float32)).tolist() == [True, False]
    assert default_thresholds([np.zeros((1, 2)), np.array([[0.0, 1e-17, -0.4]]), np.zeros((1, 3))]).tolist() == [
        0.2,
        np.inf,
    ]


def plain_model():
    """Two layers of one tap each: atoms do not meet, and a pass undoes the model."""
    return layers([np.eye(4)[:, :, None], np.eye(4)[::-1, :, None]], (6,))


def test_half_precision_erases_no_real_entry():
    for dtype in (jnp.bfloat16, jnp.float16):
        assert support(jnp.array([1.0, -(2.0**-11), 2.0**-13, 0.0], dtype)).tolist() == [True, True, False, False]


def test_the_deepest_code_has_the_support_that_it_was_given():
    model = plain_model()
    deepest = np.zeros((4, 6))
    deepest[1, 2], deepest[3, 0] = 1.0, 1e-20
    path = reverse_pass(model, deepest)
    assert [np.count_nonzero(own) for own in supports(path[1:])] == [1, 2]
    np.testing.assert_array_equal(default_thresholds(path), [0.5, 0.5e-20])
    perfect = compare(model, path[1:], path, path[0])
    assert bool(perfect.path_recovered)
    assert perfect.hits.tolist() == [1, 2]
    # Equal to the truth is no false alarm; anything else that is there is one.
    other = [path[1] + np.where(path[1] == 0, 1e-20, 0), 2 * path[2]]
    found = compare(model, other, path, path[0])
    assert found.false_alarms.tolist() == [22, 0]
    assert found.recovered.tolist() == [False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_recovers_nothing(value):
    model = plain_model()
    path = reverse_pass(model, np.ones((4, 6)))
    spoilt = path[2].at[0, 0].set(value)
    assert compare(model, [path[1], spoilt], path, path[0]).recovered.tolist() == [True, False]


@pytest.mark.parametrize("projection", RULES)
def test_a_threshold_that_is_no_number_recovers_nothing(projection):
    model = plain_model()
    path = reverse_pass(model, np.ones((4, 6)))
    found = forward(model, path[0], projection, thresholds=jnp.array([0.5, jnp.nan]), truth=path)
    assert found.recovered.tolist() == [True, False]
    assert not bool(found.path_recovered)


def test_stripes_without_a_limit():
    model = plain_model()
    x = np.random.default_rng(1).standard_normal((4, 6))
    first, second = forward(model, x, "stripes", sparsity=[None, 2]).codes
    np.testing.assert_allclose(first, x)
    assert np.count_nonzero(second, axis=0).tolist() == [2] * 6


def test_compare_takes_any_estimate():
    model = deep_model()
    path = path_of(model)
    run = jax.jit(lambda codes: compare(model, codes, path, path[0]))
    perfect, nothing = run(path[1:]), run([np.zeros(code.shape) for code in path[1:]])
    assert bool(perfect.path_recovered)
    assert not np.any(nothing.hits)
    np.testing.assert_array_equal(nothing.misses, perfect.hits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected thresholds with projection 'hard', got none"),
        ({"projection": "stripes"}, "expected sparsity with projection 'stripes', got none"),
        ({"thresholds": [0.1]}, r"expected thresholds of shape \(3,\), one per layer, got \(1,\)"),
        ({"projection": "stripes", "sparsity": 4}, "expected sparsity of shape"),
        ({"projection": "tanh", "thresholds": [1, 1, 1]}, "expected projection to be one of hard, .*got 'tanh'"),
        ({"thresholds": [1, 1, 1], "sparsity": [1, 1, 1]}, "expected only thresholds .*leave it out"),
        ({"projection": "stripes", "thresholds": [1, 1, 1], "sparsity": [1, 1, 1]}, "expected only sparsity"),
        ({"thresholds": [1, 1, 1], "x": np.zeros((2, 3, 20))}, "expected a signal of shape"),
        ({"thresholds": [1, 1, 1], "truth": [np.zeros((3, 20))]}, "expected truth"),
    ],
    ids=["no-thresholds", "no-sparsity", "count", "scalar", "name", "both", "both-stripes", "batch", "truth"],
)
def test_refusals(arguments, message):
    model = deep_model()
    with pytest.raises(ValueError, match=message):
        forward(model, **{"x": np.zeros((3, 20)), **arguments})


def test_layers_that_do_not_fit_and_a_path_without_codes_are_refused():
    model = deep_model()
    other = dataclasses.replace(model[0])
    with pytest.raises(ValueError, match="expected layer 2 to take signals"):
        forward((model[0], other), np.zeros((3, 20)), thresholds=[1, 1])
    with pytest.raises(ValueError, match="expected the path"):
        default_thresholds([np.zeros((3, 20))])
