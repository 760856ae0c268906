"""What is evaluated: images of files, folders or draws, as a detector's features and a way to look."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.atomic import remove_tree
from pdm_tf.evaluation.features import Detector, Features, extract
from pdm_tf.evaluation.references import open_images
from pdm_tf.ledger import Ledger, note_others
from pdm_tf.models import Model
from pdm_tf.paths import as_path, entries
from pdm_tf.randomness import stream
from pdm_tf.sampling.batches import SampleBatches


class Subject(NamedTuple):
    """One set of images of a table.

    Attributes:
      name: as people call it.
      about: how it was made, JSON values.
      features: a detector's, of all images.
      image_shape: (H, W, C).
      take: places -> these images, uint8 (N, H, W, C).
      finish: to be called when nothing more is asked of it.
    """

    name: str
    about: dict[str, Any]
    features: Features
    image_shape: tuple[int, ...]
    take: Callable[[Sequence[int]], np.ndarray]
    finish: Callable[[], None] = lambda: None


def of_path(
    detector: Detector, path: str | os.PathLike, progress: Callable[[int], object] = lambda done: None
) -> Subject:
    """The images in a file or folder, as `open_images` reads them; `progress` as in `extract`.

    Raises:
      UserError: there are none, or a file is damaged.
    """
    shapes = []

    def noting_shapes(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            shapes.append(batch.shape[1:])
            yield batch

    features = extract(detector, noting_shapes(open_images(path)[1]), progress)
    return Subject(
        str(path), {"path": str(path)}, features, shapes[0], lambda places: take(open_images(path)[1], places)
    )


def of_draw(
    detector: Detector, draw: SampleBatches, out: str | os.PathLike, name: str, about: Mapping
) -> Subject | None:
    """The images of a draw: none of them is kept, but what a killed evaluation needs to go on.

    In a hidden folder of `out`, until `finish`, lie the features of what is done, and the few batches of
    images that were drawn since the last of these files. So 50,000 images of 256 x 256 x 3 that Inception
    looks at take 1 GB of disk and not 9.8.

    Returns:
      None in workers after the first, which only leave their share of the features there.
    Raises:
      UserError: the disk is full, a file there is damaged, or another worker is lost.
    """
    ledger = Ledger(out, draw.identity())
    note_others(out, [ledger])
    features = _kept_features(detector, draw, ledger)
    if features is None:
        return None
    return Subject(name, dict(about), features, draw.shape[1:], draw.images, ledger.remove)


def of_averages(
    detector: Detector,
    model: Model,
    draw: SampleBatches,
    lengths: Sequence[float],
    out: str | os.PathLike,
    about: Mapping[str, Any],
    several: bool,
) -> list[Subject]:
    """`of_draw` for each of some lengths of a model's averages, or for its own average if there are none.

    Args:
      detector, draw, out: as in `of_draw`; the draw's denoiser is the model's.
      lengths: as `Model.use_ema_length` takes them.
      about: how all of them were made.
      several: whether there are other subjects whose work is kept in `out`.
    """
    subjects = []
    for length in lengths or [None]:
        model.use_ema_length(length)
        name = str(model) + ("" if length is None else f", length {length}")
        labels = draw.image_labels
        own = {
            "origin": model.origin, "digest": model.digest, **about,
            "seed": draw.seed, "precision": "float32",
            "label_counts": [] if labels is None else np.bincount(labels).tolist(),
        }  # fmt: skip
        # A folder for each, so that another's parts are not taken for another command's.
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
        folder = as_path(out) / f".row-{digest}" if several else as_path(out)
        subject = of_draw(detector, draw, folder, name, own)
        if subject is None:
            continue

        def look(places, length=length, subject=subject) -> np.ndarray:
            model.use_ema_length(length)  # another may have been drawn since
            return subject.take(places)

        def finish(folder=folder, subject=subject) -> None:
            subject.finish()
            if several and not entries(folder):
                remove_tree(folder)

        subjects.append(subject._replace(take=look if len(lengths) > 1 else subject.take, finish=finish))
    return subjects


def _kept_features(detector: Detector, draw: SampleBatches, ledger: Ledger) -> Features | None:
    """The features of all images of a draw, each chunk of which is kept in a file when it is done.

    None in workers after the first: they make their share of the files.
    """
    # A chunk fills the detector's batches; so its features are the same, to the bit, whenever it is made.
    batches_each = max(1, -(-detector.batch_size // draw.batch_size))
    chunks = [draw.starts[i : i + batches_each] for i in range(0, len(draw.starts), batches_each)]
    names = [f"{detector.sha256[:16]}_{chunk[0]:08d}" for chunk in chunks]
    there, share, seconds = ledger.names(), draw.share, 0.0
    if there & set(names):
        print(f"{len(there & set(names))} of {len(names)} parts are done already", flush=True)
    own = [(chunk, name) for chunk, name in share.of(list(zip(chunks, names))) if name not in there]
    images = draw.batches(ledger, starts=[start for chunk, _ in own for start in chunk])
    for chunk, name in own:
        begin = time.monotonic()
        found = extract(detector, [next(images) for _ in chunk])
        ledger.write(name, {key: value for key, value in found._asdict().items() if value is not None})
        for start in chunk:
            ledger.discard(draw.name(start))
        seconds = time.monotonic() - begin
    for _ in images:  # ends the progress bar
        pass
    if share.number:
        return None
    if share.workers > 1:
        share.wait(ledger, names, seconds)
    parts = [ledger.read(name) for name in names]
    return Features(**{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def take(batches: Iterator[np.ndarray], places: Sequence[int]) -> np.ndarray:
    """The images at some places of uint8 batches, in the order of `places`."""
    wanted, images, done = set(places), {}, 0
    for batch in batches:
        images.update({place: batch[place - done] for place in wanted if done <= place < done + len(batch)})
        done += len(batch)
        if len(images) == len(wanted):
            break
    return np.stack([images[place] for place in places])


def shared_labels(shares: Sequence[float], count: int, seed: int) -> np.ndarray:
    """Labels of `count` images, int32 (count,), as many of each class as its share says, in random order.

    What is left after rounding down goes to the largest remainders. A pure function of its arguments.

    Args:
      shares: of each class, in any unit: counts of a data set, or ones.
    """
    exact = np.asarray(shares, np.float64) / np.sum(shares) * count
    numbers = np.floor(exact).astype(np.int64)
    for label in np.argsort(numbers - exact, kind="stable")[: count - numbers.sum()]:
        numbers[label] += 1
    labels = np.repeat(np.arange(len(numbers), dtype=np.int32), numbers)
    order = tf.random.stateless_uniform([count], stream(seed, "labels to evaluate"))
    return labels[np.argsort(order.numpy(), kind="stable")]
