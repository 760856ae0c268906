"""What is due when; previews: drawn as the config says, of a part of the process, shared among replicas."""

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf import data
from pdm_tf.config.fields import parse_settings, validate
from pdm_tf.config.presets import preset
from pdm_tf.data import held_out_split
from pdm_tf.diffusion.schedules import linear
from pdm_tf.images import image_grid, to_uint8
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import build_model
from pdm_tf.training.watch import (
    Budget,
    Interrupted,
    Preview,
    Watch,
    images_within,
    time_so_far,
)
from tests.fakes import FakeDenoiser
from tests.tiny_runs import randomized

INFO = data.find_dataset("emoji64", "")
CPU = tf.distribute.get_strategy()


def config(*settings):
    tiny = ["network.base_channels=32", "network.channel_multipliers=1", "network.attention_resolutions=",
            "network.head_channels=32", "training.sample_images=3", "sampling.steps=50",
            "training.sample_steps=50"]  # fmt: skip
    return validate(preset("emoji64").replace(parse_settings([*tiny, *settings])))


def looks(watch, steps=12):
    """The steps at which a run of so many, all of them looked at, does what a watch is for."""
    done = []
    watch = dataclasses.replace(watch, do=done.append)
    for step in range(1, steps + 1):
        watch.look(step, step == steps, False)
    return done


def test_a_watch_is_due_at_its_period_and_if_it_says_so_at_the_end_once():
    assert looks(Watch(5, None)) == [5, 10] and looks(Watch(1, None), 3) == [1, 2, 3]
    assert looks(Watch(5, None, at_end=True)) == [5, 10, 12]
    assert looks(Watch(6, None, at_end=True)) == [6, 12]
    assert looks(Watch(5, None, at_stop=True)) == [5, 10]
    assert looks(Watch(100, None)) == [] and looks(Watch(100, None, at_end=True)) == [12]


