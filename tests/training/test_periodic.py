"""Periodic work; previews: drawn as the config says, of an interval of t, shared among replicas."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf import data
from pdm_tf.config.fields import parse_settings, validate
from pdm_tf.config.presets import preset
from pdm_tf.diffusion.schedules import linear
from pdm_tf.images import image_grid, to_uint8
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import build_model
from pdm_tf.training.periodic import HeldOutLosses, Interrupted, Periodic, Previews, images_in_memory
from tests.fakes import FakeDenoiser
from tests.tiny_runs import randomized

INFO = data.find_dataset("emoji64", "")
CPU = tf.distribute.get_strategy()


def config(*settings):
    tiny = ["network.base_channels=32", "network.channel_multipliers=1", "network.attention_resolutions=",
            "network.head_channels=32", "training.sample_images=3", "sampling.steps=50",
            "training.sample_steps=50"]  # fmt: skip
    return validate(preset("emoji64").replace(parse_settings([*tiny, *settings])))


def steps_done(steps=12, **how):
    """The steps of a run after which the work is done."""
    done = []
    work = Periodic(do=done.append, **how)
    for step in range(1, steps + 1):
        work.do_if_due(step, last=step == steps)
    return done


def test_work_is_due_at_its_period_and_if_it_says_so_at_the_end_once():
    assert steps_done(every=5) == [5, 10] and steps_done(3, every=1) == [1, 2, 3]
    assert steps_done(every=5, at_end=True) == [5, 10, 12]
    assert steps_done(every=6, at_end=True) == [6, 12]
    assert steps_done(every=100) == [] and steps_done(every=100, at_end=True) == [12]
    for at_stop in (False, True):
        done = []
        Periodic(5, done.append, at_stop=at_stop).do_if_due(11, stop=True)
        assert done == [11] * at_stop


def test_what_a_stop_left_undone_is_caught_up_with_once():
    done, known = [], {5}
    work = Periodic(5, done.append, at_end=True, done=known.__contains__)
    for step, last in ((0, False), (5, False), (7, False), (10, False), (12, True)):
        work.catch_up(step, last)
    assert done == [10, 12]
    Periodic(5, done.append).catch_up(20, False)  # work that cannot tell is not done again
    assert done == [10, 12]


def test_held_out_losses_are_of_a_crop_s_area_as_training_s_are():
    """Of as many images at a time as a train step's crops, or parts of its batch, have pixels."""
    settings = config("network.local=true", "training.batch_size=2", "training.eval_batches=32")
    cropped = {"data.crop": 16, "training.batch_size": 64, "training.grad_accum": 2}
    cropped["training.eval_batches"] = 1  # of 2 images, 32 times
    model = build_model(settings, "float32")
    whole = HeldOutLosses(model, settings, INFO, CPU).measure()
    of_crops = HeldOutLosses(model, settings.replace(cropped), INFO, CPU).measure()
    for name, value in whole.items():
        assert of_crops[name] == pytest.approx(value if "mse" in name else value / 16)


def scale(t_start, t_stop):
    """Takes its input for a clean image that was made darker: x = z / sqrt(alpha). Keeps its labels."""
    seen = []

    def answer(z, t, labels):
        with tf.control_dependencies([tf.py_function(seen.append, [labels], [])]):
            return z / linear().at(t).signal

    denoiser = FakeDenoiser(answer, linear(), (64, 64, 3), num_classes=9, t_start=t_start, t_stop=t_stop)
    denoiser.labels = seen
    return denoiser


def previews_of(denoiser, *settings):
    averages = SimpleNamespace(applied=contextlib.nullcontext)
    return Previews(denoiser, averages, config(*settings), INFO, CPU, 32)


def test_a_sampling_of_many_steps_is_shown_by_a_fast_one():
    previews = previews_of(scale(0, 1000), "sampling.sampler=ancestral", "training.sample_steps=7")
    assert len(previews.grid().shape) == 3
    how = previews._sampler.settings
    assert (how.sampler, how.spacing, how.steps) == ("dpm_solver", "logsnr", (7,))


def test_a_preview_ends_within_a_call_of_a_signal():
    previews, looks = previews_of(scale(0, 1000)), []

    def check():
        looks.append(None)
        if len(looks) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        previews.grid(check)
    assert len(previews.denoiser.labels) < 50


def test_a_preview_is_drawn_as_the_config_says():
    settings = (
        "sampling.sampler=ddim", "sampling.eta=0.5", "sampling.spacing=even", "sampling.steps=8,4",
    )  # fmt: skip
    previews = previews_of(scale(0, 1000), *settings)
    grid = previews.grid()
    assert previews._sampler.settings == config(*settings).sampling
    assert len(previews._sampler.schedule) == 12 and previews._sampler.from_noise
    images = previews._sampler(0, range(3), [0, 1, 2])
    np.testing.assert_array_equal(grid, image_grid(to_uint8(images)))


def test_the_interval_with_the_least_noise_is_shown_on_held_out_images():
    previews = previews_of(scale(0, 20))
    grid = previews.grid()
    batches = data.load_batches(INFO, split="validation", batch_size=3, shuffle=False)
    batch = next(batches.as_numpy_iterator())
    off = np.abs(grid.astype(float) - image_grid(to_uint8(batch["image"])))
    # The noise of t = 19, of deviation 0.06, is there, and not much more.
    assert 0.5 < off.mean() < 15
    np.testing.assert_array_equal(previews.denoiser.labels[0], batch["label"])
    assert len(previews.denoiser.labels) == 1  # one of 50 steps, for a fiftieth of the process


def test_the_interval_with_the_most_noise_begins_from_noise_and_takes_its_share_of_the_steps():
    previews = previews_of(scale(400, 1000))
    previews.grid()
    sampler = previews._sampler
    assert not np.array_equal(*(sampler(seed, [0], [0]) for seed in (0, 1)))
    assert sampler.schedule.timesteps[[0, -1]].tolist() == [400, 999]
    assert len(sampler.schedule) == 30


@pytest.mark.slow
def test_replicas_share_a_preview():
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        pytest.skip("conftest made no second logical CPU: TensorFlow was initialised too early")
    grids = []
    for strategy in (CPU, tf.distribute.MirroredStrategy([device.name for device in devices])):
        settings = config("sampling.steps=3", "network.blocks_per_level=1")
        with strategy.scope():
            model = build_model(settings, "float32")
        # Weights of its own: a fresh network's output is zero, whatever its input.
        randomized(model.network)
        ema = ExponentialMovingAverage(model.network.trainable_variables, 0.9)
        most = images_in_memory(settings, strategy)
        previews = Previews(model.denoiser, ema, settings, INFO, strategy, most)
        grids.append(previews.grid())
        assert previews._sampler.replicas == strategy.num_replicas_in_sync
    single, shared = grids
    assert single.std() > 5 and single.shape == shared.shape
    assert np.abs(single.astype(int) - shared).max() <= 1
