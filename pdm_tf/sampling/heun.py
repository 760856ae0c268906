"""Heun's method on the probability-flow ODE, two network passes a step (Karras et al., 2022)."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.diffusion.predictions import eps_from_x, predicted_x
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import NoiseSchedule
from pdm_tf.sampling.loop import Denoise, StepFunction


def heun(denoise: Denoise, schedule: NoiseSchedule) -> StepFunction:
    """The deterministic sampler of Algorithm 1 of Karras et al. (2022), on this schedule.

    With y = z / sqrt(alpha) and rho = sqrt(1 - alpha) / sqrt(alpha) the ODE is dy / drho = eps_theta. An
    Euler step with eps_theta at z_t predicts z_s, and the step is taken again with the mean of eps_theta at
    z_t and at the predicted z_s: second order. The last step, to the data, where rho_s = 0, is the Euler step
    alone: it returns x_theta.
    """

    def step(level, z, noise, row, memory):
        pred_x, _ = denoise(z, level.t)
        eps = eps_from_x(pred_x, z, level)
        euler = diffuse(pred_x, eps, level.before)

        def corrected() -> tf.Tensor:
            x_there, _ = denoise(euler, level.before.t)
            mean_eps = 0.5 * (eps + eps_from_x(x_there, euler, level.before))
            return diffuse(predicted_x("eps", mean_eps, z, level), mean_eps, level.before)

        return pred_x, tf.cond(level.before.noise > 0, corrected, lambda: euler), memory

    return StepFunction(step, passes=2)
