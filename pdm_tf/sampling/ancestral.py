"""Ancestral sampling with a learned or a fixed variance (Section 2.1, Appendix C)."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.diffusion.process import VARIANCES, posterior_mean
from pdm_tf.diffusion.schedules import NoiseLevel, NoiseSchedule
from pdm_tf.sampling.loop import Denoise, StepFunction


def ancestral(denoise: Denoise, schedule: NoiseSchedule, *, variance: str = "learned") -> StepFunction:
    """z_s ~ N(posterior_mean(z_t, x_theta), sigma^2), the last step returning x_theta itself.

    `variance` is sigma^2's name in `VARIANCES`.
    """

    def step(level, z, noise, row, memory):
        pred_x, u = denoise(z, level.t)
        return pred_x, ancestral_step(z, pred_x, u, level, noise(), variance), memory

    return StepFunction(step)


def ancestral_step(
    z: tf.Tensor, pred_x: tf.Tensor, u: tf.Tensor, level: NoiseLevel, noise: tf.Tensor, variance: str
) -> tf.Tensor:
    """A sample of p_theta(z_s | z_t), s being the timestep before t; x_theta where that is the data."""
    std = tf.exp(0.5 * VARIANCES[variance](u, level))
    return tf.where(level.before.noise > 0, posterior_mean(z, pred_x, level) + std * noise, pred_x)
