"""The paper's one idea: a diffusion network that works on patches (Section 3; Appendix B has it as code).

    z (H, W, C) -> patches (H/P, W/P, C P^2) -> trunk, on that grid -> patches -> image (H, W, C)

Patching moves pixels from space into channels, and leaves the process and the network between as they are. So
a trunk knows nothing of images, and all that does know of them is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import tensorflow as tf

from pdm_tf.networks.layers import position_encoding, timestep_features, with_blurred
from pdm_tf.networks.unet import UNet
from pdm_tf.networks.vit import ViT
from pdm_tf.patching import ImageToPatches, PatchesToImage, grid_of
from pdm_tf.stack import keras

LARGE = "large_"  # begins the names of what is around the trunk for patches of 2P
AUGMENTATION_LABELS = 9  # numbers that say how a training image was changed
EMBED_AUGMENTATION = "embed_augmentation"  # the layer for them


class Head(Protocol):
    """What turns a trunk's h into patches: zeros, in a new network.

    Attributes:
      layers: the Keras layers that hold its weights.
    """

    layers: Sequence[keras.layers.Layer]

    def __call__(self, h: tf.Tensor, t_embedding: tf.Tensor) -> tf.Tensor:
        """h (B, h, w, width) in any dtype, and the timestep's embedding -> float32 (B, h, w, values)."""


