"""Similarities of random networks: computed as the rule says, kept and continued, summed up as statistics say."""

import json

import jax
import numpy as np
import pytest
from scipy import stats
from skimage.metrics import structural_similarity

from cnninv_jax import data, dcn, images
from cnninv_jax.experiments import dcn_reconstruction, dcn_statistics
from cnninv_jax.experiments.dcn_reconstruction import ReconstructionParameters, Reconstructions, Setting
from cnninv_jax.experiments.rows import kept_rows
from cnninv_jax.experiments.studies import StudyOptions
from cnninv_jax.limits.layers import Conv

P = ReconstructionParameters(size=16, limit=2, num_networks=2, show=2)


def setting(channels, tag=None, **more):
    networks = {v: dcn.architecture(1, channels=channels, last=v) for v in ("conv", "mean")}
    return Setting(f"{channels} channels", str(channels), networks, tag or channels, **more)


def work(settings, p=P, seed=0, precision="float32"):
    pictures = data.load_pictures(size=p.size, limit=p.limit)
    return Reconstructions(settings, pictures, p, StudyOptions(seed=seed, precision=precision, quiet=True))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return work([setting(3), setting(4)]).similarities(folder, "test"), folder


@pytest.mark.slow
def test_similarities_are_those_of_the_rule(found):
    # Each number anew, by public functions and scikit-image, one network at a time.
    rng = np.random.default_rng(0)
    for _ in range(4):
        channels, index, picture = int(rng.choice([3, 4])), int(rng.integers(2)), int(rng.integers(2))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), channels), index)
        image = data.load_pictures(size=16, limit=2).images[picture]
        for last in ("conv", "mean"):
            network = dcn.architecture(1, channels=channels, last=last)
            weights = dcn.random_weights(key, network, dtype=np.float32)
            output = np.asarray(dcn.reconstruct(weights, network, image), float)
            grey = output if last == "mean" else np.tensordot(images.LUMINANCE, output, 1)
            span = np.ptp(grey)
            grey = (grey - grey.min()) / (span or 1.0)
            wanted, plain = (
                np.tensordot(images.LUMINANCE, image, 1),
                {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0},
            )
            alike = structural_similarity(wanted, grey, **plain)
            if alike < 0:
                alike = structural_similarity(wanted, 1 - grey, **plain)
            seen = found[0][f"{channels} channels"][last]
            np.testing.assert_allclose(seen.values[index, picture], alike, atol=2e-5)
            assert seen.flat[index, picture] == (span == 0)


def test_a_killed_count_goes_on_and_ends_on_the_same_numbers(found, tmp_path):
    whole, folder = found
    content = json.loads((folder / dcn_reconstruction.FOUND).read_text())
    # As if it had been killed in the middle of a network: one of two pictures of one, nothing of another.
    content["rows"]["3 channels, network 1"] = content["rows"]["3 channels, network 1"][:1]
    del content["rows"]["4 channels, network 0"]
    kept = [0.25, 1.0, 0.0, 0.5, 0.0, 0.0]
    content["rows"]["4 channels, network 1"][0] = kept
    (tmp_path / dcn_reconstruction.FOUND).write_text(json.dumps(content))
    again = work([setting(3), setting(4)]).similarities(tmp_path, "test")
    for name, variants in whole.items():
        for variant, seen in variants.items():
            other = again[name][variant].values.copy()
            if name == "4 channels":
                # What is kept is believed.
                assert other[1, 0] == (0.25 if variant == "conv" else 0.5)
                other[1, 0] = seen.values[1, 0]
            np.testing.assert_array_equal(other, seen.values)
    # Of another seed nothing is believed.
    fresh = work([setting(3), setting(4)], seed=1).similarities(tmp_path, "test")
    assert not np.any(fresh["4 channels"]["conv"].values == 0.25)
    assert np.all(fresh["3 channels"]["mean"].values != whole["3 channels"]["mean"].values)


def test_numbers_do_not_depend_on_what_else_is_asked_for(found, tmp_path):
    more = ReconstructionParameters(size=16, limit=2, num_networks=3)
    other = work([setting(4), setting(5)], more).similarities(tmp_path, "test")
    for variant in ("conv", "mean"):
        np.testing.assert_array_equal(other["4 channels"][variant].values[:2], found[0]["4 channels"][variant].values)


