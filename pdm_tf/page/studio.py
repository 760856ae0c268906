"""What the page does with models, without the page: pictures are drawn, edited, painted anew, compared."""

from __future__ import annotations

import collections
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pdm_tf.atomic import remove_tree
from pdm_tf.config.fields import TOGETHER, Config, SamplingConfig, check_sampling
from pdm_tf.config.words import check_values, leaves, parse, replace, require
from pdm_tf.data import DatasetInfo
from pdm_tf.denoiser import Denoiser
from pdm_tf.errors import UserError
from pdm_tf.images import from_uint8, read_fitted
from pdm_tf.models import Model
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.output import GRID_IMAGES, PNGS, write_files
from pdm_tf.sampling.sampler import Sampler, steps_of_share

FRAME_SECONDS = 0.4  # between two pictures of x_theta on its way
LARGEST_FILE = 100 * 10**6  # pixels of an uploaded picture
MOST_SEED = 2**31 - 1
SAMPLERS_KEPT = 6  # each holds a graph: a picture of the same settings is begun at once
DRAWINGS_KEPT = 20  # whose files wait to be downloaded
NOT_BEGUN = 128  # grey
BORDER = np.array([79, 70, 229, 255], np.uint16)  # the colour of patches' borders


def fields_of(owner: str, sampler: str) -> dict[str, bool]:
    """The fields of `sampling` that somebody may set -> whether they do something with that sampler.

    Args:
      owner: "" to draw, "init_image" to edit, "mask" to paint: what some fields belong to.
    """
    painting, found, known = owner == "mask", {}, {**leaves(SamplingConfig), **leaves(Edit)}
    samplers = {"ancestral"} if painting else set(leaves(SamplingConfig)["sampler"].rule.choices)
    for name, leaf in known.items():
        of, is_own = set(leaf.rule.of), owner in leaf.rule.of
        fixed = name == "jit_compile" or (painting and name in ("sampler", "strength"))
        if not fixed and (not of or is_own or of & samplers):
            found[name] = not of or is_own or sampler in of
    return found


class Shown(NamedTuple):
    """Something to draw from, under a name: a model, or one of its experts alone.

    Attributes:
      name: short, and unlike the others'.
      model: its runs.
      denoiser: what draws.
      config: of the run with the least noise; how its owner likes it sampled.
      info: the data set that it has learnt from, if that is at hand.
    """

    name: str
    model: Model
    denoiser: Denoiser
    config: Config
    info: DatasetInfo | None

    @property
    def classes(self) -> list[tuple[str, int]]:
        """Each class's name and number; of a model that is told none, no classes."""
        data = self.config.data
        if not self.denoiser.conditional:
            return []
        names = data.label_names or [f"class {number}" for number in range(data.num_classes)]
        return [(name, number) for number, name in enumerate(names)]

    def patch_size(self, t: int) -> int:
        """P of the network that answers at t."""
        return next(part.patch_size for part in self.denoiser.parts if t < part.t_stop)


class Wanted(NamedTuple):
    """What somebody asks for.

    Attributes:
      sampling: how to sample.
      labels: classes to draw in turn; all of them if empty.
      seed: of all that is random.
      count: how many pictures.
      edit: the options of `Edit`, beside image and mask.
    """

    sampling: SamplingConfig
    labels: Sequence[int]
    seed: int
    count: int
    edit: dict[str, Any]


class Shot(NamedTuple):
    """Pictures, finished or on their way.

    Attributes:
      images: uint8 (N, H, W, C), all that were asked for; grey where nothing is drawn yet.
      said: how far it is, or how long it took.
      files: of finished ones grid.png, pngs.zip and samples.npz.
    """

    images: np.ndarray
    said: str
    files: Sequence[Path] = ()


