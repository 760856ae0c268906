"""One network with two patch sizes, beside small and large patches everywhere and beside two experts.

    nice -n 19 python -m experiments.patch_sizes [--seeds=3] [--steps=2000] [--set network.base_channels=32]

trains four models for each seed, from the same preset and with the same trunk, on equally many images: P at
all t, 2P at all t, P below a boundary and 2P from it on as two experts, and as one network (what a batch
holds of each interval, and how long each expert trains, is what the law of t gives). All is kept in `--out`:
a benchmark that was stopped goes on by the same command. At its end, and with `--draw` at once,
`<out>/patch_sizes.json`, `.md` and `.png` are made.

Of each seed the distances are those of --mode=evaluate with the embedded detector to the training split (no
FID), and the bits are those of held-out images. Speeds are measured turn by turn, all models in each turn, so
that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from pdm_tf import data
from pdm_tf.config.fields import Config, DataConfig, parse_settings, validate
from pdm_tf.config.presets import fitted_to_length, is_named, network_settings, preset, sized_preset
from pdm_tf.data import DatasetInfo
from pdm_tf.denoiser import build_network
from pdm_tf.describe import count_parameters, forward_flops, passes_of_sampling
from pdm_tf.diffusion.schedules import SCHEDULES
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS
from pdm_tf.errors import run
from pdm_tf.evaluation import references
from pdm_tf.evaluation.features import extract, load_detector
from pdm_tf.evaluation.image_sets import shared_labels
from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches
from pdm_tf.evaluation.metrics import Comparison
from pdm_tf.models import Model
from pdm_tf.run import RunFolder
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.stack import keras
from pdm_tf.training import loop
from pdm_tf.training.model import build_model

SMALL, LARGE, EXPERTS, ONE = "P everywhere", "2P everywhere", "two experts", "one network, two sizes"
STRATA = 16  # t of each held-out image, besides t = 0
TIMED_STEPS = 5  # of a turn


def share_of_large(config: Config, boundary: int) -> float:
    """How often the law of t draws one from the boundary on."""
    d, side = config.diffusion, max(config.data.image_shape[:2])
    mass = T_DISTRIBUTIONS[d.t_distribution](d, SCHEDULES[d.schedule](d, side), side)
    mass = np.ones(d.num_timesteps) if mass is None else mass
    return round(float(mass[boundary:].sum() / mass.sum()), 3)


def models_of(config: Config, boundary: int, given: dict) -> dict[str, list[Config]]:
    """The four models, each with the configs of its runs; of `config`'s steps in all.

    `given` is not derived from a run's length.
    """
    share, steps, network = share_of_large(config, boundary), config.training.steps, config.network
    large = {"network.patch_size": 2 * network.patch_size}
    if network.kind == "unet":  # what is left of the trunk where large patches enter it
        large["network.channel_multipliers"] = network.channel_multipliers[1:]
    of_large = round(share * steps)
    below = {"diffusion.t_stop": boundary, "training.steps": steps - of_large}
    above = {**large, "diffusion.t_start": boundary, "training.steps": of_large}
    models = {
        SMALL: [{}],
        LARGE: [large],
        EXPERTS: [below, above],
        ONE: [{"network.patch_switch_t": boundary, "diffusion.large_share": share}],
    }
    return {name: [_unwatched(config.replace(own), given) for own in runs] for name, runs in models.items()}


def _unwatched(config: Config, given: dict) -> Config:
    """The config fitted to its own length, without previews and evaluations on the way."""
    steps = config.training.steps
    log_every = max(steps // 20, 1)
    quiet = {
        "training.log_every": log_every, "training.eval_every": log_every * steps, "training.score_every": 0,
        "training.sample_every": 2 * steps, "training.sample_images": 16, "training.ema_lengths": (),
        "training.keep_checkpoints": 1,
    }  # fmt: skip
    return validate(fitted_to_length(config.replace(quiet), {**given, **quiet}))


def folders_of(out: Path, name: str, seed: int, count: int) -> list[Path]:
    """The run folders of a model, from the least noise on."""
    place = out / "runs" / f"{name.replace(',', '').replace(' ', '_')}_{seed}"
    return [place / f"part_{k}" for k in range(count)] if count > 1 else [place]


def train(configs: list[Config], folders: list[Path], seed: int, info: DatasetInfo) -> None:
    """Trains what is not trained yet."""
    for config, folder in zip(configs, folders):
        folder = RunFolder(folder)
        if config.training.steps in folder.checkpoint_steps():
            continue
        resolved = config.replace({"seed": seed, "training.precision": "float32"})
        loop.train(resolved, folder, info, tf.distribute.get_strategy())
        keras.backend.clear_session()


class Measure:
    """Distances and bits of a model; what they are measured with is made once."""

    def __init__(self, config: Config, info: DatasetInfo, count: int, held_out: int, batch_size: int):
        """`count` samples are compared, and the bits are those of `held_out` images."""
        self.info, self.count, self.held_out, self.batch_size = info, count, held_out, batch_size
        self.shape, detector = config.data.image_shape, load_detector()
        self.split = data.held_out_split(info)
        train = references.of_split(detector, info, "train", self.shape)
        self.comparison = Comparison(detector, train)
        self.labels = shared_labels(train.label_counts or [1], count, 0)

    def __call__(self, loaded: Model) -> dict[str, float]:
        """The distances by their names, and bits_per_dim."""
        sampler = Sampler(loaded.denoiser, loaded.config.sampling)
        images = SampleBatches(sampler, 0, self.count, self.batch_size, self.labels).batches()
        values = self.comparison.distances(extract(self.comparison.detector, images).pooled)
        count = min(self.held_out, self.info.num_examples[self.split])
        batches = held_out_batches(self.info, self.split, self.shape, self.batch_size, count)
        (bits,) = Likelihood(loaded.denoiser)(batches, strata=STRATA, progress=False)
        return {**values, "bits_per_dim": bits.bits_per_dim.value}


def costs_of(models: dict[str, list[Config]]) -> dict[str, dict[str, int]]:
    """Parameters, and FLOPs of an image sampled, of each model's networks together."""
    networks = {name: [build_network(config) for config in runs] for name, runs in models.items()}
    (one,) = networks[ONE]
    passes = passes_of_sampling(models[ONE][0], one)
    of_pass = {name: [forward_flops(network) for network in own] for name, own in networks.items()}
    of_pass[ONE].append(forward_flops(one, large=True))
    found = {}
    for name, own in networks.items():
        each = of_pass[name] if len(of_pass[name]) > 1 else of_pass[name] * 2
        found[name] = {
            "parameters": sum(count_parameters(network) for network in own),
            "sampling_flops": sum(number * cost for number, cost in zip(passes, each)),
        }
    return found


