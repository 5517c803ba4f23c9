"""The pairing study: drawn laws against enumeration and NumPy, statistics against SciPy, the study end to end."""

import itertools
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import xarray as xr
from scipy import stats

from cnninv_jax import data
from cnninv_jax.experiments import crelu_pairing_banks, crelu_pairing_draws
from cnninv_jax.experiments.analysis_pairing import beside_random, pairing_sentence
from cnninv_jax.experiments.crelu_pairing import CRELU_PAIRING, PairingParameters
from cnninv_jax.experiments.crelu_pairing_banks import default_banks, network_banks, planted, spherical_kmeans
from cnninv_jax.experiments.crelu_pairing_draws import _against_pool, _gram, compare, draw_banks, group_pairing
from cnninv_jax.experiments.crelu_pairing_tables import tables
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

FOLDER = os.environ.get("CNNINV_DATA") or pathlib.Path(__file__).parents[3] / "shared" / "data"
KERNELS = pathlib.Path(FOLDER) / "vgg16" / "vgg16_conv1_1_to_conv2_2.npz"
FLOAT = np.float64 if jax.config.jax_enable_x64 else np.float32
RNG = np.random.default_rng(7)


def lowest(rows):
    """mu by the definition, [..., K]."""
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    cosines = unit @ np.swapaxes(unit, -1, -2)
    return np.min(np.where(np.eye(rows.shape[-2], dtype=bool), np.inf, cosines), axis=-1)


