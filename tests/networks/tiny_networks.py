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
VIT = {
    "image_shape": (16, 16, 3),
    "patch_size": 2,
    "base_channels": 32,
    "kind": "vit",
    "depth": 2,
    "head_channels": 16,
    "bottleneck": 8,
    "class_tokens": 3,
    "class_tokens_from": 2,
}
# Every option of Appendix D at once.
APPENDIX_D = {
    **VIT,
    "norm": "group",
    "norm_place": "after",
    "t_conditioning": "feed_forward",
    "t_gates": False,
    "residual_scaling": "branch",
    "input_injections": (1, 2),
    "qk_norm": False,
    "rope": False,
    "feed_forward": "gelu",
    "bottleneck": 0,
    "blurred_inputs": (1.0, 2.0),
}
KINDS = {"unet": SMALL, "vit": VIT, "vit_appendix_d": APPENDIX_D}


def small_of(kind: str, **changes) -> PatchedNetwork:
    return randomized(PatchedNetwork(**{**KINDS[kind], **changes}))


def small(**changes) -> PatchedNetwork:
    return small_of("unet", **changes)


def batch(shape=(16, 16, 3)):
    """z of two images, t and labels."""
    z = tf.constant(np.random.default_rng(1).normal(size=(2, *shape)), tf.float32)
    return z, tf.constant([3, 700]), tf.constant([0, 1])
