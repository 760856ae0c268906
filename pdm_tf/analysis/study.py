"""The input of every analysis: trained models, their data set, and how many images of it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf import plots
from pdm_tf.analysis.optimum import Optimum, optimum_of
from pdm_tf.config.fields import Config
from pdm_tf.config.words import leaves
from pdm_tf.data import DatasetInfo, load_batches, naming_shards
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.process import diffuse
from pdm_tf.errors import UserError
from pdm_tf.images import to_uint8
from pdm_tf.models import Model
from pdm_tf.randomness import normal_each


class Result(NamedTuple):
    """The result of an analysis."""

    numbers: dict[str, Any]  # JSON values
    sentence: str  # the finding, made of the numbers
    # The picture, as of `plots.draw`, of images in [-1, 1]; or a table: titles of columns, and rows of texts.
    images: Mapping[str, Sequence[np.ndarray]] = {}
    columns: Sequence[str] = ()
    panels: Sequence[plots.Panel] = ()
    table: tuple[list[str], list[list[str]]] | None = None

    def draw(self, path: str | os.PathLike) -> None:
        if self.table:
            plots.table(path, *self.table)
        else:
            rows = {title: to_uint8(images) for title, images in self.images.items()}
            plots.draw(path, rows, self.columns, self.panels)


@dataclasses.dataclass(frozen=True)
class Study:
    """Models and their data set."""

    models: Sequence[Model]  # at least one, trained on the data set
    info: DatasetInfo
    seed: int  # of the choice of images, the noise and the samples
    count: int  # images, or samples of each model
    batch_size: int  # images at a time
    labels: Sequence[int] | None = None  # classes of the samples; None: all in turn
    memory_gib: float = 2.0  # the limit of `memory`
    evaluations: Sequence[Path] = ()  # folders with an evaluation.json, besides those in the run folders

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.models[0].config.data.image_shape

    @functools.cached_property
    def titles(self) -> dict[str, Model]:
        """Title -> model: its prediction and P, and its folder where these are alike."""
        return _titled(self.models)

    @functools.cached_property
    def groups(self) -> dict[str, list[Model]]:
        """Title -> models that differ in nothing but the seed and what may change while a run goes on."""
        alike: dict[str, list[Model]] = {}
        free = {key: leaf.default for key, leaf in leaves(Config).items() if leaf.rule.may_change}
        for model in self.models:
            settings = [run.config.replace({**free, "seed": 0}).to_json() for run in model.runs]
            alike.setdefault("".join(settings), []).append(model)
        titles = _titled([models[0] for models in alike.values()])
        return dict(zip(titles, alike.values()))

    def optimum(self) -> Optimum:
        """x* of the training images: the best possible denoiser of the distribution that the models learn.

        It is conditional on the class where the models are, and knows mirrored images where they were
        trained on them. UserError if the models have different processes or distributions.
        """
        first, *others = self.models
        schedule = first.denoiser.schedule
        for other in others:
            if not np.array_equal(other.denoiser.schedule.alpha, schedule.alpha):
                raise UserError("the models have different noise schedules: give those of one schedule")
            if _distribution_of(other) != _distribution_of(first):
                raise UserError(
                    "only some of the models are conditional on the class, or are trained on mirrored "
                    "images, so that each has an x* of its own: analyze them one at a time"
                )
        conditional, horizontal_flip = _distribution_of(first)
        return optimum_of(
            self.info, schedule, self.image_shape, conditional=conditional, horizontal_flip=horizontal_flip
        )

    def examples(self, split: str = "train", label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`count` images of a split, or all of a smaller one, in the seed's order; of one class if given.

        Float32 (N, H, W, C) in [-1, 1], and labels int32 (N,); UserError if there are none.
        """
        batches = load_batches(
            self.info,
            split=split,
            batch_size=self.batch_size,
            seed=self.seed,
            repeat=False,
            image_shape=self.image_shape,
            drop_remainder=False,
        )
        examples = batches.unbatch()
        if label is not None:
            examples = examples.filter(lambda example: example["label"] == label)
        with naming_shards():
            found = list(examples.take(self.count).as_numpy_iterator())
        if not found:
            raise UserError(f"{self.info.name} has no images of class {label} in {split}: choose another")
        images = np.stack([example["image"] for example in found])
        return images, np.array([example["label"] for example in found], np.int32)

    def description(self) -> dict[str, Any]:
        """The study as JSON values: `models` by title, and what decides the numbers."""
        firsts = {title: models[0] for title, models in self.groups.items()}
        return {
            "models": {
                title: {
                    "runs": [str(run.folder) for run in model.runs],
                    "prediction": model.config.diffusion.prediction,
                    "patch_size": model.config.network.patch_size,
                }
                for title, model in {**firsts, **self.titles}.items()
            },
            "data": self.info.name,
            "seed": self.seed,
            "count": self.count,
        }


def _titled(models: Sequence[Model]) -> dict[str, Model]:
    short = [f"{m.config.diffusion.prediction}, P={m.config.network.patch_size}" for m in models]
    titles = {}
    for number, (title, model) in enumerate(zip(short, models), start=1):
        if short.count(title) > 1:
            title = f"{title}, {model.runs[0].folder.path.name} ({number})"
        titles[title] = model
    return titles


def _distribution_of(model: Model) -> tuple[bool, bool]:
    """Whether a model is conditional on the class, and whether it is trained on mirrored images."""
    return model.denoiser.conditional, model.config.data.horizontal_flip


def add_noise(denoiser: Denoiser, images: np.ndarray, t: int, seed: int) -> np.ndarray:
    """z_t of images float32 (N, H, W, C); each image has its own noise, the same at every t."""
    eps = normal_each(seed, "analysis", np.arange(len(images)), images.shape[1:])
    return diffuse(images, eps, denoiser.schedule.at(t)).numpy()


class Predictor:
    """x_theta of a denoiser, compiled once, `batch_size` images at a time."""

    def __init__(self, denoiser: Denoiser, batch_size: int):
        self.batch_size = batch_size
        numbers = tf.TensorSpec((None,), tf.int32)
        self._predict = tf.function(
            lambda z, t, labels: denoiser(z, t, labels)[0],
            [tf.TensorSpec((None, *denoiser.image_shape), tf.float32), numbers, numbers],
        )

    def __call__(self, z: np.ndarray, t: int, labels: np.ndarray) -> np.ndarray:
        """float32 (N, H, W, C) of z (N, H, W, C) at one t, given labels (N,)."""
        predictions = []
        for start in range(0, len(z), self.batch_size):
            batch = slice(start, start + self.batch_size)
            levels = np.full(len(z[batch]), t, np.int32)
            predictions.append(self._predict(z[batch], levels, labels[batch].astype(np.int32)).numpy())
        return np.concatenate(predictions)


def gradient_energy(images: np.ndarray) -> float:
    """The mean squared difference of neighbouring pixels of images (N, H, W, C)."""
    down = np.diff(images, axis=1)
    right = np.diff(images, axis=2)
    return float((np.sum(np.square(down)) + np.sum(np.square(right))) / (down.size + right.size))


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean(np.square(a - b))))
