"""DDIM, from deterministic (eta = 0) to ancestral (eta = 1) steps (Song et al., 2021)."""

from __future__ import annotations

import numpy as np

from pdm_tf.diffusion.predictions import eps_from_x
from pdm_tf.diffusion.schedules import NoiseSchedule
from pdm_tf.sampling.loop import Denoise, StepFunction


def ddim(denoise: Denoise, schedule: NoiseSchedule, *, eta: float = 0.0) -> StepFunction:
    """z_s = sqrt(alpha_s) x_theta + sqrt(1 - alpha_s - sigma^2) eps_theta + sigma noise (Eq. 12 of DDIM).

    sigma = eta sqrt(b_tilde) (its Eq. 16), and eps_theta is the noise that x_theta leaves in z_t. At eta = 0
    no noise is drawn, and each step is exact if x_theta is constant over it: first order in the step. Order 1
    of DPM-Solver++ is the same step.
    """
    sigma = eta * np.sqrt(schedule.beta_tilde)
    noise_before = np.sqrt(np.maximum(1.0 - schedule.alpha_before - sigma**2, 0.0))

    def step(level, z, noise, row, memory):
        noise_before, sigma = row
        pred_x, _ = denoise(z, level.t)
        z = level.before.signal * pred_x + noise_before * eps_from_x(pred_x, z, level)
        return pred_x, z + sigma * noise() if eta else z, memory

    return StepFunction(step, np.stack([noise_before, sigma], axis=1))
