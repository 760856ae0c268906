"""The layers of the Vision Transformer. Activations are tokens, (B, N, C); embeddings float32 (B, C)."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.config.fields import NetworkConfig
from pdm_tf.networks.layers import attend, join_heads, sinusoidal_frequencies, split_heads
from pdm_tf.networks.norms import TokenNorm, normalization
from pdm_tf.stack import keras


def scaled_dense(width: int, initial_scale: float, **kwargs) -> keras.layers.Dense:
    """A Dense whose initial weights, Glorot's uniform ones, are multiplied by `initial_scale`."""
    glorot = keras.initializers.VarianceScaling(initial_scale**2, "fan_avg", "uniform")
    return keras.layers.Dense(width, kernel_initializer=glorot, **kwargs)


def rotation(grid: tuple[int, int], extra: int, head_channels: int, stride: float = 1.0) -> tf.Tensor:
    """The angles of 2D rotary positions, float32 (extra + h w, head_channels / 2).

    Half of them turn with the row, half with the column (Heo et al., 2024); places are `stride` apart.
    `extra` tokens before the grid's have no place, and are not turned.
    """
    frequencies = stride * sinusoidal_frequencies(head_channels // 4)
    rows, columns = (tf.range(size, dtype=tf.float32)[:, None] * frequencies for size in grid)
    shape = [*grid, head_channels // 4]
    angles = [tf.broadcast_to(rows[:, None, :], shape), tf.broadcast_to(columns[None, :, :], shape)]
    angles = tf.reshape(tf.concat(angles, -1), [grid[0] * grid[1], head_channels // 2])
    return tf.pad(angles, [[extra, 0], [0, 0]])


def rotate(x: tf.Tensor, angles: tf.Tensor) -> tf.Tensor:
    """Turns each pair (x_i, x_{i + d/2}) of (B, heads, N, d) by its token's angle i, (N, d / 2)."""
    first, second = tf.split(x, 2, axis=-1)
    cos, sin = tf.cos(angles), tf.sin(angles)
    return tf.concat([first * cos - second * sin, first * sin + second * cos], axis=-1)


class Attention(keras.layers.Layer):
    """Multi-head self-attention over all tokens, with a norm of each head's q and k when asked.

    The softmax is float32. `initial_scale` multiplies the initial weights of the last projection.
    """

    def __init__(self, head_channels: int, qk_norm: bool, initial_scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.head_channels, self.qk_norm, self.initial_scale = head_channels, qk_norm, initial_scale

    def build(self, input_shape):
        """Creates the projections for `input_shape`'s channels, which must divide by `head_channels`."""
        channels, policy = input_shape[-1], self.dtype_policy
        self.query_key_value = keras.layers.Dense(3 * channels, dtype=policy, name="query_key_value")
        self.project = scaled_dense(channels, self.initial_scale, dtype=policy, name="project")
        parts = ("query", "key") if self.qk_norm else ()
        self.norms = [TokenNorm(centered=False, affine=True, name=f"{part}_norm") for part in parts]
        super().build(input_shape)

    def call(self, x: tf.Tensor, angles: tf.Tensor | None = None) -> tf.Tensor:
        """(B, N, C) -> (B, N, C); `angles` are those of `rotation`."""
        query, key, value = split_heads(self.query_key_value(x), 3, self.head_channels)
        if self.qk_norm:
            query, key = (norm(part) for norm, part in zip(self.norms, (query, key)))
        if angles is not None:
            query, key = (rotate(tf.cast(part, tf.float32), angles) for part in (query, key))
        query, key = (tf.cast(part, value.dtype) for part in (query, key))
        return self.project(join_heads(attend(query, key, value)))


class FeedForward(keras.layers.Layer):
    """The two layers that each token goes through alone, with as many weights in either form.

    "gelu": Dense(4C) gelu Dense(C).  "swiglu": swish(Dense(8C/3)) * Dense(8C/3), Dense(C) (Shazeer, 2020).
    `initial_scale` multiplies the initial weights of the last.
    """

    def __init__(self, activation: str, initial_scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.activation, self.initial_scale = activation, initial_scale

    def build(self, input_shape):
        """Creates both layers for `input_shape`'s channels."""
        channels, policy = input_shape[-1], self.dtype_policy
        hidden = 4 * channels if self.activation == "gelu" else 2 * (8 * channels // 3)
        self.expand = keras.layers.Dense(hidden, dtype=policy, name="expand")
        self.project = scaled_dense(channels, self.initial_scale, dtype=policy, name="project")
        super().build(input_shape)

    def call(self, x: tf.Tensor, angles: tf.Tensor | None = None) -> tf.Tensor:
        """(B, N, C) -> (B, N, C), wherever a token is."""
        h = self.expand(x)
        if self.activation == "gelu":
            return self.project(tf.nn.gelu(h))
        gate, h = tf.split(h, 2, axis=-1)
        return self.project(tf.nn.swish(gate) * h)


class ResidualBranch(keras.layers.Layer):
    """x + gates * factor * branch(norm(x)); or, with the norm after, norm(x + gates * factor * branch(x)).

    Args:
      config: the trunk's. With `t_gates` the timestep also gates the branch, which so starts at zero
        (adaLN-Zero, Peebles & Xie, 2022); with `class_conditioning` "gate" the label gates it by
        sigmoid(Dense(label) + 2), as in the U-Net.
      t_conditional: the norm's scale and shift come from the timestep, by a Dense that starts at zero.
    """

    def __init__(self, branch: Attention | FeedForward, config: NetworkConfig, t_conditional: bool, **kwargs):
        super().__init__(**kwargs)
        self.branch, self.config, self.t_conditional = branch, config, t_conditional
        self.factor = config.depth**-0.5 if config.residual_scaling == "branch" else 1.0
        self.norm = normalization(config.norm, affine=not t_conditional, name="norm")
        self.modulation = self.gate = None
        self.parts = 3 if config.t_gates else 2  # of the modulation

    def build(self, input_shape):
        """Creates what depends on `input_shape`'s channels."""
        channels, dense = input_shape[-1], keras.layers.Dense
        if self.t_conditional:
            self.modulation = dense(
                self.parts * channels, kernel_initializer="zeros", dtype="float32", name="modulation"
            )
        if self.config.class_conditioning == "gate":
            self.gate = dense(channels, dtype="float32", name="gate")
        super().build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        t_embedding: tf.Tensor,
        label_embedding: tf.Tensor | None = None,
        dropout_key: tf.Tensor | None = None,
        angles: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """(B, N, C) -> (B, N, C). Without a `dropout_key` (int32 (2,)) nothing is dropped."""
        scale = shift = gate = None
        if self.modulation is not None:
            scale, shift, *gate = tf.split(self.modulation(t_embedding), self.parts, axis=-1)

        def norm(h):
            return tf.cast(self.norm(h, scale=scale, shift=shift), self.compute_dtype)

        h = self.branch(norm(x) if self.config.norm_place == "before" else x, angles=angles)
        if self.config.dropout and dropout_key is not None:
            h = tf.nn.experimental.stateless_dropout(h, self.config.dropout, dropout_key)
        if gate:
            h *= tf.cast(gate[0], h.dtype)[:, None, :]
        if self.gate is not None:
            h *= tf.cast(tf.sigmoid(self.gate(label_embedding) + 2.0), h.dtype)[:, None, :]
        x += h if self.factor == 1.0 else self.factor * h
        return norm(x) if self.config.norm_place == "after" else x


class ClassTokens(keras.layers.Layer):
    """`count` tokens before the others: the label's embedding, plus a learned place for each."""

    def __init__(self, count: int, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def build(self, input_shape):
        """Creates the places."""
        shape, normal = (self.count, input_shape[-1]), keras.initializers.RandomNormal(stddev=0.02)
        self.places = self.add_weight("places", shape, initializer=normal)
        super().build(input_shape)

    def call(self, tokens: tf.Tensor, label_embedding: tf.Tensor) -> tf.Tensor:
        """(B, N, C) -> (B, count + N, C)."""
        new = tf.cast(label_embedding, tokens.dtype)[:, None, :] + tf.cast(self.places, tokens.dtype)
        return tf.concat([new, tokens], axis=1)
