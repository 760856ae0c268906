"""The networks that other data get, by size and by side of the images: what they are and what they cost.

    python -m benchmarks.sizes [--sizes tiny small base] [--sides 32 64 256 1024] [--batch 8] [--steps 2]

Images/sec are those of bare train steps in float32, from the processor time that they take and not from the
clock: what else the machine does slows them less, and they are those of as many cores left alone.
"""

from __future__ import annotations

import argparse
import os
import time

import tensorflow as tf

from pdm_tf.config.fields import Config, DataConfig
from pdm_tf.config.presets import SIZES, sized_preset
from pdm_tf.describe import count_parameters, forward_flops
from pdm_tf.training.model import PatchedDiffusion, build_model
from pdm_tf.training.state import training_state


def images_per_second(model: PatchedDiffusion, config: Config, steps: int) -> float:
    """Of train steps on all cores, after one that traces the graph."""
    batch = config.training.batch_size
    images, labels = tf.zeros((batch, *config.data.image_shape)), tf.zeros(batch, tf.int32)
    step = tf.function(lambda: model.train_step((images, labels)))
    float(step()["loss"])
    begin = time.process_time()
    for _ in range(steps):
        float(step()["loss"])
    return os.cpu_count() * batch * steps / (time.process_time() - begin)


def row(size: str, side: int, batch: int, steps: int) -> str:
    """A size's line of the table, for square images."""
    data = DataConfig("folder:x", (side, side, 3))
    config = sized_preset(size, data, {"training.batch_size": batch})
    model = build_model(config, "float32")
    training_state(model)  # makes the optimizer's slots
    network = model.network
    (height, width), levels = network.grid, len(config.network.channel_multipliers)
    return (
        f"| {size} | {side} x {side} | {network.patch_size} | {height} x {width} | {levels} | "
        f"{count_parameters(network):,} | {forward_flops(network) / 1e9:.3g} | "
        f"{images_per_second(model, config, steps):.3g} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 256, 1024])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    print("| size | image | P | grid | levels | parameters | forward GFLOP | training images/sec |")
    print("|---|---|---|---|---|---|---|---|")
    for size in arguments.sizes:
        for side in arguments.sides:
            print(row(size, side, arguments.batch, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