def test_one_program_serves_all_networks_and_pictures(tmp_path):
    programs = (dcn_reconstruction.draw_weights, dcn_reconstruction.reconstruct_variants)
    before = [program._cache_size() for program in programs]
    p = ReconstructionParameters(size=13, limit=3, num_networks=4)
    work([setting(2), setting(6)], p).similarities(tmp_path, "test")
    # One of each for each setting.
    assert [program._cache_size() - count for program, count in zip(programs, before, strict=True)] == [2, 2]
    # One for colour outputs, one for grey ones.
    assert dcn_reconstruction.compare_output._cache_size() >= 2


@pytest.mark.slow
def test_typical_reconstructions_are_those_of_the_network_nearest_to_the_mean(found):
    todo = work([setting(3), setting(4)])
    shown = todo.reconstructed(found[0], 2)["4 channels"]
    for variant in ("conv", "mean"):
        values = found[0]["4 channels"][variant].values
        for picture in range(2):
            index = shown[variant]["network"][picture]
            assert abs(values[index, picture] - values[:, picture].mean()) == pytest.approx(
                np.abs(values[:, picture] - values[:, picture].mean()).min()
            )
            assert shown[variant]["similarity"][picture] == values[index, picture]
            grey = images.to_grey(data.load_pictures(size=16, limit=2).images[picture])
            again = images.ssim(grey, shown[variant]["grey"][picture])
            np.testing.assert_allclose(again, values[index, picture], atol=1e-5)
    assert shown["conv"]["colour"].shape == (2, 3, 16, 16)
    assert shown["mean"]["colour"].shape == (2, 16, 16)


@pytest.mark.slow
def test_pictures_come_in_another_size_and_outputs_are_enlarged(tmp_path):
    small = setting(4, side=8)
    todo = work([small])
    weights = todo.weights(small, 0)
    outputs = todo.outputs(small, weights, 0)
    image = data.load_pictures(size=8, limit=1).images[0]
    output = dcn.reconstruct(weights, small.networks["conv"], image)
    assert outputs["conv"].grey.shape == (16, 16)
    enlarged = np.asarray(jax.image.resize(output, (3, 16, 16), "linear"))
    original = data.load_pictures(size=16, limit=1).images[0]
    np.testing.assert_allclose(outputs["conv"].similarity, images.similarity(original, enlarged), atol=1e-6)


def test_hidden_layers_name_the_network_whose_limit_is_meant():
    same = Conv((3, 3), padding="same")
    assert dcn_reconstruction.hidden_layers(dcn.architecture(1, channels=4, last="mean")) == (same,) * 3
    assert dcn_reconstruction.hidden_layers(dcn.conv1_1(4, 4, "mean")) == (Conv((4, 4), padding="same"),)
    assert dcn_reconstruction.hidden_layers(dcn.architecture(1, channels=4)) is None
    assert dcn_reconstruction.hidden_layers(dcn.architecture(2, channels=4, last="mean")) is None
    assert dcn_reconstruction.hidden_layers(dcn.architecture(1, channels=4, length=4, last="mean")) is None


def test_wide_networks_come_near_the_limit():
    wide = Setting("wide", "wide", {"mean": dcn.conv1_1(4096, 3, "mean")}, 1)
    todo = work([wide])
    alike, maps = todo.limits(dcn_reconstruction.hidden_layers(wide.networks["mean"]))
    output = todo.outputs(wide, todo.weights(wide, 0), 1)["mean"]
    # The angle's deviation is sqrt(K_1 / N) = 0.023; narrow ones are farther.
    np.testing.assert_allclose(output.similarity, alike[1], atol=0.02)
    np.testing.assert_allclose(output.grey, maps[1], atol=0.1)


