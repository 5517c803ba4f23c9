"""Losses of style transfer against NumPy in float64, their gradient, and what the steps promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from cnninv_jax import dcn
from cnninv_jax.nn import colours, style

DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
TOLERANCE = {"rtol": 1e-9} if jax.config.jax_enable_x64 else {"rtol": 2e-4}
NET = dcn.architecture(1, channels=4)
losses = jax.jit(style.losses, static_argnums=3)


@pytest.fixture(scope="module")
def network():
    return style.loss_network(jax.random.key(1), 4, blocks=(2, 3), width=1 / 32, dtype=DTYPE)


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    return tuple(jnp.asarray(random.uniform(size=shape), DTYPE) for shape in ((9, 8, 4), (8, 12, 4)))


def reference(network, features):
    """The first activation of every block, in float64: means over 2 x 2, correlations of single maps."""
    maps, found = np.moveaxis(np.asarray(features, np.float64), -1, 0), []
    for block in network:
        high, wide = (side // 2 * 2 for side in maps.shape[1:])
        maps = sum(maps[:, row:high:2, column:wide:2] for row in (0, 1) for column in (0, 1)) / 4
        for index, (kernel, _) in enumerate(block):
            bank = np.asarray(kernel, np.float64)
            padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
            maps = np.stack([
                sum(correlate2d(one, bank[:, :, m, k], "valid") for m, one in enumerate(padded))
                for k in range(bank.shape[3])
            ])  # fmt: skip
            maps = np.maximum(maps, 0)
            if index == 0:
                found.append(maps.reshape(len(maps), -1))
    return found


def statistic(rows, kind):
    return (
        rows @ rows.T / rows.size
        if kind == "gram"
        else np.stack([rows.mean(axis=1), np.sqrt(rows.var(axis=1) + 1e-12)])
    )


@pytest.mark.parametrize("kind", ["gram", "moments"])
def test_losses_are_those_of_equations_3_and_4(network, pair, kind):
    content, other = pair
    moved = content + 0.1 * jnp.sin(jnp.arange(content.size, dtype=DTYPE)).reshape(content.shape)
    wanted = style.targets(network, content, other, kind)
    here, there, now = (reference(network, features) for features in (content, other, moved))
    found = losses(network, moved, wanted, kind)
    exact = [
        sum(((a - b) ** 2).sum() for a, b in zip(now, here, strict=True)),
        sum(((statistic(a, kind) - statistic(b, kind)) ** 2).sum() for a, b in zip(now, there, strict=True)),
    ]
    np.testing.assert_allclose(found, exact, **TOLERANCE)
    alpha, beta = style.relative_weights(wanted, 0.5)
    np.testing.assert_allclose(alpha, 0.5 / sum((a**2).sum() for a in here), **TOLERANCE)
    np.testing.assert_allclose(beta, 1 / sum((statistic(a, kind) ** 2).sum() for a in there), **TOLERANCE)


def test_losses_vanish_where_nothing_is_to_change(network, pair):
    content, other = pair
    assert float(losses(network, content, style.targets(network, content, other), "gram")[0]) == 0
    np.testing.assert_allclose(losses(network, other, style.targets(network, other, other), "gram"), 0, atol=1e-12)


@pytest.mark.parametrize("kind", ["gram", "moments"])
def test_statistics_know_no_positions(kind):
    maps = np.random.default_rng(2).normal(size=(5, 6, 3))
    order = np.random.default_rng(3).permutation(30)
    mixed = maps.reshape(30, 3)[order].reshape(6, 5, 3)
    first, second = (style.statistics(jnp.asarray(x, DTYPE), kind) for x in (maps, mixed))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="differences need float64")
@pytest.mark.parametrize("kind", ["gram", "moments"])
def test_gradient_by_differences(network, pair, kind):
    content, other = pair
    wanted = style.targets(network, content, other, kind)
    moved = 0.9 * content
    total = jax.jit(lambda v: sum(style.losses(network, v, wanted, kind)))
    gradient = jax.jit(jax.grad(total))(moved)
    direction = jnp.asarray(np.random.default_rng(4).normal(size=moved.shape), DTYPE)
    step = 1e-6
    difference = (total(moved + step * direction) - total(moved - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=1e-6)


def test_one_compilation_serves_all_styles_weights_and_networks():
    pictures = np.random.default_rng(5).uniform(size=(3, 3, 12, 12))
    # Darker styles: those of noise alone are too much alike.
    content, *others = (
        jnp.asarray(picture * scale, DTYPE) for picture, scale in zip(pictures, (1, 0.2, 0.4), strict=True)
    )
    encode = jax.jit(style.encode, static_argnums=1)
    before = style._step._cache_size()
    for seed, (other, weight) in enumerate(zip(others, (1.0, 0.01), strict=True)):
        network = style.loss_network(jax.random.key(seed), 4, blocks=(2,), width=1 / 32, dtype=DTYPE)
        weights = dcn.random_weights(jax.random.key(10 + seed), NET, dtype=DTYPE)
        start = encode(weights, NET, content)
        wanted = style.targets(network, start, encode(weights, NET, other))
        problem = style.Problem(network, weights, wanted, *style.relative_weights(wanted, weight))
        moved = style.transfer(problem, start, steps=15, rate=0.1)
        pixels = style.transfer(problem, content, steps=15, rate=0.1, through=NET)
        for found in (moved, pixels):
            total = float(problem.content_weight) * found.content + float(problem.style_weight) * found.style
            assert total[-1] < 0.9 * total[0]
            assert found.content[0] <= 1e-9 < found.content[-1]
            assert len(found.style) == 16
            assert found.seconds > 0
        # Both begin at the same losses, and the content is left as it was.
        np.testing.assert_allclose(moved.style[0], pixels.style[0], rtol=1e-4)
        np.testing.assert_array_equal(content, jnp.asarray(pictures[0], DTYPE))
        assert style.decode(weights, NET, moved.variable, (12, 12)).shape == (3, 12, 12)
    assert style._step._cache_size() == before + 2


def test_colours_undo_any_affine_mixture():
    random = np.random.default_rng(6)
    picture = random.uniform(size=(3, 7, 5))
    output = np.tensordot(random.normal(size=(3, 3)), picture, axes=1) + random.normal(size=(3, 1, 1))
    np.testing.assert_allclose(colours.apply_colours(colours.fit_colours(output, picture), output), picture, atol=1e-10)
    stretched = colours.stretch_colours(output)
    np.testing.assert_allclose(stretched.min(axis=(1, 2)), 0)
    np.testing.assert_allclose(stretched.max(axis=(1, 2)), 1)
    assert not colours.stretch_colours(np.ones((3, 2, 2))).any()


def test_what_does_not_fit_is_refused(network, pair):
    wanted = style.targets(network, pair[0], pair[1])
    with pytest.raises(ValueError, match="expected a content weight of at least 0, got -1"):
        style.relative_weights(wanted, -1.0)
    with pytest.raises(ValueError, match=r"at least 4 x 4 for 2 pools, got \(3, 9, 4\)"):
        style.activations(network, jnp.ones((3, 9, 4), DTYPE))
    with pytest.raises(ValueError, match=r"expected blocks to be 2 or 2 3 .*, got 3 4"):
        style.loss_network(jax.random.key(0), 4, blocks=(3, 4))
    with pytest.raises(ValueError, match="expected a statistic among gram, moments, got 'mean'"):
        style.statistics(pair[0], "mean")
