"""Data whose best denoiser is known in closed form: a mixture of Gaussians, as "images" (1, 1, D)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, at


class Mixture:
    """shares (K,), means (K, D) and covariances (K, D, D) of the modes, float64."""

    def __init__(self, shares, means, covariances):
        self.shares, self.means, self.covariances = map(np.float64, (shares, means, covariances))

    @property
    def mean(self) -> np.ndarray:
        return self.shares @ self.means

    @property
    def covariance(self) -> np.ndarray:
        centred = self.means - self.mean
        outer = self.covariances + centred[:, :, None] * centred[:, None, :]
        return np.einsum("k,kij->ij", self.shares, outer)

    def denoiser(self, schedule: NoiseSchedule, u: float = 0.0):
        """(z (B, 1, 1, D), t ()) -> x* = E[x | z_t = z] and a constant u, in z's dtype."""
        dimensions = self.means.shape[1]

        def denoise(z, t):
            dtype = z.dtype
            shares, means, covariances = (
                tf.constant(v, dtype) for v in (self.shares, self.means, self.covariances)
            )
            signal, noise = at(schedule.signal_rate, t, dtype), at(schedule.noise_rate, t, dtype)
            # z | mode k ~ N(signal mean_k, signal^2 covariance_k + noise^2 I)
            total = signal**2 * covariances + noise**2 * tf.eye(dimensions, dtype=dtype)
            off = tf.reshape(z, [-1, 1, dimensions]) - signal * means  # (B, K, D)
            precision_off = tf.einsum("kij,bkj->bki", tf.linalg.inv(total), off)
            logits = tf.math.log(shares) - 0.5 * (
                tf.reduce_sum(off * precision_off, axis=-1) + tf.linalg.logdet(total)
            )
            posterior_means = means + signal * tf.einsum("kij,bkj->bki", covariances, precision_off)
            x = tf.einsum("bk,bki->bi", tf.nn.softmax(logits), posterior_means)
            return tf.reshape(x, tf.shape(z)), tf.fill(tf.shape(z), tf.constant(u, dtype))

        return denoise

    def shares_of(self, x: np.ndarray) -> np.ndarray:
        """The part of samples (N, D) that lies nearest to each mode's mean, (K,)."""
        nearest = np.argmin(np.linalg.norm(x[:, None] - self.means, axis=-1), axis=1)
        return np.bincount(nearest, minlength=len(self.shares)) / len(x)


def normal(shape, *key: int) -> tf.Tensor:
    """Standard normal float64 numbers, a function of the key."""
    seed = sum(k * 1000**n for n, k in enumerate(key))
    return tf.random.stateless_normal(shape, [seed, 7], dtype=tf.float64)


def noise_of(shape, seed: int):
    """noise(i) for samplers."""
    return lambda i: tf.random.stateless_normal(
        shape, tf.stack([tf.cast(i, tf.int32), seed]), dtype=tf.float64
    )
