"""Fitness for TPU without a TPU: the very train step of the presets, lowered and compiled by XLA.

This build of TensorFlow has no TPU compiler. What it can show is that every operation of the step has an XLA
kernel that is not one processor's own, on a type that a TPU has, that no shape is dynamic and that nothing
goes back to the host; and that XLA's CPU compiler takes it.
"""

import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from flags.presets import preset
from pdm_tf.denoiser import Denoiser, build_network, build_schedule
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.training.model import build_model

PRESETS = {
    "lsun_church": preset("lsun_church", 4),
    "imagenet256_low": preset("imagenet256", split="low"),
    "imagenet256_high": preset("imagenet256", split="high"),
    "ffhq1024": preset("ffhq1024"),
}
# kTpuAllTypes of TensorFlow's tpu_defs.h, less those that nothing here should use: a double is slow there.
TPU_TYPES = {tf.float32, tf.bfloat16, tf.int32, tf.int64, tf.uint32, tf.uint64, tf.bool, tf.resource, tf.variant}
# Operations that XLA takes apart itself and that have no kernel.
STRUCTURE = {"Placeholder", "NoOp", "_Arg", "_Retval"}
ON_THE_HOST = re.compile(r"\b(custom-call|infeed|outfeed|send|recv|host-compute)\(")
DYNAMIC = re.compile(r"\[[^\]]*<=")


def small(name, **settings):
    """The preset's network, level for level and block for block, at an eighth of its size and 32 channels."""
    config = PRESETS[name]
    height, width, channels = config.data.image_shape
    factor = 4 if height == 256 else 8
    return config.replace({
        "data.image_shape": (height // factor, width // factor, channels),
        "network.attention_resolutions": tuple(r // factor for r in config.network.attention_resolutions),
        "network.base_channels": 32, "network.head_channels": 32, "training.batch_size": 4,
        "training.jit_compile": True, **settings,
    })  # fmt: skip


def train_step_of(config, precision="mixed_bfloat16"):
    """The replica step as XLA gets it, and its arguments."""
    model = build_model(config, precision)
    model.optimizer._create_all_weights(model.network.trainable_variables)
    batch = config.training.batch_size
    images = tf.constant(np.random.default_rng(0).uniform(-1, 1, (batch, *config.data.image_shape)), tf.float32)
    labels = tf.zeros(batch, tf.int32)
    step = tf.function(lambda images, labels: model.train_step((images, labels)), jit_compile=True)
    return step, (images, labels), model


def operations_of(function):
    """All nodes of a concrete function and of the functions that it calls."""
    graph = function.graph.as_graph_def()
    return [*graph.node, *(node for f in graph.library.function for node in f.node_def)]


def assert_fit(step, arguments):
    """No operation without a general XLA kernel, no type that a TPU lacks, no dynamic shape, no host."""
    traced = step.get_concrete_function(*arguments)
    for node in operations_of(traced):
        devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(node.op).kernel}
        if node.op not in STRUCTURE:
            assert {"XLA_CPU_JIT", "XLA_GPU_JIT"} <= devices, f"{node.name}: {node.op} has no XLA kernel"
        for value in node.attr.values():
            if value.type:
                assert tf.as_dtype(value.type) in TPU_TYPES, f"{node.name} is of {tf.as_dtype(value.type)}"
    hlo = step.experimental_get_compiler_ir(*arguments)(stage="hlo")
    assert len(hlo) > 10_000, "this is not the whole step"
    assert not ON_THE_HOST.search(hlo), ON_THE_HOST.search(hlo)
    assert not DYNAMIC.search(hlo), DYNAMIC.search(hlo)
    return hlo
