"""GroupNormalization with float32 statistics and a folded affine map, in place of the stack's own."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.stack import GroupNormalization, keras


@keras.utils.register_keras_serializable("pdm_tf")
class GroupNorm(GroupNormalization):
    """Group normalization over (B, ..., C), optionally followed by `* (1 + scale) + shift`, and by swish.

    The statistics are float32 whatever the compute dtype, from per-channel means first and group means of
    those second (two passes: E[x^2] - E[x]^2 cancels where the mean is large). Normalization, gain, offset,
    scale and shift are folded into one multiply and one add for each value.
    """

    def call(
        self,
        inputs: tf.Tensor,
        scale: tf.Tensor | None = None,
        shift: tf.Tensor | None = None,
        swish: bool = False,
    ) -> tf.Tensor:
        """`scale` and `shift` are float32 (B, C), or both None. Returns the compute dtype."""
        one = tf.ones([1] * inputs.shape.rank)
        gain = tf.cast(self.gamma, tf.float32) * one if self.scale else one
        offset = tf.cast(self.beta, tf.float32) * one if self.center else tf.zeros_like(one)
        if scale is not None:
            broadcast = [-1, *one.shape[1:-1], inputs.shape[-1]]
            one_plus_scale = 1.0 + tf.reshape(scale, broadcast)
            gain *= one_plus_scale
            offset = offset * one_plus_scale + tf.reshape(shift, broadcast)
        outputs = self._normalize(tf.cast(inputs, tf.float32), gain, offset, swish)
        return tf.cast(outputs, self.compute_dtype)

    def _normalize(self, x: tf.Tensor, gain: tf.Tensor, offset: tf.Tensor, swish: bool) -> tf.Tensor:
        """Normalizes and applies gain and offset, (1 or B, 1, .., C), in float32; then swish, if asked.

        The gradients are written out: what differentiation makes of the forward pass goes over the
        activations twice as often, and on CPUs the memory that they lie in is what takes the time.
        """
        spatial = list(range(1, x.shape.rank - 1))

        @tf.custom_gradient
        def compute(x, gain, offset):
            mean = self._group_mean(tf.reduce_mean(x, spatial, keepdims=True))
            variance = self._group_mean(
                tf.reduce_mean(tf.math.squared_difference(x, mean), spatial, keepdims=True)
            )
            per_std = tf.math.rsqrt(variance + self.epsilon)
            factor = per_std * gain
            y = x * factor + (offset - mean * factor)
            outputs = tf.nn.swish(y) if swish else y

            def gradient(upstream):
                # swish'(y) = sigmoid(y) (1 + y - swish(y)); the kernel multiplies by the sigmoid.
                g = tf.raw_ops.SoftplusGrad(gradients=upstream, features=y) * (y - outputs + 1.0) if swish else upstream
                sum_g = tf.reduce_sum(g, spatial, keepdims=True)
                sum_g_normal = per_std * (tf.reduce_sum(g * x, spatial, keepdims=True) - mean * sum_g)
                places = tf.cast(tf.math.reduce_prod(tf.shape(x)[1:-1]), tf.float32)
                along_mean = self._group_mean(gain * sum_g) / places
                along_x = self._group_mean(gain * sum_g_normal) / places
                slope = -along_x * per_std * per_std
                to_x = g * factor + (x * slope - (mean * slope + along_mean * per_std))
                return to_x, _sum_to(sum_g_normal, gain), _sum_to(sum_g, offset)

            return outputs, gradient

        return compute(x, gain, offset)

    def _group_mean(self, channel_mean: tf.Tensor) -> tf.Tensor:
        """(B, 1, .., C) -> the same shape, each channel holding its group's mean."""
        shape = channel_mean.shape
        members = shape[-1] // self.groups
        mean = tf.reduce_mean(tf.reshape(channel_mean, [-1, self.groups, members]), -1, keepdims=True)
        return tf.reshape(tf.tile(mean, [1, 1, members]), [-1, *shape[1:]])


def _sum_to(value: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """The gradient of a broadcast: (B, 1, .., C) summed to `like`'s shape."""
    if like.shape[-1] == 1:
        value = tf.reduce_sum(value, -1, keepdims=True)
    return value if like.shape[0] != 1 else tf.reduce_sum(value, 0, keepdims=True)
