"""DPM-Solver++ (2M): a second-order multistep solver on x_theta (Lu et al., 2022)."""

from __future__ import annotations

import numpy as np

from pdm_tf.diffusion.schedules import NoiseSchedule
from pdm_tf.sampling.loop import Denoise, StepFunction


def dpm_solver(denoise: Denoise, schedule: NoiseSchedule) -> StepFunction:
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. (2022), on lambda = log(sqrt(alpha) / sqrt(1 - alpha)).

    z_s = sigma_s / sigma_t z_t - sqrt(alpha_s) (exp(-h) - 1) D,  D = (1 + 1/(2r)) x_theta - 1/(2r) x_before,
    where h = lambda_s - lambda_t, r = h_before / h, sigma = sqrt(1 - alpha), and x_before is x_theta of the
    step before. The first step has no step before and takes D = x_theta, first order. The last one goes to
    the data, lambda = infinity, where no x_theta of a finite lambda can be extrapolated to: it returns
    x_theta, which is its first-order step.
    """

    def step(level, z, noise, row, memory):
        z_weight, d_weight, extrapolation = row
        (x_before,) = memory
        pred_x, _ = denoise(z, level.t)
        d = pred_x + extrapolation * (pred_x - x_before)
        return pred_x, z_weight * z + d_weight * d, [pred_x]

    return StepFunction(step, _coefficients(schedule), memory=1)


def _coefficients(schedule: NoiseSchedule) -> np.ndarray:
    """Per step, float64 (N, 3): sigma_s / sigma_t, -sqrt(alpha_s) (exp(-h) - 1), and 1/(2r) or 0."""
    sigma_s, signal_s = np.sqrt(1.0 - schedule.alpha_before), np.sqrt(schedule.alpha_before)
    h = -np.diff(schedule.half_log_snr)  # h[i - 1] is the h of step i >= 1
    exp_minus_h = np.concatenate([[0.0], np.exp(-h)])
    extrapolation = np.zeros(len(schedule))
    extrapolation[1:-1] = 0.5 * h[:-1] / h[1:]  # 1/(2r) = h / (2 h_before)
    z_weight = sigma_s / np.sqrt(1.0 - schedule.alpha)
    return np.stack([z_weight, signal_s * (1.0 - exp_minus_h), extrapolation], axis=1)