@pytest.mark.parametrize(("at_end", "at_stop"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("step", [10, 11])
def test_a_watch_is_due_at_a_stop_if_it_says_so(at_end, at_stop, step):
    done = []
    Watch(5, done.append, at_end, at_stop).look(step, last=False, stop=True)
    assert done == ([step] if at_stop or step == 10 else [])


def test_what_a_stop_left_undone_is_made_up_for_once():
    done, known = [], {5}
    watch = Watch(5, done.append, at_end=True, done=known.__contains__)
    for step, last in ((0, False), (5, False), (7, False), (10, False), (12, True)):
        watch.make_up(step, last)
    assert done == [10, 12]
    Watch(5, done.append).make_up(20, False)  # one that cannot tell is not asked again
    assert done == [10, 12]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_budget_is_a_share_of_all_time_less_what_is_used():
    clock = Clock()
    budget = Budget(0.05, elapsed=1000.0, used=20.0, clock=clock)
    assert (budget.elapsed, budget.left) == (1000.0, 30.0)
    clock.now = 200.0
    assert budget.left == pytest.approx(40.0) and budget.allows(40) and not budget.allows(40.1)
    with contextlib.suppress(KeyError), budget.spending():
        clock.now += 100.0
        raise KeyError
    assert budget.used == 120.0 and not budget.allows(0.0)
    # Until the rest of the run has made up for it.
    clock.now = 1400.0
    assert budget.elapsed == 2400.0 and budget.left == pytest.approx(0.0)


def test_a_run_that_goes_on_knows_what_its_parts_took():
    assert time_so_far({}, 8, "preview_seconds") == {"elapsed": 0.0, "used": 0.0}
    metrics = {
        "images_per_second": np.array([[10, 4.0], [30, 8.0]]),
        "preview_seconds": np.array([[10, 2.0], [30, 1.0]]),
        "score_seconds": np.array([[30, 5.0]]),
    }
    elapsed = 10 * 8 / 4 + 20 * 8 / 8 + 3 + 5
    assert time_so_far(metrics, 8, "preview_seconds") == {"elapsed": elapsed, "used": 3.0}
    assert time_so_far(metrics, 8, "bits_seconds") == {"elapsed": elapsed, "used": 0.0}


@pytest.mark.parametrize(
    ("seconds", "each", "images"),
    [(-5, 1, 0), (0.9, 1, 0), (1, 1, 1), (7.9, 1, 4), (31, 1, 16), (36, 1, 36), (1e9, 1e-12, 36), (1, 0, 36)],
)
def test_the_images_within_a_time_are_all_or_a_power_of_two(seconds, each, images):
    assert images_within(seconds, each, 36) == images


@pytest.mark.parametrize(
    ("left", "last", "images"), [(100.0, False, 3), (2.0, False, 0), (-9.0, False, 0), (-9.0, True, 2)]
)
def test_a_preview_is_left_out_where_it_would_be_too_dear_but_for_the_last_one(left, last, images):
    preview = preview_of(scale(0, 1000))
    # 50 steps of an image are a third of 50 training images, 50 / (3 * 4) s: the last one has 10 s.
    assert preview.affordable(SimpleNamespace(left=left), 4.0, last) == images
    # Once an image has been drawn its own time counts.
    preview.sampler = SimpleNamespace(seconds_per_image=30.0)
    assert preview.affordable(SimpleNamespace(left=left), 4.0, last) == (3 if left == 100 else int(last))


def test_a_sampling_of_many_steps_is_shown_by_a_fast_one():
    preview = preview_of(scale(0, 1000), "sampling.sampler=ancestral", "training.sample_steps=7")
    assert len(preview.draw().shape) == 3
    how = preview.sampler.settings
    assert (how.sampler, how.spacing, how.steps) == ("dpm_solver", "logsnr", (7,))


def test_a_preview_is_drawn_in_batches_that_a_train_step_has():
    settings = ("training.batch_size=2", "sampling.steps=5")
    small, large = preview_of(scale(0, 1000), *settings), preview_of(scale(0, 1000), "sampling.steps=5")
    np.testing.assert_array_equal(small.draw(), large.draw())
    assert {len(labels) for labels in small.denoiser.labels} == {2}
    assert {len(labels) for labels in large.denoiser.labels} == {3}


def test_a_preview_ends_within_a_call_of_a_signal():
    preview, looks = preview_of(scale(0, 1000)), []

    def check():
        looks.append(None)
        if len(looks) == 3:
            raise Interrupted(together=False)

    with pytest.raises(Interrupted):
        preview.draw(check=check)
    assert len(preview.denoiser.labels) < 50


def test_the_held_out_split_is_validation_or_test_if_it_has_images():
    def split(**numbers):
        return held_out_split(SimpleNamespace(num_examples=numbers))

    assert split(train=9, validation=3, test=2) == "validation"
    assert split(train=9, validation=0, test=2) == split(train=9, test=2) == "test"
    assert split(train=9) is None


def scale(t_start, t_stop):
    """Takes what it sees for a clean image that was made darker: x = z / sqrt(alpha). Keeps its labels."""
    seen = []

    def answer(z, t, labels):
        with tf.control_dependencies([tf.py_function(seen.append, [labels], [])]):
            return z / linear().at(t).signal

    denoiser = FakeDenoiser(answer, linear(), (64, 64, 3), num_classes=9, t_start=t_start, t_stop=t_stop)
    denoiser.labels = seen
    return denoiser


def preview_of(denoiser, *settings):
    averages = SimpleNamespace(applied=contextlib.nullcontext)
    return Preview(SimpleNamespace(denoiser=denoiser), averages, config(*settings), INFO, CPU)


def test_a_preview_is_drawn_as_the_config_says():
    settings = (
        "sampling.sampler=ddim", "sampling.eta=0.5", "sampling.spacing=even", "sampling.steps=8,4",
    )  # fmt: skip
    preview = preview_of(scale(0, 1000), *settings)
    grid = preview.draw()
    assert preview.sampler.settings == config(*settings).sampling
    assert len(preview.sampler.schedule) == 12 and preview.sampler.from_noise
    images = preview.sampler(0, range(3), [0, 1, 2])
    np.testing.assert_array_equal(grid, image_grid(to_uint8(images)))


def test_the_part_with_the_least_noise_is_shown_on_held_out_images():
    preview = preview_of(scale(0, 20))
    grid = preview.draw()
    batches = data.load_batches(INFO, split="validation", batch_size=3, seed=0, shuffle=False)
    images, labels, _ = next(batches.as_numpy_iterator())
    off = np.abs(grid.astype(float) - image_grid(to_uint8(images)))
    # The noise of t = 19, of deviation 0.06, is there, and not much more.
    assert 0.5 < off.mean() < 15
    np.testing.assert_array_equal(preview.denoiser.labels[0], labels)
    assert len(preview.denoiser.labels) == 1  # one of 50 steps, for a fiftieth of the process


def test_the_part_with_the_most_noise_begins_from_noise_and_takes_its_share_of_the_steps():
    preview = preview_of(scale(400, 1000))
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
        settings = config("sampling.steps=3")
        with strategy.scope():
            model = build_model(settings, "float32")
        # Weights of its own: a fresh network's output is zero, whatever its input.
        randomized(model.network)
        preview = Preview(
            model, ExponentialMovingAverage(model.network.trainable_variables, 0.9), settings, INFO, strategy
        )
        grids.append(preview.draw())
        assert preview.sampler.replicas == strategy.num_replicas_in_sync
    single, shared = grids
    assert single.std() > 5 and single.shape == shared.shape
    assert np.abs(single.astype(int) - shared).max() <= 1
