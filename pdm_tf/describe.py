"""What a config's network is: shapes, parameters and FLOPs, without computing anything."""

from __future__ import annotations

from functools import partial

import numpy as np
import tensorflow as tf
from absl import logging

from pdm_tf.config.fields import Config
from pdm_tf.denoiser import build_denoiser, build_network
from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.sampling.sampler import kept_steps


def describe_network(config: Config) -> str:
    """A few lines of text on the config's network."""
    network = build_network(config)
    shape, d = network.image_shape, config.diffusion
    patches = f"image {shape} -> patches {_patches(network)}"
    lines = [f"network: {type(network.trunk).__name__}, predicts {d.prediction} and u, both {shape}"]
    lines += [f"  {line}" for line in (patches, *network.trunk.describe())]
    lines.append(f"trainable parameters: {count_parameters(network):,}")
    costs = [forward_flops(network)]
    if not network.patch_switch_t:
        lines.append(f"forward FLOPs per image: {costs[0]:,}")
    else:
        costs.append(forward_flops(network, large=True))
        boundary, snr = network.patch_switch_t, build_denoiser(d, network).schedule.snr
        lines += [
            f"forward FLOPs per image, t < {boundary}: {costs[0]:,}",
            f"forward FLOPs per image, t >= {boundary} (SNR {snr[boundary]:.3g} and less), patches "
            f"{_patches(network, large=True)}: {costs[1]:,}",
        ]
    if (d.t_start, d.t_stop) == (0, d.num_timesteps):
        passes = passes_of_sampling(config, network)
        sampling = config.sampling
        lines.append(
            f"FLOPs per image sampled, {sampling.sampler}, {' + '.join(map(str, passes))} passes: "
            f"{sum(number * cost for number, cost in zip(passes, costs)):,}"
        )
    return "\n".join(lines)


def _patches(network: PatchedNetwork, large: bool = False) -> tuple[int, int, int]:
    p = network.patch_size * (2 if large else 1)
    height, width, channels = network.image_shape
    return height // p, width // p, channels * p**2


def passes_of_sampling(config: Config, network: PatchedNetwork) -> list[int]:
    """How often sampling as the config says runs the network on an image, at each of its patch sizes.

    Raises:
      UserError, ValueError: the config's network does not do the whole process, or not in so many steps.
    """
    denoiser = build_denoiser(config.diffusion, network)
    kept = kept_steps(denoiser, config.sampling).timesteps
    each = 1 if config.sampling.guidance == 1.0 else 2
    return [each * int(np.sum((kept >= part.t_start) & (kept < part.t_stop))) for part in denoiser.parts]


def count_parameters(network: PatchedNetwork) -> int:
    """The exact number of trainable parameters."""
    return int(sum(np.prod(variable.shape) for variable in network.trainable_variables))


def forward_flops(network: PatchedNetwork, large: bool = False) -> int:
    """Floating-point operations of one forward pass on one image, a multiply-add being two; `large` as of
    `PatchedNetwork.call`.

    Counted by TensorFlow's profiler on the traced graph; its counts of convolutions and matrix products are
    exact, and of the elementwise operations it knows some.
    """
    number = tf.TensorSpec((1,), tf.int32)
    traced = tf.function(partial(network.__call__, large=large)).get_concrete_function(
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
