"""Inpainting with an unchanged model: RePaint (Lugmayr et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import NoiseSchedule, take
from pdm_tf.sampling.ancestral import ancestral_step
from pdm_tf.sampling.loop import Denoise, SamplingLoop


def repaint(
    denoise: Denoise,
    schedule: NoiseSchedule,
    noise: Callable[[tf.Tensor], tf.Tensor],
    known: tf.Tensor,
    unknown: tf.Tensor,
    indices: np.ndarray,
    variance: str,
) -> SamplingLoop:
    """Ancestral sampling of the unknown pixels, with resampling (Algorithm 1 of Lugmayr et al., 2022).

    Down, from t to the timestep s before it, z_s is an ancestral sample where unknown, and
    sqrt(alpha_s) x + sqrt(1 - alpha_s) eps of the known x elsewhere. Up, from s to t, z_t =
    sqrt(1 - beta_t) z_s + sqrt(beta_t) eps: going up again lets the unknown pixels agree with the known.

    Args:
      known: (H, W, C), the image x; its known pixels are those of the result, bit for bit.
      unknown: bool (H, W, 1), where to inpaint.
      indices: those of `resampling_indices`.
      variance: see `ancestral`.
    Returns:
      The loop; its x_theta have the known pixels in place.
    """
    visited = tf.constant(indices)

    def down(i, k, z):
        level = schedule.at(i, z.dtype)
        pred_x, u = denoise(z, level.t)
        sample = ancestral_step(z, pred_x, u, level, noise(2 * k), variance)
        given = diffuse(known, noise(2 * k + 1), level.before)
        return tf.where(unknown, pred_x, known), tf.where(unknown, sample, given)

    def up(i, k, z):
        (beta,) = take(schedule.beta[:, None], i, z.dtype)
        return tf.sqrt(1.0 - beta) * z + tf.sqrt(beta) * noise(2 * k)

    def step(k, z, x_before):
        i = visited[k]
        j = visited[k + 1]
        pred_x, z = tf.cond(j < i, lambda: down(i, k, z), lambda: (x_before, up(j, k, z)))
        return pred_x, [z, pred_x]

    return SamplingLoop(step, len(indices) - 1, memory=1)


def resampling_indices(num_timesteps: int, jump_length: int, resamplings: int) -> np.ndarray:
    """The indices of the latents that RePaint visits, from `num_timesteps` - 1 to -1, the data.

    Each `jump_length` steps are gone down `resamplings` times, and up again in between; `resamplings` = 1 is
    one straight way down. They are int32 (steps + 1,), and neighbours differ by 1.
    """
    indices = [num_timesteps - 1]
    for i in range(num_timesteps - 2, -1, -1):
        indices.append(i)
        if i % jump_length == 0 and i + jump_length < num_timesteps:
            up = range(i + 1, i + jump_length + 1)
            down = range(i + jump_length - 1, i - 1, -1)
            indices += [*up, *down] * (resamplings - 1)
    return np.array([*indices, -1], np.int32)
