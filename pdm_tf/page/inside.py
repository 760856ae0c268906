"""One picture at a noise level: z_t, x_theta of a model, and x*, the best possible prediction."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.analysis.optimum import Optimum
from pdm_tf.analysis.study import Predictor, Study, add_noise, rmse
from pdm_tf.data import DatasetInfo, held_out_split
from pdm_tf.errors import UserError
from pdm_tf.images import from_uint8, to_uint8
from pdm_tf.models import Model
from pdm_tf.sampling.sampler import respaced_schedule

EXAMPLES = 64  # pictures of the data set to choose from
SMALL = 512 << 20  # bytes of a decoded data set whose x* is computed at each move of a slider


class View(NamedTuple):
    """A picture at t: z_t, x_theta and x*, uint8 (H, W, C)."""

    z: np.ndarray
    x: np.ndarray
    best: np.ndarray | None  # where x* is known
    status: str  # the noise level, and the distances of x_theta and x* from the picture


class Inside:
    """A model to look into, with examples of its data set where that is at hand."""

    def __init__(self, model: Model, info: DatasetInfo | None):
        """Reads the examples; data that are damaged or do not fit the model are left out with a note."""
        self.model = model
        self.predict = Predictor(model.denoiser, 1)
        self.study = None
        self.split = ""  # of the examples, held out where there is one
        self.examples = np.zeros((0, *model.denoiser.image_shape), np.uint8)  # (N, H, W, C)
        if info is None:
            return
        self.split = held_out_split(info) or "train"
        study = Study([model], info, 0, EXAMPLES, EXAMPLES)
        try:
            self.examples = to_uint8(study.examples(self.split)[0])
            self.study = study
        except UserError as error:
            print(f"note: {model.title} is shown without its data: {error}", flush=True)

    @functools.cached_property
    def optimum(self) -> Optimum | None:
        """x* of the training images, if they are at hand and few; raises UserError for a damaged shard."""
        if self.study is None:
            return None
        values = self.study.info.num_examples.get("train", 0) * int(np.prod(self.study.image_shape))
        return self.study.optimum() if 4 * values <= SMALL else None

    def at(self, picture: np.ndarray, t: int, label: int | None, seed: int) -> View:
        """A uint8 (H, W, C) picture at t, with the noise of `seed`; label None is the null label."""
        denoiser = self.model.denoiser
        label = denoiser.null_label if label is None else label
        image = from_uint8(picture)[None]
        z = add_noise(denoiser, image, t, seed)
        prediction = self.predict(z, t, np.array([label]))
        level = denoiser.schedule.at(t)
        status = [
            f"t = {t}: z_t = {float(level.signal):.2f} x picture + {float(level.noise):.2f} x noise",
            f"x_theta is off by {rmse(prediction, image):.3f}",
        ]
        config = self.model.config
        if config.is_student and config.distillation.method == "progressive":
            known = respaced_schedule(denoiser, config.sampling).timesteps.tolist()
            status.append(f"this student knows no other t than {', '.join(map(str, known))}")
        best = None
        if self.optimum is not None:
            mean, count = self.optimum.posterior(z, tf.constant([t]), tf.constant([label]))
            if np.isfinite(mean.numpy()).all():
                best = to_uint8(mean[0].numpy())
                count = round(float(count[0]))
                of = f"the mean of about {count:,} of them" if count > 1 else "one of them"
                distance = rmse(mean.numpy(), image)
                status.append(
                    f"x*, the best guess from the training pictures alone, is {of}, off by {distance:.3f}"
                )
            else:
                status.append("the data have no picture of this class, so there is no x*")
        return View(to_uint8(z[0]), to_uint8(prediction[0]), best, "; ".join(status))
