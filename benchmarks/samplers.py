"""Samplers by steps: seconds an image, and a distance to the data set.

    python -m benchmarks.samplers --run_dir=runs/emoji64 --num_images=500 --seeds=3

The distance is an unbiased kernel distance, 1000 MMD^2 with a Gaussian kernel, between samples
and the training set, in the fixed feature space of `features`. It needs no download and is no FID: use it to
compare samplers of one model on one data set. Samples take their labels from the training set, so that the
shares of the classes are the same. The floor is the distance of the validation set to the training set.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from flags.config import Config, SamplingConfig, check_sampling
from flags.errors import run
from pdm_tf import data
from pdm_tf.denoiser import Denoiser
from pdm_tf.experts import load, read_runs
from pdm_tf.images import from_uint8
from pdm_tf.sampling.batches import Draw
from pdm_tf.sampling.sampler import Sampler

SCALES, FILTERS, THUMBNAIL = (1, 2, 4), (64, 128), 8


def features(images: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Float images (N, H, W, C) -> float64 (N, D): random texture features at three scales, and a thumbnail.

    At each scale (the image averaged over 1, 2 and 4 pixels): a 5x5 convolution of stride 2 to 64 channels,
    ReLU, a 3x3 convolution of stride 2 to 128 channels, ReLU; then the mean and standard deviation of each
    channel over positions. Weights are He-normal, drawn from seed 0, those of the first layer of zero mean.
    The thumbnail, 8 x 8 averages, holds what the textures leave out: colours and their places.
    """
    generator = np.random.default_rng(0)
    shapes = [(5, 5, images.shape[-1], FILTERS[0]), (3, 3, *FILTERS)]
    kernels = [generator.standard_normal(s) * np.sqrt(2.0 / np.prod(s[:3])) for s in shapes]
    kernels[0] -= kernels[0].mean(axis=(0, 1, 2))
    kernels = [tf.constant(kernel, tf.float32) for kernel in kernels]

    def of_batch(x: tf.Tensor) -> tf.Tensor:
        parts = [tf.reshape(tf.image.resize(x, (THUMBNAIL, THUMBNAIL), "area"), [len(x), -1])]
        for scale in SCALES:
            h = tf.nn.avg_pool2d(x, scale, scale, "VALID")
            for kernel in kernels:
                h = tf.nn.relu(tf.nn.conv2d(h, kernel, 2, "SAME"))
            mean, variance = tf.nn.moments(h, [1, 2])
            parts += [mean, tf.sqrt(variance + 1e-8)]
        return tf.concat(parts, axis=-1)

    starts = range(0, len(images), batch_size)
    return np.concatenate([of_batch(tf.constant(images[s : s + batch_size])) for s in starts]).astype(
        np.float64
    )


class Distance:
    """The kernel distance of images to a data set, features scaled to the data set's mean and deviation."""

    def __init__(self, images: np.ndarray):
        raw = features(images)
        self.mean, self.std = raw.mean(axis=0), raw.std(axis=0) + 1e-6
        self.reference = (raw - self.mean) / self.std

    def __call__(self, images: np.ndarray) -> float:
        """1000 MMD^2 of float images (N, H, W, C) to the data set; 0, give or take, for images like them."""
        return 1000.0 * mmd2((features(images) - self.mean) / self.std, self.reference)


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of (M, D) and (N, D), kernel exp(-||a - b||^2 / 2D).

    Gretton et al. (2012), Eq. 3. A kernel that is bounded, because a polynomial one is ruled by outliers and
    so spreads more over seeds than samplers differ.
    """

    def kernel(a, b):
        squared = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2.0 * a @ b.T
        return np.exp(-squared / (2 * a.shape[1]))

    def mean_of_pairs(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(mean_of_pairs(x) + mean_of_pairs(y) - 2.0 * kernel(x, y).mean())


def read_split(dataset: str, data_dir: str, split: str, image_shape) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, float32 in [-1, 1] as stored, and their labels."""
    info = data.find_dataset(dataset, data_dir)
    batches = data.load_batches(
        info, split=split, batch_size=50, seed=0, repeat=False, shuffle=False, image_shape=image_shape,
        drop_remainder=False,
    )  # fmt: skip
    with data.naming_shards():
        images, labels, *_ = zip(*batches.as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


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
    distance: Callable,
    batch: int,
    seeds: int,
) -> dict:
    """One line of the table: seconds an image, and the distance with its spread over seeds.

    `labels` has one for each image of a seed; `batch` images are drawn at a time.
    """
    sampler = Sampler(denoiser, settings)
    sampler(0, range(batch), np.resize(labels, batch))  # traces and warms up
    distances, seconds = [], 0.0
    for seed in range(seeds):
        draw, before = Draw(sampler, seed, len(labels), batch, labels), time.monotonic()
        images = np.concatenate(list(draw.batches()))
        seconds += time.monotonic() - before
        distances.append(distance(from_uint8(images)))
    drawn = seeds * -(-len(labels) // batch) * batch
    return {
        "seconds_per_image": seconds / drawn, "distance": float(np.mean(distances)),
        "spread": float(np.std(distances)), "distances": distances, "num_images": len(labels),
        **dataclasses.asdict(settings),
    }  # fmt: skip


def benchmark(arguments: argparse.Namespace) -> None:
    """Prints the table, a line as soon as it is measured, and writes each as JSON to --out."""
    runs = read_runs(*arguments.run_dir.split(","))
    rows = itertools.product(arguments.samplers.split(","), map(int, arguments.steps.split(",")))
    # All that can be refused is looked at before anything is measured.
    rows = [
        (name, steps, settings_of(name, steps, arguments.guidance, runs[0].config)) for name, steps in rows
    ]
    denoiser, config, _ = load(runs)
    train, train_labels = read_split(
        config.data.dataset, arguments.data_dir, "train", config.data.image_shape
    )
    distance = Distance(train)
    print_scale(train, distance, config, arguments.data_dir)
    order = np.random.default_rng(0).permutation(len(train_labels))
    labels = np.resize(train_labels[order] if denoiser.conditional else 0, arguments.num_images)
    print("| sampler | steps | seconds an image | distance | spread over seeds |\n|---|---|---|---|---|")
    for name, steps, settings in rows:
        line = measure(denoiser, settings, labels, distance, arguments.batch_size, arguments.seeds)
        print(
            f"| {name} | {steps} | {line['seconds_per_image']:.3f} | {line['distance']:.2f} | "
            f"{line['spread']:.2f} |",
            flush=True,
        )
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(line) + "\n")


def print_scale(train: np.ndarray, distance: Distance, config: Config, data_dir: str) -> None:
    """Prints what distances to compare those of the table with."""
    held_out, _ = read_split(config.data.dataset, data_dir, "validation", config.data.image_shape)
    blurred = tf.image.resize(tf.nn.avg_pool2d(train, 2, 2, "VALID"), train.shape[1:3], "bilinear").numpy()
    print(f"validation set ({len(held_out)} images), the floor: {distance(held_out):.2f}")
    print(f"training set averaged over 2 x 2 pixels, for scale: {distance(blurred):.2f}")


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", default="runs/emoji64", help="a run's folder, or those of experts")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument(
        "--samplers", default="ancestral,ddim,dpm_solver,dpm_solver/logsnr,unipc/logsnr,ipndm/logsnr",
        help="names, or SAMPLER/SPACING",
    )  # fmt: skip
    parser.add_argument("--steps", default="10,20,50,250")
    parser.add_argument("--num_images", type=int, default=500, help="for each seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", help="a file that gets the lines as JSON, too")
    benchmark(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run(main))
