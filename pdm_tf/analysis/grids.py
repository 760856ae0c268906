"""Figs. 5 to 9: samples of models at one seed, and whether one sees the borders of their patches."""

from __future__ import annotations

import os

import numpy as np

from pdm_tf import plots
from pdm_tf.analysis.subject import Findings, Subject
from pdm_tf.images import from_uint8, to_uint8
from pdm_tf.models import Model
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.sampler import Sampler

SHOWN = 8
ZOOM = 24  # pixels of the part that is shown large, or half of an image
DATA = "data"


def border_energy(images: np.ndarray, patch_size: int) -> float | None:
    """Gradient energy across patch borders over that elsewhere; None where there are no two patches.

    Near 1 of images that know nothing of patches; more where borders show.

    Args:
      images: float (N, H, W, C).
    """
    sums, counts = np.zeros(2), np.zeros(2)
    for axis in (1, 2):
        squares = np.moveaxis(np.square(np.diff(images, axis=axis)), axis, 0)
        border = (np.arange(len(squares)) + 1) % patch_size == 0
        for place, chosen in enumerate((squares[border], squares[~border])):
            sums[place] += chosen.sum()
            counts[place] += chosen.size
    if not counts.all() or not sums[1]:
        return None
    return float(sums[0] / counts[0] / (sums[1] / counts[1]))


def batches_of(model: Model, subject: Subject, title: str) -> SampleBatches:
    """`subject.count` samples of the labels asked for, or all, in turn."""
    sampler = Sampler(model.denoiser, model.config.sampling)
    return SampleBatches(
        sampler, subject.seed, subject.count, subject.batch_size, subject.labels or (), title=f"draw, {title}"
    )


def grids(subject: Subject) -> Findings:
    """Samples of each model from the same noise, and their energy at patch borders beside the data's."""
    data, _ = subject.examples()
    shown, values = {DATA: to_uint8(data[:SHOWN])}, {}
    for name, model in subject.titles.items():
        drawn = np.concatenate(list(batches_of(model, subject, name)))
        shown[name] = drawn[:SHOWN]
        images = from_uint8(drawn)
        values[name] = {
            "patch_size": model.config.network.patch_size,
            "samples": border_energy(images, model.config.network.patch_size),
            "data": border_energy(data, model.config.network.patch_size),
        }
    said = [
        f"{value['samples']:.2f} of {name} (data: {value['data']:.2f})"
        for name, value in values.items()
        if None not in value.values()
    ]
    sentence = (
        f"Gradient energy across patch borders over that elsewhere is {', '.join(said)}, of {subject.count} "
        "samples each at one seed; what lies above the data's is a visible grid."
        if said
        else "With P = 1 there are no patches whose borders could show."
    )
    return Findings({"border_energy": values}, sentence, shown)


def draw_grids(found: Findings, path: str | os.PathLike) -> None:
    """A row for the data and for each model, and below it the middle of each image, large."""
    rows = {}
    for name, images in found.shown.items():
        rows[name] = images
        height, width = (min(ZOOM, size // 2) for size in images.shape[1:3])
        top, left = ((size - part) // 2 for size, part in zip(images.shape[1:3], (height, width)))
        rows[f"{name}, zoom"] = images[:, top : top + height, left : left + width]
    plots.draw(path, rows)
