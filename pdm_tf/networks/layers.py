"""The blocks of the U-Net (Appendix C), and what all networks share.

Activations are (B, h, w, C), embeddings float32 (B, C).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from pdm_tf.config.fields import NetworkConfig
from pdm_tf.networks.norms import normalization
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


def with_blurred(z: tf.Tensor, sigmas: Sequence[float]) -> tf.Tensor:
    """An image, and behind its channels those of one blurred copy for each sigma, in pixels (Appendix D).

    (B, H, W, C) -> (B, H, W, C (1 + sigmas)). Each axis is multiplied by a matrix whose rows are Gaussians
    that sum to 1: none of what lies beyond the edge is made up.
    """
    copies = [z]
    for sigma in sigmas:
        rows, columns = (tf.constant(_blur_matrix(size, sigma), z.dtype) for size in z.shape[1:3])
        copies.append(tf.einsum("hy,wx,byxc->bhwc", rows, columns, z, optimize="optimal"))
    return tf.concat(copies, axis=-1) if len(copies) > 1 else z


def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    distance = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


@tf.custom_gradient
def swish(x: tf.Tensor) -> tf.Tensor:
    """x sigmoid(x), whose gradient is computed in float32 and needs x alone.

    `tf.nn.swish` computes it in x's dtype; in bfloat16 that takes twice as long on a CPU.
    """

    def gradient(dy):
        with tf.control_dependencies([dy]):  # else the forward pass's sigmoid is kept, and not fused
            wide = tf.cast(x, tf.float32)
            sigmoid = tf.sigmoid(wide)
        return tf.cast(tf.cast(dy, tf.float32) * (sigmoid * (1.0 + wide * (1.0 - sigmoid))), x.dtype)

    return x * tf.sigmoid(x), gradient


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """softmax(q k^T / sqrt(d)) v, of (B, heads, N, d) each.

    q and k are each scaled by d^(-1/4), which keeps their product in range in low precision; the softmax is
    float32.
    """
    scale = query.shape[-1] ** -0.25
    logits = tf.matmul(query * scale, key * scale, transpose_b=True)
    weights = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), logits.dtype)
    return tf.matmul(weights, value)


def split_heads(projected: tf.Tensor, parts: int, head_channels: int) -> list[tf.Tensor]:
    """(B, N, parts C) -> `parts` tensors (B, C / head_channels, N, head_channels)."""
    positions = projected.shape[1]

    def split(part: tf.Tensor) -> tf.Tensor:
        part = tf.reshape(part, [-1, positions, part.shape[-1] // head_channels, head_channels])
        return tf.transpose(part, [0, 2, 1, 3])

    return [split(part) for part in tf.split(projected, parts, axis=-1)]


def join_heads(x: tf.Tensor) -> tf.Tensor:
    """(B, heads, N, d) -> (B, N, heads d)."""
    _, heads, positions, channels = x.shape
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, positions, heads * channels])


def checkpointed(compute: Callable[..., tf.Tensor], active: bool) -> Callable[..., tf.Tensor]:
    """`compute` with its inputs alone kept for the backward pass, if `active`.

    Its layers must be built: a recomputation must not create weights. What `compute` closes over gets no
    gradient.
    """
    return tf.recompute_grad(compute) if active else compute


def fold_in(dropout_key: tf.Tensor | None, block: int) -> tf.Tensor | None:
    """The dropout key of one block, or None if nothing is dropped."""
    return None if dropout_key is None else tf.random.experimental.stateless_fold_in(dropout_key, block)


def upsample(x: tf.Tensor) -> tf.Tensor:
    """Nearest-neighbour x2: (B, h, w, C) -> (B, 2h, 2w, C).

    A broadcast rather than `tf.image.resize`, whose gradient XLA does not have on CPU.
    """
    _, height, width, channels = x.shape
    batch = x.shape[0] or tf.shape(x)[0]
    x = tf.reshape(x, [-1, height, 1, width, 1, channels])
    x = tf.broadcast_to(x, [batch, height, 2, width, 2, channels])
    return tf.reshape(x, [-1, 2 * height, 2 * width, channels])


class ResBlock(keras.layers.Layer):
    """Residual block with a timestep-conditional norm and, when asked, a class gate.

    GroupNorm swish Conv3x3; GroupNorm (1 + scale, shift from the timestep) swish dropout Conv3x3; times
    sigmoid(gate of the label + 2); plus the shortcut, a 1x1 projection if the channels change, else the
    identity. The second convolution starts at zero, so the block starts as its shortcut. `norm` is that
    of `normalization`.
    """

    def __init__(
        self,
        channels: int,
        dropout: float = 0.0,
        gated: bool = False,
        norm: str = "group",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.dropout = dropout
        policy = self.dtype_policy
        layers = keras.layers
        self.norm_in = normalization(norm, affine=True, name="norm_in", dtype=policy)
        self.conv_in = layers.Conv2D(channels, 3, padding="same", dtype=policy, name="conv_in")
        self.norm_out = normalization(norm, affine=False, name="norm_out", dtype=policy)
        self.conv_out = layers.Conv2D(
            channels, 3, padding="same", kernel_initializer="zeros", dtype=policy, name="conv_out"
        )
        # The embeddings are a few numbers an image: float32 costs nothing and keeps t exact.
        self.scale_shift = layers.Dense(
            2 * channels, kernel_initializer="zeros", dtype="float32", name="scale_shift"
        )
        self.gate = layers.Dense(channels, dtype="float32", name="gate") if gated else None
        self.shortcut = tf.identity

    def build(self, input_shape):
        """Adds the shortcut's projection where one is needed."""
        if input_shape[-1] != self.channels:
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
        h = self.conv_in(swish(self.norm_in(x)))
        h = swish(self.norm_out(h, scale=scale, shift=shift))
        if self.dropout and dropout_key is not None:
            h = tf.nn.experimental.stateless_dropout(h, self.dropout, dropout_key)
        h = self.conv_out(h)
        if self.gate is not None:
            gate = tf.sigmoid(self.gate(label_embedding) + 2.0)
            h *= tf.cast(gate, h.dtype)[:, None, None, :]
        return h + self.shortcut(x)


