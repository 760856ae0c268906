"""Steps a second of the training loop, beside a bare compiled train step on one batch in memory.

    python -m benchmarks.training_loop [--dataset emoji64] [--steps 200] [--repeats 5] [--together 1 10]

The loop is `loop.train` as `--mode=train` runs it: data, averages, metrics and all, but for evaluation,
previews and checkpoints, which come once in thousands of steps. A ratio is that of one turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile

import numpy as np
import tensorflow as tf

from benchmarks.turns import in_turns, machine, seconds, with_range
from pdm_tf import data
from pdm_tf.config.fields import Config
from pdm_tf.config.presets import preset
from pdm_tf.run import RunFolder
from pdm_tf.training import loop
from pdm_tf.training.model import step_on_zeros

WARM_UP_STEPS = 20  # tracing falls into these, and is left out


def config_of(dataset: str, steps: int, together: int) -> Config:
    """The preset with a log line every tenth of `steps`, and nothing else between them but averages."""
    every = max(together, steps // 10 // together * together)
    end = WARM_UP_STEPS + steps
    never = 1000 * every
    settings = {
        "training.steps": end + -end % every,
        "training.log_every": every,
        "training.steps_per_execution": together,
        "training.eval_every": never,
        "training.sample_every": never,
        "training.sample_images": 1,
        "training.checkpoint_every": never,
        "training.ema_every": max(together, preset(dataset).training.ema_every),
        "training.precision": "float32",
        "sampling.steps": (1,),
    }
    return preset(dataset).replace(settings)


def loop_rate(config: Config, info: data.DatasetInfo) -> float:
    """Steps a second of `loop.train` from the first log line after the warm-up to the last."""
    strategy = tf.distribute.get_strategy()
    with tempfile.TemporaryDirectory(prefix="training_loop_") as folder:
        run = RunFolder(folder)
        with contextlib.redirect_stderr(io.StringIO()):
            loop.train(config, run, info, strategy)
        steps, rates = run.metrics()["images_per_second"].T
    counted = rates[steps - config.training.log_every >= WARM_UP_STEPS]
    return 1 / statistics.mean(config.training.batch_size / counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="emoji64")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--steps", type=int, default=200, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 10], help="steps_per_execution")
    arguments = parser.parse_args()
    info = data.find_dataset(arguments.dataset, arguments.data_dir)
    print(f"{machine()}, {arguments.dataset}")
    with data.naming_shards():
        _, bare_step = step_on_zeros(preset(arguments.dataset))
        seconds(bare_step, WARM_UP_STEPS)
        print("steps_per_execution  loop steps/s  bare steps/s  ratio (min to max)")
        for together in arguments.together:
            config = config_of(arguments.dataset, arguments.steps, together)
            measures = {
                "loop": lambda config=config: loop_rate(config, info),
                "bare": lambda: 1 / seconds(bare_step, arguments.steps),
            }
            rates = in_turns(measures, arguments.repeats)
            print(
                f"{together:19} {np.median(rates['loop']):13.2f} {np.median(rates['bare']):13.2f}  "
                f"{with_range(rates['loop'] / rates['bare'])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
