"""What a network is trained on: the paper's losses, at timesteps and noise of each image's own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flags.config import DiffusionConfig
from pdm_tf.denoiser import Denoiser, Experts
from pdm_tf.diffusion.losses import simple_loss, vlb_loss
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.timesteps import T_LAWS, timestep_drawer
from pdm_tf.randomness import draw_each

LOSSES = ("loss", "simple_loss", "vlb_loss", "mse")


class Examples(NamedTuple):
    """A batch, ready for the losses: x and eps float32 (B, H, W, C), labels and t int32 (B,)."""

    x: tf.Tensor
    labels: tf.Tensor
    t: tf.Tensor
    eps: tf.Tensor


class Objective:
    """gamma_t ||x_theta - x||^2 whatever the network predicts (Eq. 3), plus L_vlb, which trains u alone."""

    def __init__(self, denoiser: Denoiser, diffusion: DiffusionConfig):
        """Of `diffusion` the weights and the law of t are read; the process is the denoiser's."""
        self.denoiser, self.diffusion = denoiser, diffusion
        mass = T_LAWS[diffusion.t_law](diffusion, denoiser.schedule, max(denoiser.image_shape[:2]))
        self.sizes = denoiser.experts if isinstance(denoiser, Experts) else [denoiser]
        self._draw_t = [timestep_drawer(mass, size.t_start, size.t_stop) for size in self.sizes]
        mass = np.ones(len(denoiser.schedule)) if mass is None else mass
        masses = [mass[size.t_start : size.t_stop].sum() for size in self.sizes]
        self._large_mass = masses[-1] / sum(masses)

    def __call__(self, batch: Examples, dropout_key: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The losses of `LOSSES` of clean images at given timesteps and noise, each (B,).

        With two patch sizes each runs on its own part of the batch, as `draw` has shared it out, and "loss"
        is weighted so that its mean over the batch stays an unbiased estimate of the objective under the law
        of t, whatever the share: by the law's probability of the interval over the interval's share.
        """
        level = self.denoiser.schedule.at(batch.t, batch.x.dtype)
        z = diffuse(batch.x, batch.eps, level)
        pred_x, u = self._answer(z, batch, dropout_key)
        d = self.diffusion
        simple = simple_loss(batch.x, pred_x, level, d.loss_weighting, d.loss_bias)
        vlb = vlb_loss(batch.x, z, pred_x, u, level)
        mse = tf.reduce_mean(tf.square(pred_x - batch.x), axis=[1, 2, 3])
        loss = (simple + vlb) * self._weights(batch.x) if len(self.sizes) == 2 else simple + vlb
        return {"loss": loss, "simple_loss": simple, "vlb_loss": vlb, "mse": mse}

    def _answer(self, z: tf.Tensor, batch: Examples, dropout_key: tf.Tensor | None):
        if len(self.sizes) == 1:
            return self.denoiser(z, batch.t, batch.labels, dropout_key)
        small, _ = self._counts(z)
        whole = z, batch.t, batch.labels
        parts = [[v[:small] for v in whole], [v[small:] for v in whole]]
        answers = [size(*part, dropout_key) for size, part in zip(self.sizes, parts)]
        return [tf.concat(both, axis=0) for both in zip(*answers)]

    def _counts(self, x: tf.Tensor, parts: int = 1):
        """How many images of each of a batch's `parts` are of small patches, and how many there are."""
        size = (x.shape[0] or tf.shape(x)[0]) // parts
        share = 1.0 - self.diffusion.large_share
        if not isinstance(size, int):
            small = tf.cast(tf.round(share * tf.cast(size, tf.float32)), tf.int32)
            return tf.clip_by_value(small, 1, size - 1), size
        if size < 2:
            raise ValueError("a batch of two patch sizes needs two images or more on each replica")
        return min(max(round(share * size), 1), size - 1), size

    def _weights(self, x: tf.Tensor) -> tf.Tensor:
        small, size = self._counts(x)
        large = tf.range(size) >= small
        few = (1.0 - self._large_mass) * tf.cast(size / small, x.dtype)
        return tf.where(large, self._large_mass * tf.cast(size / (size - small), x.dtype), few)

    def draw(
        self,
        key: tf.Tensor,
        indices: tf.Tensor,
        x: tf.Tensor,
        labels: tf.Tensor,
        label_dropout: float,
        parts: int = 1,
    ) -> Examples:
        """Timesteps, noise and labels with some dropped, from each image's own stream.

        Args:
          key: int32 (2,), see `stream`.
          indices: int32 (B,), each image's index in the global batch.
          label_dropout: the rate at which labels give way to the null label.
          parts: how many the batch will be cut into; with two patch sizes the first images of each get
            timesteps of small patches, the others of large ones (`diffusion.large_share`).
        """
        shape = x.shape[1:]

        def draw(image_key):
            keys = tf.unstack(tf.random.experimental.stateless_split(image_key, 3))
            eps = tf.random.stateless_normal(shape, keys[1])
            return (
                tf.stack([draw_t(keys[0]) for draw_t in self._draw_t]),
                eps,
                tf.random.stateless_uniform((), keys[2]) < label_dropout,
            )

        signature = (
            tf.TensorSpec((len(self.sizes),), tf.int32),
            tf.TensorSpec(shape),
            tf.TensorSpec((), tf.bool),
        )
        t, eps, dropped = draw_each(key, indices, draw, signature)
        if len(self.sizes) == 1:
            t = t[:, 0]
        else:
            small, size = self._counts(x, parts)
            t = tf.where(tf.range(size * parts) % size < small, t[:, 0], t[:, 1])
        return Examples(x, tf.where(dropped, self.denoiser.null_label, labels), t, eps)
