"""Training one network at two patch sizes: who learns from what, however a batch is cut."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.denoiser import SplitDenoiser
from pdm_tf.diffusion.losses import WEIGHTINGS
from pdm_tf.diffusion.schedules import linear
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS
from pdm_tf.errors import UserError
from pdm_tf.networks.warm_start import with_large_patches
from pdm_tf.randomness import stream
from pdm_tf.run import RunFolder
from pdm_tf.stack import keras
from pdm_tf.training import loop
from pdm_tf.training.objective import LOSSES, Objective
from pdm_tf.weights import read_arrays
from tests.fakes import FakeDenoiser
from tests.in_process import run_mode
from tests.tiny_runs import VIT, tiny_config
from tests.training.conftest import TINY, assert_two_devices_equal_one, largest_difference, weights

TWO = {**TINY, "patch_switch_t": 400, "channel_multipliers": (1, 1), "image_shape": (8, 8, 3)}
SCHEDULE, BOUNDARY = linear(20, 0.01, 0.4), 7


def halves(small=0.0, large=0.0):
    """Two denoisers that answer one number each."""
    return SplitDenoiser([
        FakeDenoiser(lambda z, t, labels, x=x: tf.fill(tf.shape(z), x), SCHEDULE, (4, 4, 1), 0, start, stop)
        for x, start, stop in ((small, 0, BOUNDARY), (large, BOUNDARY, 20))
    ])  # fmt: skip


def drawn(objective, count, parts, shape=(4, 4, 1)):
    x = tf.ones((count, *shape))
    draw = tf.function(
        lambda key: objective.draw(key, tf.range(count), x, tf.zeros(count, tf.int32), 0.0, parts)
    )
    return draw(stream(0, "t"))


@pytest.mark.parametrize(("share", "count", "large"), [
    (0.5, 8, [1, 3, 5, 7]), (0.25, 8, [3, 7]), (0.75, 4, [1, 2, 3]), (0.01, 4, [3]), (0.99, 3, [1, 2]),
])  # fmt: skip
def test_a_batch_is_shared_out_evenly_by_place(share, count, large):
    batch = drawn(Objective(halves(), DiffusionConfig(large_share=share)), count, 1)
    assert np.flatnonzero(batch.t.numpy() >= BOUNDARY).tolist() == large


def test_parts_are_shared_out_as_the_whole_is_where_their_shares_are_whole():
    objective = Objective(halves(), DiffusionConfig(large_share=0.25))
    np.testing.assert_array_equal(*(drawn(objective, 16, parts).t for parts in (1, 4)))
    each = drawn(objective, 16, 8).t.numpy().reshape(8, 2) >= BOUNDARY
    assert each.sum(axis=1).tolist() == [1] * 8


@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
@pytest.mark.parametrize("share", [0.125, 0.5])
def test_the_mean_is_that_under_the_law_of_t_whatever_the_share(law, share):
    d = DiffusionConfig(t_distribution=law, large_share=share, loss_weighting="constant", t_mean=0.0)
    objective, count = Objective(halves(0.5, -1.0), d), 20_000
    losses = objective.shared_out(drawn(objective, count, 1))
    mass = T_DISTRIBUTIONS[law](d, SCHEDULE, 4)
    mass = np.ones(20) if mass is None else mass
    gamma = np.ravel(WEIGHTINGS["constant"](SCHEDULE.at(tf.range(20)), 0.0)) * np.ones(20)
    error = np.where(np.arange(20) < BOUNDARY, 0.5, 2.0) ** 2 * 16
    expected = np.sum(mass / mass.sum() * gamma * error)
    # Each interval's error is one number here, so nothing is left to chance.
    np.testing.assert_allclose(tf.reduce_mean(losses["simple_loss"]), expected, rtol=1e-4)
    assert abs(expected - np.mean(gamma * error)) > 0.1 or law == "uniform"


def test_timesteps_of_each_size_follow_the_law_within_its_interval():
    d = DiffusionConfig(t_distribution="logit_normal", t_mean=0.0)
    t = drawn(Objective(halves(), d), 20_000, 1).t.numpy()
    mass = T_DISTRIBUTIONS["logit_normal"](d, SCHEDULE, 4)
    for own in (np.arange(20) < BOUNDARY, np.arange(20) >= BOUNDARY):
        expected = mass * own / np.sum(mass * own)
        found = np.bincount(t[own[t]], minlength=20) / np.sum(own[t])
        np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(10_000))


def test_evaluation_draws_t_as_for_a_network_of_one_size():
    d = DiffusionConfig()
    whole = FakeDenoiser(lambda z, t, labels: z, SCHEDULE, (4, 4, 1), 0)
    two, one = (drawn(Objective(denoiser, d), 16, parts) for denoiser, parts in ((halves(), 0), (whole, 1)))
    for value, expected in zip(two, one):
        np.testing.assert_array_equal(value, expected)


@pytest.fixture
def two_sizes(make_model):
    def make(**changes):
        network = {**TWO, **changes.pop("network", {})}
        return make_model(network=network, optimizer=keras.optimizers.legacy.SGD(1e-4), **changes)

    return make


def test_shared_out_losses_are_those_of_the_whole_denoiser_weighted(two_sizes, images):
    model = two_sizes(large_share=0.25)
    batch = model._examples(stream(0, "x"), images[:8], parts=1)
    found, plain = model.objective.shared_out(batch), model.objective(batch)
    large = batch.t.numpy() >= 400
    weight = np.where(large, 0.6 / 0.25, 0.4 / 0.75)
    assert large.sum() == 2
    for name in LOSSES:
        np.testing.assert_allclose(found[name], plain[name] * (1 if name == "mse" else weight), rtol=1e-3)


@pytest.mark.heavy
def test_accumulation_equals_the_whole_batch(two_sizes, images):
    whole, cut = (two_sizes(grad_accum=n) for n in (1, 4))
    before = weights(whole)
    histories = [m.fit(tf.data.Dataset.from_tensors(images[:8]), verbose=0).history for m in (whole, cut)]
    for name, (value,) in histories[0].items():
        assert histories[1][name][0] == pytest.approx(value, rel=1e-3), name
    moved = largest_difference(before, weights(whole))
    assert largest_difference(weights(whole), weights(cut)) < 1e-3 * moved


@pytest.mark.heavy
def test_two_devices_equal_one(images):
    assert_two_devices_equal_one(TWO, lambda: keras.optimizers.legacy.SGD(1e-4), images, steps=2)


@pytest.mark.heavy
def test_it_learns_at_both_sizes_in_bfloat16(two_sizes, images):
    network = {"precision": "mixed_bfloat16"}
    model = two_sizes(network=network, loss_weighting="constant")
    model.compile(optimizer=keras.optimizers.legacy.Adam(3e-3))
    data = tf.data.Dataset.from_tensors(np.repeat(images[:1], 16, 0)).repeat()
    history = model.fit(data, steps_per_epoch=20, epochs=4, verbose=0).history
    for name in ("mse_quarter1", "mse_quarter4"):
        assert history[name][-1] < 0.7 * history[name][0], name


@pytest.mark.parametrize(("batch", "said"), [(1, "these have 1"), (None, "these have None")])
def test_batches_that_cannot_be_shared_out_are_refused(two_sizes, images, batch, said):
    x = tf.TensorSpec((batch, 8, 8, 3))
    model = two_sizes()
    with pytest.raises(ValueError, match=said):
        tf.function(lambda x: model._examples(stream(0, "x"), x, parts=1)).get_concrete_function(x)


def test_replicas_that_would_get_one_image_each_are_refused():
    config = tiny_config(**VIT, network__patch_switch_t=396, training__batch_size=4)
    loop.check_batch(config, 2)
    with pytest.raises(UserError, match="need two: use 8"):
        loop.check_batch(config, 4)
    loop.check_batch(
        dataclasses.replace(config, network=dataclasses.replace(config.network, patch_switch_t=0)), 4
    )


@pytest.mark.heavy
def test_from_one_size_to_two_and_through_every_mode(tmp_path, capsys):
    """A run of one size begins one of two, which is resumed, described, sampled, measured and exported."""
    small = [
        "network.base_channels=32", "network.channel_multipliers=1,1", "network.attention_resolutions=",
        "network.head_channels=32", "training.batch_size=4", "training.ema_every=1", "training.log_every=1",
        "training.sample_images=2", "sampling.steps=3", "optimizer.learning_rate=1e-30",
    ]  # fmt: skip
    two = [*small, "network.patch_switch_t=396", "diffusion.large_share=0.25"]
    one, both = str(tmp_path / "one"), str(tmp_path / "two")
    train = {"mode": "train", "strategy": "cpu"}
    assert run_mode(capsys, **train, run_dir=one, train_steps=1, set=small)[0] == 0
    said = run_mode(capsys, **train, run_dir=both, train_steps=1, set=two, warm_start=one)[1]
    assert f"starting from {one}/ema" in said and "from t = 396 on, patches of 8 x 8" in said
    assert "without what does not fit" not in said
    # The rate moves nothing: what is there is what it began with.
    arrays, found = (read_arrays(RunFolder(run).newest_weights()) for run in (one, both))
    shapes = {name: array.shape for name, array in found.items()}
    assert len(shapes) > len(arrays)
    for name, array in with_large_patches(arrays, shapes, 4).items():
        np.testing.assert_allclose(found[name], array, atol=1e-12)
    status, said = run_mode(capsys, **train, run_dir=both, train_steps=2, set=two, warm_start=one)
    assert status == 0 and f"resuming {both} at step 1 of 2" in said
    draw = {"run_dir": both, "strategy": "cpu", "num_samples": 2, "sample_batch_size": 2}
    status, said = run_mode(capsys, mode="describe", run_dir=both, strategy="cpu", train_steps=2, set=two)
    assert status == 0 and "t >= 396 (SNR 0.25 and less), patches (8, 8, 192): " in said
    assert run_mode(capsys, mode="sample", **draw, out=str(tmp_path / "drawn"))[0] == 0
    exported = {"mode": "export", "run_dir": both, "out": str(tmp_path / "model")}
    assert run_mode(capsys, **exported)[0] == 0
    model = tf.saved_model.load(str(tmp_path / "model"))
    with np.load(tmp_path / "drawn/samples.npz") as drawn:
        images = model.sample(tf.constant(0), tf.constant(drawn["arr_1"]), tf.constant(1.0))["images"]
        np.testing.assert_array_equal(images, drawn["arr_0"])
    assert "(P = 4, 8 from t = 396 on) for 0 <= t < 1000" in (tmp_path / "model/README.md").read_text()
