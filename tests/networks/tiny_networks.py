"""The one small network that these tests change to their needs, and inputs for it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pdm_tf.networks.patched import PatchedNetwork
from tests.tiny_runs import randomized

SMALL = {
    "image_shape": (16, 16, 3),
    "patch_size": 2,
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_resolutions": (4,),
    "head_channels": 32,
}


def small(**changes) -> PatchedNetwork:
    return randomized(PatchedNetwork(**{**SMALL, **changes}))


def batch(shape=(16, 16, 3)):
    """z of two images, t and labels."""
    z = tf.constant(np.random.default_rng(1).normal(size=(2, *shape)), tf.float32)
    return z, tf.constant([3, 700]), tf.constant([0, 1])
