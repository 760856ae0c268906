"""GroupNormalization with float32 statistics and a folded affine map, in place of the stack's own."""

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
