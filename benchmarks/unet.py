"""Images a second of the U-Net's forward pass and of the Keras train step, beside plain variants, in one run.

    python -m benchmarks.unet [--batch=8] [--repeats=7] [--xla]

The network is the design's yardstick: 64 x 64, P = 2, c = 64, multipliers 1,2,2, 2 blocks a level
(6,946,200 parameters). The peer, "stack's", is the same network with the GroupNormalization of
tensorflow-addons (or Keras' own). --xla adds ours compiled by XLA, which tells on an accelerator whether
`training.jit_compile` and `sampling.jit_compile` pay there. A ratio is the median over the turns of
(variant / first), with its range.
oneDNN is on or off for a whole process: run it with TF_ENABLE_ONEDNN_OPTS=0 for the other half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.turns import in_turns, machine, seconds, with_range
from pdm_tf.config.presets import preset
from pdm_tf.denoiser import build_network
from pdm_tf.networks import norms
from pdm_tf.networks.norms import GroupNorm
from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.stack import GroupNormalization, GuardedAdam
from pdm_tf.training.model import PatchedDiffusion

SHAPE = (64, 64, 3)
YARDSTICK = preset("emoji64").replace({
    "network.patch_size": 2,
    "network.base_channels": 64,
    "network.channel_multipliers": (1, 2, 2),
    "network.blocks_per_level": 2,
    "network.attention_resolutions": (16, 8),
    "network.class_conditioning": "none",
})  # fmt: skip
CALLS = 3  # a measurement's


class StacksGroupNorm(GroupNormalization):
    """The layer that ours replaces, as it is, followed by the timestep's scale and shift."""

    def call(self, inputs, scale=None, shift=None):
        """As `GroupNorm.call`."""
        x = super().call(inputs)
        if scale is None:
            return x
        return x * tf.cast(1.0 + scale, x.dtype)[:, None, None] + tf.cast(shift, x.dtype)[:, None, None]


def make_network(precision: str, norm: type) -> PatchedNetwork:
    """The yardstick with random weights."""
    with mock.patch.object(norms, "GroupNorm", norm):
        return randomized(build_network(YARDSTICK, precision))


def randomized(network: PatchedNetwork) -> PatchedNetwork:
    """The network, with random weights: graph optimizers remove blocks whose kernels are zero."""
    rng = np.random.default_rng(0)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(0, 0.02, variable.shape).astype(np.float32))
    return network


def forward_of(network: PatchedNetwork, batch: int, xla: bool = False) -> Callable[[], object]:
    """A function that runs one forward pass."""
    z = tf.random.normal((batch, *SHAPE))
    t = tf.fill([batch], 500)
    labels = tf.zeros_like(t)
    compiled = tf.function(lambda: network(z, t, labels), jit_compile=xla)
    return lambda: compiled()[0].numpy()


def train_step_of(network: PatchedNetwork, batch: int, xla: bool = False) -> Callable[[], object]:
    """A function that runs one step as `fit` does, optimizer and metrics included."""
    model = PatchedDiffusion(network)
    model.compile(optimizer=GuardedAdam(1e-4), jit_compile=xla)
    images = tf.random.uniform((batch, *SHAPE), -1, 1)
    batches = iter(tf.data.Dataset.from_tensors(images).repeat())
    step = model.make_train_function()
    return lambda: float(step(batches)["loss"])  # waits for a GPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--xla", action="store_true", help="ours compiled by XLA too")
    options = parser.parse_args()
    variants = {}
    for precision in ("float32", "mixed_bfloat16"):
        variants[f"ours, {precision}"] = (precision, GroupNorm, False)
        variants[f"stack's, {precision}"] = (precision, StacksGroupNorm, False)
        if options.xla:
            variants[f"ours with XLA, {precision}"] = (precision, GroupNorm, True)
    print(f"{machine()}, batch {options.batch}, {options.repeats} turns")
    for kind, make in (("forward", forward_of), ("train step", train_step_of)):
        calls = {
            name: make(make_network(precision, norm), options.batch, xla)
            for name, (precision, norm, xla) in variants.items()
        }
        measures = {name: lambda call=call: seconds(call, CALLS) for name, call in calls.items()}
        times = in_turns(measures, options.repeats, warm_up=1)
        first = next(iter(times.values()))
        for name, values in times.items():
            rate = options.batch / np.median(values)
            print(f"{kind:10}  {name:28} {rate:6.1f} images/s  x {with_range(first / values)}")


if __name__ == "__main__":
    main()
