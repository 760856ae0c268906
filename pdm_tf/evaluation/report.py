"""What is said of sets of images: their distances to a reference, and whether they are copies of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.atomic import atomic_json
from pdm_tf.evaluation.distances import (
    Manifold,
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
from pdm_tf.evaluation.subjects import Subject, take
from pdm_tf.images import image_grid, write_png
from pdm_tf.paths import as_path

PAIRS = 8  # of a sample and its nearest training image, in the picture
PAPERS_COUNT = 50_000  # samples that published FIDs are of
GROUPS = 10  # of the jackknife's


class HeldOut(NamedTuple):
    """A data set's held-out split, which tells how near an unseen image lies to the training images.

    Attributes:
      reference: its own, with features.
      train_images: image shape -> the training images from the first on, uint8 batches.
    """

    reference: Reference
    train_images: Callable[[tuple[int, ...]], Iterator[np.ndarray]]


def report(
    detector: Detector,
    reference: Reference,
    subjects: Sequence[Subject],
    out: str | Path,
    stack: Mapping[str, str],
    held_out: HeldOut | str,
) -> None:
    """Measures sets of images, prints the table, and writes evaluation.json and pictures to a folder.

    Args:
      detector, reference: what to measure with.
      subjects: the sets.
      out: the folder.
      stack: versions, for JSON.
      held_out: to look for copies with; or why that cannot be done.
    """
    results, shown, said, comparison = [], [], [], Comparison(detector, reference)
    out = as_path(out)
    if isinstance(held_out, HeldOut):
        _, unseen = nearest(held_out.reference.features, reference.features)
    for number, subject in enumerate(subjects):
        values, notes = comparison.measure(subject.features), warnings(detector, reference, subject)
        count = len(subject.features.pooled)
        result = {"name": subject.name, "images": count, **subject.about, **values, "notes": notes}
        if isinstance(held_out, HeldOut):
            picture = out / (f"nearest_{number + 1}.png" if len(subjects) > 1 else "nearest.png")
            result["copies"] = look_for_copies(subject, reference, unseen, held_out.train_images, picture)
            said.append(f"copies, {subject.name}: {_of_copies(result['copies'])} {picture}")
        results.append(result)
        shown.append((subject.name, count, values))
    if isinstance(held_out, HeldOut):
        features = Features(held_out.reference.features)
        floor = comparison.measure(features)
        shown.append((_name_of(held_out.reference), len(features.pooled), floor))
        results.append({"name": shown[-1][0], "images": shown[-1][1], **held_out.reference.what, **floor})
    else:
        said.append(f"copies: not looked for, because {held_out}")
    write_json(out / "evaluation.json", detector, reference, results, stack)
    print(f"reference: {_name_of(reference)}; detector: {detector.name}")
    print(table(shown))
    notes = dict.fromkeys(note for result in results for note in result.get("notes", ()))
    for line in (*(f"note: {note}" for note in notes), *said, f"evaluation: {out}/evaluation.json"):
        print(line)


def _name_of(reference: Reference) -> str:
    """A reference as people call it."""
    what, count = reference.what, reference.count or "unknown many"
    return f"{what['data']}, {what['split']} ({count:,})" if "split" in what else f"{what['path']} ({count})"


class Comparison:
    """Measures sets of images by one detector against one reference, of which each thing is found once."""

    def __init__(self, detector: Detector, reference: Reference):
        self.detector, self.reference = detector, reference

    @functools.cached_property
    def manifolds(self) -> tuple[Manifold, Manifold]:
        """The reference's balls for precision and recall, and those for density and coverage."""
        features = self.reference.features
        if self.detector.name != "inception":
            return (Manifold(features),) * 2
        # ADM's evaluator rounds the former's distances, and published numbers are its own.
        return Manifold(features, [3], half=True), Manifold(features, [5])

    def distances(self, pooled: np.ndarray) -> dict[str, float]:
        """The Fréchet and the kernel distance alone, of features float (N, D), without their errors."""
        labels = self.detector.labels
        return {
            labels["frechet"]: frechet_distance(self.reference.moments, Moments.of(pooled)),
            labels["kernel"]: kernel_distance(pooled, self.reference.features)[0],
        }

    def measure(self, features: Features) -> dict[str, float]:
        """All distances of a set of images that the detector and the reference's kind allow.

        Names are `detector.labels`; "X error" is the standard error of X.
        """
        labels, pooled, reference = self.detector.labels, features.pooled, self.reference
        result = _frechet(labels["frechet"], reference.moments, pooled)
        if features.spatial is not None and reference.spatial_moments is not None:
            result.update(_frechet(labels["spatial"], reference.spatial_moments, features.spatial))
        if features.probabilities is not None:
            score, spread = inception_score(features.probabilities)
            result.update({labels["inception_score"]: score, labels["inception_score"] + " spread": spread})
        if reference.features is not None and min(len(pooled), len(reference.features)) > GROUPS:
            kernel = kernel_distance(pooled, reference.features)
            shares = precision_recall(self.manifolds[0], pooled) + density_coverage(self.manifolds[1], pooled)
            names = (labels["kernel"], "precision", "recall", "density", "coverage")
            for name, (value, error) in zip(names, (kernel, *shares)):
                result.update({name: value, name + " error": error})
        return result


