"""One network with two patch sizes, beside small and large patches everywhere and beside two experts.

    nice -n 19 python -m experiments.patch_sizes [--seeds=3] [--steps=2000] [--set network.base_channels=32]

trains four models for each seed with main.py, from the same preset and with the same trunk, on equally many
images: P at all t, 2P at all t, P below a boundary and 2P from it on as two experts, and as one network (an
expert's length, and the share of a batch for each interval, follow the distribution of t). Stopped at any
time, it goes on by the same command. At its end `<out>/patch_sizes.json`, `.md` and `.png` are made.

Distances are those of --mode=evaluate to the training split, bits those of held-out images. Speeds are
measured turn by turn, all models in each turn, so that other load on the machine falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import in_turns, seconds
from experiments.driver import Driver, Execute, main_py, markdown, settings_flags
from pdm_tf import errors
from pdm_tf.config.fields import Config, parse_settings
from pdm_tf.config.words import get, leaves
from pdm_tf.denoiser import build_network
from pdm_tf.describe import forward_flops, passes_of_sampling
from pdm_tf.diffusion.schedules import SCHEDULES
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS
from pdm_tf.evaluation.metrics import Measurement
from pdm_tf.models import Model
from pdm_tf.plots import png_figure
from pdm_tf.run import RunFolder
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.training.model import step_on_zeros

SMALL = "P everywhere"
LARGE = "2P everywhere"
EXPERTS = "two experts"
ONE = "one network, two sizes"
STRATA = 16  # t of each held-out image, besides t = 0
TIMED_STEPS = 5  # train steps of a turn
WARM_UP = 3  # turns that trace graphs, and in which the calls of a sampler grow
BITS = "bits/dim, held out"


def share_of_large(config: Config, boundary: int) -> float:
    """The probability that a t drawn in training is at or above the boundary."""
    diffusion = config.diffusion
    side = max(config.data.image_shape[:2])
    distribution = T_DISTRIBUTIONS[diffusion.t_distribution]
    mass = distribution(diffusion, SCHEDULES[diffusion.schedule](diffusion, side), side)
    mass = np.ones(diffusion.num_timesteps) if mass is None else mass
    return round(float(mass[boundary:].sum() / mass.sum()), 3)


def table_of_runs(config: Config, boundary: int) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Model -> length and settings of each of its runs, from the least noise on.

    `config` is that of P everywhere, `boundary` the first t of large patches.
    """
    share = share_of_large(config, boundary)
    steps = config.training.steps
    large_steps = round(share * steps)
    network = {
        key: get(config, key)
        for key, leaf in leaves(Config).items()
        if key.startswith("network.") and get(config, key) != leaf.default
    }
    large = {**network, "network.patch_size": 2 * config.network.patch_size}
    if config.network.kind == "unet":  # the part of the trunk that large patches run
        large["network.channel_multipliers"] = config.network.channel_multipliers[1:]
    two_sizes = {"network.patch_switch_t": boundary, "diffusion.large_share": share}
    return {
        SMALL: [(steps, network)],
        LARGE: [(steps, large)],
        EXPERTS: [
            (steps - large_steps, {**network, "diffusion.t_stop": boundary}),
            (large_steps, {**large, "diffusion.t_start": boundary}),
        ],
        ONE: [(steps, {**network, **two_sizes})],
    }


