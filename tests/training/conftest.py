"""A tiny model and tiny data for the tests of training."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.training.model import PatchedDiffusion
from pdm_tf.training.optimizer import GuardedAdam
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