def test_filters_are_paired_within_their_group():
    bank = RNG.standard_normal((6, 2, 3)).astype(FLOAT)
    index, mu = group_pairing(bank, 2)
    assert set(index[:3]) <= {0, 1, 2}
    assert set(index[3:]) <= {3, 4, 5}
    wanted = np.concatenate([lowest(part.reshape(3, -1)) for part in np.split(bank, 2)])
    np.testing.assert_allclose(mu, wanted, atol=1e-6)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two groups of four filters, one of them of zeros, and their draws."""
    bank = np.random.default_rng(8).standard_normal((8, 2, 3)).astype(FLOAT)
    bank[5] = 0
    out = tmp_path_factory.mktemp("draws") / "draws"
    return bank, draw_banks(jax.random.key(1), bank, 2, 4000, np.dtype(np.float32), out)


def test_random_banks_have_the_law_of_gaussian_filters(drawn):
    """Of four filters of six numbers, and of three where one has no angle: means and quantiles at 5 standard errors."""
    draws = drawn[1]
    random = draws["random"]
    assert np.isnan(random).any(axis=0).tolist() == [False] * 5 + [True] + [False] * 2
    for columns, count in (([0, 1, 2, 3], 4), ([4, 6, 7], 3)):
        reference = lowest(np.random.default_rng(9).standard_normal((20_000, count, 6)))
        means, wanted = random[:, columns].mean(axis=1), reference.mean(axis=1)
        error = np.sqrt(means.var() / len(means) + wanted.var() / len(wanted))
        assert abs(means.mean() - wanted.mean()) < 5 * error
        assert stats.ks_2samp(means, wanted).pvalue > 1e-6


def test_new_signs_are_all_signs(drawn):
    """Eight choices of signs for four filters, two and two alike: each draw is one of them, each as often."""
    bank, draws = drawn
    for places in ([0, 1, 2, 3], [4, 6, 7]):
        rows = bank[places].reshape(len(places), -1).astype(np.float64)
        choices = itertools.product((1.0,), *[(-1.0, 1.0)] * (len(places) - 1))
        known = np.unique(np.round([lowest(np.array(s)[:, None] * rows) for s in choices], 9), axis=0)
        seen = draws["signs"][:, places]
        distance = np.abs(seen[:, None] - known[None]).max(axis=2)
        assert np.all(distance.min(axis=1) < 1e-5)
        counts = np.bincount(distance.argmin(axis=1), minlength=len(known))
        expected = len(seen) / 2 ** (len(places) - 1)
        # Choices that give the same mu are counted together.
        assert counts.min() > expected - 5 * np.sqrt(expected)
        assert counts.sum() == len(seen)


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 40], ids=["direct", "bartlett"])
def test_lanes_and_methods_give_the_size_its_law(tmp_path, size):
    bank = np.random.default_rng(10).standard_normal((5, 1, size)).astype(FLOAT)
    draws = draw_banks(jax.random.key(2), bank, 1, 1024, np.dtype(np.float32), tmp_path / "draws")["random"]
    wanted = lowest(np.random.default_rng(11).standard_normal((10_000, 5, size))).mean(axis=1)
    assert stats.ks_2samp(draws.mean(axis=1), wanted).pvalue > 1e-6


def test_statistics_are_scipys():
    banks = np.sort(np.round(RNG.uniform(-1, 0, (7, 5)), 1), axis=1)
    distances, deltas = _against_pool(banks)
    pool = banks.ravel()
    for bank, distance, delta in zip(banks, distances, deltas, strict=True):
        np.testing.assert_allclose(distance, stats.ks_2samp(bank, pool).statistic, atol=1e-12)
        difference = np.sign(pool[None] - bank[:, None])
        np.testing.assert_allclose(delta, difference.mean(), atol=1e-12)


def test_comparison_against_loops():
    mu = np.array([-0.9, np.nan, -0.5, -0.5, -0.1])
    kept = np.isfinite(mu)
    draws = {name: RNG.uniform(-0.8, 0, (30, 5)) for name in ("random", "signs")}
    found = compare(mu, draws)
    assert (found["filters"], found["left_out"]) == (4, 1)
    np.testing.assert_allclose([found["mean"], found["median"], found["lowest"]], [-0.5, -0.5, -0.9])
    for name, banks in draws.items():
        pool = banks[:, kept].ravel()
        below = sum(np.sign(other - own) for own in mu[kept] for other in pool) / (4 * len(pool))
        np.testing.assert_allclose(found[name]["cliffs_delta"], below, atol=1e-12)
        np.testing.assert_allclose(found[name]["distance"], stats.ks_2samp(mu[kept], pool).statistic)
        lower = sum(bank[kept].mean() <= mu[kept].mean() for bank in banks)
        assert found[name]["p_lower"] == (lower + 1) / 31
        assert found[name]["mean_low"] < pool.mean() < found[name]["mean_high"]
    histogram = found["histogram"]
    for kind in ("filters", "random", "signs"):
        np.testing.assert_allclose(np.sum(histogram[kind]), 1.0)
    counted = np.histogram(mu[kept], histogram["edges"])[0]
    np.testing.assert_array_equal(np.asarray(histogram["filters"]) * 4, counted)


def test_p_values_of_random_banks_are_uniform():
    """A bank drawn like the others: every rank equally often, of the mean and of the distance."""
    ranks = []
    for seed in range(160):
        banks = np.random.default_rng(seed).standard_normal((20, 6)) / 10
        found = compare(banks[0], dict.fromkeys(("random", "signs"), banks[1:]))["random"]
        ranks.append((found["p_lower"], found["p_distance"]))
    for values in np.transpose(ranks):
        counts = np.bincount(np.round(np.asarray(values) * 20).astype(int), minlength=21)[1:]
        assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("count", [2, 3])
def test_few_filters_meet_themselves_among_new_signs(tmp_path, count):
    """Half of the signs of two filters, a quarter of those of three, are the bank itself, not parted by rounding."""
    for seed in range(3):
        bank = np.random.default_rng(seed).standard_normal((count, 3, 3, 3)).astype(np.float32)
        mu = group_pairing(bank, 1)[1]
        draws = draw_banks(jax.random.key(seed), bank, 1, 99, np.dtype(np.float32), tmp_path / str(seed))
        same = np.mean(np.all(draws["signs"] == mu, axis=1))
        assert same > 0.5 ** (count - 1) - 0.2
        assert compare(mu, draws)["signs"]["p_lower"] >= same


def test_tables_say_what_too_few_draws_and_filters_cannot():
    """Four layers ask for p below 0.0125, which 39 draws cannot give; two filters have no unmatched pair."""
    nothing = {"mean_absolute": np.nan, "standard_deviation_absolute": np.nan, "mean": np.nan,
               "standard_deviation": np.nan, "number": 0}  # fmt: skip
    held = {"mean": -0.2, "mean_low": -0.3, "mean_high": -0.1, "p_lower": 1 / 40, "p_distance": 1 / 40,
            "distance": 0.5, "distance_random_high": 0.4, "cliffs_delta": 0.5, "cliffs_delta_random": 0.4}  # fmt: skip
    layer = {"layer": "a", "shape": [2, 3, 3, 3], "groups": 1, "mean": -0.5, "standard_deviation": 0.0,
             "below_percent": 0.0, "left_out": 0, "random": held, "signs": held,
             "outgoing": {"kind": "phases", "pair": {**nothing, "number": 2}, "non_pair": nothing}}  # fmt: skip
    content = {"source": "here", "notes": [], "num_draws": 39, "layers": [layer] * 4}
    random, signs, outgoing = tables(content)
    for table in (random, signs):
        assert "more --num-draws" in " ".join(table.notes)
        assert "none" not in " ".join(table.notes)
    assert outgoing.rows[0][5:] == ("-", "-", "0")


def test_planted_pairs_are_as_asked():
    filters = planted((40, 30, 4, 4), 2, 0.3, -0.8, jax.random.key(3))
    mu = group_pairing(filters.astype(FLOAT), 2)[1]
    assert np.sum(mu < -0.6) == 12
    np.testing.assert_allclose(mu[mu < -0.6].mean(), -0.8, atol=0.05)
    same = planted((40, 30, 4, 4), 2, 0.0, -0.8, jax.random.key(3))
    assert np.sum(group_pairing(same.astype(FLOAT), 2)[1] < -0.6) == 0


def test_one_sided_kmeans_learns_both_phases():
    """Patches along two directions, either way: four filters one-sided, two filters two-sided."""
    rng = np.random.default_rng(13)
    directions = np.repeat(np.array([[1, 0, 0, 0], [0, 1, 0, 0]]), 500, axis=0)
    signs = np.where(rng.random((1000, 1)) < 0.5, -1, 1)
    patches = signs * directions + 0.05 * rng.standard_normal((1000, 4))
    # Other first filters may end where one direction has none: k-means finds a local optimum.
    both = spherical_kmeans(patches, 4, two_sided=False, key=jax.random.key(0))
    assert np.all(lowest(both) < -0.99)
    one = spherical_kmeans(patches, 2, two_sided=True, key=jax.random.key(0))
    assert np.all(np.abs(lowest(one)) < 0.05)
    np.testing.assert_allclose(np.sort(np.abs(one[:, :2]), axis=1), [[0, 1], [0, 1]], atol=0.02)


def test_default_banks(monkeypatch):
    monkeypatch.setattr(crelu_pairing_banks, "KMEANS_PATCHES", 300)
    banks = default_banks("embedded", 0.25, -0.7, jax.random.key(4))
    assert [bank.name for bank in banks[:3]] == ["kmeans-one-sided", "kmeans-two-sided", "planted-conv1"]
    for bank in banks:
        assert np.all(np.isfinite(bank.filters))
        assert bank.outgoing is None
    assert [bank.filters.shape for bank in banks[2:]] == [spec.shape for spec in crelu_pairing_banks.PLANTED]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Three kernels; the second takes both phases of the first, the third the second's channels."""
    rng = np.random.default_rng(12)
    path = tmp_path_factory.mktemp("network") / "net.npz"
    first, second, third = (rng.standard_normal(shape) for shape in ((6, 3, 3, 3), (5, 12, 3, 3), (1, 5, 3, 3)))
    first[3:] = -first[:3] + 0.05 * rng.standard_normal((3, 3, 3, 3))
    second[:, 6:] = second[:, :6]
    np.savez(path, **{"0.w": first, "1.w": second, "2.w": third})
    return path


