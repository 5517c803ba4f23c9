"""Pictures, their convergence values and finite networks: the study against its parts, and from the command line."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import refused
from matplotlib.figure import Figure
from PIL import Image

from cnninv_jax import data
from cnninv_jax.cli import main
from cnninv_jax.experiments.dcn_values import DCN_VALUES, DcnValuesParameters, angle
from cnninv_jax.experiments.dcn_values_figure import values_figure
from cnninv_jax.experiments.dcn_values_networks import ARCHITECTURES, described, network, poolings
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study
from cnninv_jax.images import to_grey
from cnninv_jax.limits import convergence_value, random_output
from cnninv_jax.limits.layers import plan

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")

SMALL = DcnValuesParameters(size=12, widths=(16, 4), num_draws=3)


def dataset_of(folder):
    import xarray as xr

    with xr.open_dataset(folder / "result.nc", engine="h5netcdf") as dataset:
        return dataset.load()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_returns_a_map_of_the_pictures_size(name):
    for pooling in poolings(name):
        for kernel in (2, 3):
            layers = network(name, pooling, kernel)
            assert plan(layers, (3, 12, 12))[-1].outputs == (12, 12)
            assert described(layers).count("conv") == {"encoder-decoder": 3, "cd1": 4, "conv": 1, "deep": 5}[name]


def test_angles_small_and_large():
    first = jnp.asarray([[1.0, 0.0]])
    for degrees in (1e-5, 1.0, 45.0, 90.0, 135.0, 180.0):
        turned = jnp.asarray([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])
        assert float(angle(3 * turned, first)) == pytest.approx(degrees, rel=1e-6)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values") / "run"
    return reproduce_study(DCN_VALUES, SMALL, StudyOptions(out=folder, quiet=True, seed=4))


@pytest.mark.slow
def test_the_study_holds_limits_and_draws_of_the_library(study):
    dataset = dataset_of(study.folder)
    rgb = jnp.asarray(data.read_picture(data.picture_files()[0], 12))
    grey = to_grey(rgb)
    np.testing.assert_allclose(dataset["picture"], grey, rtol=1e-6)
    for place, pooling in enumerate(("l2", "average")):
        layers = network("encoder-decoder", pooling, 3)
        limit = np.asarray(convergence_value(grey[None], layers))
        np.testing.assert_allclose(dataset["limit"].sel(pooling=pooling), limit, rtol=1e-5)
        found = study.report["findings"]["networks"][pooling]
        cosine = np.sum(limit * np.asarray(grey)) / np.linalg.norm(limit) / np.linalg.norm(grey)
        assert found["limit_to_picture"] == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-4)
        assert found["theorem_9"] is None
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), place), 16)
        outputs = [random_output(jax.random.fold_in(key, draw), grey[None], layers, width=16) for draw in range(3)]
        shown = dataset["output"].sel(pooling=pooling, width=16)
        np.testing.assert_allclose(shown, outputs[0], rtol=1e-4, atol=1e-6 * float(outputs[0].max()))
        angles = [float(angle(output, limit)) for output in outputs]
        assert found["widths"]["16"]["limit"]["mean"] == pytest.approx(np.mean(angles), rel=1e-4)
        assert found["widths"]["16"]["limit"]["first"] == pytest.approx(angles[0], rel=1e-4)
        np.testing.assert_allclose(dataset["angle"].sel(pooling=pooling, width=16, to="limit"), angles, rtol=1e-4)


def of_another_network(folder, **changes):
    p = dataclasses.replace(SMALL, widths=(4,), num_draws=2, **changes)
    outcome = reproduce_study(DCN_VALUES, p, StudyOptions(out=folder / "run", quiet=True))
    assert len(values_figure(outcome.report, dataset_of(outcome.folder)).axes) == 3
    return outcome.report["findings"], outcome.tables[0].notes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "deep"])
def test_the_bound_of_theorem_9_stands_beside_the_angle_where_it_applies(name, tmp_path):
    held, notes = of_another_network(tmp_path, architecture=name)
    # The theorem: the angle is at most the bound.
    assert 0 < held["networks"]["none"]["limit_to_picture"] < held["networks"]["none"]["theorem_9"] < 90
    assert "Theorem 9" in notes[-1]


@pytest.mark.slow
def test_a_picture_in_colour_has_no_bound(tmp_path):
    held, notes = of_another_network(tmp_path, architecture="conv", colour=True)
    assert held["channels"] == 3
    assert held["networks"]["none"]["theorem_9"] is None
    assert "leave --colour out" in notes[-1]


@pytest.mark.slow
def test_a_stopped_study_goes_on_to_the_same_numbers(study, tmp_path):
    folder = shutil.copytree(study.folder, tmp_path / "copy")
    (folder / "report.json").unlink()
    shutil.rmtree(folder / "draws" / "average-4")
    again = reproduce_study(DCN_VALUES, SMALL, StudyOptions(out=folder, quiet=True, seed=4))
    assert again.report["findings"] == study.report["findings"]
    assert dataset_of(folder).equals(dataset_of(study.folder))
    assert (folder / "draws" / "average-4").is_dir()


@pytest.mark.slow
def test_the_figure_shows_the_first_draws_from_narrow_to_wide(study):
    dataset = dataset_of(study.folder)
    figure = values_figure(study.report, dataset)
    assert isinstance(figure, Figure)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 8
    assert ["4" in titles[1], "16" in titles[2], "limit" in titles[3]] == [True] * 3
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_allclose(shown[1], dataset["output"].sel(pooling="l2", width=4))
    np.testing.assert_allclose(shown[6], dataset["output"].sel(pooling="average", width=16))
    np.testing.assert_allclose(shown[7], dataset["limit"].sel(pooling="average"))


@pytest.mark.slow
def test_the_table(study):
    (table,) = study.tables
    assert [row[0] for row in table.rows] == [
        f"{pooling} pooling, {what}" for pooling in ("l2", "average") for what in ("N = 16", "N = 4", "limit f*")
    ]
    assert any("lattice" in note for note in table.notes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"widths": ()}, "expected --widths to be different widths, got none"),
        ({"widths": (4, 4)}, "got 4 4"),
        ({"widths": (0,)}, "--widths"),
        ({"num_draws": 1}, "--num-draws of at least 2"),
        ({"size": 13}, "expected an even --size .* take 12 or 14"),
        ({"size": 0}, "--size"),
        ({"kernel": 0}, "--kernel"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        reproduce_study(
            DCN_VALUES, dataclasses.replace(SMALL, **change), StudyOptions(out=tmp_path / "run", quiet=True)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_from_the_command_line_with_a_picture_and_resumed(scratch, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)).save("own.png")
    command = ["reproduce", "dcn-values", "own.png", "--architecture", "conv", "--size", "8", "--widths", "4"]
    command += ["--num-draws", "2", "--out", "run", "--quiet"]
    assert main(command) == 0
    first = json.loads((scratch / "run" / "report.json").read_text())
    assert first["findings"]["picture"] == "own.png"
    assert first["parameters"]["picture"] == str(scratch / "own.png")
    (scratch / "run" / "report.json").unlink()
    assert main(["resume", "run", "--quiet"]) == 0
    assert json.loads((scratch / "run" / "report.json").read_text())["findings"] == first["findings"]
    sentence = refused(capsys, "reproduce", "dcn-values", "none.png", "--out", "other")
    assert "expected PICTURE to be the file of a picture, found none at none.png" in sentence
    sentence = refused(capsys, "reproduce", "dcn-laws", "--picture", "none.png", "--out", "other")
    assert "expected --picture to be the file of a picture" in sentence
