"""The paper's one idea: a diffusion network that works on patches (Section 3; Appendix B has it as code).

    z (H, W, C) -> patches (H/P, W/P, C P^2) -> trunk, on that grid -> patches -> image (H, W, C)

Patching moves pixels from space into channels, and leaves the process and the network between as they are. So
a trunk knows nothing of images, and all that does know of them is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf

from pdm_tf.networks.group_norm import GroupNorm
from pdm_tf.networks.layers import position_encoding, timestep_features
from pdm_tf.networks.unet import UNet
from pdm_tf.patching import ImageToPatches, PatchesToImage, grid_of
from pdm_tf.stack import keras


class Trunk(Protocol):
    """A network on a grid of (h, w) places.

    A kind of trunk is called as `kind(grid, base_channels, gated=, dtype=, recompute=, **its_settings)` and
    refuses, with a `UserError`, a grid that it cannot work on. Its weights are made by its first call.

    Attributes:
      layers: the Keras layers that hold its weights, in the order of the network's variables.
      width: channels of the h that it returns.
      embedding_width: channels of the timestep embedding that it wants.
    """

    layers: Sequence[keras.layers.Layer]
    width: int
    embedding_width: int

    def __call__(
        self, h: tf.Tensor, embeddings: Sequence[tf.Tensor], dropout_key: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Runs the trunk.

        Args:
          h: (B, h, w, base_channels) in the compute dtype.
          embeddings: the timestep's, float32 (B, embedding_width), and if gated the label's, float32
            (B, base_channels).
          dropout_key: int32 (2,) makes dropout active.
        Returns:
          (B, h, w, width) in the compute dtype.
        """

    def describe(self) -> list[str]:
        """Its shapes, in lines for a reader."""


NETWORKS: dict[str, Callable[..., Trunk]] = {"unet": UNet}


