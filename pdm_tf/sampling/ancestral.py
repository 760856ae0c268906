"""Ancestral sampling with the learned variance (Section 2.1, Appendix C)."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from pdm_tf.diffusion.process import learned_log_variance, posterior_mean
from pdm_tf.diffusion.schedules import NoiseSchedule


def ancestral(
    denoise: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    schedule: NoiseSchedule,
    z: tf.Tensor,
    noise: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """z_s ~ N(posterior_mean(z_t, x_theta), sigma^2) for each kept step, the last returning x_theta itself.

    Args:
      denoise: (z (B, H, W, C), t ()) -> x_theta and u, both (B, H, W, C).
      schedule: the kept steps; see `NoiseSchedule.keep`.
      z: float32 (B, H, W, C), standard normal.
      noise: standard normal (B, H, W, C) for the step of index i.
    Returns:
      Images, float32 (B, H, W, C), about [-1, 1].
    """
    timesteps = tf.constant(schedule.timesteps)

    def step(i: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pred_x, u = denoise(z, timesteps[i])
        std = tf.exp(0.5 * learned_log_variance(u, schedule, i))
        earlier = posterior_mean(z, pred_x, schedule, i) + std * noise(i)
        return i - 1, tf.where(i > 0, earlier, pred_x)

    steps = len(schedule)
    _, x = tf.while_loop(lambda i, z: i >= 0, step, [tf.constant(steps - 1), z], maximum_iterations=steps)
    return x
