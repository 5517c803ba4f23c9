"""Cells of a sweep: order, identity, keys, and what a grid may hold."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnninv_jax.montecarlo.grid import BoundDraw, bind, make_grid, refinement


def draw(key, **parameters):
    return parameters


@pytest.mark.parametrize(
    ("count", "levels"),
    [
        (1, (0,)),
        (2, (0, 0)),
        (3, (0, 1, 0)),
        (5, (0, 2, 1, 2, 0)),
        (8, (0, 2, 3, 1, 3, 2, 3, 0)),
        (9, (0, 3, 2, 3, 1, 3, 2, 3, 0)),
    ],
)
def test_refinement_goes_ends_middle_quarters(count, levels):
    assert refinement(count) == levels


@pytest.mark.parametrize("count", range(1, 40))
def test_each_level_halves_the_widest_gap(count):
    levels = np.asarray(refinement(count))
    assert levels[0] == levels[-1] == 0
    previous = count - 1
    for level in range(1, levels.max() + 1):
        gaps = np.diff(np.flatnonzero(levels <= level))
        assert gaps.max() <= -(-previous // 2)
        previous = gaps.max()
    assert previous <= 1


def test_every_prefix_of_levels_is_a_full_coarser_grid():
    grid = make_grid({"a": range(8), "b": [0.1, 0.2, 0.3, 0.4, 0.5], "c": ["x", "y", "z"]})
    assert len(grid.cells) == 8 * 5 * 3
    levels = [cell.level for cell in grid.cells]
    assert levels == sorted(levels)
    for level in range(max(levels) + 1):
        indices = {cell.index for cell in grid.cells if cell.level <= level}
        axes = [sorted({index[axis] for index in indices}) for axis in range(3)]
        assert indices == set(itertools.product(*axes))


def test_cells_of_a_level_are_grouped_by_what_is_compiled():
    grid = make_grid({"sigma": np.linspace(0.0, 1.0, 9), "size": range(9)})
    for _, cells in itertools.groupby(grid.cells, key=lambda cell: cell.level):
        groups = [cell.group for cell in cells]
        assert len(list(itertools.groupby(groups))) == len(set(groups))
    # The next level begins with the programs used last: a cache of few programs misses less.
    groups = [group for group, _ in itertools.groupby(cell.group for cell in grid.cells)]
    assert len(groups) - len(set(groups)) <= 9 + 5 + 3 - 3


def test_a_grown_grid_keeps_identities_folders_and_keys():
    small = make_grid({"k": [2, 8], "sigma": [0.5]})
    large = make_grid({"sigma": [0.25, 0.5], "k": [1, 2, 3, 8]})
    root = jax.random.key(3)
    for cell in small.cells:
        again = large.find(cell.parameters)
        assert again.identity == cell.identity
        assert again.folder == cell.folder
        assert jnp.array_equal(jax.random.key_data(again.key(root)), jax.random.key_data(cell.key(root)))


def test_keys_are_the_roots_with_64_bits_of_the_identity_folded_in():
    import hashlib

    root = jax.random.key(7)
    grid = make_grid({"k": range(50), "on": [True, False]})
    for cell in grid.cells[:3]:
        digest = hashlib.sha256(cell.identity.encode()).digest()
        high, low = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
        want = jax.random.fold_in(jax.random.fold_in(root, np.uint32(high)), np.uint32(low))
        assert jnp.array_equal(jax.random.key_data(cell.key(root)), jax.random.key_data(want))
    assert len({tuple(jax.random.key_data(cell.key(root)).tolist()) for cell in grid.cells}) == 100
    assert grid.cells[5].key(root, common=True) is root


def test_identity_is_canonical_json_of_the_values():
    (cell,) = make_grid({"b": [1], "a": [0.5], "c": [("x", None, True)]}).cells
    assert json.loads(cell.identity) == {"a": 0.5, "b": 1, "c": ["x", None, True]}
    assert cell.identity.startswith('{"a":0.5,')
    assert str(cell) == "b=1, a=0.5, c=xxNonexTrue"
    assert cell.folder.startswith("a=0.5,b=1,c=xxNonexTrue-")


def test_arrays_count_by_their_content():
    first, second = np.zeros((2, 3)), np.ones((2, 3))
    grid = make_grid({"bank": [first, second]})
    assert len({cell.identity for cell in grid.cells}) == 2
    assert make_grid({"bank": [second.copy()]}).cells[0].identity == grid.cells[1].identity
    assert grid.find({"bank": np.ones((2, 3))}).index == (1,)
    assert grid.cells[0].folder.startswith("bank=array_2x3_")


@pytest.mark.parametrize(
    ("values", "traced"),
    [
        ([1, 2], False),
        ([True, False], False),
        (["a", "b"], False),
        ([(1, 2), None], False),
        ([None, 0.5], False),
        ([0.5, 1.5], True),
        ([1, 1.5], True),
        (np.linspace(0, 1, 3), True),
        (np.arange(3), False),
        ([np.zeros(2), np.ones(2)], True),
        (jnp.linspace(0.0, 1.0, 3), True),
    ],
    ids=str,
)
def test_what_is_traced_by_default(values, traced):
    assert make_grid({"p": values}).axes[0].traced == traced


def test_exceptions_to_the_rule():
    grid = make_grid({"k": [1, 2], "sigma": [0.5, 1.0], "on": [True, False]}, static=["sigma"], traced=("k", "on"))
    assert [axis.traced for axis in grid.axes] == [True, False, True]
    bound = bind(draw, grid, grid.cells[0])
    assert set(bound.traced) == {"k", "on"}
    assert bound.traced["k"].weak_type
    assert jnp.issubdtype(bound.traced["k"].dtype, jnp.integer)
    assert bound.traced["on"].dtype == bool


def test_cells_of_a_group_have_one_signature():
    from cnninv_jax.montecarlo.program import split_draw

    grid = make_grid({"sigma": [1, 0.5, 0.25], "size": [1, 2], "law": ["a"]})
    key = jax.random.key(0)
    signatures = {cell.identity: split_draw(bind(draw, grid, cell), key)[0] for cell in grid.cells}
    assert len(set(signatures.values())) == 2
    groups = {(cell.group, signatures[cell.identity]) for cell in grid.cells}
    assert len(groups) == 2
    again = make_grid({"sigma": [0.75], "size": [2], "law": ["a"]})
    assert split_draw(bind(draw, again, again.cells[0]), key)[0] in signatures.values()


def test_one_true_and_one_point_zero_are_told_apart():
    one = [BoundDraw(draw, {}, (("p", text, value),)) for text, value in (("1", 1), ("true", True), ("1.0", 1.0))]
    assert len({jax.tree.structure(bound) for bound in one}) == 3


def test_parameters_reach_the_draw():
    grid = make_grid({"sigma": [0.5], "size": [(1, 2)], "bank": [np.ones(3, np.float32)]})
    got = bind(draw, grid, grid.cells[0])(jax.random.key(0))
    assert got["sigma"] == 0.5
    assert got["sigma"].weak_type
    assert got["size"] == (1, 2)
    assert got["bank"].dtype == np.float32


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "i"), ([0.5, 1], "f"), (["a", "bc"], "U"), ([True, False], "b"), ([None, 1], "U"), ([(1, 2), 3], "U")],
    ids=str,
)
def test_coordinates(values, kind):
    coordinate = make_grid({"p": values}).axes[0].coordinate
    assert coordinate.dtype.kind == kind
    assert len(coordinate) == len(values)


def test_coordinates_of_arrays():
    assert make_grid({"p": [np.zeros(2), np.ones(2)]}).axes[0].coordinate.tolist() == [0, 1]
    assert make_grid({"p": jnp.asarray([0.5, 2.0])}).axes[0].coordinate.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (({},), "expected grid to map parameter names to their values"),
        (([1, 2],), "expected grid to map parameter names to their values"),
        (({"k": []},), "expected at least one value for k"),
        (({"k": 3},), "expected a sequence of values for k, got 3"),
        (({"k": "abc"},), "expected a sequence of values for k, got 'abc'"),
        (({"k": [1, 2, 1]},), "expected every value of k once, got 1 more than once"),
        (({"k": [1, 1.0]},), "expected every value of k once"),
        (({"k": [[1, 2]]},), "expected values of k to be numbers, strings"),
        (({"k": [{}]},), "expected values of k to be numbers, strings"),
        (({"a b": [1]},), "expected parameter names that can be keywords of the draw, got 'a b'"),
        (({"k": [1]}, ["m"]), r"name parameters of the grid \['k'\], got \['m'\]"),
        (({"k": [1]}, ["k"], ["k"]), "expected every parameter once in static or traced"),
        (({"k": ["a"]}, None, ["k"]), "expected numbers or arrays as values of the traced k"),
        (({"k": [np.zeros(2)]}, ["k"]), "expected static values of k to be hashable, got arrays"),
    ],
    ids=str,
)
def test_mistakes_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_grid(*arguments)


def test_a_cell_that_is_not_there():
    grid = make_grid({"k": [1, 2], "sigma": [0.5]})
    assert grid.find({"sigma": 0.5, "k": 2}).parameters == {"k": 2, "sigma": 0.5}
    with pytest.raises(ValueError, match="expected one of the values 1, 2 of k, got 3"):
        grid.find({"k": 3, "sigma": 0.5})
    with pytest.raises(ValueError, match=r"expected a value of each of \['k', 'sigma'\], got \['k'\]"):
        grid.find({"k": 2})
