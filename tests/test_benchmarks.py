"""The benchmarks' own arithmetic: floors, comparisons, fits, paired biases; and every table and plot at tiny sizes."""

import datetime
import io
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks stands beside the package

from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import floors, growth, precision, scaling, store, workloads
from benchmarks.peaks import Peaks
from cnninv_jax.experiments.gilbert2017 import Fig2Parameters
from cnninv_jax.rip import conditional

TINY = Fig2Parameters(K=5, M=4, ell=2, D=4, k=2)
DEVICE = {"platform": "cpu", "kind": "Some Chip (R) 3", "count": 2, "name": "2 x Some Chip"}


class FixedPeaks:
    """Peaks of round numbers."""

    normals, accelerator = 1e9, False
    generators = {"a generator": 1e9}  # noqa: RUF012

    def large(self, products):
        return {"float32": 1e11, "bfloat16": 1e12}[products]

    def bandwidth(self, num_bytes):
        return 1e10

    def measured(self):
        return {"normals_per_second": self.generators}


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ([200, 210, 220], [100, 105, 110], "faster"),
        ([100, 105, 110], [200, 210, 220], "slower"),
        ([100, 150, 200], [90, 105, 120], "same"),  # ranges overlap
        ([100, 150, 200], [205, 210, 220], "slower"),
        ([103, 104, 104], [100, 101, 102], "same"),  # too small, however quiet
        ([100, 101, 102], [103, 104, 104], "same"),
    ],
)
def test_a_change_has_to_clear_the_noise(new, old, verdict):
    found = store.change(new, old)
    assert found.verdict == verdict
    assert found.ratio == sorted(new)[1] / sorted(old)[1]
    assert found.spread == max(max(x) / min(x) - 1 for x in (new, old))
    assert verdict in str(found)


def test_nothing_to_compare_with():
    assert store.change([], [1.0]) is None
    assert store.change([1.0], []) is None
    assert store.change([0.0, 1.0], [1.0, 2.0]) is None
    assert store.compare([{"workload": "a", "size": "b", "rates": [1.0]}], None) == {}
    earlier = {"rows": [{"workload": "a", "size": "b", "rates": [1.0]}, {"workload": "a", "size": "c", "error": "no"}]}
    rows = [{"workload": "a", "size": size, "rates": [2.0]} for size in "bcd"]
    assert {key: found.verdict for key, found in store.compare(rows, earlier).items()} == {("a", "b"): "faster"}


def test_stored_records_are_found_again(tmp_path):
    assert store.slug(DEVICE) == "cpu-some-chip-r-3-x2"
    assert store.slug({"platform": "tpu", "kind": "TPU v5 lite", "count": 4}) == "tpu-v5-lite-x4"
    assert store.last(DEVICE, tmp_path) is None
    first = store.save({"device": DEVICE, "rows": []}, tmp_path, now=datetime.datetime(2026, 1, 2, 3, 4, 5))
    assert first.name == "20260102T030405.json"
    store.save({"device": DEVICE, "rows": [{"workload": "x"}]}, tmp_path, now=datetime.datetime(2026, 1, 2, 3, 4, 6))
    assert store.last(DEVICE, tmp_path)["rows"] == [{"workload": "x"}]
    assert store.last({**DEVICE, "count": 1}, tmp_path) is None
    for broken in ("{", "[]", '{"rows": 3}'):
        first.with_name("latest.json").write_text(broken)
        with pytest.raises(ValueError, match=r"expected a stored benchmark in .*latest.json, got .*; delete it"):
            store.last(DEVICE, tmp_path)


def test_numbers_for_people():
    assert [store.percent(share) for share in (1.2, 0.1, 0.0123, 0.00012)] == ["120%", "10%", "1.2%", "0.012%"]
    shown = {
        1.234e9: "1.23 G",
        999.6: "1 k",
        12.0: "12 ",
        4.56e-6: "4.56 u",
        0.0: "-",
        float("nan"): "-",
        5e16: "50,000 T",
    }
    assert {value: store.engineering(value) for value in shown} == shown


