"""ReLUs against thresholds: one draw against dense matrices, what signs do, and the study as a whole."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import dense_matrix

from cnninv_jax import dcsc
from cnninv_jax.experiments.dcsc_dictionaries import Dictionaries, build
from cnninv_jax.experiments.dcsc_relu import DCSC_RELU, ReluParameters
from cnninv_jax.experiments.dcsc_relu_draws import PROJECTIONS, SETTINGS, SHRINKING, Blocks, one_draw, positive
from cnninv_jax.experiments.studies import StudyOptions, reproduce_study

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="one width is enough")

SIZES = Dictionaries(D=12, M=32, num_filters=(8, 4), ell=3, nonzeros=3, places="random")
SMALL = ReluParameters(
    D=12, M=32, num_filters=(8, 4), ell=3, nonzeros=3, depths=(2,), S=(1, 6), num_draws=12, block=6
)  # fmt: skip
SHRINK = 0.5
#: What is left of responses h at beta, in NumPy.
LEFT = {
    "hard": lambda h, beta: np.where(np.abs(h) > beta, h, 0),
    "relu": lambda h, beta: np.where(h > beta, h, 0),
    "crelu": lambda h, beta: np.where(np.abs(h) > beta, h, 0),
    "soft": lambda h, beta: np.sign(h) * np.maximum(np.abs(h) - beta, 0),
    "shifted_relu": lambda h, beta: np.maximum(h - beta, 0),
    "shifted_crelu": lambda h, beta: np.sign(h) * np.maximum(np.abs(h) - beta, 0),
}


#: Keys of signs.
KEYS = jax.random.split(jax.random.key(1), 40)


@pytest.fixture(scope="module")
def blocks():
    return Blocks(build(jax.random.key(3), SIZES, 2, "float32"), 6, SHRINK, (1.0, 1.0))


@pytest.fixture(scope="module")
def model():
    return build(jax.random.key(3), SIZES, 2, "float64")


@pytest.fixture(scope="module")
def code(model):
    deepest = np.zeros(model[-1].op.code_shape)
    deepest[0, 1] = deepest[2, 6] = 1.0
    deepest[1, 9] = 1.5
    return jnp.asarray(deepest)


@pytest.fixture(scope="module")
def drawn(model, code):
    """Outcomes of one code for every key."""
    found = jax.jit(jax.vmap(lambda key: one_draw(model, code, key, shrink=SHRINK)))(jax.random.clone(KEYS))
    return jax.tree.map(np.asarray, found)


def dense(model):
    """A^(l) of every layer, by columns."""
    return [dense_matrix(one.op.filters, one.op.signal_shape, one.op.stride, "circular").T for one in model]


@pytest.mark.parametrize("number", [0, 1])
def test_one_draw_against_dense_matrices(model, code, drawn, number):
    found = jax.tree.map(lambda leaf: leaf[number], drawn)
    models = {"random": dcsc.draw_signs(KEYS[number], model), "mixed": model, "positive": positive(model)}
    for setting, layers in models.items():
        matrices = [
            matrix * np.asarray(layer.signs).ravel() for matrix, layer in zip(dense(layers), layers, strict=True)
        ]
        path = [np.asarray(code).ravel()]
        for matrix in matrices[::-1]:
            path.insert(0, matrix @ path[0])
        active = [np.abs(one) > 1e-9 for one in path[1:]]
        np.testing.assert_array_equal(found[setting]["entries"], [there.sum() for there in active])
        np.testing.assert_array_equal(found[setting]["negative"], [(one < -1e-9).sum() for one in path[1:]])
        for name, keep in LEFT.items():
            estimate, reached = path[0], True
            for at, (matrix, one, there) in enumerate(zip(matrices, path[1:], active, strict=True)):
                beta = np.min(np.abs(one[there])) / 2 * (SHRINK**at if name in SHRINKING else 1)
                estimate = keep(matrix.T @ estimate, beta)
                have = estimate != 0
                reached &= bool(np.all(have == there))
                counts = {
                    "hits": have & there,
                    "misses": ~have & there,
                    "false_alarms": have & ~there,
                    "missed_negative": ~have & there & (one < 0),
                }
                assert found[setting][name]["reached"][at] == reached
                for count, wanted in counts.items():
                    assert found[setting][name][count][at] == wanted.sum(), (setting, name, count, at)
            assert found[setting][name]["path"] == reached
        np.testing.assert_array_equal(found[setting]["equal"], True)


def test_signs_of_every_setting(model, code, drawn):
    found = drawn
    assert all(np.all(np.asarray(one) >= 0) for one in dcsc.reverse_pass(positive(model), code)[1:])
    np.testing.assert_array_equal(positive(model)[0].op.filters, model[0].op.filters)
    negative, entries = (np.sum(found["random"][name][:, 0]) for name in ("negative", "entries"))
    assert abs(negative / entries - 0.5) < 5 * 0.5 / np.sqrt(entries)  # signs of X^(1) are fair and independent
    assert not np.any(found["positive"]["negative"])
    for setting in SETTINGS:
        assert not np.any(found[setting]["negative"][:, -1])  # X^(L) >= 0
        # Whatever is negative is lost by a one-sided projection, without exception.
        for name in ("relu", "shifted_relu"):
            np.testing.assert_array_equal(
                found[setting][name]["missed_negative"][:, 0], found[setting]["negative"][:, 0]
            )
    # D = I draws nothing: all keys agree.
    assert all(np.all(leaf == leaf[0]) for leaf in jax.tree.leaves(found["mixed"]))


@pytest.mark.slow
def test_blocks_are_pure_functions_and_add_up(blocks):
    key = jax.random.key(0)
    rows = [blocks.row(key, 6, number) for number in (0, 1)]
    assert rows[1] == blocks.row(key, 6, 1)
    assert rows[0] != rows[1]
    total, first, second = blocks.total(rows), blocks.total(rows[:1]), blocks.total(rows[1:])
    jax.tree.map(lambda whole, a, b: np.testing.assert_array_equal(whole, a + b), total, first, second)
    for setting in SETTINGS:
        for name in PROJECTIONS:
            held = total[setting][name]
            np.testing.assert_array_equal(held["hits"] + held["misses"], total[setting]["entries"])
            assert held["path"] == held["reached"][-1]
            assert np.all(np.diff(held["reached"]) <= 0)


@pytest.mark.slow
def test_least_sparsity(blocks):
    least = blocks.least()
    assert len(blocks.row(jax.random.key(0), least, 0)) == len(blocks.row(jax.random.key(0), least + 1, 0))
    with pytest.raises(ValueError, match="sparsity that one non-zero"):
        blocks.row(jax.random.key(0), least - 1, 0)


@pytest.mark.slow
def test_study(tmp_path):
    options = StudyOptions(out=tmp_path / "a", quiet=True)
    outcome = reproduce_study(DCSC_RELU, SMALL, options)
    found = outcome.report["findings"]
    cells = {(cell["depth"], cell["asked"]): cell for cell in found["cells"]}
    assert found["models"]["2"]["least_S"] > 1
    assert set(cells) == {(2, 6)}  # one deep atom alone has more than one non-zero
    for (_, asked), cell in cells.items():
        assert cell["draws"] == 12
        assert 0 < cell["S"][0] <= asked
        for held in cell["settings"].values():
            assert held["equal"] == {"crelu": 12, "shifted_crelu": 12}
            for name, one in held["projections"].items():
                p, low, high = one["path"]
                assert 0 <= low <= p <= high <= 1, name
                assert p == one["reached"][-1] / 12
    deep = cells[2, 6]["settings"]
    paths = {
        setting: {name: one["path"][0] for name, one in held["projections"].items()} for setting, held in deep.items()
    }
    assert paths["random"]["relu"] < paths["random"]["crelu"]
    assert paths["positive"]["relu"] >= paths["positive"]["hard"]
    assert deep["positive"]["projections"]["relu"]["misses"] == deep["positive"]["projections"]["hard"]["misses"]
    assert len(outcome.tables) == 4
    assert [sum("For this dictionary" in note for note in table.notes) for table in outcome.tables] == [0, 1, 1, 0]
    assert {file.name for file in outcome.files} == {"report.json", "dcsc-relu.png", "dcsc-relu.svg"}
    # More draws go on where fewer ended, bit by bit.
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "draws.json").write_text((tmp_path / "a" / "draws.json").read_text())
    held = json.loads((tmp_path / "b" / "draws.json").read_text())
    for rows in held["rows"].values():
        rows.pop()
    (tmp_path / "b" / "draws.json").write_text(json.dumps(held))
    again = reproduce_study(DCSC_RELU, SMALL, StudyOptions(out=tmp_path / "b", quiet=True))
    assert again.report["findings"] == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"S": ()}, "at least one value of --S"),
        ({"S": (0,)}, "--S to be an integer"),
        ({"depths": (3,)}, "--num-filters for each of 3 layers"),
        ({"S": (6, 6)}, "--S to be different numbers"),
        ({"depths": (2, 2)}, "--depths to be different numbers"),
        ({"num_draws": 0}, "--num-draws"),
        ({"smallest": 2.0}, "0 < --smallest <= --largest"),
        ({"shrink": 0.0}, "--shrink above 0"),
        ({"depths": (2,), "S": (1,)}, r"an --S that one non-zero of X\^\(L\) keeps, at least"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refusals(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        reproduce_study(DCSC_RELU, dataclasses.replace(SMALL, **change), StudyOptions(out=tmp_path / "c", quiet=True))
