"""Memory and time of a training step with and without gradient checkpointing.

    python -m benchmarks.memory [--networks emoji64 c64 lsun_church] [--repeats 3]

Memory is the peak of a fresh process over some train steps, less what was resident once weights and optimizer
state were there.
"""

from __future__ import annotations

import argparse
import os
import statistics

import numpy as np

from benchmarks.turns import seconds, with_range
from benchmarks.unet import YARDSTICK
from pdm_tf.config.presets import preset
from pdm_tf.progress import in_fresh_process, peak_resident
from pdm_tf.training.model import step_on_zeros

# Batches whose activations, not the weights, fill the memory, and that fit a small machine.
BATCHES = {"emoji64": 64, "c64": 32, "lsun_church": 8}
STEPS = 3


def measure(network: str, gradient_checkpointing: bool, jit_compile: bool) -> tuple[float, float]:
    """MiB that the steps add to the process, and the median seconds of a step after the first."""
    settings = {
        "training.gradient_checkpointing": gradient_checkpointing,
        "training.batch_size": BATCHES[network],
        "training.jit_compile": jit_compile,
    }
    config = YARDSTICK if network == "c64" else preset(network)
    _, step = step_on_zeros(config.replace(settings))
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    step()
    times = [seconds(step) for _ in range(STEPS)]
    return peak_resident() - before, statistics.median(times)


def compare(network: str, repeats: int, jit_compile: bool) -> str:
    """One line of the table."""
    turns = [
        [in_fresh_process(measure, network, checkpointing, jit_compile) for checkpointing in (False, True)]
        for _ in range(repeats)
    ]
    turns = np.array(turns)  # (repeats, 2, 2): without and with; MiB and seconds
    (mib, plain_seconds), (checkpointed_mib, checkpointed_seconds) = np.median(turns, axis=0)
    ratios = turns[:, 1] / turns[:, 0]
    return (
        f"{network:>12} {BATCHES[network]:6} {mib:7.0f} {checkpointed_mib:12.0f} "
        f"{np.median(ratios[:, 0]):7.2f}x {plain_seconds:8.2f} {checkpointed_seconds:12.2f}   "
        f"{with_range(ratios[:, 1])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=[*BATCHES], default=[*BATCHES])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jit_compile", action="store_true", help="compile the step with XLA")
    arguments = parser.parse_args()
    print("     network  batch     MiB checkpointed    ratio  seconds checkpointed   ratio (min to max)")
    for network in arguments.networks:
        print(compare(network, arguments.repeats, arguments.jit_compile), flush=True)


if __name__ == "__main__":
    main()