class Studio:
    """Models, and what is drawn with them.

    Attributes:
      models: each whole model.
      sights: these, and the experts among them that can draw alone.
    """

    def __init__(self, models: Sequence[Model], infos: Sequence[DatasetInfo | None]):
        """Loads the models' weights.

        Args:
          infos: the data set of each, where it is at hand.
        Raises:
          UserError: there are no weights, or damaged ones.
        """
        self.models, self.sights = [], []
        for model, info in zip(models, infos):
            whole = Shown(model.title, model, model.denoiser, model.config, info)
            self.models.append(whole)
            self.sights += [whole, *_alone(whole)]
        self._samplers = collections.OrderedDict()
        self._drawings = tempfile.TemporaryDirectory(prefix="pdm_tf_page_")
        self._kept, self._closed = collections.deque(), False

    def close(self) -> None:
        """Ends what is being drawn at its next step, and removes all files."""
        self._closed = True
        self._drawings.cleanup()

    def draw(
        self, shown: Shown, wanted: Wanted, image: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> Iterator[Shot]:
        """Draws pictures, which are seen as they sharpen, and at last as files.

        A picture has the bytes of one that `--mode=sample` draws of the same settings.

        Args:
          image: uint8 (H, W, C), a picture to edit.
          mask: bool (H, W), where to paint it anew.
        Raises:
          UserError: the studio is closed meanwhile.
        """
        edit = None if image is None else Edit(from_uint8(image), mask, **wanted.edit)
        begin, sampler, count = time.monotonic(), self._sampler(shown, wanted.sampling, edit), wanted.count
        draw = SampleBatches(sampler, wanted.seed, count, min(TOGETHER, count), wanted.labels)
        images = np.full(draw.shape, NOT_BEGUN, np.uint8)
        yield Shot(images.copy(), "getting ready: the first pictures of new settings take longer")
        for start in draw.starts:
            for moves, x in draw.sharpening(start, FRAME_SECONDS):
                require(not self._closed, "the page is closed")
                images[start : start + len(x)] = x
                which = f"pictures {start + 1} to {start + len(x)} of {count}, " if len(x) < count else ""
                passed = time.monotonic() - begin
                yield Shot(images.copy(), f"{which}step {moves} of {sampler.moves}, {passed:.1f} s")
        files = self._files(draw, images)
        what = f"{count} picture{'s' if count > 1 else ''}"
        yield Shot(images, f"{what} in {time.monotonic() - begin:.1f} s, {sampler.moves} steps each", files)

    def compare(
        self, sights: Sequence[Shown], labels: Sequence[int], seed: int, count: int
    ) -> Iterator[tuple[Shown, Shot]]:
        """Draws of one model after the other, each as its owner likes it sampled, from the same seed."""
        require(bool(sights), "choose at least one model")
        for shown in sights:
            wanted = self.wanted(shown, {}, labels if shown.denoiser.conditional else [], seed, count)
            for shot in self.draw(shown, wanted):
                yield shown, shot

    def wanted(
        self,
        shown: Shown,
        values: dict[str, Any],
        labels: Sequence[int],
        seed: float | None,
        count: float | None,
    ) -> Wanted:
        """What the controls of the page say, checked.

        Args:
          values: fields of the run's `sampling` that are to be others, as words or numbers.
          labels: class numbers.
        Raises:
          UserError: something cannot work; names the setting.
        """
        known, given = {**leaves(SamplingConfig), **leaves(Edit)}, {}
        for name, value in values.items():
            given[name] = parse("" if value is None else str(value), known[name].kind, name)
            require(
                not isinstance(given[name], float) or math.isfinite(given[name]), f"{name}: give a number"
            )
        edit = {name: given.pop(name) for name in leaves(Edit) if name in given}
        check_values(Edit, edit)
        config = shown.config.replace({"sampling": replace(shown.config.sampling, given)})
        check_sampling(config)
        classes = len(shown.classes)
        require(all(label < classes for label in labels), f"there are {classes} classes: choose of these")
        seed, count = _whole(seed, "seed", 0, MOST_SEED), _whole(count, "count", 1, GRID_IMAGES)
        return Wanted(config.sampling, list(labels), seed, count, edit)

    def _sampler(self, shown: Shown, sampling: SamplingConfig, edit: Edit | None) -> Sampler:
        """One of these settings: that of an earlier picture, or a new one."""
        key = (shown.name, sampling, edit and str(edit.identity()))
        if key not in self._samplers:
            self._samplers[key] = Sampler(shown.denoiser, sampling, edit)
        self._samplers.move_to_end(key)
        while len(self._samplers) > SAMPLERS_KEPT:
            self._samplers.popitem(last=False)
        return self._samplers[key]

    def _files(self, draw: SampleBatches, images: np.ndarray) -> list[Path]:
        """Writes grid.png, pngs.zip and samples.npz, which wait for a while."""
        out = Path(tempfile.mkdtemp(dir=self._drawings.name))
        write_files([images], draw.shape, draw.image_labels, out, save_pngs=True)
        pngs = shutil.make_archive(str(out / PNGS), "zip", out / PNGS)
        remove_tree(out / PNGS)
        self._kept.append(out)
        while len(self._kept) > DRAWINGS_KEPT:
            remove_tree(self._kept.popleft())
        return [out / "grid.png", Path(pngs), out / "samples.npz"]


def _alone(whole: Shown) -> list[Shown]:
    """The expert that can begin from pure noise: it draws as far as it has learnt to."""
    if len(whole.model.runs) == 1:
        return []
    run, denoiser = whole.model.runs[-1], whole.model.denoisers[-1]
    steps = steps_of_share(whole.config.sampling.steps, denoiser)
    config = run.config.replace({"sampling": replace(whole.config.sampling, {"steps": steps})})
    name = f"{run.folder.path.absolute().name} alone, to t = {denoiser.t_start}"
    return [Shown(name, whole.model, denoiser, config, whole.info)]


def _whole(value: float | None, name: str, least: int, most: int) -> int:
    """A whole number of a range."""
    fits = value is not None and math.isfinite(value) and value == int(value) and least <= value <= most
    require(fits, f"{name}: give a whole number from {least} to {most}")
    return int(value)


# --- Pictures in and out of the page ---------------------------------------------------------------


def uploaded(path: str | None, shown: Shown) -> np.ndarray:
    """An uploaded picture, fitted to a model: uint8 (H, W, C).

    Raises:
      UserError: there is none, it is no image, or too large.
    """
    if not path:
        raise UserError("upload a picture first")
    return read_fitted(path, shown.config.data.image_shape, LARGEST_FILE)


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, C), each pixel as a square of pixels, so that the longer side has about `side`."""
    factor = _factor(image, side)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _factor(image: np.ndarray, side: int) -> int:
    return max(1, round(side / max(image.shape[:2])))


def with_patches(image: np.ndarray, side: int, patch_size: int) -> np.ndarray:
    """As `enlarged`, with the borders of its patches: uint8, of one channel as of three."""
    factor = _factor(image, side)
    large = enlarged(image, side)
    large = np.repeat(large, 3, axis=-1) if large.shape[-1] == 1 else large.copy()
    for axis in (0, 1):
        borders = np.arange(patch_size, image.shape[axis], patch_size) * factor
        for line in (borders - 1, borders):
            place = (line,) if axis == 0 else (slice(None), line)
            large[place] = (large[place].astype(np.uint16) + BORDER[: large.shape[-1]]) // 2
    return large


def mask_of(layers: Sequence[np.ndarray], image_shape: Sequence[int]) -> np.ndarray:
    """What a brush has covered, as a mask for a model.

    Args:
      layers: uint8 (h, w, 4) of any size, opaque where there is paint.
      image_shape: (H, W, C).
    Returns:
      bool (H, W), True where at least half a pixel is covered.
    Raises:
      UserError: nothing is.
    """
    mask = np.zeros(image_shape[:2], bool)
    for layer in layers:
        paint = Image.fromarray((layer[..., 3] > 0).astype(np.uint8) * 255)
        mask |= np.asarray(paint.resize(image_shape[1::-1], Image.Resampling.BOX)) >= 128
    require(bool(mask.any()), "brush over what is to be painted anew first")
    return mask