@pytest.fixture(scope="module")
def outcome(network, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    parameters = PairingParameters(weights=str(network), num_draws=39)
    return reproduce_study(CRELU_PAIRING, parameters, StudyOptions(out=out, quiet=True))


@pytest.mark.slow
def test_a_network_end_to_end(outcome):
    first, second = outcome.report["findings"]["layers"]
    assert (first["shape"], second["shape"]) == ([6, 3, 3, 3], [5, 12, 3, 3])
    assert first["pairs"] == [3, 4, 5, 0, 1, 2]
    assert first["mean"] < -0.98
    assert first["random"]["p_lower"] == 1 / 40
    assert first["random"]["cliffs_delta"] == 1.0
    # Pairs are planted in opposite phase: every new sign that parts one lifts the mean.
    assert first["signs"]["mean"] > first["mean"]
    assert second["random"]["p_lower"] > 0.02
    # The second layer sees the modulus of the first only; the third has one filter, and is left out.
    assert first["outgoing"]["kind"] == "phases"
    np.testing.assert_allclose(first["outgoing"]["pair"]["mean"], 1.0, rtol=1e-6)
    assert second["outgoing"]["kind"] == "pairing filters"
    assert [table.rows[0][0] for table in outcome.tables] == [first["layer"]] * 3
    assert "lower than random in 1: " + first["layer"] in " ".join(outcome.tables[0].notes)


@pytest.mark.slow
def test_the_figure_shows_histograms_and_filters(outcome):
    report = json.loads((outcome.folder / "report.json").read_text())
    with xr.open_dataset(outcome.folder / "result.nc", engine="h5netcdf") as arrays:
        assert list(arrays.data_vars) == ["filters_0"]
        figure = CRELU_PAIRING.figure(report, arrays)
    titles = [axes.get_title() for axes in figure.get_axes()]
    assert len(titles) == 3
    assert "all 6" in titles[2]
    assert figure.get_axes()[2].images
    alone = CRELU_PAIRING.figure(report, None)
    assert len(alone.get_axes()) == 2


@pytest.mark.slow
def test_a_killed_study_goes_on_and_order_does_not_matter(outcome, network, tmp_path, monkeypatch):
    kept = json.loads((outcome.folder / "report.json").read_text())
    names = [layer["layer"] for layer in kept["findings"]["layers"]]
    # Without its report the study is not finished; its draws are in their journals, and none is drawn again.
    (outcome.folder / "report.json").rename(tmp_path / "report.json")
    compiled = []
    run = crelu_pairing_draws.run

    def watched(*arguments, **options):
        result = run(*arguments, **options)
        compiled.append(result.provenance["compile_seconds"])
        return result

    monkeypatch.setattr(crelu_pairing_draws, "run", watched)
    options = StudyOptions(out=outcome.folder, quiet=True)
    again = reproduce_study(CRELU_PAIRING, PairingParameters(weights=str(network), num_draws=39), options)
    assert again.report["findings"] == kept["findings"]
    assert compiled == [0, 0]
    chosen = PairingParameters(weights=str(network), num_draws=39, layers=(names[1],))
    alone = reproduce_study(CRELU_PAIRING, chosen, StudyOptions(out=tmp_path / "alone", quiet=True))
    assert alone.report["findings"]["layers"] == kept["findings"]["layers"][1:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_draws": 18}, "--num-draws of at least 19"),
        ({"num_draws": 0}, "--num-draws"),
        ({"layers": ("a", "a")}, "--layers to be different"),
        ({"layers": ("conv9",)}, "--layers among kmeans-one-sided"),
        ({"planted_share": 1.5}, "--planted-share from 0 to 1"),
        ({"planted_share": float("nan")}, "--planted-share from 0 to 1"),
        ({"planted_cosine": -1.5}, "--planted-cosine from -1 to 1"),
        ({"weights": "net.npz", "planted_share": 0.5}, "--planted-share without --weights"),
        ({"weights": "NET", "layers": ("2",)}, "--layers of two filters or more"),
        ({"weights": "NET", "layers": ("9",)}, "has no layer '9'"),
        ({"weights": "nowhere.npz"}, "nowhere.npz"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refusals(tmp_path, network, change, said):
    given = {name: str(network) if value == "NET" else value for name, value in change.items()}
    with pytest.raises(ValueError, match=said):
        reproduce_study(CRELU_PAIRING, PairingParameters(**given), StudyOptions(out=tmp_path / "out", quiet=True))
    assert not (tmp_path / "out").exists()


def test_groups_are_looked_at_twice():
    """A layer of two halves by its groups and as stored; what follows a layer is its neighbour in the architecture."""
    shapes = {spec.name: spec for spec in data.ARCHITECTURES["alexnet-caffe"].layers}
    layers = tuple(
        data.ConvLayer(name, RNG.standard_normal(shapes[name].shape), None, (1, 1), (0, 0), shapes[name].groups)
        for name in ("conv1", "conv2", "conv4")
    )
    network = data.Network("alexnet-caffe", layers, data.ARCHITECTURES["alexnet-caffe"], None, "here")
    banks = network_banks(network, ())
    assert [(bank.name, bank.groups) for bank in banks] == [
        ("conv1", 1), ("conv2", 2), ("conv2, as stored", 1), ("conv4", 2), ("conv4, as stored", 1)
    ]  # fmt: skip
    assert [bank.reason for bank in banks[:2]] == ["conv2 has 2 groups", "conv3 is not in the file"]


def test_gram_of_filters_far_from_unit_size():
    bank = np.array([[1e-30, 0], [0, 2e30], [-3, 3], [0, 0]])[:, None]
    gram, alive = _gram(bank, 1)
    assert alive.tolist() == [[True, True, True, False]]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(gram[0, :3, :3], [[1, 0, -half], [0, 1, half], [-half, half, 1]], atol=1e-15)


def test_what_analyze_says_of_pairs():
    random = RNG.uniform(-0.4, -0.1, (19, 6))
    mu = np.array([-0.9, -0.8, np.nan, -0.7, -0.6, -0.5])
    found = beside_random(mu, random)
    assert found["p_lower"] == 1 / 20
    np.testing.assert_allclose([found["mean"], found["random_mean"]], [-0.7, random.mean()])
    low, high = stats.t.interval(0.95, 18, random.mean(), stats.sem(random.mean(axis=1)))
    np.testing.assert_allclose(found["random_interval_95"], [low, high])
    np.testing.assert_allclose([np.sum(found["filters"]), np.sum(found["random"])], 1.0)
    said = pairing_sentence(found, 19)
    assert "1 filters of zeros left out" in said
    assert "p = 0.05 (not below 0.05 with 19 random banks)" in said
    assert beside_random(np.full(3, np.nan), random) is None
    assert "none" in pairing_sentence(None, 19)


@pytest.mark.skipif(
    not KERNELS.is_file(), reason=f"the VGG-16 kernels do not ship with the project; {KERNELS} is absent"
)
@pytest.mark.parametrize(("name", "mean"), [("conv1_1", -0.938), ("conv1_2", -0.601)])
def test_filters_of_vgg16_are_paired(name, mean):
    """Mean mu of the published kernels, by the definition in NumPy, far below that of a random bank of their size."""
    kernel = np.moveaxis(np.load(KERNELS)[f"{name}_W"], (-1, -2), (0, 1))
    mu = group_pairing(kernel.astype(FLOAT), 1)[1]
    np.testing.assert_allclose(mu, lowest(kernel.reshape(64, -1).astype(np.float64)), atol=1e-5)
    np.testing.assert_allclose(mu.mean(), mean, atol=5e-4)
    drawn = group_pairing(np.random.default_rng(0).standard_normal(kernel.shape).astype(FLOAT), 1)[1]
    assert mu.mean() < drawn.mean() - 0.4