def test_kept_rows_are_written_whatever_ends_the_count(tmp_path):
    path, spec = tmp_path / "rows.json", {"what": (1, 2)}

    def stopped():
        with kept_rows(path, spec) as rows:
            rows.add("a", [1 / 3, np.float32(0.1)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with kept_rows(path, spec) as rows:
        assert rows.of("a") == [[1 / 3, float(np.float32(0.1))]]
        assert rows.of("b") == []
    with kept_rows(path, {"what": (1, 3)}) as rows:
        assert rows.of("a") == []
    path.write_text("{")
    with kept_rows(path, spec, seconds=0.0) as rows:
        rows.add("a", [2.0])
        assert json.loads(path.read_text())["rows"] == {"a": [[2.0]]}


def test_nothing_is_written_where_nothing_was_found(tmp_path):
    with kept_rows(tmp_path / "rows.json", {}):
        pass
    assert not list(tmp_path.iterdir())


def test_intervals_are_students_and_welchs():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.5, 0.1, (9, 4)), rng.normal(0.6, 0.3, (5, 4))
    seen = dcn_statistics.summary(a)
    interval = stats.ttest_1samp(a.mean(axis=1), 0.0).confidence_interval()
    np.testing.assert_allclose([seen["low"], seen["high"]], interval)
    np.testing.assert_allclose([seen["networks"], seen["pictures"]], [a.mean(1).std(ddof=1), a.mean(0).std(ddof=1)])
    step = dcn_statistics.change(a, b)
    welch = stats.ttest_ind(b.mean(axis=1), a.mean(axis=1), equal_var=False).confidence_interval()
    np.testing.assert_allclose([step["low"], step["high"]], welch)
    paired = stats.ttest_rel(b.mean(axis=0), a.mean(axis=0)).confidence_interval()
    np.testing.assert_allclose([step["picture_low"], step["picture_high"]], paired)
    assert step["rising"] == (b.mean(axis=0) > a.mean(axis=0)).sum()
    twin = dcn_statistics.paired_change(a[:5], b)
    np.testing.assert_allclose(
        [twin["low"], twin["high"]], stats.ttest_rel(b.mean(1), a[:5].mean(1)).confidence_interval()
    )


def test_variance_is_split_as_it_was_put_together():
    rng = np.random.default_rng(3)
    n, p = 2000, 1500
    values = 0.4 + rng.normal(0, 0.3, (n, 1)) + rng.normal(0, 0.1, (1, p)) + rng.normal(0, 0.2, (n, p))
    split = dcn_statistics.split_variance(values)
    # Relative standard error of a deviation from n values: 1 / sqrt(2 n).
    for name, wanted, count in (("networks", 0.3, n), ("pictures", 0.1, p), ("both", 0.2, n * p)):
        assert abs(split[name] / wanted - 1) < 5 / np.sqrt(2 * count), name
    assert np.isnan(dcn_statistics.split_variance(values[:1])["networks"])


def test_a_ratio_has_fiellers_interval():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.3, 0.05, (8, 3)), rng.normal(0.6, 0.1, (8, 3))
    found = dcn_statistics.ratio(a, b)
    np.testing.assert_allclose(found["value"], a.mean() / b.mean())
    for end in ("low", "high"):
        # At the ends, a - r b is just as far from zero as its interval is wide.
        _, low, high = dcn_statistics.combination([1.0, -found[end]], [a.mean(axis=1), b.mean(axis=1)])
        assert min(abs(low), abs(high)) < 1e-9
    assert np.isnan(dcn_statistics.ratio(a, b - b.mean())["low"])


def steps(*means, spread=0.01):
    rng = np.random.default_rng(5)
    return [mean + rng.normal(0, spread, (10, 3)) for mean in means]


@pytest.mark.parametrize(
    ("means", "expected", "verdict"),
    [
        ((0.1, 0.2, 0.3), 1, "agrees"),
        ((0.3, 0.2, 0.1), 1, "differs"),
        ((0.3, 0.2, 0.1), -1, "agrees"),
        ((0.1, 0.3, 0.2), 1, "mixed"),
        ((0.2, 0.2, 0.2), 1, "undecided"),
        ((0.2,), 1, "undecided"),
    ],
    ids=["rises", "falls", "falls as expected", "up and down", "flat", "one"],
)
def test_a_trend_has_a_verdict(means, expected, verdict):
    assert dcn_statistics.trend(range(len(means)), steps(*means, spread=0.02), expected)["verdict"] == verdict


def test_a_trend_has_a_slope():
    values = steps(0.1, 0.2, 0.4)
    found = dcn_statistics.trend((0, 1, 3), values, 1)
    np.testing.assert_allclose(found["slope"], np.polyfit((0, 1, 3), [v.mean() for v in values], 1)[0])
    assert found["low"] < 0.1 < found["high"]
    assert (found["along"], found["against"], found["steps"]) == (2, 0, 2)
