"""What is looked at: models, the data that they have learnt from, and how much of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.analysis.optimum import Optimum, optimum_of
from pdm_tf.config.fields import Config
from pdm_tf.config.words import leaves
from pdm_tf.data import DatasetInfo, load_batches, naming_shards
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.process import diffuse
from pdm_tf.errors import UserError
from pdm_tf.models import Model
from pdm_tf.randomness import normal_each, stream


class Findings(NamedTuple):
    """What an analysis has found.

    Attributes:
      numbers: JSON values.
      sentence: what they show, in one sentence made of them.
      shown: what else its picture is drawn of.
    """

    numbers: dict[str, Any]
    sentence: str
    shown: Any = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """Models and their data set.

    Attributes:
      models: of one data set, at least one.
      info: the data set.
      seed: of images and noise.
      count: images to look at.
      batch_size: images at a time.
      labels: the classes asked for, or None.
      memory_gib: the limit that batches are to train within.
      evaluations: folders beside those in the run folders where evaluations of the models may lie.
    """

    models: Sequence[Model]
    info: DatasetInfo
    seed: int
    count: int
    batch_size: int
    labels: Sequence[int] | None = None
    memory_gib: float = 2.0
    evaluations: Sequence[Path] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) that the models were made for."""
        return self.models[0].config.data.image_shape

    @functools.cached_property
    def titles(self) -> dict[str, Model]:
        """Models by what a picture calls them: prediction and P; also the folder where these are alike."""
        return self._titled(self.models)

    @functools.cached_property
    def groups(self) -> dict[str, list[Model]]:
        """The seeds of each way to train, by what a picture calls it: models that differ in nothing else.

        Models do not differ by what may change while a run goes on, such as its length.
        """
        alike: dict[str, list[Model]] = {}
        for model in self.models:
            alike.setdefault(_way_to_train(model), []).append(model)
        titles = self._titled([group[0] for group in alike.values()])
        return dict(zip(titles, alike.values()))

    def _titled(self, models: Sequence[Model]) -> dict[str, Model]:
        configs = [model.config for model in models]
        short = [f"{c.diffusion.prediction}, P={c.network.patch_size}" for c in configs]
        return {
            title
            if short.count(title) == 1
            else f"{title}, {model.runs[0].folder.path.name} ({self.models.index(model) + 1})": model
            for title, model in zip(short, models)
        }

    def optimum(self) -> Optimum:
        """x* of the training images, in the first model's process.

        Raises:
          UserError: the models' processes differ.
        """
        alphas = [model.denoiser.schedule.alpha for model in self.models]
        if any(not np.array_equal(alpha, alphas[0]) for alpha in alphas):
            raise UserError("the models have different noise schedules: give those of one schedule")
        return optimum_of(self.info, self.models[0].denoiser.schedule, self.image_shape)

    def examples(self, split: str = "train", label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`count` images of a split, or all of a smaller one, in the seed's order; of one class if asked for.

        Returns:
          float32 (N, H, W, C) in [-1, 1], and int32 (N,).
        Raises:
          UserError: there are none.
        """
        images = load_batches(
            self.info, split=split, batch_size=self.batch_size, seed=self.seed, repeat=False,
            image_shape=self.image_shape, drop_remainder=False,
        ).unbatch()  # fmt: skip
        if label is not None:
            images = images.filter(lambda image, own, place: own == label)
        with naming_shards():
            found = list(images.take(self.count).as_numpy_iterator())
        if not found:
            raise UserError(f"{self.info.name} has no images of class {label} in {split}: choose another")
        return np.stack([image for image, _, _ in found]), np.array([own for _, own, _ in found], np.int32)

    def about(self) -> dict[str, Any]:
        """What numbers depend on, as JSON values."""
        runs = [[str(run.folder) for run in model.runs] for model in self.models]
        return {"runs": runs, "data": self.info.name, "seed": self.seed, "count": self.count}


def _way_to_train(model: Model) -> str:
    """All that makes two models other than two seeds of one."""
    free = {
        key: leaf.default
        for key, leaf in leaves(Config).items()
        if leaf.rule.may_change and key != "training.warm_start"  # which a run begins with, and then has had
    }
    return "".join(run.config.replace({**free, "seed": 0}).to_json() for run in model.runs)


def noisy(denoiser: Denoiser, images: np.ndarray, t: int, seed: int) -> np.ndarray:
    """z_t of images float32 (N, H, W, C), each with noise of its own, the same at every t."""
    eps = normal_each(stream(seed, "analysis"), np.arange(len(images)), images.shape[1:])
    return diffuse(images, eps, denoiser.schedule.at(t)).numpy()


class Answers:
    """x_theta of a denoiser, compiled once, `batch_size` images at a time."""

    def __init__(self, denoiser: Denoiser, batch_size: int):
        self.denoiser, self.batch_size = denoiser, batch_size
        each = tf.TensorSpec((None,), tf.int32)
        self._call = tf.function(
            lambda z, t, labels: denoiser(z, t, labels)[0],
            [tf.TensorSpec((None, *denoiser.image_shape), tf.float32), each, each],
        )

    def __call__(self, z: np.ndarray, t: int, labels: np.ndarray) -> np.ndarray:
        """float32 (N, H, W, C) of z (N, H, W, C) at one t, given labels (N,)."""
        parts = []
        for start in range(0, len(z), self.batch_size):
            part = slice(start, start + self.batch_size)
            levels = np.full(len(z[part]), t, np.int32)
            parts.append(self._call(z[part], levels, labels[part].astype(np.int32)).numpy())
        return np.concatenate(parts)


def gradient_energy(images: np.ndarray) -> float:
    """The mean squared difference of neighbouring pixels of images (N, H, W, C)."""
    down, right = np.diff(images, axis=1), np.diff(images, axis=2)
    return float((np.sum(np.square(down)) + np.sum(np.square(right))) / (down.size + right.size))


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean(np.square(a - b))))