def _frechet(name: str, reference: Moments, features: np.ndarray) -> dict[str, float]:
    result = {name: frechet_distance(reference, Moments.of(features))}
    if len(features) >= GROUPS:
        result[name + " error"] = frechet_error(reference, features, GROUPS)
    return result


def warnings(detector: Detector, reference: Reference, subject: Subject) -> list[str]:
    """What a reader must know before comparing the numbers of some images with others'."""
    notes, dimension, count = [], len(reference.moments.mean), len(subject.features.pooled)
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
    if subject.image_shape[-1] == 1:
        notes.append("the images are grey: they were repeated to three channels for the detector")
    return notes


def copies(samples: np.ndarray, train: Reference, unseen: np.ndarray) -> dict[str, Any]:
    """Whether samples lie nearer to training images than unseen images of the same kind do.

    Args:
      samples: pooled features, float (N, D).
      train: with features, of one detector.
      unseen: distances of held-out images to their nearest training images, (M,).
    Returns:
      The median distance to the nearest training image, of samples and of held-out images; the share of
      samples nearer than 95% of the held-out images are (0.05 is expected of a model that copies nothing);
      and the `PAIRS` closest samples with the places of their training images, closest first.
    """
    found, distance = nearest(samples, train.features)
    closest = np.argsort(distance, kind="stable")[:PAIRS]
    return {
        "median_distance": float(np.median(distance)),
        "median_distance_held_out": float(np.median(unseen)),
        "share_nearer_than_95_percent_of_held_out": float(np.mean(distance < np.quantile(unseen, 0.05))),
        "closest_samples": closest.tolist(),
        "their_training_images": train.places[found[closest]].tolist(),
    }


def look_for_copies(
    subject: Subject,
    reference: Reference,
    unseen: np.ndarray,
    train_images: Callable[[tuple[int, ...]], Iterator[np.ndarray]],
    picture: str | Path,
) -> dict[str, Any]:
    """`copies` of a set of images, and a picture of the closest pairs: samples above training images."""
    found = copies(subject.features.pooled, reference, unseen)
    above = subject.take(found["closest_samples"])
    below = take(train_images(subject.image_shape), found["their_training_images"])
    images = np.concatenate([three_channels(above), three_channels(below)])
    write_png(picture, image_grid(images, columns=len(above)))
    return found


def _of_copies(found: dict[str, Any]) -> str:
    """`copies` in words."""
    return (
        f"{found['share_nearer_than_95_percent_of_held_out']:.1%} of the samples are nearer to a training "
        "image than 95% of the held-out images are (5% if nothing is copied); median distance "
        f"{found['median_distance']:.3g}, of held-out images {found['median_distance_held_out']:.3g}; "
        "the closest pairs:"
    )


def table(results: Sequence[tuple[str, int, dict[str, float]]]) -> str:
    """(name, N, `Comparison.measure`'s) of each set -> a table in Markdown; errors stand behind numbers."""
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
    stack: Mapping[str, str],
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
            "stack": dict(stack),
        },
    )