@keras.utils.register_keras_serializable("pdm_tf")
class PatchedNetwork(keras.Model):
    """Predicts x, eps or v, and the position u of the reverse variance between b_tilde and beta.

    Args:
      image_shape: (height, width, channels); height and width divide by `patch_size`.
      patch_size: P; the trunk works on a grid of (height / P) x (width / P) patches.
      base_channels: width of the first convolution.
      kind: the trunk's, one of `NETWORKS`; also the first part of all variables' names.
      num_classes: 0 for data without labels.
      class_conditioning: "none", "gate" (a sigmoid gate on each residual branch, the paper's ImageNet
        networks) or "embedding" (added to the timestep embedding). Label `num_classes` is the null label.
      precision: "float32", or "mixed_bfloat16": the trunk in bfloat16, while the first convolution, both
        output heads, embeddings and norm statistics stay float32.
      recompute: keep only the inputs of the trunk's blocks for the backward pass, which computes the rest
        again: less memory, more time, the same gradients.
      **trunk_settings: of that kind alone.
    Raises:
      UserError: the image or the grid does not divide.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        patch_size: int,
        base_channels: int,
        kind: str = "unet",
        num_classes: int = 0,
        class_conditioning: str = "none",
        precision: str = "float32",
        recompute: bool = False,
        **trunk_settings,
    ):
        own = {k: v for k, v in locals().items() if k not in ("self", "__class__", "trunk_settings")}
        super().__init__(name=kind, dtype="float32")
        self._config = {**own, **trunk_settings}
        self.image_shape = tuple(image_shape)
        self.patch_size = patch_size
        self.grid = grid_of(image_shape, patch_size)
        self.base_channels = base_channels
        self.num_classes = self.null_label = num_classes
        self.conditional = class_conditioning != "none"
        self.gated = class_conditioning == "gate"
        self.policy = keras.mixed_precision.Policy(precision)
        common = {"gated": self.gated, "dtype": self.policy, "recompute": recompute}
        self.trunk = NETWORKS[kind](self.grid, base_channels, **common, **trunk_settings)
        self._make_embeddings()
        self._make_stem_and_heads()
        # Keras finds layers in lists, and not in a trunk. Last, for the order of `trainable_variables`.
        self._trunk_layers = self.trunk.layers
        self._create_weights()

    def _make_embeddings(self):
        dense, width = keras.layers.Dense, self.trunk.embedding_width
        self.embed_t_in = dense(4 * self.base_channels, activation="swish", name="embed_t_in")
        self.embed_t_out = dense(width, activation="swish", name="embed_t_out")
        self.embed_label = None
        if self.conditional:
            label_width = self.base_channels if self.gated else width
            self.embed_label = keras.layers.Embedding(self.null_label + 1, label_width, name="embed_label")

    def _make_stem_and_heads(self):
        conv, c, p = keras.layers.Conv2D, self.base_channels, self.patch_size
        values = self.image_shape[-1] * p**2
        self.to_patches = ImageToPatches(p, name="to_patches")
        self.conv_in = conv(c, 3, padding="same", name="conv_in")
        self.norm_out = GroupNorm(32, name="norm_out")
        self.conv_out = conv(values, 3, padding="same", kernel_initializer="zeros", name="conv_out")
        self.to_image = PatchesToImage(p, name="to_image")
        self.variance_t = keras.layers.Dense(c + self.trunk.width, name="variance_t")
        self.variance_conv = conv(
            c, 3, padding="same", activation="swish", dtype=self.policy, name="variance_conv"
        )
        self.variance_out = conv(values, 3, padding="same", activation="sigmoid", name="variance_out")

    def _create_weights(self):
        """Creates all variables by calling the network on symbols, without computing anything."""
        z = keras.Input(self.image_shape)
        t, labels = (keras.Input((), dtype=tf.int32) for _ in range(2))
        self(z, t, labels)

    def build(self, input_shape=None):
        """Nothing is left to build: the constructor made all weights."""
        self.built = True

    def call(
        self,
        z: tf.Tensor,
        t: tf.Tensor,
        labels: tf.Tensor | None = None,
        dropout_key: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Image -> patches -> trunk -> image (Section 3).

        Args:
          z: float32 (B, H, W, C), the latent z_t.
          t: int32 (B,).
          labels: int32 (B,) in 0..num_classes, the last being the null label; unused unless conditional.
          dropout_key: int32 (2,) makes dropout active.
        Returns:
          The prediction, float32 (B, H, W, C), and u in [0, 1], float32 (B, H, W, C).
        """
        embeddings = self._embed(t, labels)
        h = self.conv_in(self.to_patches(z))
        # Appendix C: positions are told "once, right after the first input projection".
        h = features = h + position_encoding(*self.grid, self.base_channels)
        h = self.trunk(tf.cast(h, self.policy.compute_dtype), embeddings, dropout_key)
        output = self.conv_out(self.norm_out(h, swish=True))
        return self.to_image(output), self.to_image(self._variance(features, h, embeddings[0]))

    def _embed(self, t, labels) -> list[tf.Tensor]:
        """The embeddings that the trunk is given."""
        t_embedding = self.embed_t_out(self.embed_t_in(timestep_features(t, self.base_channels)))
        if self.embed_label is None:
            return [t_embedding]
        label_embedding = self.embed_label(labels)
        return [t_embedding, label_embedding] if self.gated else [t_embedding + label_embedding]

    def _variance(self, features, decoded, t_embedding) -> tf.Tensor:
        """The patches of u, by the "small auxiliary network" of Appendix C: L_vlb trains it alone."""
        features, decoded, t_embedding = map(tf.stop_gradient, (features, decoded, t_embedding))
        h = tf.concat([tf.cast(features, decoded.dtype), decoded], axis=-1)
        shift = tf.cast(self.variance_t(tf.nn.swish(t_embedding)), h.dtype)
        return self.variance_out(self.variance_conv(h + shift[:, None, None, :]))

    def get_config(self):
        return dict(self._config)
