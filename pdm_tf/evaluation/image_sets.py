"""Sets of images to evaluate, as a detector's features: of files, folders, or samples of a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.evaluation.features import Detector, Features, extract
from pdm_tf.evaluation.references import open_images
from pdm_tf.ledger import Ledger
from pdm_tf.models import Model
from pdm_tf.progress import bar
from pdm_tf.randomness import stream
from pdm_tf.sampling.batches import SampleBatches


class ImageSet(NamedTuple):
    """One row of a table: a detector's features of all images, and how these were made, in JSON values."""

    title: str
    details: dict[str, Any]
    features: Features
    image_shape: tuple[int, ...]
    images: Callable[[Sequence[int]], np.ndarray]  # places -> these images, uint8 (N, H, W, C)
    ledger: Ledger | None = None  # the features of samples, kept until the table is written


def from_path(detector: Detector, path: str | os.PathLike) -> ImageSet:
    """The images in a file or folder, as `open_images` reads them, with its errors."""
    count, batches = open_images(path)
    with looking_at(path, count) as shown:
        features = extract(detector, batches, shown.update)
    first = next(open_images(path)[1])

    def images(places: Sequence[int]) -> np.ndarray:
        return take(open_images(path)[1], places)

    return ImageSet(str(path), {"path": str(path)}, features, first.shape[1:], images)


def from_model(
    detector: Detector,
    model: Model,
    samples: SampleBatches,
    ema_lengths: Sequence[float],
    out: str | os.PathLike,
    details: Mapping[str, Any],
) -> Iterator[ImageSet]:
    """Samples of a model, one set for each length of its averages; for its present ones without lengths.

    A set's images are those of the model as it is until the next set is asked for. None is kept, but the
    features of finished batches, in a ledger in `out`: a killed evaluation goes on with them.

    Workers after the first (`samples.share`) yield nothing: they leave their share of the features there.
    UserError if the disk is full, a kept part is damaged, or another worker is lost.
    """
    labels = samples.image_labels
    for length in ema_lengths or [model.ema_length]:
        model.use_ema_length(length)
        of_detector = {"detector": [detector.name, detector.sha256], "count": samples.count}
        ledger = Ledger(out, {**samples.identity(model.digest), **of_detector})
        features = kept_features(detector, samples, ledger)
        if features is None:
            continue
        of_model = {
            **details,
            "digest": model.digest,
            "origin": model.origin,
            "sampling": dataclasses.asdict(samples.sampler.settings),
            "seed": samples.seed,
            "label_counts": [] if labels is None else np.bincount(labels).tolist(),
        }
        title = model.title if length is None else f"{model.title}, length {length}"
        yield ImageSet(title, of_model, features, samples.shape[1:], samples.images, ledger)


def kept_features(detector: Detector, samples: SampleBatches, ledger: Ledger) -> Features | None:
    """The features of all samples, kept batch by batch in the ledger; None in workers after the first."""
    finished = ledger.names()
    mine = samples.share.of(samples.starts)
    missing = [start for start in mine if _part(start) not in finished]
    if len(missing) < len(mine):
        print(f"{len(mine) - len(missing)} of {len(mine)} batches are done already", flush=True)

    def looks():
        for batch, start in zip(samples.batches(starts=missing), missing):
            found = extract(detector, [batch])._asdict()
            yield ledger.write(_part(start), {name: v for name, v in found.items() if v is not None})

    names = [_part(start) for start in samples.starts]
    samples.share.finish(ledger, names, looks())
    if samples.share.number:
        return None
    return Features.joined([Features(**ledger.read(name)) for name in names])


def _part(start: int) -> str:
    return f"features_{start:08d}"


def take(batches: Iterator[np.ndarray], places: Sequence[int]) -> np.ndarray:
    """The images at some places of uint8 batches, in the order of `places`."""
    wanted = set(places)
    images = {}
    done = 0
    for batch in batches:
        images.update({place: batch[place - done] for place in wanted if done <= place < done + len(batch)})
        done += len(batch)
        if len(images) == len(wanted):
            break
    return np.stack([images[place] for place in places])


def shared_labels(shares: Sequence[float], count: int, seed: int) -> np.ndarray:
    """Labels of `count` images, int32 (count,), each class in its share, in random order.

    `shares` are those of each class, in any unit: counts of a data set, or ones. What is left after rounding
    down goes to the largest remainders. A pure function of its arguments.
    """
    exact = np.asarray(shares, np.float64) / np.sum(shares) * count
    numbers = np.floor(exact).astype(np.int64)
    for label in np.argsort(numbers - exact, kind="stable")[: count - numbers.sum()]:
        numbers[label] += 1
    labels = np.repeat(np.arange(len(numbers), dtype=np.int32), numbers)
    order = tf.random.stateless_uniform([count], stream(seed, "labels to evaluate"))
    return labels[np.argsort(order.numpy(), kind="stable")]


def looking_at(title: str | os.PathLike, count: int | None = None):
    """A progress bar of images that a detector looks at, shown if it takes a while."""
    return bar(desc=f"look at {title}", total=count, unit="image", delay=2)
