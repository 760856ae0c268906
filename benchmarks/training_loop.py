"""Steps a second of the training loop, beside a bare compiled train step on batches that are in memory.

    python -m benchmarks.training_loop [--dataset emoji64] [--steps 200] [--repeats 5] [--together 1 10]

The loop is `loop.train` as `--mode=train` runs it: data, averages, metrics and all, but for evaluation,
previews and checkpoints, which are done once in thousands of steps. It and the bare step take turns, and the
ratio is taken within each turn, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import tensorflow as tf

from benchmarks.data_pipeline import waiting_share
from pdm_tf import data
from pdm_tf.config.fields import Config
from pdm_tf.config.presets import KEPT_LENGTHS, preset
from pdm_tf.denoiser import build_network
from pdm_tf.run import RunFolder
from pdm_tf.training import loop
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import build_model
from pdm_tf.training.state import training_state

WARM_UP_STEPS = 20  # tracing falls into these, and is left out


def config_of(dataset: str, steps: int, together: int) -> Config:
    """The preset with a log line every tenth of `steps`, and nothing else between them but averages."""
    every = max(together, steps // 10 // together * together)
    end = WARM_UP_STEPS + steps
    end += -end % every
    return preset(dataset).replace({
        "training.steps": end, "training.log_every": every, "training.steps_per_execution": together,
        "training.eval_every": 1000 * every, "training.sample_every": 1000 * every,
        "training.sample_images": 1, "sampling.steps": (1,), "training.checkpoint_every": 1000 * every,
        "training.ema_every": max(together, preset(dataset).training.ema_every),
    })  # fmt: skip


def loop_rate(config: Config, info: data.DatasetInfo) -> float:
    """Steps a second of `loop.train` from the first log line after the warm-up to the last."""
    strategy = tf.distribute.get_strategy()
    with tempfile.TemporaryDirectory(prefix="training_loop_") as folder:
        run = RunFolder(folder)
        resolved = config.replace({"training.precision": "float32"})
        with contextlib.redirect_stderr(io.StringIO()):
            loop.train(resolved, run, info, strategy)
        steps, rates = run.metrics()["images_per_second"].T
    counted = rates[steps - config.training.log_every >= WARM_UP_STEPS]
    return 1 / statistics.mean(config.training.batch_size / counted)


class BareStep:
    """The compiled train step alone, on batches in memory."""

    def __init__(self, config: Config, info: data.DatasetInfo):
        self.model = build_model(config, "float32")
        training_state(self.model)
        self.batches = data.load_batches(
            info, split="train", batch_size=config.training.batch_size, seed=0,
            image_shape=config.data.image_shape,
        )  # fmt: skip
        self.in_memory = itertools.cycle(list(self.batches.take(8)))
        self.step = tf.function(self.model.train_step)

    def rate(self, steps: int) -> float:
        """Steps a second, after a warm-up."""
        for _ in range(WARM_UP_STEPS):
            loss = self.step(next(self.in_memory))["loss"]
        float(loss)
        begin = time.perf_counter()
        for _ in range(steps):
            loss = self.step(next(self.in_memory))["loss"]
        float(loss)
        return steps / (time.perf_counter() - begin)

    def waiting(self, steps: int) -> float:
        """The share of the time that is spent waiting for the pipeline."""
        return waiting_share(self.batches, lambda batch: float(self.step(batch)["loss"]), steps)


def update_milliseconds(variables: Sequence[tf.Variable], lengths: Sequence[float]) -> tuple[float, float]:
    """For how long an update of the averages holds up training, and how long it goes on beside: medians."""
    ema, times = ExponentialMovingAverage(variables, 0.99, lengths=lengths), []
    for number in range(7):
        begin = time.perf_counter()
        ema.update(number)
        held_up = time.perf_counter() - begin
        _ = ema.averages  # waits for the sums
        times.append((1e3 * held_up, 1e3 * (time.perf_counter() - begin - held_up)))
    return tuple(map(statistics.median, zip(*times[1:])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="emoji64")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--steps", type=int, default=200, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 10], help="steps_per_execution")
    arguments = parser.parse_args()
    info = data.find_dataset(arguments.dataset, arguments.data_dir)
    print(f"tensorflow {tf.__version__}, {os.cpu_count()} cores, {arguments.dataset}")
    with data.naming_shards():
        bare = BareStep(preset(arguments.dataset), info)
        print("steps_per_execution  loop steps/s  bare steps/s   ratio  (min to max)")
        for together in arguments.together:
            config, turns = config_of(arguments.dataset, arguments.steps, together), []
            for _ in range(arguments.repeats):
                turns.append((loop_rate(config, info), bare.rate(arguments.steps)))
                print(".", end="", file=sys.stderr, flush=True)
            ratios = sorted(ours / alone for ours, alone in turns)
            ours, alone = (statistics.median(rates) for rates in zip(*turns))
            print(
                f"{together:19} {ours:13.2f} {alone:13.2f} {statistics.median(ratios):7.3f}"
                f"  ({ratios[0]:.3f} to {ratios[-1]:.3f})",
                flush=True,
            )
        print(f"share of a step spent waiting for data: {100 * bare.waiting(arguments.steps):.2f}%")
    for dataset in dict.fromkeys((arguments.dataset, "ffhq1024")):
        variables = build_network(preset(dataset)).trainable_variables
        parameters = sum(v.shape.num_elements() for v in variables)
        for lengths in ((), KEPT_LENGTHS):
            held_up, beside = update_milliseconds(variables, lengths)
            print(
                f"update of {1 + len(lengths)} averages, {parameters / 1e6:.1f}M parameters: training waits "
                f"{held_up:.1f} ms, the sums take {beside:.1f} ms beside it"
            )


if __name__ == "__main__":
    main()
