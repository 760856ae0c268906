"""A tiny model and tiny data for the tests of training."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.stack import GuardedAdam
from pdm_tf.training.model import PatchedDiffusion
from tests.tiny_runs import randomized

TINY = {
    "image_shape": (8, 8, 3),
    "patch_size": 2,
    "base_channels": 32,
    "channel_multipliers": (1,),
    "blocks_per_level": 1,
    "attention_resolutions": (),
    "head_channels": 32,
}


@pytest.fixture
def make_model():
    """Makes a compiled tiny model; its weights, zeros included, are random numbers of a fixed seed."""

    def make(network=None, optimizer=None, compiled=None, **changes):
        model = PatchedDiffusion(randomized(PatchedNetwork(**{**TINY, **(network or {})})), **changes)
        model.compile(optimizer=optimizer or GuardedAdam(1e-3), **(compiled or {}))
        return model

    return make


@pytest.fixture
def images():
    """float32 (16, 8, 8, 3) in [-1, 1]."""
    return np.random.default_rng(1).uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def batches(images):
    """An endless data set of the images in batches of 8."""
    return tf.data.Dataset.from_tensor_slices(images).batch(8, drop_remainder=True).repeat()


def batch_of(images, labels=None):
    """A batch as `Objective` takes it."""
    count = len(images)
    labels = tf.zeros(count, tf.int32) if labels is None else labels
    return {"image": tf.convert_to_tensor(images), "label": labels, "index": tf.range(count)}


def weights(model):
    return [v.numpy() for v in model.network.trainable_variables]


def largest_difference(a, b):
    return max(np.abs(x - y).max() for x, y in zip(a, b))


def assert_accumulation_equals_the_whole_batch(model, images, parts):
    """The same gradients and losses, without a graph of the optimizer: eagerly."""
    batch, found = model._batch(images), []
    for model.grad_accum in (1, parts):
        found.append(model._accumulated_gradients(batch, tf.constant([1, 2]), tf.constant([3, 4])))
    (whole, losses), (cut, of_parts) = found
    for name, values in losses.items():
        np.testing.assert_allclose(of_parts[name], values, rtol=1e-3, atol=1e-5, err_msg=name)
    largest = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in whole)
    assert largest_difference([g.numpy() for g in whole], [g.numpy() for g in cut]) < 1e-4 * largest


def assert_two_devices_equal_one(network, optimizer, images, steps, cross_device_ops=None):
    """MirroredStrategy over two logical CPUs: the same noise, losses and weights; bad steps are counted.

    TensorFlow's collectives keep their shapes for the life of a process, under numbers that each strategy
    counts from the start: of the tests that may share a process one alone can use them (None).
    """
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("conftest made no second logical CPU: TensorFlow was initialised too early")

    def run(strategy):
        with strategy.scope():
            model = PatchedDiffusion(randomized(PatchedNetwork(**network)))
            model.compile(optimizer=optimizer())

        def fit(images, steps):
            def load(context):
                size = context.get_per_replica_batch_size(8)
                return tf.data.Dataset.from_tensor_slices(images).batch(size, drop_remainder=True).repeat()

            data = strategy.distribute_datasets_from_function(load)
            return model.fit(data, steps_per_epoch=steps, verbose=0).history

        before = weights(model)
        history, after = fit(images, steps), weights(model)
        fit(np.full_like(images, np.nan), 2)
        return history, after, before, model.bad_steps.variable.numpy().tolist()

    one = run(tf.distribute.OneDeviceStrategy("CPU:0"))
    two = run(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops))
    for name, (value,) in one[0].items():
        assert two[0][name][0] == pytest.approx(value, rel=1e-3), name
    assert one[3] == two[3] and one[3][:3] == [2, 2, steps] and one[3][3] >= 0
    moved = largest_difference(one[1], one[2])
    assert moved > 1e-4 and largest_difference(one[1], two[1]) < 1e-3 * moved
