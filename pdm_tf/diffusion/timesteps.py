"""Timestep distributions: how often training draws each t. Training minimises

    E_{t ~ p(t)} gamma_t E ||x_theta - x||^2,

so p(t) weights noise levels as gamma_t does, and no importance weights undo it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule

REFERENCE_SIDE = 256  # pixels of the images for which JiT's mean and deviation were found


def logit_normal(schedule: NoiseSchedule, mean: float, std: float, side: int) -> np.ndarray:
    """p(t), float64 (T,) up to a factor, of a straight path's logit-normal time (Esser et al., 2024).

    tau = sigmoid(n), n ~ N(mean, std^2). On the path z = tau x + (1 - tau) s eps the log-SNR is 2 logit(tau)
    - 2 ln s. With s = side / 256, which keeps an image's coarse parts as noisy as at 256 pixels, it is
    N(2 mean - 2 ln s, (2 std)^2). p(t) is that density times the part of the log-SNR's axis nearest to t's.
    """
    log_snr = np.log(schedule.snr)
    center = 2.0 * mean - 2.0 * math.log(side / REFERENCE_SIDE)
    log_mass = -0.5 * ((log_snr - center) / (2.0 * std)) ** 2 + np.log(-np.gradient(log_snr))
    return np.exp(log_mass - log_mass.max())


# `diffusion.t_distribution` -> p(t) of a `DiffusionConfig`, a schedule and the images' longer side in pixels;
# None: uniform.
T_DISTRIBUTIONS: dict[str, Callable] = {
    "uniform": lambda d, schedule, side: None,
    "logit_normal": lambda d, schedule, side: logit_normal(schedule, d.t_mean, d.t_std, side),
}


def timestep_drawer(mass: np.ndarray | None, t_start: int, t_stop: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of a random stream's key, int32 (2,), that draws t_start <= t < t_stop, int32 ().

    `mass` is p(t) up to a factor, float64 (T,); None: uniform.
    """
    if mass is None:
        return lambda key: tf.random.stateless_uniform((), key, t_start, t_stop, dtype=tf.int32)
    below = np.cumsum(mass[t_start:t_stop])
    # The last is 1, which no uniform number reaches.
    below = tf.constant(below / below[-1], tf.float32)
    return lambda key: (
        t_start + tf.reduce_sum(tf.cast(below <= tf.random.stateless_uniform((), key), tf.int32))
    )
