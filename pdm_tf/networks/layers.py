"""The blocks of the U-Net (Appendix C). Activations are (B, h, w, C), embeddings float32 (B, C)."""

from __future__ import annotations

import math

import tensorflow as tf

from pdm_tf.networks.group_norm import GroupNorm
from pdm_tf.stack import keras


def sinusoidal_frequencies(count: int) -> tf.Tensor:
    """`count` frequencies, float32, geometric from 1 to 1/10000: exp(-ln(10000) i / (count - 1))."""
    exponent = tf.range(count, dtype=tf.float32) / max(count - 1, 1)
    return tf.exp(-math.log(10_000.0) * exponent)


def timestep_features(t: tf.Tensor, width: int) -> tf.Tensor:
    """Sinusoidal features of t: int (B,) -> float32 (B, width), concat[sin, cos](t * frequency)."""
    angles = tf.cast(t, tf.float32)[:, None] * sinusoidal_frequencies(width // 2)
    return tf.concat([tf.sin(angles), tf.cos(angles)], axis=-1)


def position_encoding(height: int, width: int, channels: int) -> tf.Tensor:
    """2D sinusoidal position encoding of a grid, float32 (height, width, channels).

    The first half of the channels encodes the column, the second the row, each by
    sin(position * frequency * 64 / R), where R is the grid's size along that axis.
    """
    frequencies = sinusoidal_frequencies(channels // 2)

    def encode(size: int) -> tf.Tensor:
        return tf.sin(tf.range(size, dtype=tf.float32)[:, None] * frequencies * (64.0 / size))

    shape = [height, width, channels // 2]
    column = tf.broadcast_to(encode(width)[None, :, :], shape)
    row = tf.broadcast_to(encode(height)[:, None, :], shape)
    return tf.concat([column, row], axis=-1)


def upsample(x: tf.Tensor) -> tf.Tensor:
    """Nearest-neighbour x2: (B, h, w, C) -> (B, 2h, 2w, C).

    A broadcast rather than `tf.image.resize`, whose gradient XLA does not have on CPU.
    """
    _, height, width, channels = x.shape
    batch = x.shape[0] or tf.shape(x)[0]
    x = tf.reshape(x, [-1, height, 1, width, 1, channels])
    x = tf.broadcast_to(x, [batch, height, 2, width, 2, channels])
    return tf.reshape(x, [-1, 2 * height, 2 * width, channels])


@keras.utils.register_keras_serializable("pdm_tf")
class ResBlock(keras.layers.Layer):
    """Residual block with a timestep-conditional norm and, when asked, a class gate.

    GroupNorm swish Conv3x3; GroupNorm (1 + scale, shift from the timestep) swish dropout Conv3x3; times
    sigmoid(gate of the label + 2); plus the shortcut, a 1x1 projection if `project_shortcut` or if the
    channels change, else the identity. The second convolution starts at zero, so the block starts as its
    shortcut.
    """

    def __init__(
        self,
        channels: int,
        dropout: float = 0.0,
        gated: bool = False,
        project_shortcut: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.dropout = dropout
        self.gated = gated
        self.project_shortcut = project_shortcut
        policy, layers = self.dtype_policy, keras.layers
        self.norm_in = GroupNorm(32, dtype=policy, name="norm_in")
        self.conv_in = layers.Conv2D(channels, 3, padding="same", dtype=policy, name="conv_in")
        self.norm_out = GroupNorm(32, center=False, scale=False, dtype=policy, name="norm_out")
        self.conv_out = layers.Conv2D(
            channels, 3, padding="same", kernel_initializer="zeros", dtype=policy, name="conv_out"
        )
        # The embeddings are a few numbers an image: float32 costs nothing and keeps t exact.
        self.scale_shift = layers.Dense(
            2 * channels, kernel_initializer="zeros", dtype="float32", name="scale_shift"
        )
        self.gate = layers.Dense(channels, dtype="float32", name="gate") if gated else None
        self.shortcut = None

    def build(self, input_shape):
        """Adds the shortcut's projection where one is needed."""
        if self.project_shortcut or input_shape[-1] != self.channels:
            self.shortcut = keras.layers.Dense(self.channels, dtype=self.dtype_policy, name="shortcut")
        super().build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        t_embedding: tf.Tensor,
        label_embedding: tf.Tensor | None = None,
        dropout_key: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Without a `dropout_key` (int32 (2,)) nothing is dropped."""
        scale, shift = tf.split(self.scale_shift(t_embedding), 2, axis=-1)
        h = self.conv_in(self.norm_in(x, swish=True))
        h = self.norm_out(h, scale=scale, shift=shift, swish=True)
        if self.dropout and dropout_key is not None:
            h = tf.nn.experimental.stateless_dropout(h, self.dropout, dropout_key)
        h = self.conv_out(h)
        if self.gate is not None:
            gate = tf.sigmoid(self.gate(label_embedding) + 2.0)
            h *= tf.cast(gate, h.dtype)[:, None, None, :]
        return h + (x if self.shortcut is None else self.shortcut(x))

    def get_config(self):
        own = {k: getattr(self, k) for k in ("channels", "dropout", "gated", "project_shortcut")}
        return {**super().get_config(), **own}


@keras.utils.register_keras_serializable("pdm_tf")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention over all positions, with a GroupNorm before and a residual around it.

    q and k are each scaled by head_channels^(-1/4), which keeps their product in range in low precision;
    the softmax is float32.
    """

    def __init__(self, head_channels: int = 64, **kwargs):
        super().__init__(**kwargs)
        self.head_channels = head_channels

    def build(self, input_shape):
        """Creates the projections for `input_shape`'s channels, which must divide by `head_channels`."""
        channels, policy = input_shape[-1], self.dtype_policy
        self.norm = GroupNorm(32, dtype=policy, name="norm")
        self.query_key_value = keras.layers.Dense(3 * channels, dtype=policy, name="query_key_value")
        self.project = keras.layers.Dense(channels, kernel_initializer="zeros", dtype=policy, name="project")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        shape, width = x.shape, x.shape[-1]
        heads, positions = width // self.head_channels, shape[1] * shape[2]
        # Matrices, as a product of higher rank would keep bias and product apart; one transposition, not three.
        projected = self.query_key_value(tf.reshape(self.norm(x), [-1, width]))
        parts = tf.reshape(projected, [-1, positions, 3, heads, self.head_channels])
        query, key, value = tf.unstack(tf.transpose(parts, [2, 0, 3, 1, 4]))
        scale = self.head_channels**-0.25
        logits = tf.matmul(query * scale, key * scale, transpose_b=True)
        weights = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), logits.dtype)
        attended = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
        return x + tf.reshape(self.project(tf.reshape(attended, [-1, width])), [-1, *shape[1:]])

    def get_config(self):
        return {**super().get_config(), "head_channels": self.head_channels}