def in_turns(doing: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of each, once in each turn, after one call that does not count."""
    for do in doing.values():
        do()
    seconds = {name: [] for name in doing}
    for _ in range(turns):
        for name, do in doing.items():
            begin = time.perf_counter()
            do()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def sampling_seconds(loaded: dict[str, Model], batch_size: int, turns: int) -> dict[str, list[float]]:
    """Seconds an image takes to be sampled, by model and turn."""

    def drawing(one: Model) -> Callable[[], None]:
        sampler, labels = Sampler(one.denoiser, one.config.sampling), np.zeros(batch_size, np.int32)
        return lambda: sampler(0, range(batch_size), labels)

    doing = {name: drawing(one) for name, one in loaded.items()}
    for do in doing.values():  # calls get longer from the first on, until one takes a second
        do()
        do()
    return {name: [s / batch_size for s in own] for name, own in in_turns(doing, turns).items()}


def training_seconds(models: dict[str, list[Config]], turns: int) -> dict[str, list[float]]:
    """Seconds an image takes in training, by model and turn; of experts by how long each trains."""

    def training(config: Config) -> Callable[[], None]:
        model = build_model(config, "float32")
        size, shape = config.training.batch_size, config.data.image_shape
        images, labels = tf.zeros((size, *shape)), tf.zeros(size, tf.int32)
        step = tf.function(lambda: model.train_step((images, labels))["loss"])
        return lambda: [float(step()) for _ in range(TIMED_STEPS)]

    steps = {(name, k): config for name, runs in models.items() for k, config in enumerate(runs)}
    seconds = in_turns({key: training(config) for key, config in steps.items()}, turns)
    found = {}
    for name, runs in models.items():
        whole = sum(config.training.steps for config in runs)
        shares = [
            np.array(seconds[name, k])
            * config.training.steps
            / whole
            / config.training.batch_size
            / TIMED_STEPS
            for k, config in enumerate(runs)
        ]
        found[name] = np.sum(shares, axis=0).tolist()
    return found


def rows_of(results: dict) -> list[dict]:
    """A row for each model: means, standard errors over seeds, and speeds beside those of P everywhere."""
    rows = []
    for name, seeds in results["measured"].items():
        values = {key: [one[key] for one in seeds.values()] for key in next(iter(seeds.values()))}
        row = {"model": name, "seeds": len(seeds), **results["costs"][name]}
        for key, numbers in values.items():
            row[key] = float(np.mean(numbers))
            row[f"{key} error"] = (
                float(np.std(numbers, ddof=1) / len(numbers) ** 0.5) if len(seeds) > 1 else None
            )
        for kind in ("training", "sampling"):
            seconds, first = (np.array(results[f"{kind}_seconds"][one]) for one in (name, SMALL))
            row[f"{kind} images/s"] = float(1 / np.median(seconds))
            row[f"{kind} time"] = float(np.median(seconds / first))
        row["sampling flops"] = row["sampling_flops"] / results["costs"][SMALL]["sampling_flops"]
        rows.append(row)
    return rows


def table(rows: list[dict], distances: list[str]) -> str:
    """The rows in Markdown."""
    measured = [*distances, "bits_per_dim"]
    heads = [
        "model", "parameters", *(name.replace("bits_per_dim", "bits/dim, held out") for name in measured),
        "training, images/s", "sampling, images/s", "sampling time", "sampling FLOPs",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row["model"], f"{row['parameters']:,}"]
        for name in measured:
            error = row[f"{name} error"]
            cells.append(f"{row[name]:.4g}" + (f" ± {error:.2g}" if error is not None else ""))
        cells += [f"{row[f'{kind} images/s']:.3g}" for kind in ("training", "sampling")]
        cells += [f"{row['sampling time']:.2f}", f"{row['sampling flops']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], distance: str, path: Path) -> None:
    """Distance and bits against the time that an image takes, with the standard errors over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, name, said in zip(axes, (distance, "bits_per_dim"), (distance, "bits/dim of held-out images")):
        for row in rows:
            error = row[f"{name} error"]
            axis.errorbar(row["sampling time"], row[name], yerr=error, fmt="o", capsize=3, label=row["model"])
        axis.set(xlabel="sampling time of an image, over that of P everywhere", ylabel=said)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def config_of(arguments: argparse.Namespace, info: DatasetInfo, given: dict) -> Config:
    """The config of P everywhere, not fitted to its length yet: the preset of the data, with what is set."""
    dataset, known = arguments.dataset, {"data.label_names": info.label_names, "data.sha256": info.sha256}
    if is_named(dataset):
        config = preset(dataset, given.get("network.patch_size")).replace({**known, **given})
    else:
        own = DataConfig(dataset, info.image_shape, info.num_classes, info.label_names, sha256=info.sha256)
        config = sized_preset("tiny", own, given)
    return config.replace({**network_settings(arguments.network, config), **given})


def benchmark(arguments: argparse.Namespace) -> None:
    """Trains and measures what is not there yet, and writes the table and the picture."""
    out, info = arguments.out, data.find_dataset(arguments.dataset, arguments.data_dir)
    given = {**parse_settings(arguments.set), "training.steps": arguments.steps}
    models = models_of(config_of(arguments, info, given), arguments.boundary, given)
    file = out / "patch_sizes.json"
    results = json.loads(file.read_text()) if file.exists() else {"measured": {name: {} for name in models}}

    def keep() -> None:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")

    measure = None
    for seed in range(0 if arguments.draw else arguments.seeds):
        for name, configs in models.items():
            if str(seed) in results["measured"][name]:
                continue
            folders = folders_of(out, name, seed, len(configs))
            train(configs, folders, seed, info)
            measure = measure or Measure(
                configs[0], info, arguments.num_images, arguments.held_out, arguments.batch_size
            )
            found = measure(Model.from_folders(*folders))
            results["measured"][name][str(seed)] = found
            keep()
            said = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{name}, seed {seed}: {said}", flush=True)
            keras.backend.clear_session()
    if "sampling_seconds" not in results:
        loaded = {n: Model.from_folders(*folders_of(out, n, 0, len(c))) for n, c in models.items()}
        results["sampling_seconds"] = sampling_seconds(loaded, arguments.batch_size, arguments.turns)
        results["training_seconds"] = training_seconds(models, arguments.turns)
        results["costs"] = costs_of(models)
        keep()
    rows = rows_of(results)
    distances = [name for name in next(iter(results["measured"][SMALL].values())) if name != "bits_per_dim"]
    (out / "patch_sizes.md").write_text(table(rows, distances))
    draw(rows, distances[0], out / "patch_sizes.png")
    print(table(rows, distances))
    print(f"wrote {file}, {out / 'patch_sizes.md'} and {out / 'patch_sizes.png'}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="emoji64", help="a named one, tfds:NAME or folder:PATH")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--network", default="unet", choices=("unet", "vit"))
    parser.add_argument("--set", action="append", default=[], help="key=value of any field of the config")
    parser.add_argument("--boundary", type=int, default=396, help="the first t of large patches")
    parser.add_argument("--steps", type=int, default=2000, help="train steps of each model")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--num_images", type=int, default=256, help="samples of each seed")
    parser.add_argument("--held_out", type=int, default=200, help="images whose bits are measured")
    parser.add_argument("--batch_size", type=int, default=32, help="images sampled at a time")
    parser.add_argument("--turns", type=int, default=7, help="of the measurement of speed")
    parser.add_argument("--out", type=Path, default=Path("runs/patch_sizes"))
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    benchmark(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run(main))
