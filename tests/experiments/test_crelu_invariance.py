"""The study of invariance scores: CReLU networks against dense loops, what is read where, and the study as a whole."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import stats

from cnninv_jax import data
from cnninv_jax.crelu import invariance, stimuli
from cnninv_jax.experiments.crelu_invariance import CRELU_INVARIANCE, InvarianceParameters
from cnninv_jax.experiments.crelu_invariance_figure import invariance_figure
from cnninv_jax.experiments.crelu_invariance_scores import (
    Layout,
    Scored,
    both_readings,
    crelu_responses,
    relu_responses,
    scored,
    through,
)
from cnninv_jax.experiments.crelu_invariance_tables import combined
from cnninv_jax.experiments.network_pass import activations, check_picture, prepare, random_network
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")

RNG = np.random.default_rng(4)
SMALL = InvarianceParameters(picture_size=40, size=32, last="conv1_2", num_networks=2)


def small_network():
    """VGG-16's first two layers, with pool1 after the second; three and four filters."""
    whole = random_network("vgg16", jax.random.key(2), layers=2)
    first, second = whole.layers
    held = [
        data.ConvLayer(one.name, np.ascontiguousarray(bank), None, one.stride, one.padding, 1, one.pool)
        for one, bank in ((first, first.filters[:3]), (second, second.filters[:4, :3]))
    ]
    return data.Network(
        "vgg16", tuple(held), whole.architecture, whole.preprocessing, "random"
    )  # fmt: skip


NETWORK = small_network()
PICTURE = RNG.uniform(size=(3, 8, 8))


def test_crelu_networks_by_loops():
    geometry = check_picture(NETWORK, PICTURE.shape)
    banks = [RNG.standard_normal((2, 3, 3, 3)), RNG.standard_normal((3, 4, 3, 3))]
    found = crelu_responses(geometry, [jnp.asarray(bank) for bank in banks], NETWORK)(jnp.asarray(PICTURE))
    x = np.asarray(prepare(NETWORK, jnp.asarray(PICTURE)))
    for name, bank in zip(("conv1_1", "conv1_2"), banks, strict=True):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        h = np.array(
            [
                [[np.sum(one * padded[:, i : i + 3, j : j + 3]) for j in range(8)] for i in range(8)]
                for one in bank
            ]
        )  # fmt: skip
        np.testing.assert_allclose(found[name], h, rtol=1e-10, atol=1e-10)
        x = np.concatenate([np.maximum(h, 0), np.maximum(-h, 0)])


def test_readings_of_maps_and_pools():
    geometry = check_picture(NETWORK, PICTURE.shape)
    layout = Layout(("conv1_1", "conv1_2", "pool1"), (3, 4, 4), ((1, 7), (0, 8), (1, 4)), 1)
    maps = both_readings(relu_responses(NETWORK), geometry, layout, jnp.dtype("float64"))(PICTURE[None])
    outputs = activations(NETWORK, PICTURE)
    np.testing.assert_array_equal(maps["relu conv1_1"][0], np.maximum(outputs["conv1_1"], 0)[:, 1:7, 1:7])
    np.testing.assert_array_equal(maps["crelu conv1_2"][0], np.abs(outputs["conv1_2"]))
    np.testing.assert_array_equal(maps["relu pool1"][0], outputs["pool1"][:, 1:4, 1:4])
    regions = np.abs(np.asarray(outputs["conv1_2"])).reshape(4, 4, 2, 4, 2).max(axis=(2, 4))
    np.testing.assert_array_equal(maps["crelu pool1"][0], regions[:, 1:4, 1:4])


def test_outputs_and_what_lies_before_them():
    found = list(through(check_picture(random_network("vgg16", jax.random.key(0), layers=3), (3, 32, 32)), 32))
    assert [(name, count, size) for name, count, size, _ in found] == [
        ("conv1_1", 64, 32), ("conv1_2", 64, 32), ("pool1", 64, 16), ("conv2_1", 128, 16),
    ]  # fmt: skip
    assert found[-1][3] == [(3, 1, 1), (3, 1, 1), (2, 2, 0), (3, 1, 1)]
    # conv1_1, conv1_2 see one and two zeros; a pooled place sees two of conv1_2.
    assert [stimuli.inside(32, passed) for *_, passed in found] == [(1, 31), (2, 30), (1, 15), (2, 14)]


