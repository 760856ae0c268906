"""Samplers by steps: seconds an image, and a distance to the data set.

    python -m benchmarks.samplers --run_dir=runs/emoji64 --num_images=500 --seeds=3

The distance is an unbiased kernel distance, 1000 MMD^2 with a Gaussian kernel, between samples
and the training set, in the fixed feature space of `features`. It needs no download and is no FID: use it to
compare samplers of one model on one data set. Samples take their labels from the training set, so that the
shares of the classes are the same. The floor is the distance of the validation set to the training set.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from flags.errors import UserError
from pdm_tf import data
from pdm_tf.denoiser import load_denoiser
from pdm_tf.images import from_uint8, to_uint8
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
        images, labels = zip(*batches.as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


def measure(denoiser, name: str, steps: int, labels: np.ndarray, distance: Distance, arguments) -> dict:
    """One line of the table: seconds an image, and the distance with its spread over seeds."""
    kind, _, spacing = name.partition("/")
    guidance = arguments.guidance
    sampler = Sampler(denoiser, sampler=kind, sections=(steps,), spacing=spacing or "even", guidance=guidance)
    batch, count = arguments.batch_size, arguments.num_images
    sampler(0, range(batch), labels[:batch])  # traces and warms up
    distances, seconds = [], 0.0
    for seed in range(arguments.seeds):
        parts, before = [], time.monotonic()
        for start in range(0, count, batch):
            indices = np.arange(start, start + batch)
            parts.append(sampler(seed, indices, labels[indices % count])[: count - start])
        seconds += time.monotonic() - before
        distances.append(distance(from_uint8(to_uint8(np.concatenate(parts)))))
    drawn = arguments.seeds * -(-count // batch) * batch
    return {
        "sampler": name, "steps": steps, "seconds_per_image": seconds / drawn,
        "distance": float(np.mean(distances)), "spread": float(np.std(distances)), "distances": distances,
        "num_images": count, "guidance": guidance,
    }  # fmt: skip


def benchmark(arguments: argparse.Namespace) -> None:
    """Prints the table, a line as soon as it is measured, and writes each as JSON to --out."""
    config, denoiser = load_denoiser(*arguments.run_dir.split(","))
    split_of = (config.data.dataset, arguments.data_dir)
    train, train_labels = read_split(*split_of, "train", config.data.image_shape)
    held_out, _ = read_split(*split_of, "validation", config.data.image_shape)
    distance = Distance(train)
    blurred = tf.image.resize(tf.nn.avg_pool2d(train, 2, 2, "VALID"), train.shape[1:3], "bilinear").numpy()
    print(f"validation set ({len(held_out)} images), the floor: {distance(held_out):.2f}")
    print(f"training set averaged over 2 x 2 pixels, for scale: {distance(blurred):.2f}")
    order = np.random.default_rng(0).permutation(len(train_labels))
    labels = np.resize(train_labels[order], arguments.num_images) if denoiser.conditional else None
    labels = np.zeros(arguments.num_images, np.int32) if labels is None else labels
    print("| sampler | steps | seconds an image | distance | spread over seeds |\n|---|---|---|---|---|")
    for name, steps in itertools.product(arguments.samplers.split(","), arguments.steps.split(",")):
        line = measure(denoiser, name, int(steps), labels, distance, arguments)
        print(
            f"| {name} | {steps} | {line['seconds_per_image']:.3f} | {line['distance']:.2f} | "
            f"{line['spread']:.2f} |",
            flush=True,
        )
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(json.dumps(line) + "\n")


def main() -> int:
    """Reads the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", default="runs/emoji64", help="a run's folder, or those of experts")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--samplers", default="ancestral,ddim,dpm_solver,dpm_solver/logsnr")
    parser.add_argument("--steps", default="10,20,50,250")
    parser.add_argument("--num_images", type=int, default=500, help="for each seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", help="a file that gets the lines as JSON, too")
    try:
        benchmark(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
