"""The norms of all trunks, called as `norm(x, scale=None, shift=None)`: their statistics are float32."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.stack import GroupNormalization, keras


@keras.utils.register_keras_serializable("pdm_tf")
class GroupNorm(GroupNormalization):
    """Group normalization over (B, ..., C), optionally followed by `* (1 + scale) + shift`.

    The statistics are float32 whatever the compute dtype, from per-channel means first and group means of
    those second (two passes: E[x^2] - E[x]^2 cancels where the mean is large). Normalization, gain, offset,
    scale and shift are folded into one multiply and one add for each value.
    """

    def call(
        self, inputs: tf.Tensor, scale: tf.Tensor | None = None, shift: tf.Tensor | None = None
    ) -> tf.Tensor:
        """`scale` and `shift` are float32 (B, C), or both None. Returns the compute dtype."""
        x = tf.cast(inputs, tf.float32)
        spatial = list(range(1, x.shape.rank - 1))
        mean = self._group_mean(tf.reduce_mean(x, spatial, keepdims=True))
        variance = self._group_mean(
            tf.reduce_mean(tf.math.squared_difference(x, mean), spatial, keepdims=True)
        )
        gain = tf.math.rsqrt(variance + self.epsilon)
        if self.scale:
            gain *= tf.cast(self.gamma, tf.float32)
        offset = -mean * gain
        if self.center:
            offset += tf.cast(self.beta, tf.float32)
        if scale is not None:
            broadcast = [-1] + [1] * len(spatial) + [x.shape[-1]]
            one_plus_scale = 1.0 + tf.reshape(scale, broadcast)
            gain, offset = (
                gain * one_plus_scale,
                offset * one_plus_scale + tf.reshape(shift, broadcast),
            )
        return tf.cast(x * gain + offset, self.compute_dtype)

    def _group_mean(self, channel_mean: tf.Tensor) -> tf.Tensor:
        """(B, 1, .., C) -> the same shape, each channel holding its group's mean."""
        shape = channel_mean.shape
        members = shape[-1] // self.groups
        mean = tf.reduce_mean(tf.reshape(channel_mean, [-1, self.groups, members]), -1, keepdims=True)
        return tf.reshape(tf.tile(mean, [1, 1, members]), [-1, *shape[1:]])


class TokenNorm(keras.layers.Layer):
    """RMSNorm, or if `centered` LayerNorm, of each token, optionally followed by `* (1 + scale) + shift`.

    Without `affine` it has no weights of its own: the timestep's scale and shift take their place.
    """

    def __init__(self, centered: bool, affine: bool, epsilon: float = 1e-6, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.centered, self.affine, self.epsilon = centered, affine, epsilon

    def build(self, input_shape):
        """Creates the gain and, if centered, the offset, for `input_shape`'s channels."""
        self.gain = self.offset = None
        if self.affine:
            self.gain = self.add_weight("gain", input_shape[-1:], initializer="ones")
        if self.affine and self.centered:
            self.offset = self.add_weight("offset", input_shape[-1:], initializer="zeros")
        super().build(input_shape)

    def call(self, x: tf.Tensor, scale: tf.Tensor | None = None, shift: tf.Tensor | None = None) -> tf.Tensor:
        """(B, ..., C) -> float32 (B, ..., C); `scale` and `shift` are float32 (B, C), or both None."""
        if self.centered:
            x -= tf.reduce_mean(x, -1, keepdims=True)
        x *= tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + self.epsilon)
        if self.gain is not None:
            x *= self.gain
        if self.offset is not None:
            x += self.offset
        if scale is not None:
            broadcast = [-1] + [1] * (x.shape.rank - 2) + [x.shape[-1]]
            x = x * (1.0 + tf.reshape(scale, broadcast)) + tf.reshape(shift, broadcast)
        return x


def normalization(
    kind: str, affine: bool, name: str, dtype: str | keras.mixed_precision.Policy = "float32"
) -> keras.layers.Layer:
    """A "group" norm of 32 groups, or a "rms" or "layer" norm, which returns float32 whatever the policy.

    `affine`: with gain and offset of its own.
    """
    if kind == "group":
        return GroupNorm(32, center=affine, scale=affine, dtype=dtype, name=name)
    return TokenNorm(centered=kind == "layer", affine=affine, name=name)
