"""Data whose best denoiser is known in closed form: a mixture of Gaussians over (1, 1, D) "images"."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule
from pdm_tf.sampling.loop import sampling_loop
from tests.fakes import FakeDenoiser


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

    def denoiser(self, process: NoiseSchedule, u: float = 0.0) -> FakeDenoiser:
        """(z (B, 1, 1, D), t () or (B,)) -> x* = E[x | z_t = z] and a constant u, in z's dtype."""
        dimensions = self.means.shape[1]

        def answer(z, t, labels):
            dtype = z.dtype
            shares, means, covariances = (
                tf.constant(v, dtype) for v in (self.shares, self.means, self.covariances)
            )
            level = process.at(t, dtype)
            signal, noise = (tf.reshape(v, [-1, 1, 1, 1]) for v in (level.signal, level.noise))
            # z | mode k ~ N(signal mean_k, signal^2 covariance_k + noise^2 I), (B or 1, K, D, D)
            total = signal**2 * covariances + noise**2 * tf.eye(dimensions, dtype=dtype)
            off = tf.reshape(z, [-1, 1, dimensions]) - signal[..., 0] * means  # (B, K, D)
            precision_off = _times(tf.linalg.inv(total), off)
            logits = tf.math.log(shares) - 0.5 * (
                tf.reduce_sum(off * precision_off, axis=-1) + tf.linalg.logdet(total)
            )
            posterior_means = means + signal[..., 0] * _times(covariances, precision_off)
            x = tf.einsum("bk,bki->bi", tf.nn.softmax(logits), posterior_means)
            return tf.reshape(x, tf.shape(z)), tf.fill(tf.shape(z), tf.constant(u, dtype))

        return FakeDenoiser(answer, process, (1, 1, dimensions), num_classes=0)

    def shares_of(self, x: np.ndarray) -> np.ndarray:
        """The part of samples (N, D) that lies nearest to each mode's mean, (K,)."""
        nearest = np.argmin(np.linalg.norm(x[:, None] - self.means, axis=-1), axis=1)
        return np.bincount(nearest, minlength=len(self.shares)) / len(x)


def _times(matrices: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """(..., D, D) times (..., D); that many products this small are quicker as sums than as `matmul`."""
    return tf.reduce_sum(matrices * vectors[..., None, :], axis=-1)


def unlabelled(denoiser: FakeDenoiser):
    """(z, t) -> x_theta and u, as samplers take it; `guided` would clip x."""
    return lambda z, t: denoiser(z, t, None)


def draw(sampler, denoiser: FakeDenoiser, schedule: NoiseSchedule, z, noise=None, **options):
    """The samples, x_theta of the last step, shaped as z."""
    loop = sampling_loop(sampler(unlabelled(denoiser), schedule, **options), schedule, noise)
    return loop.run(loop.begin(z), 0, loop.num_steps)[0]


def normal(shape, *key: int) -> tf.Tensor:
    """Standard normal float64 numbers, a function of the key."""
    seed = sum(k * 1000**n for n, k in enumerate(key))
    return tf.random.stateless_normal(shape, [seed, 7], dtype=tf.float64)


def noise_of(shape, seed: int):
    """noise(i) for samplers."""
    return lambda i: tf.random.stateless_normal(
        shape, tf.stack([tf.cast(i, tf.int32), seed]), dtype=tf.float64
    )