def test_one_networks_scores_are_the_librarys():
    pictures = RNG.uniform(size=(4, 3, 12, 12))
    geometry = check_picture(NETWORK, (3, 8, 8))
    layout = Layout(("conv1_1", "conv1_2", "pool1"), (3, 4, 4), ((0, 8), (0, 8), (0, 4)), 4)
    features = both_readings(relu_responses(NETWORK), geometry, layout, jnp.dtype("float64"))
    views, original = stimuli.small_stimuli(12, 8, shift=1), stimuli.original(12, 8)
    found = scored(features, pictures, views, original, layout, rate=0.1)
    again = Scored.unpacked(json.loads(json.dumps(found.packed())), layout)
    for name in ("statistics", "repeated", "counts", "each"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    direct = invariance.firings(
        lambda x: jnp.stack([activations(NETWORK, one)["conv1_2"] for one in x]),
        pictures, views, rate=0.1, reading="crelu", original=original,
    )  # fmt: skip
    score = invariance.invariance_score(direct)
    wanted = invariance.layer_mean(score, where=direct.tuned)
    np.testing.assert_allclose(found.statistics[1, 1, 0, 0], [wanted.value, *wanted.influence])
    np.testing.assert_allclose(found.statistics[1, 1, 1, 0, 0], score.value[0].mean())
    np.testing.assert_allclose(found.statistics[1, 1, 3, 0, 0], score.value[2:].mean())
    np.testing.assert_allclose(found.each[1, 3:7], score.value.mean(axis=0))
    np.testing.assert_allclose(
        found.repeated[1, 1, 2], np.mean(direct.transformed[1].sum(axis=0) / direct.fired.sum(axis=0))
    )


def test_intervals_cover_networks_and_pictures():
    """Value a_n + b_p + e_np with means over few of both: 95% intervals cover 0 about so often, and not less."""
    rng = np.random.default_rng(9)
    covered, widths = 0, []
    for _ in range(400):
        cells = rng.standard_normal((6, 1)) + 2 * rng.standard_normal((1, 9)) + rng.standard_normal((6, 9))
        mean = cells.mean(axis=1, keepdims=True)
        found = combined([(1.0, np.concatenate([mean, (cells - mean) / 9], axis=1))])
        covered += found["low"] <= 0 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert covered / 400 > 0.95 - 5 * np.sqrt(0.95 * 0.05 / 400)
    assert np.median(widths) < 2 * 2 * 2.6 * np.sqrt(1 / 6 + 4 / 9 + 1 / 54)
    one = combined([(1.0, np.array([[3.0, 0.5, -0.5]]))])
    np.testing.assert_allclose(one["high"] - one["value"], 12.706 * 1.0, rtol=1e-3)  # t of 1 degree of freedom
    fixed = combined([(1.0, np.array([[3.0, 0.0, 0.0]])), (-1.0, np.array([[1.0, 0.0, 0.0]]))])
    assert fixed == {"value": 2.0, "low": 2.0, "high": 2.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return reproduce_study(CRELU_INVARIANCE, SMALL, StudyOptions(out=folder, quiet=True))


@pytest.mark.slow
def test_the_study(finished):
    content = finished.report["findings"]
    assert content["outputs"] == ["conv1_1", "conv1_2", "pool1"]
    assert set(content["networks"]) == {"relu", "crelu"}
    for held in content["networks"].values():
        for output in held["outputs"].values():
            for one in output["readings"].values():
                every = one["transformations"]["all"]["score"]
                # Photographs moved by a few pixels are far from unrelated, and far from the same.
                assert 1 < every["value"] < 100
                assert every["low"] < every["value"] < every["high"]
                kinds = [one["transformations"][way]["score"]["value"] for way in ("flip", "rotation", "translation")]
                np.testing.assert_allclose(every["value"], np.dot(kinds, [1, 1, 4]) / 6)
    with xr.open_dataset(finished.folder / "result.nc", engine="h5netcdf") as arrays:
        assert arrays["mean"].shape == (4, 2, 3, 4, 2)
        assert arrays["score"].shape == (4, 2, 192)
        figure = invariance_figure(finished.report, arrays)
    assert len(figure.axes) == 4
    assert any("No stimulus reaches over" in note for table in finished.tables for note in table.notes)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_a_networks_numbers_are_its_own(finished, tmp_path):
    kept = json.loads((finished.folder / "networks.json").read_text())
    del kept["rows"]["relu 1"], kept["rows"]["crelu 1"]
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "networks.json").write_text(json.dumps(kept))
    again = reproduce_study(CRELU_INVARIANCE, SMALL, StudyOptions(out=folder, quiet=True))
    assert again.report["findings"] == finished.report["findings"]


@pytest.mark.slow
def test_given_filters_stand_beside_random_ones(tmp_path):
    network = random_network("vgg16", jax.random.key(77), layers=1)
    np.savez(tmp_path / "own.npz", conv1_1_W=network.layers[0].filters.transpose(2, 3, 1, 0))
    p = InvarianceParameters(
        weights=str(tmp_path / "own.npz"), picture_size=44, size=36, last="conv1_2", num_networks=2, locations="inside",
        translations="corners",
    )  # fmt: skip
    done = reproduce_study(CRELU_INVARIANCE, p, StudyOptions(out=tmp_path / "out", quiet=True))
    content = done.report["findings"]
    assert content["origin"] == "learned to conv1_1, random above"
    assert content["places"] == [[1, 35], [2, 34], [1, 17]]
    assert content["networks"]["given"]["networks"] == 1
    assert list(content["minus random ReLU"]) == [
        "given: both [h]+", "given: both |h|", "crelu: |h| against [h]+", "crelu: both [h]+", "crelu: both |h|",
    ]  # fmt: skip
    means = {
        (kind, reading): held["outputs"]["pool1"]["readings"][reading]["transformations"]["all"]["score"]["value"]
        for kind, held in content["networks"].items()
        for reading in ("relu", "crelu")
    }
    against = {kind: seen["pool1"]["value"] for kind, seen in content["minus random ReLU"].items()}
    np.testing.assert_allclose(
        against["crelu: |h| against [h]+"], means["crelu", "crelu"] - means["relu", "relu"], rtol=1e-9
    )
    np.testing.assert_allclose(against["given: both |h|"], means["given", "crelu"] - means["relu", "crelu"], rtol=1e-9)
    assert any("given ReLU network (learned to conv1_1" in table.title for table in done.tables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last": "conv9"}, "--last"),
        ({"num_networks": 1}, "--num-networks"),
        ({"size": 129}, "--size"),
        ({"size": 128, "translations": "corners"}, "--translations corners"),
        ({"rate": 1.5}, "--rate"),
        ({"num_pictures": 1}, "at least 2 pictures"),
        ({"picture_size": 8, "size": 6}, "fires 10 times at --rate 0.01"),
        ({"size": 1, "last": "conv2_1", "translations": "corners"}, "--size 1:"),
        ({"shift": 0}, "--shift"),
        ({"shift": 96}, "--shift below --size 96"),
    ],
    ids=["last", "networks", "size", "corners", "rate", "pictures", "places", "tiny", "shift", "far"],
)
def test_refusals_name_the_flag(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reproduce_study(
            CRELU_INVARIANCE, InvarianceParameters(**change), StudyOptions(out=tmp_path / "out", quiet=True)
        )  # fmt: skip


def test_filters_of_broad_areas_score_high():
    """What the tables say of S: random colours, the same at all taps, against random filters whose taps sum to zero."""
    images = data.load_pictures("embedded", size=48).images
    bank = RNG.standard_normal((24, 3, 3, 3)).astype(np.float32)
    colours = np.broadcast_to(bank.mean(axis=(2, 3), keepdims=True), bank.shape)
    both = jnp.asarray(np.concatenate([colours, bank - colours]))
    found = invariance.firings(
        jax.jit(lambda x: jax.lax.conv(x - 0.5, both, (1, 1), "VALID")),
        images, stimuli.small_stimuli(48, 38), reading="crelu", original=stimuli.original(48, 38), chunk=5,
    )  # fmt: skip
    score = invariance.filter_mean(invariance.invariance_score(found)).value
    assert score[:24].mean() > 1.5 * score[24:].mean()
    assert stats.mannwhitneyu(score[:24], score[24:], alternative="greater").pvalue < 1e-6
