"""One picture at a noise level: z_t, x_theta of a model, and x*, the best that any model could answer."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.analysis.optimum import Optimum, optimum_of
from pdm_tf.analysis.subject import Answers, Subject, noisy, rmse
from pdm_tf.data import held_out_split
from pdm_tf.errors import UserError
from pdm_tf.images import from_uint8, to_uint8
from pdm_tf.page.studio import Shown

EXAMPLES = 64  # pictures of the data set to choose from
SMALL = 512 << 20  # bytes of a decoded data set that x* is computed of at each move of a slider


class View(NamedTuple):
    """What is seen at t.

    Attributes:
      z, x, best: uint8 (H, W, C), z_t, x_theta and x*; x* is None where it is not known.
      said: the noise, and how far they are from the picture.
    """

    z: np.ndarray
    x: np.ndarray
    best: np.ndarray | None
    said: str


class Inside:
    """A model, looked into.

    Attributes:
      examples: pictures of its data set, uint8 (N, H, W, C); none where that is not at hand.
    """

    def __init__(self, shown: Shown):
        """Reads the examples; data that are damaged or do not fit the model are left out, and it says so."""
        self.shown, self.info = shown, shown.info
        self.null_label = shown.denoiser.null_label
        self.examples = np.zeros((0, *shown.config.data.image_shape), np.uint8)
        if self.info is not None:
            subject = Subject([shown.model], self.info, 0, EXAMPLES, EXAMPLES)
            try:
                self.examples = to_uint8(subject.examples(self.split)[0])
            except UserError as error:
                self.info = None
                print(f"note: {shown.name} is shown without its data: {error}", flush=True)

    @property
    def split(self) -> str:
        """Where the examples are of: what the model has not learnt from, if there is that."""
        return held_out_split(self.info) or "train"

    @functools.cached_property
    def best(self) -> Optimum | None:
        """x* of the images that the model has learnt from, if they are at hand and few.

        Raises:
          UserError: a shard is damaged.
        """
        shape = self.shown.config.data.image_shape
        if self.info is None or 4 * self.info.num_examples.get("train", 0) * int(np.prod(shape)) > SMALL:
            return None
        return optimum_of(self.info, self.shown.denoiser.schedule, shape)

    def at(self, picture: np.ndarray, t: int, label: int | None, seed: int) -> View:
        """What is seen of uint8 (H, W, C) at t; `label` None: of no class; `seed`: of its noise."""
        x = from_uint8(picture)[None]
        z = noisy(self.shown.denoiser, x, t, seed)
        guess = self._answers(z, t, np.array([self.null_label if label is None else label]))
        level = self.shown.denoiser.schedule.at(t)
        said = [
            f"t = {t}: {float(level.signal):.2f} of the picture, {float(level.noise):.2f} of noise",
            f"x_theta is off by {rmse(guess, x):.3f}",
        ]
        mean = None
        if self.best is not None:
            mean, said = self._best_at(z, t, label, x, said)
        best = None if mean is None else to_uint8(mean[0])
        return View(to_uint8(z[0]), to_uint8(guess[0]), best, " · ".join(said))

    def _best_at(self, z, t, label, x, said):
        """x*, or None of a class without images, and what is said of it."""
        own = self.best.null_label if label is None else label
        mean, images = self.best.posterior(z, tf.constant([t]), tf.constant([own]))
        if not np.isfinite(mean.numpy()).all():
            return None, [*said, "the data have no picture of this class, so there is no x*"]
        count = round(float(images[0]))
        of = f"about {count:,} training pictures" if count > 1 else "one training picture"
        about = f"x* by {rmse(mean.numpy(), x):.3f}, the mean of {of}"
        return mean.numpy(), [*said, about]

    @functools.cached_property
    def _answers(self) -> Answers:
        return Answers(self.shown.denoiser, 1)
