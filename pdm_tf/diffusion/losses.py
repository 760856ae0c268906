"""The two objectives: L_simple for the network, L_vlb for the variance head (Eq. 3, Appendix C).

Images are (B, H, W, C), `i` is int32 (B,). Each loss is one number an image, in the dtype of the images.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.process import (
    gaussian_kl,
    learned_log_variance,
    posterior_log_variance,
    posterior_mean,
)
from pdm_tf.diffusion.schedules import NoiseSchedule, at

MIN_SNR_GAMMA = 5.0


def loss_weights(schedule: NoiseSchedule, weighting: str) -> np.ndarray:
    """gamma_t of Eq. 3 at every step, (N,) float64: the weight of ||x_theta - x||^2.

    - "sqrt_snr": sqrt(alpha / (1 - alpha)), the paper's choice.
    - "constant": 1.
    - "snr": alpha / (1 - alpha), the weight under which the loss is ||eps_theta - eps||^2.
    - "min_snr": min(SNR, 5), Min-SNR-5 of Hang et al. (2023).
    - "vlb": (SNR_s - SNR_t) / 2, the weight in the ELBO (in nats); at t = 0, where z_s is the data,
      SNR_0 / 2, that of a Gaussian decoder with the noise's own variance.
    """
    snr = schedule.snr
    if weighting == "sqrt_snr":
        return np.sqrt(snr)
    if weighting == "constant":
        return np.ones_like(snr)
    if weighting == "snr":
        return snr
    if weighting == "min_snr":
        return np.minimum(snr, MIN_SNR_GAMMA)
    if weighting == "vlb":
        return 0.5 * np.concatenate([snr[:1], snr[:-1] - snr[1:]])
    raise ValueError(f"weighting={weighting!r}: use sqrt_snr, constant, snr, min_snr or vlb")


def simple_loss(x: tf.Tensor, pred_x: tf.Tensor, weights: np.ndarray, i: tf.Tensor) -> tf.Tensor:
    """L_simple = gamma_t ||x_theta - x||^2, summed over H, W and C (Eq. 3). Returns (B,).

    `weights` is the gamma_t table of `loss_weights`.
    """
    squared_error = tf.reduce_sum(tf.square(pred_x - x), axis=[1, 2, 3])
    return tf.reshape(at(weights, i, x.dtype), [-1]) * squared_error


def vlb_loss(
    x: tf.Tensor,
    z: tf.Tensor,
    pred_x: tf.Tensor,
    u: tf.Tensor,
    schedule: NoiseSchedule,
    i: tf.Tensor,
) -> tf.Tensor:
    """L_vlb = KL(q(z_s | z_t, x) || p_theta(z_s | z_t)), summed over H, W and C, in nats. Returns (B,).

    Only the variance learns from it: the mean is taken at the gradient-stopped `pred_x`. The first step has
    no variance to learn (it returns x_theta itself) and its loss is 0.
    """
    kl = gaussian_kl(
        posterior_mean(z, x, schedule, i),
        posterior_log_variance(schedule, i, x.dtype),
        posterior_mean(z, tf.stop_gradient(pred_x), schedule, i),
        learned_log_variance(u, schedule, i),
    )
    learns = tf.cast(i > 0, x.dtype)
    return learns * tf.reduce_sum(kl, axis=[1, 2, 3])
