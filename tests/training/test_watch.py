"""Previews: of a part of the process, and shared among replicas."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from pdm_tf.training.monitor import Preview

from flags.config import parse_settings, validate
from flags.presets import preset
from pdm_tf import data
from pdm_tf.diffusion.schedules import linear_schedule
from pdm_tf.images import image_grid, to_uint8
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import build_model

INFO = data.find_dataset("emoji64", "")
CPU = tf.distribute.get_strategy()


def config(*settings):
    tiny = ["network.base_channels=32", "network.channel_multipliers=1", "network.attention_resolutions=",
            "network.head_channels=32", "training.sample_images=3", "training.sample_steps=50"]  # fmt: skip
    return validate(preset("emoji64").replace(parse_settings([*tiny, *settings])))


class Scale:
    """Takes what it sees for a clean image that was made darker: x = z / sqrt(alpha)."""

    schedule, image_shape, num_classes, conditional, variables = linear_schedule(), (64, 64, 3), 9, True, ()

    def __init__(self, t_start, t_stop):
        self.t_start, self.t_stop, self.labels = t_start, t_stop, []

    def __call__(self, z, t, labels):
        with tf.control_dependencies([tf.py_function(self.labels.append, [labels], [])]):
            x = z / tf.gather(tf.constant(self.schedule.signal_rate, tf.float32), t)[:, None, None, None]
        return x, tf.zeros_like(x)


def preview_of(denoiser):
    averages = SimpleNamespace(applied=contextlib.nullcontext)
    return Preview(SimpleNamespace(denoiser=denoiser), averages, config(), INFO, CPU)


def test_the_part_with_the_least_noise_is_shown_on_held_out_images():
    preview = preview_of(Scale(0, 20))
    grid = preview.draw()
    batches = data.load_batches(INFO, split="validation", batch_size=3, seed=0, shuffle=False)
    images, labels = next(batches.as_numpy_iterator())
    off = np.abs(grid.astype(float) - image_grid(to_uint8(images)))
    # The noise of t = 19, of deviation 0.06, is there, and not much more.
    assert 0.5 < off.mean() < 15
    np.testing.assert_array_equal(preview.denoiser.labels[0], labels)
    assert len(preview.denoiser.labels) == 1  # one of 50 steps, for a fiftieth of the process


def test_the_part_with_the_most_noise_begins_from_noise_and_takes_its_share_of_the_steps():
    preview = preview_of(Scale(400, 1000))
    preview.draw()
    assert not np.array_equal(*(preview.sampler(seed, [0], [0]) for seed in (0, 1)))
    assert preview.sampler.schedule.timesteps[[0, -1]].tolist() == [400, 999]
    assert len(preview.sampler.schedule) == 30


def test_replicas_share_a_preview():
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        pytest.skip("conftest made no second logical CPU: TensorFlow was initialised too early")
    grids = []
    for strategy in (CPU, tf.distribute.MirroredStrategy([device.name for device in devices])):
        settings = config("training.sample_steps=3")
        with strategy.scope():
            model = build_model(settings, "float32")
        # Weights of its own: a fresh network's output is zero, whatever its input.
        for index, variable in enumerate(model.network.trainable_variables):
            variable.assign(0.05 * tf.random.stateless_normal(variable.shape, [index, 7]))
        preview = Preview(
            model, ExponentialMovingAverage(model.network.trainable_variables, 0.9), settings, INFO, strategy
        )
        grids.append(preview.draw())
        assert preview.sampler.replicas == strategy.num_replicas_in_sync
    single, shared = grids
    assert single.std() > 5 and single.shape == shared.shape
    assert np.abs(single.astype(int) - shared).max() <= 1
