"""Features that are computed once: what they equal, and that they survive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnninv_jax.nn.architectures import random_cnn
from cnninv_jax.nn.checkpoints import CheckpointError
from cnninv_jax.nn.classifiers import ConvNet
from cnninv_jax.nn.features import FEATURES, FeatureClassifier, cached_features, calibrated
from cnninv_jax.nn.objectives import classification_loss
from cnninv_jax.nn.recipes import Recipe
from cnninv_jax.nn.training import train

from . import small


@pytest.fixture(scope="module")
def network():
    spec = random_cnn(3, width=0.002, norm="fixed", dropout=0.0, num_classes=4)
    data = {"images": np.kron(small.DATA["images"], np.ones((1, 1, 4, 4), np.uint8)), "labels": small.DATA["labels"]}
    prepare = small.preparation(data["images"])
    model = ConvNet(spec, rngs=nnx.Rngs(0))
    return calibrated(model, prepare(None, data)["images"][:32]), data, prepare


def below(model, batch):
    return model.layers(batch["images"])[-2]


def test_calibrated_layers_have_mean_0_and_variance_1(network):
    model, data, prepare = network
    images = prepare(None, data)["images"][:32]
    for name in ("conv1", "conv2", "conv3"):
        block = getattr(model, name)
        responses = np.asarray(block.responses(images), np.float64)
        np.testing.assert_allclose(block.norm.mean[...], responses.mean((0, 1, 2)), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(block.norm.var[...], responses.var((0, 1, 2)), rtol=1e-3)
        images = block(images)


def test_kept_features_are_the_networks_own(network, tmp_path):
    model, data, prepare = network
    kept = cached_features(model, below, data, tmp_path / "f", prepare=prepare, batch_size=32)
    np.testing.assert_array_equal(kept, below(model, prepare(None, data)))
    np.testing.assert_array_equal(np.load(tmp_path / "f" / FEATURES), kept)


@pytest.mark.parametrize("cut", [0, 40, 200, 1000, 5000])
def test_a_file_cut_short_is_completed(network, tmp_path, cut):
    model, data, prepare = network
    options = {"prepare": prepare, "batch_size": 16}
    whole = np.array(cached_features(model, below, data, tmp_path, **options))
    file = tmp_path / FEATURES
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - cut] if cut else content[:20])
    seen = []
    again = cached_features(model, below, data, tmp_path, progress=seen.append, **options)
    np.testing.assert_array_equal(again, whole)
    assert seen
    assert (seen[0] > 16) == (cut > 0)  # without a header it begins anew


def test_features_of_something_else(network, tmp_path):
    model, data, prepare = network
    cached_features(model, below, data, tmp_path, prepare=prepare)
    other = {**data, "labels": data["labels"] + 1}
    with pytest.raises(CheckpointError, match=r"features of something else \(data differ\)"):
        cached_features(model, below, other, tmp_path, prepare=prepare)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not written"):
        cached_features(model, below, data, tmp_path / "file" / "x", prepare=prepare)


def test_training_on_kept_features_is_training_the_network(network, tmp_path):
    """The same classifier, data order and steps, above the running network and above what was kept."""
    model, data, prepare = network
    kept = cached_features(model, below, data, tmp_path, prepare=prepare)
    head = FeatureClassifier(kept[0].size, 4, dropout=0.0, rngs=nnx.Rngs(3))
    recipe = Recipe(num_steps=12, batch_size=16, optimizer="adam", rate=1e-2)
    options = {"key": jax.random.key(2), "quiet": True}
    above = train(head, classification_loss, {"images": kept, "labels": data["labels"]}, recipe, **options)

    live = train(Live(model, head), classification_loss, data, recipe, prepare=prepare, **options)
    np.testing.assert_allclose(above.history["loss"], live.history["loss"], rtol=1e-4)
    np.testing.assert_allclose(above.model.softmax.kernel[...], live.model.head.softmax.kernel[...], atol=1e-5)


class Live(nnx.Module):
    """A network whose filters and statistics stand still below a classifier that learns."""

    def __init__(self, network, head):
        self.network, self.head = network, head

    def __call__(self, images, *, train=False, key=None):
        features = jax.lax.stop_gradient(self.network.layers(images)[-2])
        return self.head(jnp.asarray(features), train=train, key=key)
