"""What the page does with models, without the page: samples, edits and comparisons as they sharpen."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pdm_tf import plots
from pdm_tf.config.fields import TOGETHER, SamplingConfig, check_sampling
from pdm_tf.config.words import leaves, parse, replace, require
from pdm_tf.data import DatasetInfo
from pdm_tf.errors import UserError
from pdm_tf.images import from_uint8, read_fitted
from pdm_tf.models import Model
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.output import GRID_IMAGES, PNGS, write_files
from pdm_tf.sampling.sampler import Sampler, steps_of_share
from pdm_tf.stack import release_graphs

FRAME_SECONDS = 0.4  # between two pictures of x_theta
LARGEST_FILE = 100 * 10**6  # pixels of an uploaded picture
MOST_SEED = 2**31 - 1
NOT_BEGUN = 128  # grey
BORDER = np.array([79, 70, 229, 255], np.uint16)  # the colour of patch borders
FIELDS = {**leaves(SamplingConfig), **leaves(Edit)}
SETTINGS = [name for name in FIELDS if name != "jit_compile"]


class Samples(NamedTuple):
    """Samples, finished or on their way."""

    images: np.ndarray  # uint8 (N, H, W, C), grey where sampling has not begun
    status: str
    files: Sequence[Path] = ()  # of finished samples grid.png, pngs.zip and samples.npz


class Studio:
    """Models, and what is sampled from them."""

    def __init__(self, models: Sequence[Model], infos: Sequence[DatasetInfo | None]):
        """Loads the models' weights; raises UserError where these are missing or damaged."""
        self.models = list(models)
        self.infos = list(infos)  # the data set of each model where it is at hand, else None
        self.comparable = []  # the models, and each expert that can begin from pure noise alone
        for model in self.models:
            self.comparable += [model, *_last_expert(model)]
        for model in self.comparable:
            _ = model.denoiser
        self._kept = (None, None)
        self._folder = tempfile.TemporaryDirectory(prefix="pdm_tf_page_")
        self._closed = False

    def close(self) -> None:
        """Ends all sampling at its next step, and removes all files."""
        self._closed = True
        self._folder.cleanup()

    def draw(
        self,
        model: Model,
        values: dict[str, Any],
        labels: Sequence[int] = (),
        seed: float | None = 0,
        count: float | None = 1,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> Iterator[Samples]:
        """Samples that sharpen, and at last their files, with the bytes of `--mode=sample`.

        Args:
          values: fields of `SETTINGS` in place of the run's, as words or numbers.
          labels: class numbers; none of an edit is the null label, where it was learnt, else all classes in
            turn.
          image: uint8 (H, W, C), an image to edit.
          mask: bool (H, W), True where to inpaint.
        Raises:
          UserError: a value cannot work, named as the page does; or the studio is closed meanwhile.
        """
        begin = time.monotonic()
        seed = whole(seed, "Seed", 0, MOST_SEED)
        count = whole(count, "Pictures", 1, GRID_IMAGES)
        sampler = self._sampler(model, values, image, mask)
        if image is not None:
            labels = labels or ([model.denoiser.null_label] if model.config.diffusion.label_dropout else ())
        batches = SampleBatches(sampler, seed, count, min(TOGETHER, count), labels)
        images = np.full(batches.shape, NOT_BEGUN, np.uint8)
        yield Samples(images.copy(), "Preparing: new settings take a few seconds longer")
        for start in batches.starts:
            shown_at = -math.inf
            for step, x in enumerate(batches.predictions(start), 1):
                require(not self._closed, "the page is closed")
                if time.monotonic() - shown_at < FRAME_SECONDS and step < sampler.num_steps:
                    continue
                shown_at = time.monotonic()
                images[start : start + len(x)] = x
                part = f"pictures {start + 1} to {start + len(x)} of {count}, " if len(x) < count else ""
                seconds = time.monotonic() - begin
                yield Samples(images.copy(), f"{part}step {step} of {sampler.num_steps}, {seconds:.1f} s")
        files = self._files(batches, images)
        pictures = f"{count} picture{'s' if count > 1 else ''}"
        status = f"{pictures} in {time.monotonic() - begin:.1f} s: {_steps_text(sampler)}"
        yield Samples(images, status, files)

    def compare(
        self, models: Sequence[Model], labels: Sequence[int], seed: float | None, count: float | None
    ) -> Iterator[tuple[Model, Samples]]:
        """Samples of one model after the other, each with its run's settings, from the same seed."""
        require(bool(models), "choose at least one model")
        for model in models:
            for samples in self.draw(model, {}, labels if model.denoiser.conditional else (), seed, count):
                yield model, samples

    def curves(self) -> Path | None:
        """A picture of how the runs of all models learnt; None where no run has a log."""
        folders = [run.folder for model in self.models for run in model.runs]
        runs = {"/".join(folder.path.parts[-2:]): folder for folder in folders}
        path = Path(self._folder.name) / "curves.png"
        return path if plots.runs_beside_each_other(path, runs) else None

    def _sampler(
        self, model: Model, values: dict[str, Any], image: np.ndarray | None, mask: np.ndarray | None
    ) -> Sampler:
        """A sampler of these settings: that of the last drawing, whose graph is there, or a new one."""
        if mask is not None:
            values = {**values, "sampler": "ancestral", "strength": 1.0}
        given = {name: _parsed(name, value, model) for name, value in values.items()}
        edit_options = {name: given.pop(name) for name in leaves(Edit) if name in given}
        sampling = replace(model.config.sampling, given)
        check_sampling(model.config.replace({"sampling": sampling}))
        edit = None if image is None else Edit(from_uint8(image), mask, **edit_options)
        key = (model.title, sampling, edit and str(edit.identity()))
        if key != self._kept[0]:
            self._kept = (key, Sampler(model.denoiser, sampling, edit=edit))
            release_graphs()
        return self._kept[1]

    def _files(self, batches: SampleBatches, images: np.ndarray) -> list[Path]:
        """Writes grid.png, pngs.zip and samples.npz over the last ones, which gradio has copied."""
        out = Path(self._folder.name)
        write_files([images], batches.shape, batches.image_labels, out, save_pngs=True)
        pngs = shutil.make_archive(str(out / PNGS), "zip", out / PNGS)
        return [out / "grid.png", Path(pngs), out / "samples.npz"]


def classes_of(model: Model) -> list[tuple[str, int]]:
    """The name and number of each class; none of a model without class conditioning."""
    data = model.config.data
    if not model.denoiser.conditional:
        return []
    names = data.label_names or [f"class {number}" for number in range(data.num_classes)]
    return [(name, number) for number, name in enumerate(names)]


def description(model: Model) -> str:
    """The model's name, data and size in one line."""
    height, width, _ = model.denoiser.image_shape
    parameters = sum(math.prod(variable.shape) for variable in model.denoiser.variables)
    dataset = model.config.data.dataset.split("/")[-1]
    return (
        f"**{model.title}** is a patched diffusion model of {parameters / 1e6:.1f} million parameters, "
        f"trained on {dataset}, {width} x {height} pixels."
    )


def part_at(model: Model, t: int):
    """The `Part` of the model that works at t."""
    return next(part for part in model.denoiser.parts if part.t_start <= t < part.t_stop)


def _last_expert(model: Model) -> list[Model]:
    """The expert that begins from pure noise, as a model of its own; none of one run or of smaller images."""
    last = model.runs[-1]
    if len(model.runs) == 1 or last.config.data.image_shape != model.config.data.image_shape:
        return []
    expert = Model([last])
    expert.title = f"{expert.title} alone, to t = {expert.config.diffusion.t_start}"
    steps = steps_of_share(model.config.sampling.steps, expert.denoiser)
    expert.config = expert.config.replace({"sampling": replace(model.config.sampling, {"steps": steps})})
    return [expert]


def _parsed(name: str, value: Any, model: Model) -> Any:
    """A field's value from words or a number."""
    label = label_of(name)
    most = len(model.denoiser.schedule)
    try:
        parsed = parse("" if value is None else str(value), FIELDS[name].kind, name)
    except UserError:
        parsed = None
    if name == "steps":
        require(bool(parsed) and min(parsed) >= 1 and sum(parsed) <= most, f"{label}: 1 to {most}")
    finite = not isinstance(parsed, float) or math.isfinite(parsed)
    require(parsed is not None and finite, f"{label}: give a number")
    problem = FIELDS[name].rule.problem(parsed)
    require(not problem, f"{label}: {problem}")
    return parsed


def label_of(name: str) -> str:
    """A field's name as the page shows it."""
    return name.replace("_", " ").capitalize()


def whole(value: float | None, label: str, least: int, most: int) -> int:
    """A whole number of a range."""
    fits = value is not None and math.isfinite(value) and value == int(value) and least <= value <= most
    require(fits, f"{label}: a whole number from {least} to {most}")
    return int(value)


def _steps_text(sampler: Sampler) -> str:
    """How many steps each image took."""
    steps = sum(sampler.settings.steps)
    if sampler.edit is None:
        return f"{steps} steps"
    if sampler.edit.mask is None:
        return f"the last {sampler.num_steps} of {steps} steps"
    return f"{steps} ancestral steps in {sampler.num_passes} passes"


# --- Pictures in and out of the page ---------------------------------------------------------------


def uploaded(path: str | None, model: Model) -> np.ndarray | None:
    """An uploaded picture, fitted to a model by `read_fitted`: uint8 (H, W, C); None without one."""
    return read_fitted(path, model.denoiser.image_shape, LARGEST_FILE) if path else None


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, C) with each pixel as a square, so that the longer side has about `side` pixels."""
    factor = max(1, round(side / max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def with_patches(image: np.ndarray, side: int, patch_size: int) -> np.ndarray:
    """`enlarged` with the borders of patches; a grey image becomes one of three channels."""
    large = enlarged(image, side)
    factor = len(large) // len(image)
    large = np.repeat(large, 3, axis=-1) if large.shape[-1] == 1 else large.copy()
    for axis in (0, 1):
        borders = np.arange(patch_size, image.shape[axis], patch_size) * factor
        for line in (borders - 1, borders):
            place = (line,) if axis == 0 else (slice(None), line)
            large[place] = (large[place].astype(np.uint16) + BORDER[: large.shape[-1]]) // 2
    return large


def mask_of(layers: Sequence[np.ndarray], image_shape: Sequence[int]) -> np.ndarray | None:
    """Brush strokes, uint8 (h, w, 4) of any size, on an image (H, W, C) -> bool (H, W).

    True where at least half of a pixel is covered; None without any such pixel.
    """
    mask = np.zeros(image_shape[:2], bool)
    for layer in layers:
        strokes = Image.fromarray((layer[..., 3] > 0).astype(np.uint8) * 255)
        mask |= np.asarray(strokes.resize(image_shape[1::-1], Image.Resampling.BOX)) >= 128
    return mask if mask.any() else None
