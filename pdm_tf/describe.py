"""What a config's network is: shapes, parameters and FLOPs, without computing anything."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from flags.config import Config
from pdm_tf.denoiser import build_network
from pdm_tf.networks.unet import UNet


def describe_network(config: Config) -> str:
    """A few lines of text on the config's network."""
    network = build_network(config)
    shape, p = config.data.image_shape, config.network.patch_size
    lines = [f"network: UNet, predicts {config.diffusion.prediction} and u, both {shape}"]
    lines.append(f"  image {shape} -> patches {(*network.grid, shape[-1] * p * p)}")
    for level, width in enumerate(network.widths):
        grid = tuple(size // 2**level for size in network.grid)
        attention = max(grid) in network.attention_resolutions
        lines.append(f"  level {level}: {(*grid, width)}{', attention' if attention else ''}")
    lines.append(f"trainable parameters: {count_parameters(network):,}")
    lines.append(f"forward FLOPs per image: {forward_flops(network):,}")
    return "\n".join(lines)


def count_parameters(network: tf.keras.Model) -> int:
    """The exact number of trainable parameters."""
    return int(sum(np.prod(variable.shape) for variable in network.trainable_variables))


def forward_flops(network: UNet) -> int:
    """Floating-point operations of one forward pass on one image, a multiply-add being two.

    Counted by TensorFlow's profiler on the traced graph; its counts of convolutions and matrix products are
    exact, and of the elementwise operations it knows some.
    """
    number = tf.TensorSpec((1,), tf.int32)
    traced = tf.function(network.__call__).get_concrete_function(
        tf.TensorSpec((1, *network.image_shape)), number, number
    )
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    )
    options.with_empty_output()
    return tf.compat.v1.profiler.profile(traced.graph, options=options.build()).total_float_ops
