"""References: a set of images to compare with, as the statistics and features that a detector gives of it.

A data set's split is gone through once: its reference is kept in a file whose name tells the data and the
detector. ADM's reference files are read and written; a file of samples or a folder of images will do as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.atomic import sha256
from pdm_tf.data import DatasetInfo, labelled_batches
from pdm_tf.data.info import EMBEDDED
from pdm_tf.errors import UserError, one_line
from pdm_tf.evaluation.distances import Moments
from pdm_tf.evaluation.features import CACHE, Detector, extract_batches
from pdm_tf.images import names_in, read_folder, read_samples, samples_shape
from pdm_tf.paths import as_path, local_path
from pdm_tf.weights import read_arrays, write_arrays

KEEP = 50_000  # images whose features are kept: 410 MB for 2,048 features
BATCH = 64
FOLDER = "references"
Progress = Callable[[int], None]


class Reference(NamedTuple):
    """A set of images, as a detector sees it.

    Attributes:
      moments: of the pooled features of all images.
      spatial_moments: of the spatial features; None where the detector, or a file, gives none.
      features: pooled, float32 (M, D), of M <= N images, evenly spread; None where a file holds only moments.
      places: int64 (M,), which images these are: their numbers in the split, file or folder; None likewise.
      count: N, its images; None where a file of statistics does not say it.
      what: where it comes from and what it was made with, for JSON.
    """

    moments: Moments
    spatial_moments: Moments | None
    features: np.ndarray | None
    places: np.ndarray | None
    count: int | None
    what: dict[str, Any]


def of_images(
    detector: Detector,
    batches: Iterable[np.ndarray],
    count: int,
    what: dict[str, Any],
    keep: int = KEEP,
    progress: Progress = lambda done: None,
) -> Reference:
    """Goes once through uint8 batches (B, H, W, C), C = 1 or 3; in memory are statistics and `keep` features.

    Args:
      detector: whose features.
      batches: the images.
      count: N, how many they are; at least 1.
      what: where they come from. Added are the detector, a digest of the pixels and, where so, that they are
        grey.
      keep: the most images whose features are kept.
      progress: called with the number of images done since the last call.
    """
    places = evenly(count, keep)
    digest, channels = hashlib.sha256(), set()

    def watched() -> Iterator[np.ndarray]:
        for batch in batches:
            digest.update(np.ascontiguousarray(batch))
            channels.add(batch.shape[-1])
            yield batch

    moments = spatial = features = None
    done = filled = 0
    for pooled, positions, _ in extract_batches(detector, watched()):
        if moments is None:
            moments = Moments(pooled.shape[1])
            spatial = None if positions is None else Moments(positions.shape[1])
            features = np.empty((len(places), pooled.shape[1]), np.float32)
        moments.update(pooled)
        if spatial is not None:
            spatial.update(positions)
        chosen = places[(places >= done) & (places < done + len(pooled))] - done
        features[filled : filled + len(chosen)] = pooled[chosen]
        done, filled = done + len(pooled), filled + len(chosen)
        progress(len(pooled))
    assert done == count, f"{done} images came, and {count} were promised"
    made = {**what, **_origin(detector), "images": count, "images_sha256": digest.hexdigest()}
    if channels == {1}:
        made["grey"] = "repeated to three channels"
    return Reference(moments, spatial, features, places, count, made)


def evenly(count: int, keep: int) -> np.ndarray:
    """int64 (min(count, keep),): numbers below `count`, ascending and evenly spread."""
    kept = min(count, keep)
    return np.arange(kept, dtype=np.int64) * count // kept


def _origin(detector: Detector) -> dict[str, str]:
    return {
        "detector": detector.name,
        "detector_sha256": detector.sha256,
        "resize": detector.resize,
    }


# --- a data set's split --------------------------------------------------------------------------


def of_split(
    detector: Detector,
    info: DatasetInfo,
    split: str,
    image_shape: Sequence[int] | None = None,
    cache: str | os.PathLike | None = None,
    keep: int = KEEP,
    progress: Progress = lambda done: None,
) -> Reference:
    """The reference of a data set's split: read from its file, or made and kept for the next time.

    The file lies in the folder `references` of the data set; where that cannot be written, and for the set
    that is part of the program, in that of `cache`. A damaged file is made anew, with a note on stderr.

    Args:
      detector, keep, progress: as in `of_images`; nothing is reported where the file is there.
      info, split, image_shape: as in `labelled_batches`. How many images each class has is noted as
        `label_counts` in `what`, [] without labels.
      cache: a folder; by default ~/.cache/pdm_tf.
    Raises:
      UserError: no such split, or damaged data.
    """
    what = {
        "data": info.name,
        "split": split,
        "data_sha256": info.sha256,
        "image_shape": list(image_shape or info.image_shape),
    }
    batches = labelled_batches(info, split, BATCH, image_shape)
    key = json.dumps([what, _origin(detector), keep, "label_counts"], sort_keys=True)
    name = f"{split}-{detector.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    beside = [] if info.directory in EMBEDDED.values() else [info.directory]
    files = [folder / FOLDER / name for folder in (*beside, Path(cache or CACHE).expanduser())]
    for file in files:
        if file.exists():
            try:
                return _read(file)
            except UserError as error:
                print(f"note: {error}; it is made anew", file=sys.stderr)
    counts = np.zeros(info.num_classes, np.int64)

    def images() -> Iterator[np.ndarray]:
        for batch, labels in batches:
            if len(counts):
                known = labels[labels < len(counts)]  # the null label is no class
                counts[:] += np.bincount(known, minlength=len(counts))
            yield batch

    reference = of_images(detector, images(), info.num_examples[split], what, keep, progress)
    reference.what["label_counts"] = counts.tolist() if counts.any() else []
    for file in files:
        try:
            _write(file, reference)
            break
        except UserError as error:
            problem = error
    else:
        print(f"note: the reference is not kept for the next time ({problem})", file=sys.stderr)
    return reference


def _write(file: Path, reference: Reference) -> None:
    arrays = {**_statistics(reference), "features": reference.features, "places": reference.places}
    write_arrays(file, arrays)


def _read(file: Path) -> Reference:
    arrays = read_arrays(file)
    try:
        moments, spatial, count, what = _moments(arrays)
        return Reference(moments, spatial, arrays["features"], arrays["places"], count, what)
    except Exception as error:
        raise UserError(f"{file} is damaged ({one_line(error)})") from error


def _statistics(reference: Reference) -> dict[str, np.ndarray]:
    """The arrays of a file: ADM's `mu, sigma` and `mu_s, sigma_s`, float64, and what ADM's do not say."""
    moments, spatial = reference.moments, reference.spatial_moments
    arrays = {"mu": moments.mean, "sigma": moments.covariance}
    if spatial is not None:
        arrays.update(mu_s=spatial.mean, sigma_s=spatial.covariance)
    return {**arrays, "what": np.array(json.dumps(reference.what)), "count": np.array(reference.count or 0)}


def _moments(
    arrays: dict[str, np.ndarray],
) -> tuple[Moments, Moments | None, int | None, dict[str, Any]]:
    """Moments, spatial moments or None, count or None, and `what`, {} where it is not said."""
    count = int(arrays.get("count", 0)) or None
    spatial = None
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean in arrays and arrays[covariance].shape != arrays[mean].shape * 2:
            raise ValueError(f"{mean} is {arrays[mean].shape} and {covariance} {arrays[covariance].shape}")
    if "mu_s" in arrays:
        spatial = Moments.from_statistics(arrays["mu_s"], arrays["sigma_s"], count)
    what = json.loads(str(arrays["what"])) if "what" in arrays else {}
    return Moments.from_statistics(arrays["mu"], arrays["sigma"], count), spatial, count, what


# --- files and folders ---------------------------------------------------------------------------


def of_path(
    detector: Detector,
    path: str | os.PathLike,
    keep: int = KEEP,
    progress: Progress = lambda done: None,
) -> Reference:
    """The reference of images in a file or folder, or of statistics in a file.

    Args:
      detector, keep, progress: as in `of_images`.
      path: a file with `mu` and `sigma`, such as ADM's references: these count, and the features are those of
        its images `arr_0`, if there are any; or whatever `open_images` reads.
    Raises:
      UserError: it cannot be read, or its statistics are another detector's.
    """
    path = as_path(path)
    if {"mu.npy", "sigma.npy"} <= _members(path):
        return _of_statistics(detector, path, keep, progress)
    count, batches = open_images(path)
    return of_images(detector, batches, count, {"path": str(path)}, keep, progress)


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


def _of_statistics(detector: Detector, path: Path, keep: int, progress: Progress) -> Reference:
    """A file of statistics, ADM's or one of `write_adm`; its images, which may be gigabytes, are streamed."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            moments, spatial, count, what = _moments({key: file[key] for key in file.files if key != "arr_0"})
    except Exception as error:  # zipfile and NumPy raise all kinds, as damage has it
        raise UserError(f"{path} is no whole file of statistics ({one_line(error)})") from error
    # A file that does not say its detector is one of those that the field shares.
    theirs = what.get("detector", "inception")
    if theirs != detector.name or what.get("detector_sha256", detector.sha256) != detector.sha256:
        raise UserError(
            f"{path} holds statistics of the detector {theirs!r}, not of this {detector.name!r}:"
            " use that one, or name images as reference"
        )
    features = places = None
    origin = {"path": str(path), "sha256": sha256(path), "statistics": what or "as in the file"}
    if "arr_0.npy" in _members(path):
        shown = samples_shape(path)[0]
        of_shown = of_images(detector, read_samples(path, BATCH), shown, origin, keep, progress)
        features, places, origin = of_shown.features, of_shown.places, of_shown.what
        if features.shape[1] != len(moments.mean):
            raise UserError(
                f"{path} holds statistics of {len(moments.mean)} features, and {detector.name} has"
                f" {features.shape[1]}: use the detector that they are of"
            )
    return Reference(moments, spatial, features, places, count, {**origin, **_origin(detector)})


def write_adm(reference: Reference, path: str | os.PathLike, images: np.ndarray) -> None:
    """Writes a reference file that ADM's evaluator and `of_path` read: `mu, sigma, mu_s, sigma_s, arr_0`.

    Besides it says, as `what` and `count`, of which data and detector it is.

    Args:
      reference: of all images; statistics of Inception if ADM's evaluator is to read them.
      path: an .npz file.
      images: uint8 (M, H, W, 3), some of them, which precision and recall are computed from; ADM's are
        10,000.
    """
    write_arrays(path, {**_statistics(reference), "arr_0": np.asarray(images, np.uint8)})