def quiet(steps: int) -> dict[str, Any]:
    """Settings of a run without previews and evaluations on the way."""
    log_every = max(steps // 20, 1)
    return {
        "training.log_every": log_every,
        "training.eval_every": log_every * steps,
        "training.score_every": 0,
        "training.sample_every": 2 * steps,
        "training.sample_images": 16,
        "training.ema_lengths": (),
        "training.keep_checkpoints": 1,
        "training.precision": "float32",
    }


class PatchSizes:
    """The comparison in one folder."""

    def __init__(self, options: argparse.Namespace, execute: Execute = main_py):
        self.options = options
        self.driver = Driver(options.out, execute)
        self.dataset = [f"--dataset={options.dataset}", f"--data_dir={options.data_dir}"]

    def folders(self, name: str, seed: int) -> list[RunFolder]:
        """The run folders of a model, from the least noise on."""
        place = self.options.out / "runs" / f"{name.replace(',', '').replace(' ', '_')}_{seed}"
        parts = [place / "part_0", place / "part_1"] if name == EXPERTS else [place]
        return [RunFolder(part) for part in parts]

    def train(self, name: str, seed: int, runs: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Trains the runs of a model, each (length, settings)."""
        given = parse_settings(self.options.set)
        for folder, (steps, settings) in zip(self.folders(name, seed), runs):
            arguments = [
                *self.dataset,
                f"--seed={seed}",
                f"--network={self.options.network}",
                *settings_flags({**given, **settings, **quiet(steps)}),
            ]
            self.driver.train(folder, steps, arguments)

    def measure(self, name: str, seed: int) -> dict[str, float]:
        """The distances of a model's samples by name, and the bits of held-out images."""
        folders = self.folders(name, seed)
        runs = [f"--run_dir={','.join(map(str, folders))}", *self.dataset]
        out = folders[0].path.parent / f"evaluation_{folders[0].path.name}"
        options = self.options
        size = f"--sample_batch_size={options.batch_size}"
        evaluate = ["--mode=evaluate", *runs, size, f"--out={out}"]
        self.driver.execute([*evaluate, f"--num_samples={options.num_images}"])
        self.driver.execute(
            [*evaluate, "--likelihood", f"--strata={STRATA}", f"--num_samples={options.held_out}"]
        )
        (row,) = [row for row in _read_json(out / "evaluation.json")["results"] if "digest" in row]
        values = {metric: measured["value"] for metric, measured in row["metrics"].items()}
        return {**values, BITS: _read_json(out / "likelihood.json")["bits_per_dim"]["value"]}

    def results(self) -> dict[str, Any]:
        """Trains and measures what is missing, and returns all numbers."""
        options = self.options
        self.train(SMALL, 0, [(options.steps, {})])
        table = table_of_runs(self.folders(SMALL, 0)[0].config(), options.boundary)
        measured = {name: [] for name in table}
        for seed in range(options.seeds):
            for name, runs in table.items():
                if (name, seed) != (SMALL, 0):
                    self.train(name, seed, runs)
                numbers = self.driver.once(
                    {"model": name, "seed": seed, "runs": runs, "options": _decisive(options)},
                    lambda name=name, seed=seed: self.measure(name, seed),
                )
                measured[name].append(numbers)
                values = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
                print(f"{name}, seed {seed}: {values}", flush=True)
        folders = {name: self.folders(name, 0) for name in table}
        models = {name: Model.from_folders(*(run.path for run in runs)) for name, runs in folders.items()}
        configs = {name: [run.config for run in model.runs] for name, model in models.items()}
        turns = options.turns
        speed = {"options": _decisive(options), "turns": turns}
        return {
            "measured": measured,
            "costs": costs(configs),
            "sampling_seconds": self.driver.once(
                {"speed": "sampling", **speed}, lambda: sampling_seconds(models, options.batch_size, turns)
            ),
            "training_seconds": self.driver.once(
                {"speed": "training", **speed}, lambda: training_seconds(configs, turns)
            ),
        }

    def make(self) -> None:
        out = self.options.out
        results = self.results()
        (out / "patch_sizes.json").write_text(json.dumps(results, indent=1) + "\n")
        rows = rows_of(results)
        text = table(rows)
        (out / "patch_sizes.md").write_text(text + "\n")
        draw(rows, out / "patch_sizes.png")
        print(f"{text}\nwrote patch_sizes.json, .md and .png in {out}")


def _decisive(options: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the numbers of a model and a seed."""
    free = ("out", "data_dir", "seeds", "turns")
    return {name: value for name, value in vars(options).items() if name not in free}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def costs(configs: Mapping[str, Sequence[Config]]) -> dict[str, dict[str, int]]:
    """Parameters of each model's networks together, and FLOPs of one sample."""
    networks = {name: [build_network(config) for config in runs] for name, runs in configs.items()}
    (one,) = networks[ONE]
    passes = passes_of_sampling(configs[ONE][0], one)
    flops = {name: [forward_flops(network) for network in runs] for name, runs in networks.items()}
    flops[ONE].append(forward_flops(one, large=True))
    found = {}
    for name, runs in networks.items():
        below_and_above = flops[name] if len(flops[name]) > 1 else flops[name] * 2
        found[name] = {
            "parameters": sum(network.count_params() for network in runs),
            "sampling_flops": sum(number * cost for number, cost in zip(passes, below_and_above)),
        }
    return found


def sampling_seconds(models: Mapping[str, Model], batch_size: int, turns: int) -> dict[str, np.ndarray]:
    """Seconds of sampling an image, by model and turn."""

    def sampling(model: Model) -> Callable[[], float]:
        sampler = Sampler(model.denoiser, model.config.sampling)
        labels = np.zeros(batch_size, np.int32)
        return lambda: seconds(lambda: sampler(0, range(batch_size), labels)) / batch_size

    return in_turns({name: sampling(model) for name, model in models.items()}, turns, WARM_UP)


def training_seconds(configs: Mapping[str, Sequence[Config]], turns: int) -> dict[str, np.ndarray]:
    """Seconds of training an image, by model and turn; of experts weighted by their lengths."""

    def training(config: Config) -> Callable[[], float]:
        _, step = step_on_zeros(config)
        return lambda: seconds(step, TIMED_STEPS) / config.training.batch_size

    runs = {(name, part): config for name, parts in configs.items() for part, config in enumerate(parts)}
    found = in_turns({key: training(config) for key, config in runs.items()}, turns, WARM_UP)
    return {
        name: np.average(
            [found[name, part] for part in range(len(parts))],
            axis=0,
            weights=[config.training.steps for config in parts],
        )
        for name, parts in configs.items()
    }


def rows_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each model: means, standard errors over seeds, and speeds beside those of P everywhere."""
    base = results["costs"][SMALL]
    rows = []
    for name, seeds in results["measured"].items():
        costs = results["costs"][name]
        row = {
            "model": name,
            "parameters": costs["parameters"],
            "metrics": {key: Measurement.mean_of([seed[key] for seed in seeds]) for key in seeds[0]},
            "sampling_flops": costs["sampling_flops"] / base["sampling_flops"],
        }
        for kind in ("training", "sampling"):
            seconds = np.array(results[f"{kind}_seconds"][name])
            row[f"{kind}_rate"] = float(1 / np.median(seconds))
            row[f"{kind}_time"] = float(np.median(seconds / results[f"{kind}_seconds"][SMALL]))
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    titles = ["model", "parameters", *rows[0]["metrics"]]
    titles += ["training, images/s", "sampling, images/s", "sampling time", "sampling FLOPs"]
    lines = [
        [
            row["model"],
            f"{row['parameters']:,}",
            *map(str, row["metrics"].values()),
            f"{row['training_rate']:.3g}",
            f"{row['sampling_rate']:.3g}",
            f"{row['sampling_time']:.2f}",
            f"{row['sampling_flops']:.2f}",
        ]
        for row in rows
    ]
    return markdown(titles, lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The first distance and the bits against the sampling time, with the standard errors over seeds."""
    distance = next(iter(rows[0]["metrics"]))
    with png_figure(path, 9, 3.4, layout="constrained") as figure:
        axes = figure.subplots(1, 2)
        for axis, name in zip(axes, (distance, BITS)):
            for row in rows:
                measured = row["metrics"][name]
                axis.errorbar(
                    row["sampling_time"],
                    measured.value,
                    yerr=measured.error,
                    fmt="o",
                    capsize=3,
                    label=row["model"],
                )
            axis.set(xlabel="sampling time of an image, over that of P everywhere", ylabel=name)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="emoji64", help="a named one, tfds:NAME or folder:PATH")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--network", default="unet", choices=("unet", "vit"))
    parser.add_argument("--set", action="append", default=[], help="key=value of any field of the config")
    parser.add_argument("--boundary", type=int, default=396, help="the first t of large patches")
    parser.add_argument("--steps", type=int, default=2000, help="train steps of each model")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--num_images", type=int, default=256, help="samples of each seed")
    parser.add_argument("--held_out", type=int, default=200, help="images whose bits are measured")
    parser.add_argument("--batch_size", type=int, default=32, help="images sampled at a time")
    parser.add_argument("--turns", type=int, default=7, help="of the measurement of speed")
    parser.add_argument("--out", type=Path, default=Path("runs/patch_sizes"))
    options = parser.parse_args()
    PatchSizes(options).make()


if __name__ == "__main__":
    sys.exit(errors.run(main))
