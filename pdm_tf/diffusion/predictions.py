"""What a network may predict, x, eps or v, and the conversions between them (Section 3.2).

With z = sqrt(alpha) x + sqrt(1 - alpha) eps and v = sqrt(alpha) eps - sqrt(1 - alpha) x, z and any one of
x, eps, v determine the other two. Images are (B, H, W, C).
"""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.diffusion.schedules import Level


def predicted_x(prediction: str, output: tf.Tensor, z: tf.Tensor, level: Level) -> tf.Tensor:
    """The x that a network's `output` stands for; `prediction` is "x", "eps" or "v".

    eps: (z - sqrt(1 - alpha) eps) / sqrt(alpha).  v: sqrt(alpha) z - sqrt(1 - alpha) v.
    """
    if prediction == "x":
        return output
    if prediction == "eps":
        return (z - level.noise * output) / level.signal
    if prediction == "v":
        return level.signal * z - level.noise * output
    raise ValueError(f"prediction={prediction!r}: use x, eps or v")


def eps_from_x(x: tf.Tensor, z: tf.Tensor, level: Level) -> tf.Tensor:
    """eps = (z - sqrt(alpha) x) / sqrt(1 - alpha)."""
    return (z - level.signal * x) / level.noise