@pytest.mark.parametrize("parameters", [Fig2Parameters(), TINY, Fig2Parameters(K=20, M=6, ell=4, D=10, k=4, stride=2)])
def test_work_counts_what_a_draw_draws(parameters):
    p = parameters
    geometry = conditional.Geometry(p.K, p.M, p.ell, p.D, p.stride, p.k)
    bank, seeds = jax.eval_shape(
        lambda key: conditional._normals(key, geometry, np.dtype("float32")), jax.random.key(0)
    )
    work = floors.fig2("conditional", lanes=1, parameters=p)
    assert work.normals == bank.size + seeds.size
    assert work.operations == sum(value for _, value in work.parts)
    # Less than the products as they are written, which move the zeros of placements too.
    written = products_of(lambda key: conditional.draw(key, geometry, "uniform", np.dtype("float32")))
    assert 0.2 * written < work.operations < written
    plain = floors.fig2("plain", lanes=1, parameters=p)
    assert plain.normals == p.K * p.M * p.ell
    assert dict(plain.parts)["h = W x"] == 2 * p.K * geometry.shifts * p.M * p.ell


def products_of(draw):
    """Operations of the matrix products in a computation, branches that are rare left out."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                total += 2 * equation.outvars[0].aval.size * np.prod([left[axis] for axis in contracted])
            for name in ("jaxpr", "call"):
                inner = equation.params.get(name)
                total += count(getattr(inner, "jaxpr", inner)) if hasattr(inner, "eqns") else 0
        return total

    return count(jax.make_jaxpr(draw)(jax.random.key(0)).jaxpr)


def test_floors_add_on_a_cpu_and_overlap_on_an_accelerator():
    work = floors.Work(normals=1000, operations=1e6, num_bytes=2e4)
    peaks = FixedPeaks()
    found = floors.floor(work, peaks)
    np.testing.assert_allclose([found.random, found.product, found.memory], [1e-6, 1e-5, 2e-6])
    np.testing.assert_allclose([found.highest, found.total, found.seconds], [1e-5, 1.3e-5, 1.3e-5])
    peaks.accelerator = True
    assert floors.floor(work, peaks).seconds == found.highest
    fast = floors.floor(floors.Work(operations=1e6, products="bfloat16"), peaks)
    np.testing.assert_allclose(fast.seconds, 1e-6)
    assert floors.floor(floors.Work(), peaks) is None


@pytest.mark.slow
def test_peaks_are_measured(monkeypatch):
    cheap = {"uniform": lambda key, count: jax.random.uniform(key, (count,), np.float32)}
    monkeypatch.setattr("benchmarks.peaks._generators", lambda: cheap)
    peaks = Peaks(smoke=True)
    assert set(peaks.measured()["normals_per_second"]) == {"uniform, stored", "uniform, summed"}
    assert peaks.normals == max(peaks.generators.values()) > 1e4
    assert peaks.large("bfloat16") > 0
    assert peaks.bandwidth(1e3) == peaks.bandwidth(1e9) > 0  # one size in a smoke run
    assert len(peaks.measured()["copy_bytes_per_second"]) == 1
    before = peaks.measured()
    peaks.again()
    for kind, rates in peaks.measured().items():
        assert all(rate >= before[kind][name] for name, rate in rates.items())


def table_text(rows, changes):
    console = Console(width=250, file=io.StringIO())
    console.print(command.table(rows, changes, "a device"))
    return console.file.getvalue()


def test_rows_and_table():
    sizes = workloads.scale(smoke=True)
    names = {suite: [one.name for one in make(sizes)] for suite, make in workloads.SUITES.items()}
    assert all(names.values())
    keys = [(one.name, one.size) for make in workloads.SUITES.values() for one in make(sizes)]
    assert len(set(keys)) == len(keys)
    chosen = command.choose(sizes, ["projection", "engine"], "*")[-3:]
    assert chosen[-1].suite == "engine"
    rows = [workloads.with_floor(workloads.measure(one, 1e-3, 2), one.work, FixedPeaks()) for one in chosen]
    for row in rows:
        assert len(row["rates"]) == 2
        assert row["rate"] > 0
        assert row["program_bytes"] > 0
    assert rows[0]["fraction_of_floor"] == pytest.approx(rows[0]["rate"] / rows[0]["floor_draws_per_second"], rel=1e-3)
    assert "floor_ns" not in rows[-1]  # one normal: what it costs is the engine

    def refuse(seconds, repeats):
        raise ValueError("expected more\n memory")

    broken = workloads.Workload("x", "does not fit", "large", floors.Work(), refuse)
    rows.append(workloads.with_floor(workloads.measure(broken, 1.0), broken.work, FixedPeaks()))
    assert rows[-1]["error"] == "expected more memory"
    first = (rows[0]["workload"], rows[0]["size"])
    text = table_text(rows, {first: store.Change(2.0, 0.1, "faster")})
    for title in ("workload", "size", "compile", "run", "draws/s", "floor", "fraction of floor", "peak memory"):
        assert title in text
    assert text.count("faster x2.00") == 1
    assert text.count("│ new") == 2
    assert "did not run" in text
    lines = command.markdown({"rows": rows}).splitlines()
    assert len(lines) == 2 + len(rows) - 1  # what did not run is left out
    assert {line.count("|") for line in lines} == {8}


def test_choices_are_refused_in_one_sentence(capsys):
    sizes = workloads.scale(smoke=True)
    with pytest.raises(ValueError, match=r"expected suites out of fig2, draw, .*, got 'fig3'"):
        command.choose(sizes, ["fig3"], "*")
    with pytest.raises(ValueError, match="expected a workload that matches 'nothing'"):
        command.choose(sizes, [], "nothing")
    for arguments, said in ((["--seconds", "0"], "positive"), (["--largest", "10"], "at least 10000")):
        with pytest.raises(SystemExit):
            command.parse(arguments)
        assert said in capsys.readouterr().err


def test_part_of_the_suites_keeps_the_other_rows():
    held = [{"workload": "a", "size": "1"}, {"workload": "b", "size": "1"}]
    assert command._others(held, [{"workload": "a", "size": "1"}]) == held[1:]


def test_slope_of_a_power_law():
    draws = np.array([1e4, 1e5, 1e6, 1e7])
    fitted, error = growth.slope(draws, 3e-5 * draws**1.02)
    assert fitted == pytest.approx(1.02)
    assert error < 1e-10
    rng = np.random.default_rng(0)
    slopes = [growth.slope(draws, draws * np.exp(0.1 * rng.normal(size=4))) for _ in range(2000)]
    spread = np.std([value for value, _ in slopes])
    assert spread == pytest.approx(0.1 / np.sqrt(np.sum((np.log(draws) - np.log(draws).mean()) ** 2)), rel=0.1)
    assert np.sqrt(np.mean(np.square([error for _, error in slopes]))) == pytest.approx(spread, rel=0.1)
    assert np.isnan(growth.slope(draws[:2], draws[:2])[1])
    assert np.isnan(growth.slope(draws[:1], draws[:1])[0])


def test_sizes_are_whole_supersteps():
    found = growth.sizes(10_000_000, 8192)
    assert all(size % 8192 == 0 for size in found)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (8192, 8192 * round(1e7 / 8192))
    assert len(growth.sizes(10_000, 8192)) == 1


def test_plots(tmp_path):
    found = [
        {"panel": panel, "x": x, "series": series, "rate": 2.0 * x, "low": 1.0 * x, "high": 3.0 * x, "floor": 9.0 * x}
        for panel in scaling.PANELS
        for series in ("conditional", "plain")
        for x in (1, 2, 4)
    ]
    scaling.draw([*found, {"panel": "lanes", "x": 8, "series": "plain", "error": "no"}], "a device", tmp_path / "a.png")
    grown = [{"draws": 10**e, "seconds": 10.0**e, "resident_mib": 5.0, "device_peak_mib": None} for e in (4, 5)]
    growth.plot(grown, "a device", tmp_path / "b.png")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png"))


def test_scaling_tasks():
    for platform, devices in (("cpu", 6), ("gpu", 8)):
        tasks = scaling.tasks(platform, devices)
        counts = [task.x for task in tasks if task.panel == "devices" and task.sampling == "plain"]
        assert counts == {6: [1, 2, 4, 6], 8: [1, 2, 4, 8]}[devices]
        assert all(task.block % task.lanes == 0 and task.block >= task.lanes for task in tasks)
        assert {task.panel for task in tasks} == set(scaling.PANELS)


def test_biases_of_a_known_change():
    rng = np.random.default_rng(0)
    b = rng.normal(size=20_000)
    noise = 1e-3 * rng.normal(size=b.size)
    a = 1.01 * b + 0.02 + noise
    found = precision.biases(a, b)
    ordered = np.sort(b)
    assert found["mean"]["bias"] == pytest.approx(a.mean() - b.mean())
    assert found["mean"]["error"] == pytest.approx(np.std(a - b) / np.sqrt(b.size), rel=1e-3)
    assert found["sd"]["bias"] == pytest.approx(a.std(ddof=1) - b.std(ddof=1))
    truth = {"mean": 0.02, "sd": 0.01, "q0.001": 0.02 - 0.01 * 3.0902, "q0.999": 0.02 + 0.01 * 3.0902}
    for name, value in truth.items():
        assert abs(found[name]["bias"] - value) < 5 * found[name]["error"] + 1e-6, name
        assert 0 < found[name]["error"] < 5e-3
    # Without noise the change is monotone, so the quantile moves exactly as the draw that stands there.
    exact = precision.biases(1.01 * b + 0.02, b)
    assert exact["q0.001"]["bias"] == pytest.approx(0.02 + 0.01 * ordered[19])
    assert exact["q0.999"]["bias"] == pytest.approx(0.02 + 0.01 * ordered[-20])
    assert precision.biases(b, b)["q0.999"] == {"bias": 0.0, "error": 0.0}


def test_visible_from():
    assert precision.visible_from(1e-3, 1e-4, 1.0) == "1.0e+06"
    assert precision.visible_from(1e-4, 1e-4, 0.3) == "> 1e+06"


@pytest.mark.slow
@pytest.mark.skipif(not jax.config.read("jax_enable_x64"), reason="needs 64-bit types")
@pytest.mark.parametrize("sampling", ["plain", pytest.param("conditional", marks=pytest.mark.slow)])
def test_paired_draws(sampling):
    from cnninv_jax.rip import READINGS, draw_ratios

    parameters = Fig2Parameters(K=5, M=4, ell=2, D=4, k=2, sampling=sampling)
    record = precision.measure(parameters, 128, replicates=10)
    assert set(record["readings"]) == set(READINGS)
    root = jax.random.key(0)

    def alone(products):
        def draw(index):
            key = jax.random.fold_in(jax.random.clone(root), index)
            return draw_ratios(key, 5, 4, 2, 4, 2, sampling=sampling, products=products, dtype=np.float32)

        return jax.jit(jax.vmap(draw))(np.arange(128, dtype=np.uint32))

    full, low = alone("float32"), alone("bfloat16")
    for name, entry in record["readings"].items():
        value, rounded = (np.asarray(found[name], np.float64) for found in (full, low))
        np.testing.assert_allclose(entry["float32"]["mean"], value.mean(), rtol=1e-5)
        pair = entry["bfloat16 - float32"]
        np.testing.assert_allclose(pair["mean"]["bias"], (rounded - value).mean(), atol=2e-6)
        np.testing.assert_allclose(pair["mean"]["bias"], pair["streamed_mean"], atol=1e-7)
        np.testing.assert_allclose(pair["mean"]["error"], pair["streamed_error"], rtol=1e-3)
        assert pair["root_mean_square"] > 1e-4
        assert entry["float32 - float64"]["median"] < 1e-6
