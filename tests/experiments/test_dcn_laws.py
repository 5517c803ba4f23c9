"""The laws of the filters: what is expected of them against other ways to the same number, and the study as a whole."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from cnninv_jax import filters
from cnninv_jax.experiments import dcn_laws_draws as draws
from cnninv_jax.experiments.dcn_laws import DCN_LAWS, INPUTS, LAWS, DcnLawsParameters, inputs_of, jackknife
from cnninv_jax.experiments.dcn_laws_figure import laws_figure
from cnninv_jax.experiments.dcn_laws_tables import READINGS
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")

SMALL = DcnLawsParameters(laws=("sphere", "laplace"), kernels=(1, 3), size=32, num_draws=64, filters=64, width=32)
OF_INDEPENDENT_ENTRIES = ("uniform", "logistic", "laplace")


def test_the_laws_are_those_of_the_paper():
    deviations = {name: draws.paper_law(name).deviation for name in LAWS}
    expected = {"gaussian": 0.015, "sphere": 0.015, "uniform": 0.04 / math.sqrt(3),
                "logistic": 0.015 * math.pi / math.sqrt(3), "laplace": 0.015 * math.sqrt(2)}  # fmt: skip
    assert deviations == pytest.approx(expected, rel=1e-12)
    for name in OF_INDEPENDENT_ENTRIES:
        assert draws.own_moments(draws.paper_law(name), 9).k2 == pytest.approx(deviations[name] ** 2 / 2)
    assert draws.own_moments(draws.paper_law("sphere"), 9).k2 == pytest.approx(0.015**2 / 2)


@pytest.mark.parametrize("name", OF_INDEPENDENT_ENTRIES)
def test_the_expected_answer_to_one_pixel_is_the_laws_own(name):
    law = draws.paper_law(name)
    patch = np.zeros((3, 3))
    patch[1, 2] = -2.0
    assert draws.expected_answer(law, patch) == pytest.approx(2 * draws.own_moments(law, 9).k1, rel=1e-6)


@pytest.mark.parametrize("name", OF_INDEPENDENT_ENTRIES)
def test_the_expected_answer_to_two_pixels_is_the_integral_over_both_entries(name):
    law = draws.paper_law(name)
    y = np.array([1.0, 0.6])
    # Midpoints of equally likely cells of each entry.
    levels = (np.arange(4000) + 0.5) / 4000
    scale = law.scale(1)
    quantiles = {
        "uniform": scale * (2 * levels - 1),
        "logistic": scale * np.log(levels / (1 - levels)),
        "laplace": -scale * np.sign(levels - 0.5) * np.log(1 - 2 * np.abs(levels - 0.5)),
    }[name]
    brute = np.mean(np.maximum(quantiles[:, None] * y[0] + quantiles[None] * y[1], 0))
    assert draws.expected_answer(law, y) == pytest.approx(brute, rel=1e-3)
    # Far enough from both readings that the test can tell them apart.
    for moments in (draws.own_moments(law, 2), draws.gaussian_moments(law)):
        assert abs(moments.k1 * np.linalg.norm(y) / brute - 1) > 0.008


@pytest.mark.parametrize("name", OF_INDEPENDENT_ENTRIES)
def test_many_equal_pixels_are_answered_as_by_a_gaussian(name):
    law = draws.paper_law(name)
    # E|S| of a sum of n equal terms is off by -kurtosis / (24 n) at first order (Edgeworth).
    kurtosis = {"uniform": -1.2, "logistic": 1.2, "laplace": 3.0}[name]
    ratio = draws.expected_answer(law, np.ones((15, 15))) / (15 * draws.gaussian_moments(law).k1)
    assert ratio - 1 == pytest.approx(-kurtosis / 24 / 225, rel=0.02)


@pytest.mark.parametrize("name", LAWS)
def test_means_of_a_draw_are_those_expected(name):
    law = draws.paper_law(name)
    grey = np.linspace(0.1, 1.0, 36).reshape(6, 6)
    patches = tuple(jnp.asarray(inputs_of(grey, side)) for side in (2, 3))
    draw = jax.jit(jax.vmap(lambda key: draws.answers(key, patches, law, 500)))
    held = {leaf: np.asarray(each) for leaf, each in draw(jax.random.split(jax.random.key(3), 200)).items()}
    assert held["first"].shape == held["second"].shape == (200, 2, 2)
    for place, each in enumerate(patches):
        for column in range(2):
            image = np.asarray(each[column])
            for leaf, expected in (
                ("first", draws.expected_answer(law, image)),
                ("second", law.deviation**2 / 2 * np.sum(image**2)),
            ):
                found = held[leaf][:, place, column]
                error = found.std(ddof=1) / math.sqrt(200)
                assert abs(found.mean() - expected) < 5 * error + 1e-9 * expected, (leaf, image)
                assert error < 0.01 * expected


def test_a_pair_of_filters_is_the_mean_of_both_their_relus():
    bank, inputs = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[1.0, 1.0], [2.0, -1.0]])
    responses = inputs @ bank.T
    both = (np.maximum(responses, 0) + np.maximum(-responses, 0)) / 2
    np.testing.assert_allclose(draws._pairs(jnp.asarray(bank), jnp.asarray(inputs)), both)


def test_the_limit_of_average_pooling_of_one_pixel_by_a_large_simulation_in_numpy():
    generator, law = np.random.default_rng(0), draws.paper_law("laplace")
    # Four windows see the pixel through four entries of a filter.
    g = np.maximum(generator.laplace(scale=law.scale(1), size=(2_000_000, 4)), 0).mean(axis=1)
    moments = draws.gaussian_moments(law)
    gaussian = (4 * moments.k2 + 12 * moments.k2 / math.pi) / 16
    expected = draws.expected_network_ratio(law, "average pooling", "one pixel")
    assert np.mean(g**2) / gaussian == pytest.approx(expected**2, rel=0.005)
    assert expected < 0.95


def test_the_jackknife_of_a_mean_is_its_standard_error_and_of_a_ratio_the_delta_methods():
    values = np.random.default_rng(1).normal(size=(400, 2)) * 0.1 + [1.0, 2.0]
    mean, error = jackknife(values, lambda row: float(row[0]))
    assert mean == pytest.approx(values[:, 0].mean())
    assert error == pytest.approx(values[:, 0].std(ddof=1) / 20)
    _, error = jackknife(values, lambda row: float(row[0] / row[1]))
    slope = np.array([1 / values[:, 1].mean(), -values[:, 0].mean() / values[:, 1].mean() ** 2])
    assert error == pytest.approx(math.sqrt(slope @ np.cov(values.T) @ slope / 400), rel=0.01)


def test_inputs_are_the_middle_of_the_picture_and_one_pixel_that_all_windows_see():
    grey = np.arange(48.0).reshape(6, 8)
    whole = inputs_of(grey, 4)
    assert whole.shape == (2, 1, 4, 4)
    np.testing.assert_array_equal(whole[0, 0], grey[1:5, 2:6])
    assert whole[1].sum() == 1
    for top in range(2):
        for left in range(2):
            assert whole[1, 0, top : top + 3, left : left + 3].sum() == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"laws": ()}, "expected --laws to be different ones of gaussian, .* got none"),
        ({"laws": ("laplace", "laplace")}, "--laws .* got laplace laplace"),
        ({"kernels": ()}, "expected --kernels to be different sizes, got none"),
        ({"kernels": (3, 3)}, "expected --kernels to be different sizes, got 3 3"),
        ({"kernels": (0,)}, "--kernels"),
        ({"kernels": (33,)}, "--kernels of at most --size 32"),
        ({"num_draws": 1}, "--num-draws of at least 2"),
        ({"filters": 0}, "--filters"),
        ({"width": -1}, "--width"),
        ({"size": 2, "kernels": (1,)}, "--size"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        reproduce_study(DCN_LAWS, dataclasses.replace(SMALL, **change), StudyOptions(out=tmp_path / "run", quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laws") / "run"
    return reproduce_study(DCN_LAWS, SMALL, StudyOptions(out=folder, quiet=True))


@pytest.mark.slow
def test_the_study_finds_what_is_expected(study):
    found = study.report["findings"]
    assert found["summary"]["moments"] == 9
    assert found["summary"]["moments_z"] < 5
    assert found["summary"]["answers_z"] < 5
    for name in SMALL.laws:
        closed = {key: entry["closed"] for key, entry in found["moments"][name].items()}
        ratios = filters.moment_ratio(name, dimension=9)
        assert (closed["K1"], closed["K2"]) == pytest.approx(ratios)
        for kind in draws.networks():
            for entry in found["networks"][name][kind]["one pixel"].values():
                # At width 32 up to 9% for Laplace, whose K_2 is 11 and excess kurtosis 3; 2.5% for a Gaussian.
                bias = closed["K2"] / 8 + abs((closed["K2"] + 1) / 2 - 3) * (closed["K2"] + 1) / 24
                assert abs(entry["ratio"] - entry["exact"]) < 5 * entry["error"] + bias / SMALL.width
    laplace = found["answers"]["laplace"]["one pixel"]
    assert laplace["own"][1]["exact"] == pytest.approx(1, abs=1e-5)
    assert laplace["gaussian"][1]["exact"] == pytest.approx(math.sqrt(math.pi) / 2, rel=1e-5)
    assert found["networks"]["laplace"]["l2 pooling"]["one pixel"]["own"]["exact"] == pytest.approx(
        2 / math.sqrt(math.pi)
    )


@pytest.mark.slow
def test_a_stopped_study_goes_on_to_the_same_numbers(study, tmp_path):
    folder = shutil.copytree(study.folder, tmp_path / "copy")
    (folder / "report.json").unlink()
    shutil.rmtree(folder / "draws" / "laplace")
    again = reproduce_study(DCN_LAWS, SMALL, StudyOptions(out=folder, quiet=True))
    assert again.report["findings"] == study.report["findings"]
    assert (folder / "draws" / "laplace").is_dir()


@pytest.mark.slow
def test_tables_and_figure_show_the_report(study):
    report = json.loads((study.folder / "report.json").read_text(encoding="utf-8"))
    assert len(study.tables) == 2 + len(INPUTS) * len(READINGS)
    for table in study.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    figure = laws_figure(report)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 6
    points = {each.get_label(): each[0].get_ydata() for each in figure.axes[0].containers}
    for name in SMALL.laws:
        expected = [entry["ratio"] for entry in report["findings"]["answers"][name]["photograph"]["own"]]
        np.testing.assert_allclose(points[name], expected)
