"""Inpainting with an unchanged model: RePaint (Lugmayr et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, at
from pdm_tf.sampling.ancestral import ancestral_step
from pdm_tf.sampling.loop import run_steps


def repaint(
    denoise: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    schedule: NoiseSchedule,
    z: tf.Tensor,
    noise: Callable[[tf.Tensor], tf.Tensor],
    known: tf.Tensor,
    unknown: tf.Tensor,
    variance: str = "learned",
    jump_length: int = 10,
    resamplings: int = 10,
    frames: int = 1,
) -> tf.Tensor:
    """Ancestral sampling of the unknown pixels, with resampling (Algorithm 1 of Lugmayr et al., 2022).

    Down, from t to the kept step s before it, z_s is an ancestral sample where unknown, and
    sqrt(alpha_s) x + sqrt(1 - alpha_s) eps of the known x elsewhere. Up, from s to t, z_t =
    sqrt(1 - beta_t) z_s + sqrt(beta_t) eps: going up again lets the unknown pixels agree with the known.

    Args:
      denoise: (z (B, H, W, C), t int32 ()) -> x_theta and u, both (B, H, W, C).
      schedule: the kept steps; see `NoiseSchedule.keep`.
      z: (B, H, W, C), z_t of the schedule's last step.
      noise: standard normal (B, H, W, C), other numbers for each int32 ().
      known: (H, W, C), the image x; its known pixels are those of the result, bit for bit.
      unknown: bool (H, W, 1), where to paint.
      variance: see `log_variance`.
      jump_length, resamplings: see `resampling_walk`.
      frames: how many x_theta to return.
    Returns:
      x_theta, known pixels in place, at `frames` evenly spaced moves, (frames, B, H, W, C). The last one is
      the image.
    """
    walk = resampling_walk(len(schedule), jump_length, resamplings)
    timesteps, here, there = map(tf.constant, (schedule.timesteps, walk[:-1], walk[1:]))
    signal_before, noise_before = np.sqrt(schedule.alpha_before), np.sqrt(1.0 - schedule.alpha_before)

    def down(i, k, z):
        pred_x, u = denoise(z, timesteps[i])
        sample = ancestral_step(z, pred_x, u, schedule, i, noise(2 * k), variance)
        given = at(signal_before, i, z.dtype) * known + at(noise_before, i, z.dtype) * noise(2 * k + 1)
        return tf.where(unknown, pred_x, known), tf.where(unknown, sample, given)

    def up(i, k, z):
        beta = at(schedule.beta, i, z.dtype)
        return tf.sqrt(1.0 - beta) * z + tf.sqrt(beta) * noise(2 * k)

    def step(k, z, x_before):
        i, j = here[k], there[k]
        pred_x, z = tf.cond(j < i, lambda: down(i, k, z), lambda: (x_before, up(j, k, z)))
        return pred_x, [z, pred_x]

    return run_steps(step, len(walk) - 1, [z, tf.zeros_like(z)], frames)[1]


def resampling_walk(steps: int, jump_length: int, resamplings: int) -> np.ndarray:
    """The indices of the latents that RePaint visits, from `steps` - 1 to -1, the data.

    Each stretch of `jump_length` steps is gone down `resamplings` times, and up again in between.
    `resamplings` = 1 is one straight way down.

    Returns:
      int32 (moves + 1,); neighbours differ by 1.
    """
    walk = [steps - 1]
    for i in range(steps - 2, -1, -1):
        walk.append(i)
        if i % jump_length == 0 and i + jump_length < steps:
            up, down = range(i + 1, i + jump_length + 1), range(i + jump_length - 1, i - 1, -1)
            walk += [*up, *down] * (resamplings - 1)
    return np.array([*walk, -1], np.int32)
