"""DDIM, from deterministic (eta = 0) to ancestral (eta = 1) steps (Song et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.predictions import eps_from_x
from pdm_tf.diffusion.schedules import NoiseSchedule, at
from pdm_tf.sampling.loop import run_steps


def ddim(
    denoise: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    schedule: NoiseSchedule,
    z: tf.Tensor,
    noise: Callable[[tf.Tensor], tf.Tensor],
    eta: float = 0.0,
    frames: int = 1,
) -> tf.Tensor:
    """z_s = sqrt(alpha_s) x_theta + sqrt(1 - alpha_s - sigma^2) eps_theta + sigma noise (Eq. 12 of DDIM).

    sigma = eta sqrt(b_tilde) (its Eq. 16), and eps_theta is the noise that x_theta leaves in z_t. At eta = 0
    each step is exact if x_theta is constant over it: first order in the step. Order 1 of DPM-Solver++ is
    the same step.

    Args:
      denoise: (z (B, H, W, C), t int32 ()) -> x_theta and u, both (B, H, W, C); u is not used.
      schedule: the kept steps; see `NoiseSchedule.keep`.
      z: (B, H, W, C), z_t of the schedule's last step; its dtype is that of the computation.
      noise: standard normal (B, H, W, C) for the step of index i; not called at eta = 0.
      eta: 0 to 1.
      frames: how many x_theta to return.
    Returns:
      x_theta at `frames` evenly spaced steps, (frames, B, H, W, C). The last one is the image.
    """
    timesteps, last = tf.constant(schedule.timesteps), len(schedule) - 1
    signal_before = np.sqrt(schedule.alpha_before)
    sigma = eta * np.sqrt(schedule.beta_tilde)
    noise_before = np.sqrt(np.maximum(1.0 - schedule.alpha_before - sigma**2, 0.0))

    def step(k: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        i = last - k
        pred_x, _ = denoise(z, timesteps[i])
        eps = eps_from_x(pred_x, z, schedule, i)
        z = at(signal_before, i, z.dtype) * pred_x + at(noise_before, i, z.dtype) * eps
        return pred_x, [z + at(sigma, i, z.dtype) * noise(i) if eta else z]

    return run_steps(step, len(schedule), [z], frames)[1]
