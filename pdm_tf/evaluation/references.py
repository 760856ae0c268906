"""References: what the images are compared with, as statistics and features of a detector."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.data import DatasetInfo
from pdm_tf.evaluation.distances import Moments
from pdm_tf.evaluation.features import Detector


class Reference(NamedTuple):
    """One side of a distance.

    Attributes:
      moments: of the pooled features of all its images.
      spatial_moments: of the spatial features; None where there are none.
      features: pooled, float32 (M, D), of M <= count of its images, evenly spread; None where only moments are.
      places: int64 (M,), the images whose features these are, by their number in the split, file or folder.
      count: N, its images; None where a file of statistics does not say it.
      what: where it comes from and what it was made with, for JSON.
    """

    moments: Moments
    spatial_moments: Moments | None
    features: np.ndarray | None
    places: np.ndarray | None
    count: int | None
    what: dict[str, Any]


def of_images(detector: Detector, batches: Iterable[np.ndarray], what: dict[str, Any], keep: int = 50_000,
              progress: Callable[[int], None] = lambda count: None) -> Reference:
    """Statistics of uint8 batches (B, H, W, C)."""
    raise NotImplementedError


def of_split(detector: Detector, info: DatasetInfo, split: str, image_shape=None,
             cache: str | os.PathLike | None = None, keep: int = 50_000,
             progress: Callable[[int], None] = lambda count: None) -> Reference:
    """Statistics of a data set's split, from its cache where they lie there."""
    raise NotImplementedError


def of_path(detector: Detector, path: str | os.PathLike, keep: int = 50_000,
            progress: Callable[[int], None] = lambda count: None) -> Reference:
    """ADM's reference file (mu, sigma, mu_s, sigma_s, arr_0), a samples.npz, or a folder of images."""
    raise NotImplementedError


def write_adm(reference: Reference, path: str | os.PathLike, images: np.ndarray) -> None:
    """Writes mu, sigma, mu_s, sigma_s and arr_0 (uint8 images) in the form of ADM's reference files."""
    raise NotImplementedError
