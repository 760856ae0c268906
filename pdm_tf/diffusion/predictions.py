"""What a network may predict, x, eps or v, and the conversions between them (Section 3.2).

With z = sqrt(alpha) x + sqrt(1 - alpha) eps and v = sqrt(alpha) eps - sqrt(1 - alpha) x, z and any one of
x, eps, v determine the other two. Images are (B, H, W, C), `i` is int32, () or (B,).
"""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, at


def predicted_x(
    prediction: str, output: tf.Tensor, z: tf.Tensor, schedule: NoiseSchedule, i: tf.Tensor
) -> tf.Tensor:
    """The x that a network's `output` stands for; `prediction` is "x", "eps" or "v".

    eps: (z - sqrt(1 - alpha) eps) / sqrt(alpha).  v: sqrt(alpha) z - sqrt(1 - alpha) v.
    """
    signal_rate, noise_rate = _rates(schedule, i, z.dtype)
    if prediction == "x":
        return output
    if prediction == "eps":
        return (z - noise_rate * output) / signal_rate
    if prediction == "v":
        return signal_rate * z - noise_rate * output
    raise ValueError(f"prediction={prediction!r}: use x, eps or v")


def eps_from_x(x: tf.Tensor, z: tf.Tensor, schedule: NoiseSchedule, i: tf.Tensor) -> tf.Tensor:
    """eps = (z - sqrt(alpha) x) / sqrt(1 - alpha)."""
    signal_rate, noise_rate = _rates(schedule, i, z.dtype)
    return (z - signal_rate * x) / noise_rate


def v_from_x(x: tf.Tensor, z: tf.Tensor, schedule: NoiseSchedule, i: tf.Tensor) -> tf.Tensor:
    """v = sqrt(alpha) eps - sqrt(1 - alpha) x = (sqrt(alpha) z - x) / sqrt(1 - alpha)."""
    signal_rate, noise_rate = _rates(schedule, i, z.dtype)
    return (signal_rate * z - x) / noise_rate


def _rates(schedule: NoiseSchedule, i: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    return at(schedule.signal_rate, i, dtype), at(schedule.noise_rate, i, dtype)
