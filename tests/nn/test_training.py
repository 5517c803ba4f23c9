"""The training loop: exact resume, divergence, devices, what learns and what does not."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cnninv_jax.nn.blocks import Frozen
from cnninv_jax.nn.checkpoints import CheckpointError
from cnninv_jax.nn.evaluation import evaluate
from cnninv_jax.nn.objectives import classification_metrics
from cnninv_jax.nn.recipes import Recipe
from cnninv_jax.nn.training import epoch_order, train, train_step

from . import small

KEY = jax.random.key(1)


def fit(model=None, recipe=small.RECIPE, data=small.DATA, **options):
    options = {"key": KEY, "prepare": small.PREPARE, "quiet": True, "name": "small", **options}
    return train(model or small.Net(), small.LOSS, data, recipe, **options)


def same(first, second):
    """Whether two models and histories agree in every bit."""
    leaves = zip(jax.tree.leaves(nnx.state(first.model)), jax.tree.leaves(nnx.state(second.model)), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves) and all(
        np.array_equal(first.history[name], second.history[name]) for name in first.history
    )


@pytest.fixture(scope="module")
def whole():
    return fit()


def stop_at(step):
    def callback(progress):
        if progress.done >= step and progress.stage == "running":
            raise KeyboardInterrupt

    return callback


def test_it_learns_and_says_how(whole):
    assert whole.status == "finished"
    assert whole.message == "small: 40 steps"
    assert set(whole.history) == {"loss", "accuracy"}
    assert whole.history["loss"].shape == (40,)
    assert whole.history["loss"][-10:].mean() < whole.history["loss"][:5].mean() - 0.1
    found = evaluate(whole.model, classification_metrics, small.DATA, batch_size=32, prepare=small.PREPARE)
    assert found["correct"].shape == (70,)
    assert found["correct"].mean() > 0.5
    assert whole.seconds > 0
    assert whole.examples_per_second > 0


def test_frozen_filters_stay_and_the_module_given_is_not_changed(whole):
    fresh = small.Net()
    model = small.Net()
    before = jax.tree.map(np.array, nnx.state(model))
    trained = fit(model)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(trained.model.conv.kernel, Frozen)
    np.testing.assert_array_equal(trained.model.conv.kernel[...], fresh.conv.kernel[...])
    for part in (trained.model.conv.norm.scale, trained.model.conv.norm.mean, trained.model.out.kernel):
        start = {id(trained.model.conv.norm.scale): fresh.conv.norm.scale}.get(id(part))
        assert start is None or not np.array_equal(start[...], part[...])
    assert same(trained, whole)


@pytest.mark.parametrize("step", [16, 32])
def test_stopped_and_resumed_equals_uninterrupted(whole, tmp_path, step):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, progress=stop_at(step))
    assert (folder / f"step_{step:09d}.seal.json").exists()
    programs = train_step._cache_size()
    resumed = fit(folder=folder)
    assert same(resumed, whole)
    assert train_step._cache_size() == programs
    # A finished folder is read, no step is taken.
    again = fit(folder=folder)
    assert same(again, whole)
    assert np.isnan(again.examples_per_second)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    for step in (16, 32):
        with pytest.raises(KeyboardInterrupt):
            fit(folder=folder, progress=stop_at(step))
    file = max((folder / "step_000000032").rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    resumed = fit(folder=folder)
    assert same(resumed, whole)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("small: the checkpoint of step 32 in ")
    assert sentence.endswith("; the one of step 16 is used")
    assert resumed.complaints == (sentence.removeprefix("small: "),)


def test_a_killed_process_ends_on_the_same_bits(whole, tmp_path):
    """SIGKILL, which nothing can catch, in the middle; another process goes on."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import sys, time
        import jax
        import tests.conftest
        from pathlib import Path
        from tests.nn import small
        from cnninv_jax.nn.training import train
        def slow(progress):
            time.sleep(0.3 if sys.argv[2] == "slow" else 0)
        train(small.Net(), small.LOSS, small.DATA, small.RECIPE, key=jax.random.key(1), prepare=small.PREPARE,
              name="small", folder=Path(sys.argv[1]), progress=slow, checkpoint_seconds=0.0)
        """)
    )
    folder = tmp_path / "run"
    command = [sys.executable, str(program), str(folder)]
    child = subprocess.Popen([*command, "slow"], env={**os.environ, "PYTHONPATH": os.getcwd()})
    for _ in range(600):
        if (folder / "step_000000016.seal.json").exists():
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folder / "step_000000040.seal.json").exists()
    assert same(fit(folder=folder), whole)


def test_one_program_for_all_seeds():
    fit()
    programs = train_step._cache_size()
    fit(small.Net(5), key=jax.random.key(9))
    assert train_step._cache_size() == programs


def test_a_step_is_optax_on_the_gradient_of_the_batch():
    """One SGD step against jax.grad and NumPy: L2 in the gradient of kernels only, the batch of the permutation."""
    recipe = Recipe(num_steps=1, batch_size=16, rate=0.1, weight_decay=0.5, momentum=0.0)
    model = small.Net(frozen=False, dropout=0.0)
    trained = train(model, small.LOSS, small.DATA, recipe, key=KEY, prepare=still, quiet=True)
    index = np.asarray(epoch_order(KEY, np.int32(0), 70))[:16]
    batch = still(None, {name: jnp.asarray(values[index]) for name, values in small.DATA.items()})
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return small.LOSS(nnx.merge(graphdef, params, rest, copy=True), batch, KEY)[0]

    gradient = jax.grad(loss)(params)
    for start, slope, end in zip(
        *map(jax.tree.leaves, (params, gradient, nnx.state(trained.model, nnx.Param))), strict=True
    ):
        decay = 0.5 * start if start.ndim >= 2 else 0
        np.testing.assert_allclose(start - 0.1 * (slope + decay), end, rtol=1e-5, atol=1e-6)


def still(key, batch):
    return small.preparation(small.DATA["images"])(None, batch)


def test_every_example_once_an_epoch():
    order = np.asarray(epoch_order(KEY, np.int32(3), 70))
    assert sorted(order) == list(range(70))
    assert not np.array_equal(order, epoch_order(KEY, np.int32(4), 70))


def test_divergence_keeps_the_state_before(tmp_path):
    recipe = dataclasses.replace(small.RECIPE, optimizer="sgd", rate=1e30)
    trained = fit(recipe=recipe, folder=tmp_path)
    assert trained.status == "diverged"
    assert "not finite at step" in trained.message
    assert "lower the rate" in trained.message
    failed = int(np.flatnonzero(~np.isfinite(trained.history["loss"]))[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(trained.model, nnx.Param)))
    # The state is that of a training of so many steps.
    before = fit(recipe=dataclasses.replace(recipe, num_steps=failed))
    for a, b in zip(*(jax.tree.leaves(nnx.state(t.model, nnx.Param)) for t in (trained, before)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert fit(recipe=recipe, folder=tmp_path).message == trained.message


def test_devices_share_a_batch(whole):
    for count in (2, 4):
        mesh = jax.make_mesh((count,), ("batch",), devices=jax.devices()[:count])
        shared = fit(mesh=mesh)
        np.testing.assert_allclose(shared.history["loss"], whole.history["loss"], atol=2e-4)
        assert len(shared.model.out.kernel[...].sharding.device_set) == count


def test_half_the_bits_end_near_the_same_loss(whole):
    half = fit(small.Net(dtype=jnp.bfloat16), prepare=dataclasses.replace(small.PREPARE, dtype="bfloat16"))
    assert half.model.out.kernel[...].dtype == jnp.float32
    assert abs(half.history["loss"][-10:].mean() - whole.history["loss"][-10:].mean()) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"images": small.DATA["images"], "labels": np.zeros(3, np.int32)}}, "one number of examples"),
        ({"data": small.data(8)}, "at least one batch of 16 examples, got 8"),
        ({"mesh": "three"}, "a batch that 3 devices divide, got 16"),
        ({"mesh": "other"}, "an axis named batch"),
    ],
)
def test_what_does_not_fit(change, message):
    if change.get("mesh") == "three":
        change = {"mesh": jax.make_mesh((3,), ("batch",), devices=jax.devices()[:3])}
    elif change.get("mesh") == "other":
        change = {"mesh": jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])}
    with pytest.raises(ValueError, match=message):
        fit(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps to be a positive whole number"),
        ({"batch_size": 1.5}, "batch_size to be a positive whole number"),
        ({"optimizer": "lion"}, "'sgd' or 'adam', got 'lion'"),
        ({"rate": float("nan")}, "rate to be positive and finite"),
        ({"weight_decay": -1.0}, "weight_decay of at least 0"),
        ({"momentum": 1.0}, "momentum from 0 to below 1"),
        ({"milestones": (5, 3)}, "rising numbers of steps"),
        ({"warmup": -1}, "warmup to be a number of steps"),
    ],
)
def test_recipes_that_train_nothing(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"num_steps": 10, **change})


def test_multistep_schedule():
    recipe = Recipe(num_steps=100, rate=1.0, milestones=(10, 20), factor=0.5, warmup=4)
    rates = [float(recipe.schedule()(step)) for step in (0, 2, 4, 9, 10, 19, 20, 99)]
    np.testing.assert_allclose(rates, [0.2, 0.6, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25], rtol=1e-6)
    flat = Recipe(num_steps=100, rate=1.0, milestones=(10,))
    assert [float(flat.schedule()(step)) for step in (9, 10)] == pytest.approx([1.0, 0.1])
    assert isinstance(recipe.transformation(), optax.GradientTransformation)


def test_another_training_in_the_folder(tmp_path):
    fit(folder=tmp_path, recipe=dataclasses.replace(small.RECIPE, num_steps=2, milestones=()))
    with pytest.raises(CheckpointError, match=r"holds another training .*recipe"):
        fit(folder=tmp_path)
