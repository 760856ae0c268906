"""What a network is trained on: the paper's losses, at timesteps and noise of each image's own."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from flags.config import DiffusionConfig
from pdm_tf.denoiser import Denoiser
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
        self.draw_t = timestep_drawer(mass, denoiser.t_start, denoiser.t_stop)

    def __call__(self, batch: Examples, dropout_key: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The losses of `LOSSES` of clean images at given timesteps and noise, each (B,)."""
        level = self.denoiser.schedule.at(batch.t, batch.x.dtype)
        z = diffuse(batch.x, batch.eps, level)
        pred_x, u = self.denoiser(z, batch.t, batch.labels, dropout_key)
        d = self.diffusion
        simple = simple_loss(batch.x, pred_x, level, d.loss_weighting, d.loss_bias)
        vlb = vlb_loss(batch.x, z, pred_x, u, level)
        mse = tf.reduce_mean(tf.square(pred_x - batch.x), axis=[1, 2, 3])
        return {"loss": simple + vlb, "simple_loss": simple, "vlb_loss": vlb, "mse": mse}

    def draw(
        self, key: tf.Tensor, indices: tf.Tensor, x: tf.Tensor, labels: tf.Tensor, label_dropout: float
    ) -> Examples:
        """Timesteps, noise and labels with some dropped, from each image's own stream.

        Args:
          key: int32 (2,), see `stream`.
          indices: int32 (B,), each image's index in the global batch.
          label_dropout: the rate at which labels give way to the null label.
        """
        shape = x.shape[1:]

        def draw(image_key):
            keys = tf.unstack(tf.random.experimental.stateless_split(image_key, 3))
            eps = tf.random.stateless_normal(shape, keys[1])
            return self.draw_t(keys[0]), eps, tf.random.stateless_uniform((), keys[2]) < label_dropout

        signature = (tf.TensorSpec((), tf.int32), tf.TensorSpec(shape), tf.TensorSpec((), tf.bool))
        t, eps, dropped = draw_each(key, indices, draw, signature)
        return Examples(x, tf.where(dropped, self.denoiser.null_label, labels), t, eps)
