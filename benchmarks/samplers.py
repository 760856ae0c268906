"""Samplers by steps: seconds an image, and distances to the data set.

    python -m benchmarks.samplers --run_dir=runs/avatars64 --num_images=500 --seeds=3

The distances are those of --mode=evaluate with the embedded detector, to the training split: no FID. Use
them to compare samplers of one model on one data set, at one number of images. Samples take their labels by
the shares of the training split. The held-out split's own distances stand first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import numpy as np

from pdm_tf import data
from pdm_tf.analysis.tables import with_error
from pdm_tf.config.fields import Config, SamplingConfig, check_sampling
from pdm_tf.config.presets import DEFAULT_DATASET
from pdm_tf.denoiser import Denoiser
from pdm_tf.errors import run
from pdm_tf.evaluation import references
from pdm_tf.evaluation.features import extract, load_detector
from pdm_tf.evaluation.image_sets import shared_labels
from pdm_tf.evaluation.metrics import Comparison
from pdm_tf.models import Model
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.sampler import Sampler


def settings_of(name: str, steps: int, guidance: float, config: Config) -> SamplingConfig:
    """How the table's row samples; a name is a sampler's, or SAMPLER/SPACING.

    Raises:
      UserError: there is no such sampler, or the model cannot be sampled so.
    """
    kind, _, spacing = name.partition("/")
    settings = SamplingConfig(kind, (steps,), spacing or "even", guidance)
    check_sampling(dataclasses.replace(config, sampling=settings))
    return settings


def measure(
    denoiser: Denoiser,
    settings: SamplingConfig,
    labels: np.ndarray,
    comparison: Comparison,
    batch: int,
    seeds: int,
) -> dict:
    """One line of the table: seconds an image, and of each seed its distances by their names.

    `labels` has one for each image of a seed; `batch` images are drawn at a time.
    """
    sampler = Sampler(denoiser, settings)
    sampler(0, range(batch), np.resize(labels, batch))  # traces and warms up
    found = []
    seconds = 0.0
    for seed in range(seeds):
        before = time.monotonic()
        images = list(SampleBatches(sampler, seed, len(labels), batch, labels))
        seconds += time.monotonic() - before
        found.append(comparison.distances(extract(comparison.detector, images).pooled))
    drawn = seeds * -(-len(labels) // batch) * batch
    return {
        "seconds_per_image": seconds / drawn,
        "num_images": len(labels),
        "passes": sampler.num_passes,
        **dataclasses.asdict(settings),
        "distances": {name: [values[name] for values in found] for name in found[0]},
    }


def benchmark(arguments: argparse.Namespace) -> None:
    """Prints the table, a line as soon as it is measured, and writes each as JSON to --out."""
    model = Model.from_folders(*arguments.run_dir.split(","))
    rows = [  # all refusals come before any measurement
        (name, steps, settings_of(name, steps, arguments.guidance, model.config))
        for name in arguments.samplers.split(",")
        for steps in map(int, arguments.steps.split(","))
    ]
    denoiser, config = model.denoiser, model.config
    detector, info = load_detector(), data.find_dataset(config.data.dataset, arguments.data_dir)
    train, held_out = (
        references.of_split(detector, info, split, config.data.image_shape)
        for split in ("train", data.held_out_split(info) or "train")
    )
    comparison = Comparison(detector, train)
    labels = shared_labels(train.label_counts or [1], arguments.num_images, 0)
    floor = {name: [value] for name, value in comparison.distances(held_out.features).items()}
    print(f"| sampler | steps | passes | seconds an image | {' | '.join(floor)} |")
    print(f"|{'---|' * (4 + len(floor))}")
    print(f"| {held_out.title} | | | | {cells(floor)} |", flush=True)
    for name, steps, settings in rows:
        line = measure(denoiser, settings, labels, comparison, arguments.batch_size, arguments.seeds)
        cost = f"{line['passes']} | {line['seconds_per_image']:.3f}"
        print(f"| {name} | {steps} | {cost} | {cells(line['distances'])} |", flush=True)
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(line) + "\n")


def cells(distances: dict[str, list[float]]) -> str:
    """Each distance's mean, with its standard deviation over seeds where there are several."""
    errors = [np.std(values, ddof=1) if len(values) > 1 else None for values in distances.values()]
    return " | ".join(
        with_error({"value": np.mean(values), "error": error})
        for values, error in zip(distances.values(), errors)
    )


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run_dir", default=f"runs/{DEFAULT_DATASET}", help="a run's folder, or those of experts"
    )
    parser.add_argument("--data_dir", default="data")
    parser.add_argument(
        "--samplers",
        default="ancestral,ddim,heun/logsnr,dpm_solver,dpm_solver/logsnr,unipc/logsnr,ipndm/logsnr",
        help="names, or SAMPLER/SPACING",
    )
    parser.add_argument("--steps", default="10,20,50,250")
    parser.add_argument("--num_images", type=int, default=500, help="for each seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", help="a file that gets the lines as JSON, too")
    benchmark(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run(main))
