"""iPNDM: Adams-Bashforth steps on eps_theta, of an order that grows to 4 (Zhang & Chen, 2023)."""

from __future__ import annotations

import numpy as np

from pdm_tf.diffusion.predictions import eps_from_x
from pdm_tf.diffusion.schedules import NoiseSchedule
from pdm_tf.sampling.loop import Denoise, StepFunction

# Weights of eps_theta of this step and of those before it; row k is that of step k, the last of the rest.
ADAMS_BASHFORTH = np.array([
    [1, 0, 0, 0],
    [3 / 2, -1 / 2, 0, 0],
    [23 / 12, -16 / 12, 5 / 12, 0],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
])  # fmt: skip


def ipndm(denoise: Denoise, schedule: NoiseSchedule) -> StepFunction:
    """z_s / sqrt(alpha_s) = z_t / sqrt(alpha_t) + (rho_s - rho_t) e, rho = sqrt(1 - alpha) / sqrt(alpha).

    e = (55 eps_t - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24 of the last four eps_theta (Eq. 38 of Zhang & Chen);
    the first three steps have fewer and take Adams-Bashforth of order 1, 2 and 3. The weights are those of
    equal steps in rho: on such steps the order is 4, and 2 on other smooth ones. As in all solvers here, the
    last step, to the data, returns x_theta.
    """
    step_number = np.arange(len(schedule))[::-1]
    weights = ADAMS_BASHFORTH[np.minimum(step_number, len(ADAMS_BASHFORTH) - 1)]

    def step(level, z, noise, row, memory):
        pred_x, _ = denoise(z, level.t)
        last_four = [eps_from_x(pred_x, z, level), *memory]
        eps = sum(weight * one for weight, one in zip(row, last_four))
        x = (z - level.noise * eps) / level.signal
        return pred_x, level.before.signal * x + level.before.noise * eps, last_four[:3]

    return StepFunction(step, weights, memory=3)
