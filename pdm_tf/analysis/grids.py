"""Figs. 5 to 9: samples of models from one seed, and whether the borders of their patches are visible."""

from __future__ import annotations

import numpy as np

from pdm_tf.analysis.study import Result, Study
from pdm_tf.images import from_uint8
from pdm_tf.models import Model
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.sampler import Sampler

COLUMNS = 8
ZOOM = 24  # pixels of the enlarged part, or half of an image
LINE = 0.1  # 13 levels of 255: second differences of this size and more are those of lines
BOOTSTRAPS = 200


def border_energy(images: np.ndarray, patch_size: int) -> float | None:
    """Gradient energy of float (N, H, W, C) across patch borders over that elsewhere, near 1 without patches.

    None where no two patches meet.
    """
    sums = np.zeros(2)
    counts = np.zeros(2)
    for axis in (1, 2):
        squares = np.moveaxis(np.square(np.diff(images, axis=axis)), axis, 0)
        border = (np.arange(len(squares)) + 1) % patch_size == 0
        for place, chosen in enumerate((squares[border], squares[~border])):
            sums[place] += chosen.sum()
            counts[place] += chosen.size
    if not counts.all() or not sums[1]:
        return None
    return float(sums[0] / counts[0] / (sums[1] / counts[1]))


def border_steps(images: np.ndarray, patch_size: int) -> tuple[float, float] | None:
    """Second differences |x_{i-1} - 2 x_i + x_{i+1}| across patch borders over those one pixel beside them.

    Near 1 without patches. On plain ground they are next to nothing but where there is a step, and those of
    lines count as `LINE`: so they see steps of few levels, which are nothing to the gradient energy.

    Returns:
      The ratio of the means of float (N, H, W, C), and its standard error, the bootstrap's over images. None
      where no two patches meet, where they are less than three pixels wide, or where all is plain.
    """
    if patch_size < 3:
        return None
    across, beside = (np.zeros(len(images)) for _ in range(2))
    for axis in (1, 2):
        sizes = np.moveaxis(np.minimum(np.abs(np.diff(images, 2, axis=axis)), LINE), axis, 1)
        borders = np.arange(patch_size, images.shape[axis], patch_size)
        across += sizes[:, [*(borders - 2), *(borders - 1)]].sum(axis=(1, 2, 3))
        beside += sizes[:, [*(borders - 3), *borders]].sum(axis=(1, 2, 3))
    if not beside.any():
        return None
    chosen = np.random.default_rng(0).integers(len(images), size=(BOOTSTRAPS, len(images)))
    ratios = across[chosen].sum(axis=1) / np.maximum(beside[chosen].sum(axis=1), 1e-30)
    return float(across.sum() / beside.sum()), float(ratios.std())


def samples_of(study: Study, title: str, model: Model) -> SampleBatches:
    """`study.count` samples of the study's labels, or of all classes in turn; nothing is drawn yet."""
    return SampleBatches(
        Sampler(model.denoiser, model.config.sampling),
        study.seed,
        study.count,
        study.batch_size,
        study.labels or (),
        title=f"draw, {title}",
    )


def measure(study: Study) -> Result:
    """Samples of each model from the same noise, and their energy at patch borders beside the data's."""
    data, _ = study.examples()
    images = {"data": data[:COLUMNS]}
    energies = {}
    steps = {}
    for title, model in study.titles.items():
        samples = from_uint8(np.concatenate(list(samples_of(study, title, model))))
        patch_size = model.config.network.patch_size
        images[title] = samples[:COLUMNS]
        energies[title] = {
            "patch_size": patch_size,
            "samples": border_energy(samples, patch_size),
            "data": border_energy(data, patch_size),
        }
        steps[title] = {
            size: {"samples": border_steps(samples, size), "data": border_steps(data, size)}
            for size in sorted({part.patch_size for part in model.denoiser.parts})
        }
    numbers = {"border_energy": energies, "border_steps": steps}
    return Result(numbers, _sentence(energies, steps, study.count), _with_zoom(images))


def _sentence(energies: dict, steps: dict, count: int) -> str:
    values = [
        f"{energy['samples']:.2f} of {title} (data: {energy['data']:.2f})"
        for title, energy in energies.items()
        if None not in energy.values()
    ]
    if not values:
        return "With P = 1 there are no patches whose borders could show."
    ratios = [
        f"{_with_error(of['samples'])} of {title}, every {size} pixels (data: {_with_error(of['data'])})"
        for title, sizes in steps.items()
        for size, of in sizes.items()
        if None not in of.values()
    ]
    beside = f"; of second differences there over beside {', '.join(ratios)}" if ratios else ""
    return (
        f"Gradient energy across patch borders over that elsewhere is {', '.join(values)}{beside}; "
        f"{count} samples each at one seed; what lies above the data's is a visible grid."
    )


def _with_error(ratio: tuple[float, float]) -> str:
    return f"{ratio[0]:.2f} ± {ratio[1]:.2f}"


def _with_zoom(rows_of_images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Below each row the middle of its images, which is drawn as large."""
    rows = {}
    for title, images in rows_of_images.items():
        _, height, width, _ = images.shape
        zoom_height = min(ZOOM, height // 2)
        zoom_width = min(ZOOM, width // 2)
        top = (height - zoom_height) // 2
        left = (width - zoom_width) // 2
        rows[title] = images
        rows[f"{title}, zoom"] = images[:, top : top + zoom_height, left : left + zoom_width]
    return rows
