"""Memory and time of a training step with and without recomputed activations.

    python -m benchmarks.memory [--networks emoji64 c64 lsun_church] [--repeats 3]

Each figure comes from a fresh process: the peak of its resident memory over some train steps,
less what was resident once weights and optimizer state were there. The two ways take turns, and the ratio
is taken within each turn, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# Batches that leave the activations, not the weights, to fill the memory, and fit a small machine.
BATCHES = {"emoji64": 64, "c64": 32, "lsun_church": 8}
STEPS = 3


def config_of(network: str, gradient_checkpointing: bool):
    """A preset, or "c64": 64x64 pixels, P=2, 6.95M parameters."""
    from pdm_tf.config.presets import preset

    settings = {
        "training.gradient_checkpointing": gradient_checkpointing,
        "training.batch_size": BATCHES[network],
    }
    if network == "c64":
        c64 = {
            "network.patch_size": 2, "network.base_channels": 64, "network.channel_multipliers": (1, 2, 2),
            "network.blocks_per_level": 2, "network.attention_resolutions": (16, 8),
            "network.class_conditioning": "none",
        }  # fmt: skip
        return preset("emoji64").replace({**settings, **c64})
    return preset(network).replace(settings)


def measure(network: str, gradient_checkpointing: bool, jit_compile: bool) -> dict[str, float]:
    """MiB that the steps add to the process, and the median seconds of a step after the first."""
    import tensorflow as tf

    from pdm_tf.progress import peak_resident
    from pdm_tf.training.model import build_model
    from pdm_tf.training.state import training_state

    config = config_of(network, gradient_checkpointing).replace({"training.jit_compile": jit_compile})
    model = build_model(config, "float32")
    training_state(model)  # makes the optimizer's slots
    batch = tf.zeros((config.training.batch_size, *config.data.image_shape))
    labels = tf.zeros(config.training.batch_size, tf.int32)
    step = tf.function(lambda: model.train_step((batch, labels)), jit_compile=jit_compile)
    before, seconds = resident_mebibytes(), []
    for _ in range(1 + STEPS):
        begin = time.perf_counter()
        float(step()["loss"])
        seconds.append(time.perf_counter() - begin)
    return {"mebibytes": peak_resident() - before, "seconds": statistics.median(seconds[1:])}


def resident_mebibytes() -> float:
    """What is resident now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def in_fresh_process(*arguments: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout.splitlines()[-1])


def compare(network: str, repeats: int, jit_compile: bool) -> str:
    """One line of the table."""
    turns = [
        [in_fresh_process(network, str(int(r)), str(int(jit_compile))) for r in (False, True)]
        for _ in range(repeats)
    ]
    kept, again = ({k: statistics.median(t[i][k] for t in turns) for k in turns[0][0]} for i in (0, 1))
    memory = statistics.median(t[1]["mebibytes"] / t[0]["mebibytes"] for t in turns)
    times = sorted(t[1]["seconds"] / t[0]["seconds"] for t in turns)
    return (
        f"{network:>12} {BATCHES[network]:6} {kept['mebibytes']:9.0f} {again['mebibytes']:10.0f}"
        f" {memory:7.2f}x {kept['seconds']:8.2f} {again['seconds']:9.2f} {statistics.median(times):7.2f}x"
        f"  ({times[0]:.2f} to {times[-1]:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=[*BATCHES], default=[*BATCHES])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jit_compile", action="store_true", help="compile the step with XLA")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        network, *switches = arguments.measure
        print(json.dumps(measure(network, *(switch == "1" for switch in switches))))
        return
    print("     network  batch  MiB kept  recomputed   ratio   s kept recomputed   ratio  (min to max)")
    for network in arguments.networks:
        print(compare(network, arguments.repeats, arguments.jit_compile), flush=True)


if __name__ == "__main__":
    main()
