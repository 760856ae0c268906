"""What a config's network is: shapes, parameters and FLOPs, without computing anything."""

from __future__ import annotations

from functools import partial

import numpy as np
import tensorflow as tf
from absl import logging

from pdm_tf.config.fields import Config
from pdm_tf.denoiser import build_denoiser, build_network
from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.sampling.sampler import pass_timesteps, respaced_schedule

STATE_COPIES = 4  # float32 arrays of each parameter's shape: itself, its gradient and Adam's two moments


def describe_network(config: Config) -> str:
    """Lines of text: shapes, parameters and their memory, and GFLOP of a pass, a train step and a sample."""
    network = build_network(config)
    diffusion = config.diffusion
    denoiser = build_denoiser(diffusion, network)
    shape = height, width, channels = network.image_shape
    side = network.patch_size
    lines = [
        f"network: {type(network.trunk).__name__}, predicts {diffusion.prediction} and u, both {shape}",
        f"  image {shape} -> patches {(height // side, width // side, channels * side**2)}",
        *(f"  {line}" for line in network.trunk.describe()),
        f"trainable parameters: {network.count_params():,}",
    ]
    costs = [forward_flops(network, large=part.patch_size > side) for part in denoiser.parts]
    for part, cost in zip(denoiser.parts, costs):
        snr = f" (SNR {denoiser.schedule.snr[part.t_start]:.3g} and less)" if part.t_start else ""
        where = f" at {part.title}{snr}" if len(costs) > 1 else ""
        lines.append(f"forward{where}: {gflop(cost)} an image")
    # The backward pass takes two: the gradients of each layer's input and of its weights. For a student its
    # teacher takes `factor` steps or, in consistency distillation, one, as its target does.
    distillation = config.distillation
    of_step = 3
    if config.is_student:
        of_step += 2 if distillation.method == "consistency" else distillation.factor
    shares = [1.0] if len(costs) == 1 else [1.0 - diffusion.large_share, diffusion.large_share]
    step = of_step * config.training.batch_size * np.dot(shares, costs) * config.data.trained_area
    total = config.training.steps * step / 1e15
    lines.append(f"training: {gflop(step)} a step of {config.training.batch_size}, {total:,.1f} PFLOP in all")
    state = 4 * network.count_params() * STATE_COPIES / 2**20
    lines.append(
        f"memory of training: {state:,.0f} MiB of weights, gradients and Adam's moments, and the activations "
        "(the analysis `memory` measures all)"
    )
    if (diffusion.t_start, diffusion.t_stop) == (0, diffusion.num_timesteps):
        passes = passes_of_sampling(config, network)
        cost = sum(number * one for number, one in zip(passes, costs))
        counts = " + ".join(map(str, passes))
        lines.append(f"sampling: {config.sampling.sampler}, {counts} passes, {gflop(cost)} an image")
    return "\n".join(lines)


def gflop(flops: float) -> str:
    """Floating-point operations in words."""
    return f"{float(f'{flops / 1e9:.4g}'):,.10g} GFLOP"


def passes_of_sampling(config: Config, network: PatchedNetwork) -> list[int]:
    """How often sampling as the config says runs the network on an image, at each of its patch sizes."""
    denoiser = build_denoiser(config.diffusion, network)
    t = pass_timesteps(respaced_schedule(denoiser, config.sampling), config.sampling)
    each = np.ones_like(t)
    if config.sampling.guidance != 1.0:
        first, stop = config.sampling.guidance_interval or (0, len(denoiser.schedule))
        each += (t >= first) & (t < stop)
    return [int(np.sum(each[(t >= part.t_start) & (t < part.t_stop)])) for part in denoiser.parts]


def forward_flops(network: PatchedNetwork, large: bool = False) -> int:
    """Floating-point operations of a forward pass on one image, a multiply-add being two.

    Counted by TensorFlow's profiler on the traced graph; its counts of convolutions and matrix products are
    exact, and of the elementwise operations it knows some. `large` as of `PatchedNetwork.call`.
    """
    number = tf.TensorSpec((1,), tf.int32)
    traced = tf.function(partial(network.__call__, large=large)).get_concrete_function(
        tf.TensorSpec((1, *network.image_shape)), number, number
    )
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    )
    options.with_empty_output()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # the profiler warns of its own API
    try:
        return tf.compat.v1.profiler.profile(traced.graph, options=options.build()).total_float_ops
    finally:
        logging.set_verbosity(verbosity)
