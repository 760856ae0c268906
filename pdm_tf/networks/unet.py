"""The patched U-Net: ADM's, with the paper's changes (Section 3, Appendix C)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from pdm_tf.networks.group_norm import GroupNorm
from pdm_tf.networks.layers import (
    ResBlock,
    SelfAttention,
    position_encoding,
    timestep_features,
    upsample,
)
from pdm_tf.patching import ImageToPatches, PatchesToImage


@tf.keras.utils.register_keras_serializable("pdm_tf")
class UNet(tf.keras.Model):
    """Predicts x, eps or v, and the position u of the reverse variance between b_tilde and beta.

    The variance head sees the trunk's features and the timestep embedding through stopped gradients, so
    that L_vlb trains the head alone.

    Args:
      image_shape: (height, width, channels); height and width divide by patch_size * 2^(levels - 1).
      patch_size: P; the trunk works on a grid of (height / P) x (width / P) patches.
      base_channels: width of the first level.
      channel_multipliers: width of each level over `base_channels`.
      blocks_per_level: residual blocks of each encoder level; a decoder level has one more.
      attention_resolutions: the grid sizes (of the longer side) with self-attention after each block.
      head_channels: channels of an attention head.
      dropout: dropout rate in the residual blocks.
      num_classes: 0 for data without labels.
      class_conditioning: "none", "gate" (a sigmoid gate on each residual branch, the paper's ImageNet
        networks) or "embedding" (added to the timestep embedding). Label `num_classes` is the null label.
      precision: "float32", or "mixed_bfloat16": convolutions and attention in bfloat16, while the first
        convolution, both output heads, embeddings and norm statistics stay float32.
      recompute: keep only the inputs of residual blocks and attention for the backward pass, which computes
        the rest again: less memory, more time, the same gradients.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        patch_size: int = 4,
        base_channels: int = 128,
        channel_multipliers: Sequence[float] = (1, 2, 2),
        blocks_per_level: int = 2,
        attention_resolutions: Sequence[int] = (16, 8),
        head_channels: int = 64,
        dropout: float = 0.0,
        num_classes: int = 0,
        class_conditioning: str = "none",
        precision: str = "float32",
        recompute: bool = False,
        name: str = "unet",
    ):
        super().__init__(name=name, dtype="float32")
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.class_conditioning = class_conditioning
        self.dropout = dropout
        self.widths = [round(base_channels * m) for m in channel_multipliers]
        self.base_channels = base_channels
        self.blocks_per_level = blocks_per_level
        self.attention_resolutions = tuple(attention_resolutions)
        self.head_channels = head_channels
        self.policy = tf.keras.mixed_precision.Policy(precision)
        self.grid = (image_shape[0] // patch_size, image_shape[1] // patch_size)
        self._make_embeddings()
        self._make_heads(patch_size)
        self._make_encoder()
        self._make_decoder()
        self.recompute = False  # while the weights are made
        self._create_weights()
        self.recompute = recompute

    def _create_weights(self):
        """Creates all variables by calling the network on symbols, without computing anything."""
        z = tf.keras.Input(self.image_shape)
        t, labels = (tf.keras.Input((), dtype=tf.int32) for _ in range(2))
        self(z, t, labels)

    def build(self, input_shape=None):
        """Nothing is left to build: the constructor made all weights."""
        self.built = True

    def _make_embeddings(self):
        dense, width = tf.keras.layers.Dense, round(self.widths[-1])
        self.embed_t_in = dense(4 * self.base_channels, activation="swish", name="embed_t_in")
        self.embed_t_out = dense(width, activation="swish", name="embed_t_out")
        self.embed_label = None
        if self.class_conditioning != "none":
            label_width = self.base_channels if self.class_conditioning == "gate" else width
            self.embed_label = tf.keras.layers.Embedding(
                self.num_classes + 1, label_width, name="embed_label"
            )

    def _make_heads(self, patch_size: int):
        conv, c = tf.keras.layers.Conv2D, self.base_channels
        values = self.image_shape[-1] * patch_size**2
        self.to_patches = ImageToPatches(patch_size, name="to_patches")
        self.conv_in = conv(c, 3, padding="same", name="conv_in")
        self.norm_out = GroupNorm(32, name="norm_out")
        self.conv_out = conv(values, 3, padding="same", kernel_initializer="zeros", name="conv_out")
        self.to_image = PatchesToImage(patch_size, name="to_image")
        self.variance_t = tf.keras.layers.Dense(c + self.widths[0], name="variance_t")
        self.variance_conv = conv(
            c, 3, padding="same", activation="swish", dtype=self.policy, name="variance_conv"
        )
        self.variance_out = conv(values, 3, padding="same", activation="sigmoid", name="variance_out")

    def _block(self, width: int, name: str, **kwargs) -> ResBlock:
        gated = self.class_conditioning == "gate"
        return ResBlock(width, self.dropout, gated, dtype=self.policy, name=name, **kwargs)

    def _attention(self, level: int, name: str) -> SelfAttention | None:
        if max(self.grid) // 2**level not in self.attention_resolutions:
            return None
        return SelfAttention(self.head_channels, dtype=self.policy, name=name)

    def _resample_conv(self, width: int, stride: int, name: str) -> tf.keras.layers.Layer:
        return tf.keras.layers.Conv2D(width, 3, stride, padding="same", dtype=self.policy, name=name)

    def _make_encoder(self):
        """Per level: (block, attention or None) pairs, then the convolution to the next level's width."""
        self.encoder, self.down = [], []
        for level, width in enumerate(self.widths):
            for b in range(self.blocks_per_level):
                name = f"encoder{level}_{b}"
                self.encoder.append((self._block(width, name), self._attention(level, f"{name}_attention")))
            if level + 1 < len(self.widths):
                self.down.append(self._resample_conv(self.widths[level + 1], 2, f"down{level}"))
        self.middle_in = self._block(self.widths[-1], "middle_in")
        self.middle_attention = SelfAttention(self.head_channels, dtype=self.policy, name="middle_attention")
        self.middle_out = self._block(self.widths[-1], "middle_out")

    def _make_decoder(self):
        """Per level from the coarsest: (block, attention or None) pairs, then the convolution up."""
        self.decoder, self.up = [], []
        for level, width in reversed(list(enumerate(self.widths))):
            for b in range(self.blocks_per_level + 1):
                name = f"decoder{level}_{b}"
                block = self._block(width, name, project_shortcut=True)
                self.decoder.append((block, self._attention(level, f"{name}_attention")))
            if level > 0:
                self.up.append(self._resample_conv(self.widths[level - 1], 1, f"up{level}"))

    def call(
        self,
        z: tf.Tensor,
        t: tf.Tensor,
        labels: tf.Tensor | None = None,
        dropout_key: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs the network.

        Args:
          z: float32 (B, H, W, C), the latent z_t.
          t: int32 (B,).
          labels: int32 (B,) in 0..num_classes, the last being the null label; unused without classes.
          dropout_key: int32 (2,) makes dropout active.
        Returns:
          The prediction, float32 (B, H, W, C), and u in [0, 1], float32 (B, H, W, C).
        """
        t_embedding, label_embedding = self._embed(t, labels)
        keys = _count_keys(dropout_key)

        def apply(block: ResBlock, attention: SelfAttention | None, h: tf.Tensor) -> tf.Tensor:
            key = next(keys)

            def compute(h, *embeddings):
                h = block(h, *embeddings, dropout_key=key)
                return h if attention is None else attention(h)

            embeddings = [t_embedding] if label_embedding is None else [t_embedding, label_embedding]
            # What is not an argument, as the key, gets no gradient.
            return (tf.recompute_grad(compute) if self.recompute else compute)(h, *embeddings)

        h = self.conv_in(self.to_patches(z))
        h = features = h + position_encoding(*self.grid, self.base_channels)
        h = tf.cast(h, self.policy.compute_dtype)
        h = self._decode(apply, *self._encode(apply, h))
        output = self.conv_out(tf.nn.swish(self.norm_out(h)))
        u = self._variance_head(features, h, t_embedding)
        return self.to_image(output), u

    def _embed(self, t, labels):
        t_embedding = self.embed_t_out(self.embed_t_in(timestep_features(t, self.base_channels)))
        if self.embed_label is None:
            return t_embedding, None
        label_embedding = self.embed_label(labels)
        if self.class_conditioning == "embedding":
            return t_embedding + label_embedding, None
        return t_embedding, label_embedding

    def _encode(self, apply, h):
        skips, blocks = [h], iter(self.encoder)
        for level in range(len(self.widths)):
            for _ in range(self.blocks_per_level):
                h = apply(*next(blocks), h)
                skips.append(h)
            if level < len(self.down):
                h = self.down[level](h)
                skips.append(h)
        h = apply(self.middle_in, self.middle_attention, h)
        return apply(self.middle_out, None, h), skips

    def _decode(self, apply, h, skips):
        blocks = iter(self.decoder)
        for stage in range(len(self.widths)):
            for _ in range(self.blocks_per_level + 1):
                h = apply(*next(blocks), tf.concat([h, skips.pop()], axis=-1))
            if stage < len(self.up):
                h = self.up[stage](upsample(h))
        return h

    def _variance_head(self, features, decoded, t_embedding):
        features, decoded, t_embedding = map(tf.stop_gradient, (features, decoded, t_embedding))
        h = tf.concat([tf.cast(features, decoded.dtype), decoded], axis=-1)
        shift = tf.cast(self.variance_t(tf.nn.swish(t_embedding)), h.dtype)
        return self.to_image(self.variance_out(self.variance_conv(h + shift[:, None, None, :])))

    def get_config(self):
        return dict(self._config)


def _count_keys(dropout_key: tf.Tensor | None):
    """An endless series of keys, one for each block; of None without a key."""
    block = 0
    while True:
        yield (None if dropout_key is None else tf.random.experimental.stateless_fold_in(dropout_key, block))
        block += 1
