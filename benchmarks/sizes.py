"""The networks that other data get, by size and by side of the images: grids, parameters and cost.

    python -m benchmarks.sizes [--sizes tiny small base] [--sides 32 64 256 1024] [--batch 8] [--steps 2]

Images/sec are those of bare train steps in float32, from the processor time that they take and not from the
clock: other load slows them less, and they are those of all cores left alone.
"""

from __future__ import annotations

import argparse
import os
import time

from benchmarks.turns import step_on_zeros
from pdm_tf.config.fields import DataConfig
from pdm_tf.config.presets import SIZES, sized_preset
from pdm_tf.describe import count_parameters, forward_flops


def row(size: str, side: int, batch: int, steps: int) -> str:
    """A size's line of the table, for square images."""
    data = DataConfig("folder:x", (side, side, 3))
    config = sized_preset(size, data, {"training.batch_size": batch})
    model, step = step_on_zeros(config)
    step()  # traces the graph
    begin = time.process_time()
    for _ in range(steps):
        step()
    rate = os.cpu_count() * batch * steps / (time.process_time() - begin)
    network = model.network
    height, width = network.grid
    cells = [
        size,
        f"{side} x {side}",
        network.patch_size,
        f"{height} x {width}",
        len(config.network.channel_multipliers),
        f"{count_parameters(network):,}",
        f"{forward_flops(network) / 1e9:.3g}",
        f"{rate:.3g}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


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
