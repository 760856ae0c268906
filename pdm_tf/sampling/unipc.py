"""UniPC: a multistep predictor on x_theta, and a corrector that costs no network pass (Zhao et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pdm_tf.diffusion.schedules import NoiseSchedule
from pdm_tf.sampling.loop import Denoise, StepFunction


def unipc(denoise: Denoise, schedule: NoiseSchedule, *, order: int = 2) -> StepFunction:
    """UniPC-p of order p = 2 or 3, with B(h) = exp(-h) - 1 (Algorithms 5 to 8 of Zhao et al., 2023).

    z_t is corrected by UniC-p, from the step before it and with x_theta at z_t, and the corrected z_t goes to
    z_s by UniP-p; x_theta at the z_t that was not corrected serves both. The correction raises the order to
    p + 1; the first and last steps have a lower one. As in all solvers here, the last step, to the data,
    returns x_theta.
    """

    def step(level, z, noise, row, memory):
        correct = row[: order + 3]
        predict = row[order + 3 :]
        z_before, *x_before = memory
        pred_x, _ = denoise(z, level.t)
        known = [pred_x, *x_before]
        corrected = sum(weight * one for weight, one in zip(correct, [z, z_before, *known]))
        z = sum(weight * one for weight, one in zip(predict, [corrected, *known]))
        return pred_x, z, [corrected, *known[:order]]

    return StepFunction(step, _weights(schedule, order), memory=order + 1)


def _weights(schedule: NoiseSchedule, order: int) -> np.ndarray:
    """Per step i, float64 (N, 2 * order + 4): the corrector's weights, then the predictor's.

    The corrector's: of z_t itself, of the corrected z of step i + 1, and of x_theta of steps i, i + 1, ...,
    i + order. The predictor's: of the corrected z_t, and of x_theta of steps i, i + 1, ..., i + order - 1.
    """
    last = len(schedule) - 1
    table = np.zeros((len(schedule), 2 * order + 4))
    for i in range(last, -1, -1):
        correct = table[i, : order + 3]
        predict = table[i, order + 3 :]
        if i == last:
            correct[0] = 1.0  # there is nothing to correct from
        else:
            nodes = range(i + 1, i + 1 + _order(order, i + 1, last))
            correct[1], of_x = _exponential_step(schedule, i + 1, i, [*nodes, i])
            correct[3 : 3 + len(nodes)], correct[2] = of_x[:-1], of_x[-1]
        if i == 0:
            predict[1] = 1.0
        else:
            nodes = range(i, i + _order(order, i, last))
            predict[0], of_x = _exponential_step(schedule, i, i - 1, nodes)
            predict[1 : 1 + len(nodes)] = of_x
    return table


def _order(order: int, i: int, last: int) -> int:
    """The order of the step from i to i - 1: no more x_theta than there are, and lower ones at the end."""
    return min(order, last - i + 1, i + 1)


def _exponential_step(
    schedule: NoiseSchedule, start: int, end: int, nodes: Sequence[int]
) -> tuple[float, np.ndarray]:
    """Weights of z_start and of x_theta at the nodes, the first of which is `start`, in z_end.

    z_end = sigma_end / sigma_start z_start + sigma_end * integral of exp(lambda) x(lambda) from lambda_start
    to lambda_end, x being the polynomial through the nodes. With one node beside `start`, UniPC's coefficient
    is 1/2, which is as exact as its order needs and, of the predictor, the step of DPM-Solver++(2M).
    """
    sigma = np.sqrt(1.0 - schedule.alpha)
    offsets = schedule.half_log_snr[list(nodes)] - schedule.half_log_snr[start]
    h = schedule.half_log_snr[end] - schedule.half_log_snr[start]
    whole = -math.expm1(-h)  # the weight of a constant x, over sqrt(alpha_end)
    if len(nodes) == 1:
        weights = np.array([whole])
    elif len(nodes) == 2:
        half = 0.5 * whole * h / offsets[1]
        weights = np.array([whole - half, half])
    else:
        powers = np.arange(len(nodes))
        weights = np.linalg.solve((offsets[None] / h) ** powers[:, None], _moments(h, len(nodes)))
    return sigma[end] / sigma[start], np.sqrt(schedule.alpha[end]) * weights


def _moments(h: float, count: int) -> np.ndarray:
    """exp(-h) * integral of exp(v) (v / h)^k from 0 to h, for k = 0..count-1, by Gauss quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s = (nodes + 1.0) / 2.0
    return np.array([h / 2.0 * np.sum(weights * np.exp(h * (s - 1.0)) * s**k) for k in range(count)])
