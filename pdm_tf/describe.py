"""What a config's network is: shapes, parameters and FLOPs, without computing anything."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl import logging

from flags.config import Config
from pdm_tf.denoiser import build_network
from pdm_tf.networks.patched import PatchedNetwork


def describe_network(config: Config) -> str:
    """A few lines of text on the config's network."""
    network = build_network(config)
    shape, values = network.image_shape, network.image_shape[-1] * network.patch_size**2
    kind, prediction = type(network.trunk).__name__, config.diffusion.prediction
    lines = [
        f"network: {kind}, predicts {prediction} and u, both {shape}",
        f"  image {shape} -> patches {(*network.grid, values)}",
        *(f"  {line}" for line in network.trunk.describe()),
        f"trainable parameters: {count_parameters(network):,}",
        f"forward FLOPs per image: {forward_flops(network):,}",
    ]
    return "\n".join(lines)


def count_parameters(network: PatchedNetwork) -> int:
    """The exact number of trainable parameters."""
    return int(sum(np.prod(variable.shape) for variable in network.trainable_variables))


def forward_flops(network: PatchedNetwork) -> int:
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
    said = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # the profiler warns of its own API
    try:
        return tf.compat.v1.profiler.profile(traced.graph, options=options.build()).total_float_ops
    finally:
        logging.set_verbosity(said)