class Trunk(Protocol):
    """A network on a grid of (h, w) places, which also says how patches come in and go out of it.

    A kind of trunk is called as `kind(grid, base_channels, class_conditioning=, dtype=,
    gradient_checkpointing=, **its_settings)` and refuses, with a `UserError`, what it cannot work with. Its
    weights are made by its first call.

    Attributes:
      layers: the Keras layers that hold its weights, in the order of the network's variables.
      width: channels of the h that it returns.
      embedding_width: channels of the timestep embedding that it wants.
      kernel_size: how many places a layer before or after it sees along each axis.

    What it makes for large patches has names that begin with `prefix`.
    """

    layers: Sequence[keras.layers.Layer]
    width: int
    embedding_width: int
    kernel_size: int

    def make_stem(self, prefix: str = "") -> Sequence[keras.layers.Layer]:
        """Layers that, one after another, project patches of any size to `base_channels`."""

    def make_head(self, values: int, prefix: str = "") -> Head:
        """The way from its h to patches of `values` numbers."""

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
          embeddings: the timestep's, float32 (B, embedding_width), and where labels come as a gate or as
            tokens the label's, float32 (B, base_channels) or (B, embedding_width).
          dropout_key: int32 (2,) makes dropout active.
          large: h is of patches twice as large, so its grid is half the trunk's along each axis.
        Returns:
          (B, h, w, width) in the compute dtype.
        """

    def describe(self) -> list[str]:
        """Its shapes, in lines for a reader."""


NETWORKS: dict[str, Callable[..., Trunk]] = {"unet": UNet, "vit": ViT}


@keras.utils.register_keras_serializable("pdm_tf")
class PatchedNetwork(keras.Model):
    """Predicts x, eps or v, and the position u of the reverse variance between b_tilde and beta.

    Args:
      image_shape: (height, width, channels); height and width divide by `patch_size`.
      patch_size: P; the trunk works on a grid of (height / P) x (width / P) patches.
      patch_switch_t: from this t on patches are of 2P, with a stem and heads of their own around the same
        trunk; 0: nowhere. Whoever calls says by `large` which are meant: a call is of one size.
      base_channels: the width that the stem gives a patch.
      kind: the trunk's, one of `NETWORKS`; also the first part of all variables' names.
      num_classes: 0 for data without labels.
      class_conditioning: "none", "gate" (a sigmoid gate on each residual branch, the paper's ImageNet
        networks), "embedding" (added to the timestep embedding) or "tokens" (added to it, and as tokens among
        the patches). Label `num_classes` is the null label.
      blurred_inputs: the network also sees its input blurred by Gaussians of these widths, in pixels.
      augmented: it can be told how a training image was changed, which a linear layer without bias, zeros at
        first, adds to the first layer of the timestep's: not told, it takes the image for unchanged.
      precision: "float32", or "mixed_bfloat16": the trunk in bfloat16, while the first convolution, both
        output heads, embeddings and norm statistics stay float32.
      gradient_checkpointing: keep only the inputs of the trunk's blocks for the backward pass, which
        computes the rest again: less memory, more time, the same gradients.
      **trunk_settings: of that kind alone.
    Raises:
      UserError: the image or the grid does not divide.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        patch_size: int,
        patch_switch_t: int = 0,
        base_channels: int,
        kind: str = "unet",
        num_classes: int = 0,
        class_conditioning: str = "none",
        blurred_inputs: Sequence[float] = (),
        augmented: bool = False,
        precision: str = "float32",
        gradient_checkpointing: bool = False,
        **trunk_settings,
    ):
        own = {k: v for k, v in locals().items() if k not in ("self", "__class__", "trunk_settings")}
        super().__init__(name=kind, dtype="float32")
        self._config = {**own, **trunk_settings}
        self.image_shape = tuple(image_shape)
        self.patch_size = patch_size
        self.patch_switch_t = patch_switch_t
        self.grid = grid_of(image_shape, patch_size)
        self.base_channels = base_channels
        self.num_classes = self.null_label = num_classes
        self.class_conditioning = class_conditioning
        self.conditional = class_conditioning != "none"
        self.blurred_inputs = tuple(blurred_inputs)
        self.augmented = augmented
        self.policy = keras.mixed_precision.Policy(precision)
        common = {
            "class_conditioning": class_conditioning,
            "dtype": self.policy,
            "gradient_checkpointing": gradient_checkpointing,
        }
        self.trunk = NETWORKS[kind](self.grid, base_channels, **common, **trunk_settings)
        self._make_embeddings()
        self._make_sides()
        # Keras finds layers in lists, and not in a trunk. Last, for the order of `trainable_variables`.
        self._trunk_layers = self.trunk.layers
        self._create_weights()

    def _make_embeddings(self):
        dense, width = keras.layers.Dense, self.trunk.embedding_width
        self.embed_t_in = dense(4 * self.base_channels, activation="swish", name="embed_t_in")
        self.embed_t_out = dense(width, activation="swish", name="embed_t_out")
        self.embed_augmentation = None
        if self.augmented:
            self.embed_augmentation = dense(
                4 * self.base_channels, use_bias=False, kernel_initializer="zeros", name=EMBED_AUGMENTATION
            )
        self.embed_label = None
        if self.conditional:
            label_width = self.base_channels if self.class_conditioning == "gate" else width
            self.embed_label = keras.layers.Embedding(self.null_label + 1, label_width, name="embed_label")

    def _make_sides(self):
        p, large = self.patch_size, None
        side = partial(Side, self.trunk, self.base_channels, self.image_shape[-1], self.policy)
        self.small = small = side(p)
        if self.patch_switch_t:
            grid_of(self.image_shape, 2 * p)
            large = side(2 * p, LARGE)
            self.large_level = keras.layers.Embedding(
                1, self.trunk.embedding_width, embeddings_initializer="zeros", name=f"{LARGE}level"
            )
        self.large = large
        # Keras finds them, and a checkpoint names them, as the network's own.
        for layer in (*small.layers, *(large.layers if large else ())):
            setattr(self, layer.name, layer)

    def _create_weights(self):
        """Creates all variables by calling the network on symbols, without computing anything."""
        z = keras.Input(self.image_shape)
        t, labels = (keras.Input((), dtype=tf.int32) for _ in range(2))
        augmentation = keras.Input((AUGMENTATION_LABELS,)) if self.augmented else None
        self(z, t, labels, augmentation=augmentation)
        if self.patch_switch_t:
            self(z, t, labels, large=True)

    def build(self, input_shape=None):
        """Nothing is left to build: the constructor made all weights."""
        self.built = True

    def call(
        self,
        z: tf.Tensor,
        t: tf.Tensor,
        labels: tf.Tensor | None = None,
        dropout_key: tf.Tensor | None = None,
        large: bool = False,
        augmentation: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Image -> patches -> trunk -> image (Section 3).

        Args:
          z: float32 (B, H, W, C), the latent z_t.
          t: int32 (B,).
          labels: int32 (B,) in 0..num_classes, the last being the null label; unused unless conditional.
          dropout_key: int32 (2,) makes dropout active.
          large: in patches of 2P, of a network that has them; t does not choose.
          augmentation: float32 (B, 9), of a network that can be told (`training.augmentation`).
        Returns:
          The prediction, float32 (B, H, W, C), and u in [0, 1], float32 (B, H, W, C).
        """
        embeddings, side = self._embed(t, labels, augmentation), self.large if large else self.small
        if large:
            embeddings[0] += self.large_level(tf.zeros_like(t))
        h = side.to_patches(with_blurred(z, self.blurred_inputs))
        for layer in side.stem:
            h = layer(h)
        # Appendix C: positions are told "once, right after the first input projection".
        h = features = h + position_encoding(*h.shape[1:3], self.base_channels)
        h = self.trunk(tf.cast(h, self.policy.compute_dtype), embeddings, dropout_key, large)
        output, u = side.head(h, embeddings[0]), side.variance_head(features, h, embeddings[0])
        return side.to_image(output), side.to_image(u)

    def _embed(self, t, labels, augmentation) -> list[tf.Tensor]:
        """The embeddings that the trunk is given."""
        h = self.embed_t_in(timestep_features(t, self.base_channels))
        if augmentation is not None:
            h += self.embed_augmentation(augmentation)
        t_embedding = self.embed_t_out(h)
        if self.embed_label is None:
            return [t_embedding]
        label_embedding = self.embed_label(labels)
        if self.class_conditioning == "gate":
            return [t_embedding, label_embedding]
        t_embedding += label_embedding
        return [t_embedding, label_embedding] if self.class_conditioning == "tokens" else [t_embedding]

    def get_config(self):
        return dict(self._config)


class Side:
    """What is around a trunk for patches of side `patch_size`: image -> patches -> h, and back.

    Attributes:
      layers: the Keras layers that hold its weights, whose names begin with `prefix`.
    """

    def __init__(
        self,
        trunk: Trunk,
        base_channels: int,
        channels: int,
        policy: keras.mixed_precision.Policy,
        patch_size: int,
        prefix: str = "",
    ):
        values = channels * patch_size**2
        self.to_patches = ImageToPatches(patch_size, name=f"{prefix}to_patches")
        self.stem, self.head = trunk.make_stem(prefix), trunk.make_head(values, prefix)
        self.variance_head = VarianceHead(base_channels, trunk, values, policy, prefix)
        self.to_image = PatchesToImage(patch_size, name=f"{prefix}to_image")
        self.layers = [*self.stem, *self.head.layers, *self.variance_head.layers]


class VarianceHead:
    """The patches of u, by the "small auxiliary network" of Appendix C: L_vlb trains it alone.

    Concat[features before the trunk, after it] + Dense(swish(t)), swish Conv, sigmoid Conv.
    """

    def __init__(
        self,
        base_channels: int,
        trunk: Trunk,
        values: int,
        policy: keras.mixed_precision.Policy,
        prefix: str = "",
    ):
        conv = partial(keras.layers.Conv2D, kernel_size=trunk.kernel_size, padding="same")
        self._t = keras.layers.Dense(base_channels + trunk.width, name=f"{prefix}variance_t")
        self._conv = conv(base_channels, activation="swish", dtype=policy, name=f"{prefix}variance_conv")
        self._out = conv(values, activation="sigmoid", name=f"{prefix}variance_out")
        self.layers = [self._t, self._conv, self._out]

    def __call__(self, features: tf.Tensor, decoded: tf.Tensor, t_embedding: tf.Tensor) -> tf.Tensor:
        """Two (B, h, w, ..) and the timestep's embedding -> u in [0, 1], float32 (B, h, w, values)."""
        features, decoded, t_embedding = map(tf.stop_gradient, (features, decoded, t_embedding))
        h = tf.concat([tf.cast(features, decoded.dtype), decoded], axis=-1)
        shift = tf.cast(self._t(tf.nn.swish(t_embedding)), h.dtype)
        return self._out(self._conv(h + shift[:, None, None, :]))
