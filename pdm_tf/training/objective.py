"""What a network is trained on: the paper's losses, at timesteps and noise of each image's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.losses import simple_loss, vlb_loss
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS, timestep_drawer
from pdm_tf.randomness import draw_each

LOSSES = ("loss", "simple_loss", "vlb_loss", "mse")


class Examples(NamedTuple):
    """A batch, ready for the losses: x and eps float32 (B, H, W, C), labels and t int32 (B,).

    Of changed images also what the network is told of the changes, float32 (B, 9).
    """

    x: tf.Tensor
    labels: tf.Tensor
    t: tf.Tensor
    eps: tf.Tensor
    augmentation: tf.Tensor | None = None

    def each(self, function: Callable[[tf.Tensor], tf.Tensor]) -> Examples:
        """The batch with `function` of each of its tensors."""
        return Examples(*(None if tensor is None else function(tensor) for tensor in self))


class Objective:
    """gamma_t ||x_theta - x||^2 whatever the network predicts (Eq. 3), plus L_vlb, which trains u alone.

    Each size of a network of two patch sizes learns from its own interval of t alone. A batch is shared out
    between them by place, so that all shapes are static, and `diffusion.large_share` says how much of it is
    of large patches; weights see to it that what is minimised is the mean under the law of t all the same.
    """

    def __init__(self, denoiser: Denoiser, diffusion: DiffusionConfig):
        """Of `diffusion` the weights, the law of t and the share are read; the process is the denoiser's."""
        self.denoiser, self.diffusion = denoiser, diffusion
        self.sizes = [part.denoiser for part in denoiser.parts]
        mass = T_DISTRIBUTIONS[diffusion.t_distribution](
            diffusion, denoiser.schedule, max(denoiser.image_shape[:2])
        )
        mass = np.ones(len(denoiser.schedule)) if mass is None else mass
        masses = [mass[size.t_start : size.t_stop].sum() for size in self.sizes]
        # How often the law draws a t of each size.
        self.probabilities = [own / sum(masses) for own in masses]
        uniform = diffusion.t_distribution == "uniform"
        self._drawers = [
            timestep_drawer(None if uniform else mass, part.t_start, part.t_stop)
            for part in (denoiser, *self.sizes)
        ]

    def __call__(self, batch: Examples, dropout_key: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The losses of `LOSSES` of clean images at given timesteps and noise, each (B,)."""
        return self._losses(self.denoiser, batch, dropout_key)

    def shared_out(self, batch: Examples, dropout_key: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The same of a batch, or a part of one, whose t are those of `draw` with `parts`.

        Each patch size runs on its own images alone. Losses, but not "mse", are weighted by how often the law
        draws a t of that size over how often the batch has one: their mean is an unbiased estimate of the
        mean of `__call__`'s under the law.
        """
        if len(self.sizes) == 1:
            return self(batch, dropout_key)
        places = self._places(batch.x.shape[0])
        found = []
        for size, own, probability in zip(self.sizes, places, self.probabilities):
            losses = self._losses(size, batch.each(partial(tf.gather, indices=own)), dropout_key)
            weight = probability * batch.x.shape[0] / len(own)
            found.append({n: v if n == "mse" else weight * v for n, v in losses.items()})
        back = np.argsort(np.concatenate(places)).astype(np.int32)
        return {name: tf.gather(tf.concat([one[name] for one in found], 0), back) for name in LOSSES}

    def _losses(self, denoiser: Denoiser, batch: Examples, dropout_key) -> dict[str, tf.Tensor]:
        level = denoiser.schedule.at(batch.t, batch.x.dtype)
        z = diffuse(batch.x, batch.eps, level)
        pred_x, u = denoiser(z, batch.t, batch.labels, dropout_key, batch.augmentation)
        d = self.diffusion
        simple = simple_loss(batch.x, pred_x, level, d.loss_weighting, d.loss_bias)
        vlb = vlb_loss(batch.x, z, pred_x, u, level)
        mse = tf.reduce_mean(tf.square(pred_x - batch.x), axis=[1, 2, 3])
        return {"loss": simple + vlb, "simple_loss": simple, "vlb_loss": vlb, "mse": mse}

    def _places(self, size: int | None) -> list[np.ndarray]:
        """Which images of a batch, or of a part of one, are of small patches, and which of large ones.

        They are spread evenly, so that however a batch is cut, if the share of the pieces is a whole number
        of images, an image is always of the same size.
        """
        if not size or size < 2:
            raise ValueError(
                "a network of two patch sizes is trained on batches of a fixed size (drop_remainder), two "
                f"images or more on each replica and for each part of grad_accum; these have {size}"
            )
        count = min(max(round(self.diffusion.large_share * size), 1), size - 1)
        passed = np.arange(size + 1) * count // size
        large = np.diff(passed) > 0
        return [np.flatnonzero(own).astype(np.int32) for own in (~large, large)]

    def draw(
        self,
        key: tf.Tensor,
        indices: tf.Tensor,
        x: tf.Tensor,
        labels: tf.Tensor,
        label_dropout: float,
        parts: int = 0,
    ) -> Examples:
        """Timesteps, noise and labels with some dropped, from each image's own stream.

        Args:
          key: int32 (2,), see `stream`.
          indices: int32 (B,), each image's index in the global batch.
          label_dropout: the rate at which labels give way to the null label.
          parts: into how many parts, one after another, the batch will be cut for `shared_out`; 0: t of any
            image follows the law, whatever the patch sizes.
        """
        shape, shared = x.shape[1:], parts > 0 and len(self.sizes) > 1
        drawers = self._drawers[1:] if shared else self._drawers[:1]

        def draw(image_key):
            keys = tf.unstack(tf.random.experimental.stateless_split(image_key, 3))
            t = tf.stack([draw_t(keys[0]) for draw_t in drawers])
            eps = tf.random.stateless_normal(shape, keys[1])
            return t, eps, tf.random.stateless_uniform((), keys[2]) < label_dropout

        signature = (
            tf.TensorSpec((len(drawers),), tf.int32), tf.TensorSpec(shape), tf.TensorSpec((), tf.bool)
        )  # fmt: skip
        t, eps, dropped = draw_each(key, indices, draw, signature)
        if shared:
            _, large = self._places(x.shape[0] and x.shape[0] // parts)
            is_large = np.isin(np.arange(x.shape[0]) % (x.shape[0] // parts), large)
            t = tf.where(is_large, t[:, 1], t[:, 0])
        else:
            t = t[:, 0]
        return Examples(x, tf.where(dropped, self.denoiser.null_label, labels), t, eps)
