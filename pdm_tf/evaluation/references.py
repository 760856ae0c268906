"""References: sets of images to compare with, as the statistics and features that a detector gives.

A data set's split is gone through once: its reference is kept in a file whose name tells the data and the
detector. Files of statistics (ADM's), files of samples and folders of images are references as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pdm_tf.atomic import sha256
from pdm_tf.data import DatasetInfo, labelled_batches
from pdm_tf.errors import UserError, one_line
from pdm_tf.evaluation.distances import NO_MOMENTS, Moments
from pdm_tf.evaluation.features import CACHE, Detector, extract, extract_batches
from pdm_tf.images import names_in, read_folder, read_samples, samples_shape
from pdm_tf.paths import as_path, local_path
from pdm_tf.weights import read_arrays, write_arrays

KEEP = 50_000  # images whose features are kept: 410 MB for 2,048 features
BATCH = 64
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Reference:
    """A set of images under a detector."""

    title: str
    moments: Moments  # of the pooled features of all images
    spatial_moments: Moments | None  # of the spatial features; None where the detector, or a file, gives none
    # Pooled, float32 (M, D), of M <= `KEEP` rows, evenly spread; None where a file holds only moments.
    features: np.ndarray | None
    places: np.ndarray | None  # int64 (M,), those of these rows in the split, file or folder; None likewise
    count: int | None  # N, its images; None where a file of statistics does not say it
    details: dict[str, Any]  # its origin and how it was made, for JSON

    @property
    def label_counts(self) -> list[int]:
        """How many images each class has; [] without labels."""
        return self.details.get("label_counts", [])

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W, C) of its images; None where a file holds only moments."""
        shape = self.details.get("image_shape")
        return tuple(shape) if shape else None


