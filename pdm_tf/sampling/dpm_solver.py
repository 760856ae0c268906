"""DPM-Solver++ (2M): a second-order multistep solver on x_theta (Lu et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, at
from pdm_tf.sampling.loop import run_steps


def dpm_solver(
    denoise: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    schedule: NoiseSchedule,
    z: tf.Tensor,
    frames: int = 1,
) -> tf.Tensor:
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. (2022), on lambda = log(sqrt(alpha) / sqrt(1 - alpha)).

    z_s = sigma_s / sigma_t z_t - sqrt(alpha_s) (exp(-h) - 1) D,  D = (1 + 1/(2r)) x_theta - 1/(2r) x_before,
    where h = lambda_s - lambda_t, r = h_before / h, sigma = sqrt(1 - alpha), and x_before is x_theta of the
    step before. The first step has no step before and takes D = x_theta, first order. The last one goes to
    the data, lambda = infinity, where no x_theta of a finite lambda can be extrapolated to: it returns
    x_theta, which is its first-order step.

    Args:
      denoise: (z (B, H, W, C), t int32 ()) -> x_theta and u, both (B, H, W, C); u is not used.
      schedule: the kept steps; see `NoiseSchedule.keep`.
      z: (B, H, W, C), z_t of the schedule's last step; its dtype is that of the computation.
      frames: how many x_theta to return.
    Returns:
      x_theta at `frames` evenly spaced steps, (frames, B, H, W, C). The last one is the image.
    """
    timesteps, last = tf.constant(schedule.timesteps), len(schedule) - 1
    z_weight, d_weight, extrapolation = _coefficients(schedule)

    def step(k: tf.Tensor, z: tf.Tensor, x_before: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        i = last - k
        pred_x, _ = denoise(z, timesteps[i])
        d = pred_x + at(extrapolation, i, z.dtype) * (pred_x - x_before)
        return pred_x, [at(z_weight, i, z.dtype) * z + at(d_weight, i, z.dtype) * d, pred_x]

    return run_steps(step, len(schedule), [z, tf.zeros_like(z)], frames)[1]


def _coefficients(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per step i, float64 (N,): sigma_s / sigma_t, -sqrt(alpha_s) (exp(-h) - 1), and 1/(2r) or 0."""
    sigma_s, signal_s = np.sqrt(1.0 - schedule.alpha_before), np.sqrt(schedule.alpha_before)
    lambda_t = 0.5 * np.log(schedule.snr)
    h = lambda_t[:-1] - lambda_t[1:]  # h[i - 1] is the h of step i >= 1
    exp_minus_h = np.concatenate([[0.0], np.exp(-h)])
    extrapolation = np.zeros(len(schedule))
    extrapolation[1:-1] = 0.5 * h[:-1] / h[1:]  # 1/(2r) = h / (2 h_before)
    return sigma_s / schedule.noise_rate, signal_s * (1.0 - exp_minus_h), extrapolation
