"""Samplers by steps and guidance: seconds an image, and the metrics of the samples.

    python -m benchmarks.samplers --run_dir=runs/avatars64 --num_images=500 --seeds=3
    python -m benchmarks.samplers --samplers=dpm_solver/logsnr --steps=20 --guidance=1,1.5 --threshold=static

The metrics are those of --mode=evaluate with the embedded detector, against the training split: no FID. Use
them to compare samplers of one model on one data set, at one number of images. Samples take their labels by
the shares of the training split. The held-out split's own metrics stand first.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pdm_tf import data
from pdm_tf.analysis.tables import with_error
from pdm_tf.config.fields import Config, SamplingConfig, check_sampling
from pdm_tf.config.presets import DEFAULT_DATASET
from pdm_tf.denoiser import Denoiser
from pdm_tf.errors import run
from pdm_tf.evaluation import references
from pdm_tf.evaluation.features import Features, extract, load_detector
from pdm_tf.evaluation.image_sets import shared_labels
from pdm_tf.evaluation.metrics import Comparison
from pdm_tf.models import Model
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.sampler import Sampler


def settings_of(arguments: argparse.Namespace, config: Config) -> list[SamplingConfig]:
    """How each row of the table samples; without guidance, intervals and most thresholds are alike.

    Raises:
      UserError: there is no such sampler, or the model cannot be sampled so.
    """
    rows = []
    for name, steps, weight, threshold, interval in itertools.product(
        arguments.samplers.split(","),
        map(int, arguments.steps.split(",")),
        map(float, arguments.guidance.split(",")),
        arguments.threshold.split(","),
        arguments.guidance_interval,
    ):
        kind, _, spacing = name.partition("/")
        counting = {}
        if weight != 1.0 or threshold == "none":
            counting["threshold"] = threshold
        if weight != 1.0 and interval != "all":
            counting["guidance_interval"] = tuple(map(int, interval.split(",")))
        settings = SamplingConfig(kind, (steps,), spacing or "even", weight, **counting)
        check_sampling(dataclasses.replace(config, sampling=settings), has_guide=bool(arguments.guide))
        if settings not in rows:
            rows.append(settings)
    return rows


def measure(
    denoiser: Denoiser,
    settings: SamplingConfig,
    labels: np.ndarray,
    comparison: Comparison,
    batch: int,
    seeds: int,
) -> dict:
    """One line of the table: seconds an image, and of each seed its metrics by their names.

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
        found.append(comparison.measure(extract(comparison.detector, images)))
    drawn = seeds * -(-len(labels) // batch) * batch
    return {
        "seconds_per_image": seconds / drawn,
        "num_images": len(labels),
        "passes": sampler.num_passes,
        **dataclasses.asdict(settings),
        "metrics": {name: [values[name].value for values in found] for name in found[0]},
    }


def benchmark(arguments: argparse.Namespace) -> None:
    """Prints the table, a line as soon as it is measured, and writes each as JSON to --out."""
    model = Model.from_folders(*arguments.run_dir.split(","))
    if arguments.guide:
        model.be_guided_by(*arguments.guide.split(","))
    rows = settings_of(arguments, model.config)  # all refusals come before any measurement
    denoiser, config = model.denoiser, model.config
    detector, info = load_detector(), data.find_dataset(config.data.dataset, arguments.data_dir)
    train, held_out = (
        references.of_split(detector, info, split, config.data.image_shape)
        for split in ("train", data.held_out_split(info) or "train")
    )
    comparison = Comparison(detector, train)
    labels = shared_labels(train.label_counts or [1], arguments.num_images, 0)
    floor = comparison.measure(Features(held_out.features))
    print(f"| sampler | steps | guidance | passes | seconds an image | {' | '.join(floor)} |")
    print(f"|{'---|' * (5 + len(floor))}")
    known = {name: [measured.value] for name, measured in floor.items()}
    print(f"| {held_out.title} | | | | | {cells(known, floor)} |", flush=True)
    for settings in rows:
        line = measure(denoiser, settings, labels, comparison, arguments.batch_size, arguments.seeds)
        cost = f"{line['passes']} | {line['seconds_per_image']:.3f}"
        print(f"| {title(settings)} | {cost} | {cells(line['metrics'], floor)} |", flush=True)
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(line) + "\n")


def title(settings: SamplingConfig) -> str:
    """The row's first cells: sampler and spacing, steps, guidance."""
    name = settings.sampler if settings.spacing == "even" else f"{settings.sampler}/{settings.spacing}"
    guidance = "none, no clipping" if settings.threshold == "none" else "none"
    if settings.guidance != 1.0:
        guidance = f"{settings.guidance:g}, {settings.threshold}"
        if settings.guidance_interval:
            guidance += ", t in [{}, {})".format(*settings.guidance_interval)
    return f"{name} | {settings.steps[0]} | {guidance}"


def cells(metrics: Mapping[str, Sequence[float]], names: Iterable[str]) -> str:
    """Each metric's mean, with its standard deviation over seeds where there are several.

    Of too few images there are no KD, precision, recall, density and coverage.
    """
    texts = []
    for values in (metrics.get(name) for name in names):
        error = np.std(values, ddof=1) if values and len(values) > 1 else None
        texts.append(with_error(values and {"value": np.mean(values), "error": error}))
    return " | ".join(texts)


def main() -> None:
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
    parser.add_argument("--guidance", default="1", help="weights w")
    parser.add_argument("--threshold", default="dynamic", help="of the rows with guidance; none: of all rows")
    parser.add_argument(
        "--guidance_interval", nargs="+", default=["all"], metavar="LO,HI", help="of these rows; all: every t"
    )
    parser.add_argument("--guide", help="a weaker model's run folder, which guidance leads away from")
    parser.add_argument("--out", help="a file that gets the lines as JSON, too")
    benchmark(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run(main))
