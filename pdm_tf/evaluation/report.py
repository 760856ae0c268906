"""What is said of sets of images: their distances to a reference, and whether they are copies of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.atomic import atomic_json
from pdm_tf.evaluation.distances import (
    Moments,
    density_coverage,
    frechet_distance,
    frechet_error,
    inception_score,
    kernel_distance,
    nearest,
    precision_recall,
)
from pdm_tf.evaluation.features import Detector, Features, three_channels
from pdm_tf.evaluation.references import Reference
from pdm_tf.images import image_grid, write_png

PAIRS = 8  # of a sample and its nearest training image, in the picture
PAPERS_COUNT = 50_000  # samples that published FIDs are of
GROUPS = 10  # of the jackknife's


class Row(NamedTuple):
    """One set of images of a table.

    Attributes:
      name: as people call it.
      about: how it was made, JSON values.
      features: a detector's.
      open: gives its uint8 batches (B, H, W, C) from the first on.
      finish: to be called when nothing more is asked of it.
    """

    name: str
    about: dict[str, Any]
    features: Features
    open: Callable[[], Iterator[np.ndarray]]
    finish: Callable[[], None] = lambda: None


def measure(detector: Detector, reference: Reference, features: Features) -> dict[str, float]:
    """All distances of a set of images to a reference that the detector and the reference's kind allow.

    Names are `detector.labels`; "X error" is the standard error of X.
    """
    labels, pooled = detector.labels, features.pooled
    result = {labels["frechet"]: frechet_distance(reference.moments, Moments.of(pooled))}
    if len(pooled) >= GROUPS:
        result[labels["frechet"] + " error"] = frechet_error(reference.moments, pooled, GROUPS)
    if features.spatial is not None and reference.spatial_moments is not None:
        result[labels["spatial"]] = frechet_distance(reference.spatial_moments, Moments.of(features.spatial))
    if features.probabilities is not None:
        score, spread = inception_score(features.probabilities)
        result.update({labels["inception_score"]: score, labels["inception_score"] + " spread": spread})
    if reference.features is not None and min(len(pooled), len(reference.features)) > GROUPS:
        kernel, error = kernel_distance(pooled, reference.features)
        result.update({labels["kernel"]: kernel, labels["kernel"] + " error": error})
        result["precision"], result["recall"] = precision_recall(reference.features, pooled)
        result["density"], result["coverage"] = density_coverage(reference.features, pooled)
    return result


def warnings(detector: Detector, reference: Reference, count: int) -> list[str]:
    """What a reader must know before comparing the numbers of `count` images with others'."""
    notes, dimension = [], len(reference.moments.mean)
    if detector.name == "inception" and count != PAPERS_COUNT:
        notes.append(
            f"{count:,} images: published FIDs are of {PAPERS_COUNT:,}; fewer give larger ones, so these "
            "cannot be compared"
        )
    if count <= dimension or (reference.count or dimension + 1) <= dimension:
        notes.append(
            f"{count:,} images on one side and {reference.count or 'unknown many'} on the other are few for "
            f"{dimension} features: compare {detector.labels['frechet']} only at equal numbers, or "
            f"{detector.labels['kernel']}, which has no bias"
        )
    if detector.name != "inception":
        notes.append(f"the detector is {detector.name}: these numbers are no FID")
    return notes


def copies(samples: np.ndarray, train: Reference, held_out: Reference) -> dict[str, Any]:
    """Whether samples lie nearer to training images than unseen images of the same kind do.

    Args:
      samples: pooled features, float (N, D).
      train, held_out: references with features, of one detector.
    Returns:
      The median distance to the nearest training image, of samples and of held-out images; the share of
      samples nearer than 95% of the held-out images are (0.05 is expected of a model that copies nothing);
      and the `PAIRS` closest samples with the places of their training images, closest first.
    """
    found, distance = nearest(samples, train.features)
    _, unseen = nearest(held_out.features, train.features)
    closest = np.argsort(distance, kind="stable")[:PAIRS]
    return {
        "median_distance": float(np.median(distance)),
        "median_distance_held_out": float(np.median(unseen)),
        "share_nearer_than_95_percent_of_held_out": float(np.mean(distance < np.quantile(unseen, 0.05))),
        "closest_samples": closest.tolist(),
        "their_training_images": train.places[found[closest]].tolist(),
    }


def pairs_picture(row: Row, train: Iterator[np.ndarray], found: dict[str, Any], path: str | Path) -> None:
    """Writes the closest pairs of `copies` as a picture: samples above, their training images below."""
    above = take(row.open(), found["closest_samples"])
    below = take(train, found["their_training_images"])
    images = [three_channels(np.stack(side)) for side in (above, below)]
    write_png(path, image_grid(np.concatenate(images), columns=len(above)))


def take(batches: Iterator[np.ndarray], places: Sequence[int]) -> list[np.ndarray]:
    """The images at some places of uint8 batches, in the order of `places`."""
    wanted, images, done = set(places), {}, 0
    for batch in batches:
        images.update({place: batch[place - done] for place in wanted if done <= place < done + len(batch)})
        done += len(batch)
    return [images[place] for place in places]


def table(results: Sequence[tuple[str, int, dict[str, float]]]) -> str:
    """(name, N, `measure`'s) of each set -> a table in Markdown; errors stand behind their numbers."""
    names = [name for name in results[0][2] if not name.endswith((" error", " spread"))]
    lines = [["images", "N", *names], ["---"] * (2 + len(names))]
    for title, count, values in results:
        cells = []
        for name in names:
            value = f"{values[name]:.4g}" if name in values else "-"
            error = values.get(f"{name} error", values.get(f"{name} spread"))
            cells.append(value if error is None else f"{value} ± {error:.2g}")
        lines.append([title, f"{count:,}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(
    path: str | Path,
    detector: Detector,
    reference: Reference,
    results: Sequence[dict[str, Any]],
    stack: dict[str, str],
) -> None:
    """Writes evaluation.json: results with all that they depend on."""
    atomic_json(
        path,
        {
            "detector": {
                "name": detector.name,
                "sha256": detector.sha256,
                "resize": detector.resize,
            },
            "reference": {"images": reference.count, **reference.what},
            "results": list(results),
            "stack": stack,
        },
    )
