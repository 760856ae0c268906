"""Fitness for TPU without a TPU: the very train step of the presets, lowered and compiled by XLA.

This build of TensorFlow has no TPU compiler. What it can show is that every operation of the step has an XLA
kernel that is not one processor's own, on a type that a TPU has, that no shape is dynamic and that nothing
goes back to the host; and that XLA's CPU compiler takes it.
"""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from pdm_tf.config.presets import network_settings, preset
from pdm_tf.training.model import build_model

PRESETS = {
    "lsun_church": preset("lsun_church", 4),
    "imagenet256_low": preset("imagenet256", split="low"),
    "imagenet256_high": preset("imagenet256", split="high"),
    "ffhq1024": preset("ffhq1024"),
}
PRESETS |= {
    f"{name}_{network}": PRESETS[other].replace(network_settings(network, PRESETS[other]))
    for name, other, network in (
        ("imagenet256", "imagenet256_low", "vit"),
        ("lsun_church", "lsun_church", "vit_appendix_d"),
    )
}
PRESETS |= {
    f"{name}_two_sizes": PRESETS[name].replace({"network.patch_switch_t": 396, "diffusion.t_stop": 1000})
    for name in ("lsun_church", "imagenet256_vit")
}
# kTpuAllTypes of TensorFlow's tpu_defs.h, less those that nothing here should use: a double is slow there.
TPU_TYPES = {
    tf.float32,
    tf.bfloat16,
    tf.int32,
    tf.int64,
    tf.uint32,
    tf.uint64,
    tf.bool,
    tf.resource,
    tf.variant,
}
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


# Two levels, the lower with attention, of one block each.
SHALLOW = {
    "network.blocks_per_level": 1, "network.channel_multipliers": (1, 2), "data.image_shape": (32, 32, 3),
    "network.attention_resolutions": (4,),
}  # fmt: skip


def train_step_of(config, precision="mixed_bfloat16"):
    """The replica step as XLA gets it, and its arguments."""
    model = build_model(config, precision)
    batch = config.training.batch_size
    images = tf.constant(
        np.random.default_rng(0).uniform(-1, 1, (batch, *config.data.image_shape)), tf.float32
    )
    labels = tf.zeros(batch, tf.int32)
    step = tf.function(lambda images, labels: model.train_step((images, labels)), jit_compile=True)
    return step, (images, labels), model


def operations_of(function):
    """All nodes of a concrete function and of the functions that it calls."""
    graph = function.graph.as_graph_def()
    return [*graph.node, *(node for f in graph.library.function for node in f.node_def)]


@functools.cache
def devices_of(operation):
    """The kinds of device that the operation has a kernel for."""
    return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(operation).kernel}


def assert_fit(step, arguments):
    """No operation without a general XLA kernel, no type that a TPU lacks, no dynamic shape, no host."""
    traced = step.get_concrete_function(*arguments)
    for node in operations_of(traced):
        if node.op not in STRUCTURE:
            assert {"XLA_CPU_JIT", "XLA_GPU_JIT"} <= devices_of(node.op), f"{node.name}: {node.op}"
        for value in node.attr.values():
            if value.type:
                assert tf.as_dtype(value.type) in TPU_TYPES, f"{node.name} is of {tf.as_dtype(value.type)}"
    hlo = step.experimental_get_compiler_ir(*arguments)(stage="hlo")
    assert not ON_THE_HOST.search(hlo), ON_THE_HOST.search(hlo)
    assert not DYNAMIC.search(hlo), DYNAMIC.search(hlo)
    return hlo


@pytest.mark.parametrize(("function", "found"), [
    (lambda x: tf.py_function(lambda v: v, [x], tf.float32), "EagerPyFunc"),
    (lambda x: tf.cast(tf.cast(x, tf.float64), tf.float32), "float64"),
    (lambda x: tf.boolean_mask(x, x > 0), "<="),
])  # fmt: skip
def test_what_does_not_fit_is_noticed(function, found):
    with pytest.raises(AssertionError, match=found):
        assert_fit(tf.function(function, jit_compile=True), [tf.ones(4)])


@pytest.mark.parametrize(
    "name",
    [
        "imagenet256_high",
        "imagenet256_vit",
        pytest.param("lsun_church_two_sizes", marks=pytest.mark.heavy),
        "imagenet256_vit_two_sizes",
    ],
)
def test_the_train_step_fits_with_labels_accumulation_dropout_recomputation_and_augmentation(name):
    config = small(name, **{
        **SHALLOW, "network.depth": 2, "network.class_tokens_from": 2, "network.dropout": 0.1,
        "optimizer.clip_norm": 1.0, "training.grad_accum": 2, "training.gradient_checkpointing": True,
        "data.augmentation": 0.1,
    })  # fmt: skip
    step, arguments, _ = train_step_of(config)
    assert "while" in assert_fit(step, arguments)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name",
    [
        *("lsun_church", "imagenet256_low", "ffhq1024", "imagenet256_vit", "lsun_church_vit_appendix_d"),
        "lsun_church_two_sizes",
    ],
)
def test_the_train_step_at_full_size_fits(name):
    """Every convolution and projection of patches is there, nearly all in bfloat16; nothing is computed."""
    config = PRESETS[name].replace({"training.batch_size": 8, "training.jit_compile": True})
    step, arguments, model = train_step_of(config)
    hlo = assert_fit(step, arguments)
    kernels = [v for v in model.network.trainable_variables if v.name.endswith("kernel:0")]
    per_image = ("/embed_t_", "/modulation", "/variance_t", "/scale_shift", "/gate/")
    layers = [v for v in kernels if not any(part in v.name for part in per_image)]
    operation = "convolution" if config.network.kind == "unet" else r"(?:convolution|dot)"
    layers = [v for v in layers if config.network.kind == "vit" or v.shape.rank == 4]
    # Forward, and backward to weights and to inputs, but not to the image.
    found = re.findall(rf"= (\w+)\[.* {operation}\(", hlo)
    assert len(found) >= 3 * len(layers) - 6
    # A ViT's embeddings and modulations, a few numbers an image, are products too.
    assert found.count("bf16") > (0.9 if config.network.kind == "unet" else 0.6) * len(found)
