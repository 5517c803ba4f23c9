"""The report on a filter bank against dense NumPy, and the same bank out of every file format."""

import json
import xml.etree.ElementTree

import h5py
import jax
import numpy as np
import oracles
import pytest
import xarray as xr
from safetensors.numpy import save_file

from cnninv_jax import rip
from cnninv_jax.experiments import analysis
from cnninv_jax.experiments.analysis import AnalysisOptions, _bring, _set_up, _structure, analyze
from cnninv_jax.experiments.panels import _with_histograms, analysis_figure

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="compares at float64")
BANK = np.random.default_rng(3).standard_normal((5, 2, 3))
BANK_2D = np.random.default_rng(4).standard_normal((4, 2, 3, 2))


def options(folder, **changes):
    given = {"num_draws": 64, "random_banks": 3, "out": folder, "precision": "float64", "quiet": True, "k": "2"}
    return AnalysisOptions(**{**given, **changes})


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    np.save(folder / "bank.npy", BANK)
    return analyze(str(folder / "bank.npy"), options(folder / "out", signal="7"))


def unit(bank):
    norms = np.sqrt(np.sum(bank**2, axis=tuple(range(1, bank.ndim)), keepdims=True))
    return bank / norms


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize(
    ("bank", "signal", "stride", "padding", "normalize"),
    [(BANK, "7", 2, "same", False), (BANK_2D, "5x4", 1, "valid", False),
     pytest.param(BANK, "7", 1, None, True),
     pytest.param(BANK_2D, "5x4", 1, None, True)],
)  # fmt: skip
def test_structure_against_dense_matrices(bank, signal, stride, padding, normalize):
    chosen = options(None, signal=signal, stride=stride, padding=padding, normalize=normalize)
    content = _structure(chosen, _set_up(chosen, bank)[0], bank, jax.random.key(0))
    rank = bank.ndim - 2
    used = unit(bank) if normalize else bank
    padding = padding or ("valid" if rank == 1 else "same")
    shape, steps = tuple(int(part) for part in signal.split("x")), (stride,) * rank
    eigenvalues = np.linalg.svd(oracles.dense_matrix(used, shape, steps, padding), compute_uv=False) ** 2
    columns = int(np.prod(shape)) * bank.shape[1]
    lower = 0.0 if len(eigenvalues) < columns else eigenvalues.min()
    compared = {name: entry["filters"] for name, entry in content["compared"].items()}
    np.testing.assert_allclose(compared["frame_upper"], eigenvalues.max(), rtol=1e-9)
    np.testing.assert_allclose(compared["frame_lower"], lower, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(
        compared["coherence_filters"], oracles.coherence(used.reshape(len(used), -1).T), rtol=1e-12
    )
    # With same padding the atoms at the border are cut, and closer to each other.
    cut = oracles.dense_matrix(used, shape, steps, padding).T
    shifts = oracles.coherence(cut if padding == "same" else oracles.all_shifts_matrix(used, steps))
    np.testing.assert_allclose(compared["coherence_shifts"], shifts, rtol=1e-12)
    norms = np.linalg.norm(bank.reshape(len(bank), -1), axis=1)
    np.testing.assert_allclose(content["norms"]["values"], norms, rtol=1e-14)
    np.testing.assert_allclose(content["norms"]["mean"], norms.mean(), rtol=1e-14)
    pairs = len(bank) * (len(bank) - 1) // 2
    assert sum(content["cosines"]["filters"]) == sum(content["cosines"]["random"]) == pairs


@pytest.mark.slow
@needs_x64
def test_ratios_against_dense_matrices(report):
    # k of K filters at random places: the mean ratio of these draws is a mean over eigenvalue mixtures, so only
    # bounds hold draw by draw; both follow from the frame bounds of the dense matrix.
    values = np.linalg.svd(oracles.dense_matrix(unit(BANK), (7,), (1,)), compute_uv=False)
    with xr.open_dataset(report.folder / "filters.nc", engine="h5netcdf") as saved:
        assert float(saved["model_rip_draws"].max()) <= values.max() * (1 + 1e-12)
        assert float(saved["full_gram_draws"].max()) <= values.max() ** 2 * (1 + 1e-12)
        assert np.all(saved["restricted_gram_draws"] <= saved["full_gram_draws"] * (1 + 1e-12))


@pytest.mark.slow
def test_report_repeats_the_saved_draws(report):
    content = strict(report.folder / "report.json")
    for kind in ("filters", "random"):
        with xr.open_dataset(report.folder / f"{kind}.nc", engine="h5netcdf") as saved:
            for name in rip.READINGS:
                draws, entry = saved[f"{name}_draws"].to_numpy(), content["ratios"][kind][name]
                assert len(draws) == 64
                np.testing.assert_allclose(entry["mean"], draws.mean(), rtol=1e-12)
                np.testing.assert_allclose(entry["standard_deviation"], draws.std(ddof=1), rtol=1e-9)
                np.testing.assert_allclose(entry["median_low_high"][0], np.median(draws), rtol=0.2)
                assert (entry["min"], entry["max"]) == (draws.min(), draws.max())


@pytest.fixture
def same_structure(monkeypatch, report):
    """Norms, coherence and bounds are computed anew every time; here they need not be."""
    parts = ("shape", "norms", "compared", "frame_residuals", "cosines", "pairing")
    monkeypatch.setattr(analysis, "_structure", lambda *_: {name: report.content[name] for name in parts})


@pytest.mark.slow
def test_the_same_report_is_read_back(report, same_structure):
    again = analyze(report.content["origin"]["source"], options(report.folder, signal="7"))
    for kind in ("filters", "random"):
        assert again.content["provenance"][kind]["compile_seconds"] == 0
    assert again.content["ratios"] == report.content["ratios"]


@pytest.mark.slow
def test_another_bank_in_the_same_folder_is_refused(report, same_structure, tmp_path):
    np.save(tmp_path / "bank.npy", 2 * BANK)
    with pytest.raises(Exception, match=r"filters holds another run .*bank: journal has"):
        analyze(str(tmp_path / "bank.npy"), options(report.folder, signal="7"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "h5"])
def test_formats_and_layouts_agree(tmp_path, report, suffix):
    path = tmp_path / f"bank.{suffix}"
    last = np.ascontiguousarray(np.moveaxis(BANK, (0, 1), (-1, -2)))
    if suffix == "npy":
        np.save(path, last)
    elif suffix == "npz":
        np.savez(path, w=last, b=np.zeros(5))
    elif suffix == "safetensors":
        save_file({"w": last, "b": np.zeros(5)}, path)
    else:
        with h5py.File(path, "w") as file:
            file["layer/w"] = last
    chosen = options(None, layout=None if suffix == "h5" else "lMK")
    bank, origin = _bring(str(path), chosen, np.dtype(np.float64))
    assert origin["layout"] == "lMK"
    np.testing.assert_array_equal(bank, BANK)
    assert report.content["origin"]["layout"] == "KMl"


@pytest.mark.parametrize(
    ("ensemble", "shape"),
    [("gaussian:K=6,M=2,ell=3", (6, 2, 3)), ("sphere:K=4,M=2,ell=2x3", (4, 2, 2, 3)),
     ("laplace:K=6,M=2,ell=3,normalize=true", (6, 2, 3))],
)  # fmt: skip
def test_ensembles(ensemble, shape):
    bank, origin = _bring(ensemble, options(None), np.dtype(np.float32))
    assert bank.shape == shape
    assert origin["layout"] == "drawn"
    again, _ = _bring(ensemble, options(None), np.dtype(np.float32))
    other, _ = _bring(ensemble, options(None, seed=1), np.dtype(np.float32))
    np.testing.assert_array_equal(bank, again)
    assert not np.any(bank == other)
    if "true" in ensemble or "sphere" in ensemble:
        np.testing.assert_allclose(np.linalg.norm(bank.reshape(len(bank), -1), axis=1), 1.0, rtol=1e-6)


def test_one_value_up_to_rounding_is_one_bar():
    # With k = 1 and unit norms, (a) and (b) are 1 up to the rounding of float32.
    draws = 1 + np.float32(6e-8) * np.arange(4, dtype=np.float32)
    dataset = xr.Dataset({f"{name}_draws": ("draw", draws) for name in rip.READINGS})
    counts = _with_histograms(dataset)["model_rip_histogram"].to_numpy()
    assert counts.tolist() == [4]


@pytest.mark.slow
def test_one_filter_has_no_coherence_over_filters():
    chosen = options(None, k="1", signal="7")
    content = _structure(chosen, _set_up(chosen, BANK[:1])[0], BANK[:1], jax.random.key(0))
    assert "coherence_filters" not in content["compared"]
    assert sum(content["cosines"]["filters"]) == 0


@pytest.mark.slow
def test_figure_comes_from_saved_files(report):
    content = strict(report.folder / "report.json")
    with (
        xr.open_dataset(report.folder / "filters.nc", engine="h5netcdf") as mine,
        xr.open_dataset(report.folder / "random.nc", engine="h5netcdf") as random,
    ):
        figure = analysis_figure(content, mine, random)
    assert len(figure.axes) == 7
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.patches
        assert axes.get_legend() is not None
    assert (report.folder / "analysis.png").read_bytes().startswith(b"\x89PNG")
    assert xml.etree.ElementTree.parse(report.folder / "analysis.svg").getroot().tag.endswith("svg")
    assert not list(report.folder.rglob(".*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stride": 0}, "expected --stride to be an integer from 1"),
        ({"signal": "7x7"}, "expected --signal to be 32 for 1-D filters"),
        ({"signal": "2"}, "use D >= 3"),
        ({"k": "6"}, "expected 1 <= k <= 5"),
        ({"k": "nan"}, "expected a fraction k"),
        ({"k": "few"}, "expected --k to be a number or a fraction"),
        ({"pool": -1}, "expected --pool"),
        ({"num_draws": 1}, "expected at least 2 draws"),
        ({"num_draws": 2**33}, "expected --num-draws"),
        ({"random_banks": 1}, "expected at least 2 draws and 2 random banks"),
        ({"seed": -1}, "expected a seed"),
        ({"layout": "llMK"}, "use 'KMl' or 'lMK'"),
    ],
)
def test_refusals_leave_no_folder(tmp_path, change, said):
    np.save(tmp_path / "bank.npy", BANK)
    with pytest.raises(ValueError, match=said):
        analyze(str(tmp_path / "bank.npy"), options(tmp_path / "new" / "out", **change))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("entry", [np.nan, np.inf, 0.0])
def test_banks_that_no_theorem_speaks_about(tmp_path, entry):
    bank = BANK.copy()
    bank[1] = entry
    np.save(tmp_path / "bank.npy", bank)
    with pytest.raises(ValueError, match=r"bank\.npy"):
        analyze(str(tmp_path / "bank.npy"), options(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