class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention over all positions, with a GroupNorm before and a residual around it."""

    def __init__(self, head_channels: int = 64, **kwargs):
        super().__init__(**kwargs)
        self.head_channels = head_channels

    def build(self, input_shape):
        """Creates the projections for `input_shape`'s channels, which must divide by `head_channels`."""
        channels = input_shape[-1]
        policy = self.dtype_policy
        self.norm = normalization("group", affine=True, name="norm", dtype=policy)
        self.query_key_value = keras.layers.Dense(3 * channels, dtype=policy, name="query_key_value")
        self.project = keras.layers.Dense(channels, kernel_initializer="zeros", dtype=policy, name="project")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        _, height, width, channels = x.shape
        projected = tf.reshape(self.query_key_value(self.norm(x)), [-1, height * width, 3 * channels])
        attended = join_heads(attend(*split_heads(projected, 3, self.head_channels)))
        return x + self.project(tf.reshape(attended, [-1, height, width, channels]))


class Head:
    """The projection of a trunk's h to patches: a norm, an activation, and a layer that starts at zero.

    With a `modulation`, a layer that starts at zero too, the norm has the timestep's scale and shift.

    Attributes:
      layers: the Keras layers that hold its weights.
    """

    def __init__(
        self,
        norm: keras.layers.Layer,
        project: keras.layers.Layer,
        modulation: keras.layers.Layer | None = None,
        activation: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    ):
        self._norm, self._project, self._modulation, self._activation = norm, project, modulation, activation
        self.layers = [layer for layer in (norm, modulation, project) if layer]

    def __call__(self, h: tf.Tensor, t_embedding: tf.Tensor) -> tf.Tensor:
        """h (B, h, w, width) in any dtype, and the timestep's embedding -> float32 (B, h, w, values)."""
        scale = shift = None
        if self._modulation:
            scale, shift = tf.split(self._modulation(t_embedding), 2, axis=-1)
        return self._project(self._activation(self._norm(h, scale=scale, shift=shift)))


@dataclasses.dataclass(eq=False)
class Trunk:
    """A network on a grid of (h, w) positions, with its own kind of stem and head.

    Attributes:
      layers: the Keras layers that hold its weights, in the order of the network's variables.
      width: channels of the h that it returns.
      embedding_width: channels of the timestep embedding.
      kernel_size: of the convolutions before and after it.
    """

    grid: tuple[int, int]  # (h, w)
    config: NetworkConfig  # whose fields are its options
    dtype: str | keras.mixed_precision.Policy = "float32"  # its layers' policy
    gradient_checkpointing: bool = False

    def __post_init__(self):
        """Makes the layers, whose weights are created by the first call."""

    def make_stem(self, prefix: str = "") -> Sequence[keras.layers.Layer]:
        """Layers, one after another, from patches of any size to `base_channels`; `prefix` of their names."""

    def make_head(self, values: int, prefix: str = "") -> Head:
        """The head for patches of `values` numbers; it gives zeros in a new network."""

    def __call__(
        self,
        h: tf.Tensor,
        embeddings: Sequence[tf.Tensor],
        dropout_key: tf.Tensor | None = None,
        large: bool = False,
    ) -> tf.Tensor:
        """Runs the trunk.

        Args:
          h: (B, h, w, base_channels) in the compute dtype.
          embeddings: the timestep's, float32 (B, embedding_width), and for labels as a gate or as tokens the
            label's, float32 (B, base_channels) or (B, embedding_width).
          dropout_key: int32 (2,) makes dropout active.
          large: h is of patches twice as large, so its grid is half the trunk's along each axis.
        Returns:
          (B, h, w, width) in the compute dtype.
        """

    def describe(self) -> list[str]:
        """Lines of text on its shapes."""