def of_images(
    detector: Detector,
    batches: Iterable[np.ndarray],
    count: int,
    title: str,
    details: dict[str, Any],
    progress: Progress = lambda done: None,
) -> Reference:
    """The reference of `count` >= 1 images, uint8 batches (B, H, W, C), C = 1 or 3, in one pass.

    Args:
      details: as of `Reference`. Added are the detector, the images' shape and a digest of the pixels.
      progress: called with the number of images done since the last call.
    """
    rows = count * detector.rows
    kept = min(rows, KEEP)
    places = np.arange(kept, dtype=np.int64) * rows // kept
    digest = hashlib.sha256()
    shape = None

    def watched() -> Iterator[np.ndarray]:
        nonlocal shape
        for batch in batches:
            digest.update(np.ascontiguousarray(batch))
            shape = batch.shape[1:]
            yield batch

    moments = spatial = NO_MOMENTS
    features = None
    done = filled = 0
    for pooled, positions, _ in extract_batches(detector, watched()):
        if features is None:
            features = np.empty((len(places), pooled.shape[1]), np.float32)
        moments += Moments.of(pooled)
        spatial = None if positions is None else spatial + Moments.of(positions)
        chosen = places[(places >= done) & (places < done + len(pooled))] - done
        features[filled : filled + len(chosen)] = pooled[chosen]
        done += len(pooled)
        filled += len(chosen)
        progress(len(pooled) // detector.rows)
    assert done == rows, f"{done} rows of features came, and {rows} were promised"
    made = {
        **details,
        **_origin(detector),
        "images": count,
        "image_shape": list(shape),
        "images_sha256": digest.hexdigest(),
    }
    return Reference(title, moments, spatial, features, places, count, made)


def _origin(detector: Detector) -> dict[str, Any]:
    origin = {"detector": detector.name, "detector_sha256": detector.sha256, "resize": detector.resize}
    return origin if detector.rows == 1 else {**origin, "rows": detector.rows}


# --- a data set's split --------------------------------------------------------------------------


def of_split(
    detector: Detector,
    info: DatasetInfo,
    split: str,
    image_shape: Sequence[int] | None = None,
    progress: Progress = lambda done: None,
) -> Reference:
    """The reference of a data set's split: read from its file in `CACHE`, or made and kept for the next time.

    A damaged file is replaced, with a note on stderr. `info`, `split` and `image_shape` as in
    `labelled_batches`. UserError if there is no such split, or its data are damaged.
    """
    details = {
        "data": info.name,
        "split": split,
        "data_sha256": info.sha256,
        "image_shape": list(image_shape or info.image_shape),
    }
    batches = labelled_batches(info, split, BATCH, image_shape)
    title = f"{info.name}, {split} ({info.num_examples[split]:,})"
    key = json.dumps([details, _origin(detector), KEEP], sort_keys=True)
    name = f"{split}-{detector.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    file = CACHE.expanduser() / "references" / name
    if file.exists():
        try:
            return _read(file, title)
        except UserError as error:
            print(f"note: {error}; it is replaced", file=sys.stderr)
    counts = np.zeros(info.num_classes, np.int64)

    def images() -> Iterator[np.ndarray]:
        nonlocal counts
        for batch, labels in batches:
            known = labels[labels < len(counts)]  # the null label is no class
            counts += np.bincount(known, minlength=len(counts))
            yield batch

    reference = of_images(detector, images(), info.num_examples[split], title, details, progress)
    reference.details["label_counts"] = counts.tolist() if counts.any() else []
    arrays = {
        "details": np.array(json.dumps(reference.details)),
        "features": reference.features,
        "places": reference.places,
    }
    for name, moments in (("", reference.moments), ("spatial_", reference.spatial_moments)):
        if moments is not None:
            arrays[f"{name}mean"] = moments.mean
            arrays[f"{name}scatter"] = moments.scatter
    try:
        write_arrays(file, arrays)
    except UserError as error:
        print(f"note: the reference is not kept for the next time ({error})", file=sys.stderr)
    return reference


def _read(file: Path, title: str) -> Reference:
    arrays = read_arrays(file)
    try:
        details = json.loads(str(arrays["details"]))
        count = details["images"]
        rows = count * details.get("rows", 1)
        spatial = None
        if "spatial_mean" in arrays:
            spatial = Moments(rows, arrays["spatial_mean"], arrays["spatial_scatter"])
        moments = Moments(rows, arrays["mean"], arrays["scatter"])
        return Reference(title, moments, spatial, arrays["features"], arrays["places"], count, details)
    except Exception as error:
        raise UserError(f"{file} is damaged ({one_line(error)})") from error


# --- files and folders ---------------------------------------------------------------------------


def of_path(detector: Detector, path: str | os.PathLike, progress: Progress = lambda done: None) -> Reference:
    """The reference of images in a file or folder, or of statistics in a file.

    Args:
      path: a file with `mu` and `sigma`, such as ADM's references: these count, and the features are those of
        its images `arr_0`, if there are any; or whatever `open_images` reads.
    Raises:
      UserError: it cannot be read, or its statistics are of other features.
    """
    path = as_path(path)
    members = _members(path)
    if {"mu.npy", "sigma.npy"} <= members:
        return _of_statistics(detector, path, "arr_0.npy" in members, progress)
    count, batches = open_images(path)
    return of_images(detector, batches, count, f"{path} ({count:,})", {"path": str(path)}, progress)


def open_images(path: str | os.PathLike) -> tuple[int, Iterator[np.ndarray]]:
    """Number of images, and uint8 batches (B, H, W, C) of them, in order.

    Args:
      path: an .npz file of images `arr_0`; a folder that holds samples.npz, as sampling leaves it; or a
        folder of image files of one size.
    Raises:
      UserError: there is nothing of these; while looping, for a damaged file.
    """
    path = as_path(path)
    if path.is_dir() and (path / "samples.npz").exists():
        path = path / "samples.npz"
    if path.is_dir():
        files = [path / name for name in names_in(local_path(path))]
        return len(files), read_folder(files, BATCH)
    return samples_shape(path)[0], read_samples(path, BATCH)


def _members(path: Path) -> set[str]:
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as file:
            return set(file.namelist())
    except Exception:  # whoever reads it says what is wrong
        return set()


def _of_statistics(detector: Detector, path: Path, has_images: bool, progress: Progress) -> Reference:
    """A file of statistics, such as ADM's; its images, which may be gigabytes, are streamed."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            moments = _statistics(file["mu"], file["sigma"])
            spatial = _statistics(file["mu_s"], file["sigma_s"]) if "mu_s" in file.files else None
    except Exception as error:  # zipfile and NumPy raise all kinds, as damage has it
        raise UserError(f"{path} is no whole file of statistics ({one_line(error)})") from error
    if detector.rows > 1:
        raise UserError(
            f"{path} holds statistics of whole images, and not of crops: name images as reference"
        )
    blank = extract(detector, [np.zeros((1, 64, 64, 3), np.uint8)])
    for given, features in ((moments, blank.pooled), (spatial, blank.spatial)):
        if given is not None and features is not None and len(given.mean) != features.shape[1]:
            raise UserError(
                f"{path} holds statistics of {len(given.mean)} features, and {detector.name} has "
                f"{features.shape[1]}: use the detector that they are of, or name images as reference"
            )
    title = f"{path} (statistics)"
    details = {"path": str(path), "sha256": sha256(path), "statistics": "of a network that is not named"}
    if not has_images:
        return Reference(title, moments, spatial, None, None, None, {**details, **_origin(detector)})
    count = samples_shape(path)[0]
    shown = of_images(detector, read_samples(path, BATCH), count, title, details, progress)
    return dataclasses.replace(shown, moments=moments, spatial_moments=spatial, count=None)


def _statistics(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    if covariance.shape != mean.shape * 2:
        raise ValueError(f"a mean is {mean.shape} and its covariance {covariance.shape}")
    return Moments(None, np.asarray(mean, np.float64), np.asarray(covariance, np.float64))
