"""The paper's one idea: a diffusion network that works on patches (Section 3; Appendix B has it as code).

    z (H, W, C) -> patches (H/P, W/P, C P^2) -> trunk, on that grid -> patches -> image (H, W, C)

Patching moves pixels from space into channels, and leaves the process and the network between as they are. So
a trunk knows nothing of images, and all that does is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import tensorflow as tf

from pdm_tf.config.fields import NetworkConfig, check_network
from pdm_tf.networks.layers import ResBlock, Trunk, position_encoding, timestep_features, with_blurred
from pdm_tf.networks.unet import UNet
from pdm_tf.networks.vit import ViT
from pdm_tf.patching import ImageToPatches, PatchesToImage
from pdm_tf.stack import keras

LARGE = "large_"  # prefix of the names of layers for patches of 2P
AUGMENTATION_LABELS = 9  # numbers that describe an augmentation
REFINER_BLOCKS = 2
EMBED_AUGMENTATION = "embed_augmentation"  # the layer that takes them


NETWORKS: dict[str, type[Trunk]] = {"unet": UNet, "vit": ViT}


@keras.utils.register_keras_serializable("pdm_tf")
class PatchedNetwork(keras.Model):
    """Predicts x, eps or v, and the position u of the reverse variance between b_tilde and beta.

    With `patch_switch_t` there are two stems and two pairs of heads, for patches of P and of 2P, around one
    trunk. A call works at one patch size; which one is chosen by the caller (`pdm_tf.denoiser`).

    Args:
      image_shape: (height, width, channels); height and width divide by `patch_size`.
      num_classes: 0 for data without labels. Label `num_classes` is the null label.
      augmented: whether there is an input for the augmentation labels of images: a linear layer without bias,
        zeros at first, added to the first layer of the timestep's embedding.
      precision: "float32", or "mixed_bfloat16": the trunk in bfloat16, while the stem, both heads' last
        layers, embeddings and norm statistics stay float32.
      gradient_checkpointing: keep only the inputs of the trunk's blocks for the backward pass, which computes
        the rest again: less memory, more time, the same gradients.
      **fields: those of `NetworkConfig`: patch size, kind of trunk, widths, conditioning.
    Raises:
      UserError: the fields do not fit together, or the image.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        num_classes: int = 0,
        augmented: bool = False,
        precision: str = "float32",
        gradient_checkpointing: bool = False,
        **fields,
    ):
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        config = NetworkConfig(**fields)
        check_network(config, image_shape)
        super().__init__(name=config.kind, dtype="float32")
        self.config = config
        self.image_shape = tuple(image_shape)
        self.patch_size = config.patch_size
        self.patch_switch_t = config.patch_switch_t
        self.grid = tuple(size // config.patch_size for size in image_shape[:2])
        self.num_classes = num_classes
        self.null_label = num_classes
        self.conditional = config.class_conditioning != "none"
        self.augmented = augmented
        self.gradient_checkpointing = gradient_checkpointing
        self.policy = keras.mixed_precision.Policy(precision)
        self.trunk = NETWORKS[config.kind](
            self.grid, config, dtype=self.policy, gradient_checkpointing=gradient_checkpointing
        )
        self._make_embeddings()
        self._make_inputs_and_outputs()
        # Keras finds layers in lists, and not in a trunk. Last, for the order of `trainable_variables`.
        self._trunk_layers = self.trunk.layers
        self._create_weights()

    def _make_embeddings(self):
        dense = keras.layers.Dense
        base_channels = self.config.base_channels
        width = self.trunk.embedding_width
        self.embed_t_in = dense(4 * base_channels, activation="swish", name="embed_t_in")
        self.embed_t_out = dense(width, activation="swish", name="embed_t_out")
        self.embed_augmentation = None
        if self.augmented:
            self.embed_augmentation = dense(
                4 * base_channels, use_bias=False, kernel_initializer="zeros", name=EMBED_AUGMENTATION
            )
        self.embed_label = None
        if self.conditional:
            label_width = base_channels if self.config.class_conditioning == "gate" else width
            self.embed_label = keras.layers.Embedding(self.null_label + 1, label_width, name="embed_label")

    def _make_inputs_and_outputs(self):
        channels = self.image_shape[-1]
        ends = partial(PatchEnds, self.trunk, self.config, channels, self.policy)
        self.ends = ends(self.patch_size)
        layers = [*self.ends.layers]
        if self.patch_switch_t:
            self.large_ends = ends(2 * self.patch_size, LARGE)
            layers += self.large_ends.layers
            self.large_level = keras.layers.Embedding(
                1, self.trunk.embedding_width, embeddings_initializer="zeros", name=f"{LARGE}level"
            )
        self.refiner = None
        if self.config.refiner_channels:
            self.refiner = Refiner(self.config, channels, self.policy)
            layers += self.refiner.layers
        # Keras finds them, and a checkpoint names them, as the network's own.
        for layer in layers:
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
        """Image -> patches -> trunk -> patches -> image (Section 3).

        Args:
          z: float32 (B, H, W, C), the latent z_t.
          t: int32 (B,).
          labels: int32 (B,) in 0..num_classes, the last being the null label; unused unless conditional.
          dropout_key: int32 (2,) makes dropout active.
          large: work on patches of 2P.
          augmentation: float32 (B, 9), the augmentation labels, for a network that is `augmented`.
        Returns:
          The prediction, float32 (B, H, W, C), and u in [0, 1], float32 (B, H, W, C).
        """
        ends = self.large_ends if large else self.ends
        t_embedding, embeddings = self._embed(t, labels, augmentation, large)
        features = ends.features(z)
        h = self.trunk(tf.cast(features, self.policy.compute_dtype), embeddings, dropout_key, large)
        prediction, u = ends.images(features, h, embeddings[0], t_embedding)
        if self.refiner:
            prediction = self.refiner(prediction, z, embeddings[0])
        return prediction, u

    def _embed(self, t, labels, augmentation, large) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The timestep's embedding alone, and the trunk's: with the label's added, beside it, or both."""
        h = self.embed_t_in(timestep_features(t, self.config.base_channels))
        if augmentation is not None:
            h += self.embed_augmentation(augmentation)
        t_embedding = self.embed_t_out(h)
        embeddings = [t_embedding]
        conditioning = self.config.class_conditioning
        if conditioning != "none":
            label_embedding = self.embed_label(labels)
            if conditioning in ("embedding", "tokens"):
                embeddings[0] += label_embedding
            if conditioning in ("gate", "tokens"):
                embeddings.append(label_embedding)
        if large:
            level = self.large_level(tf.zeros_like(t))
            embeddings[0] += level
            t_embedding += level
        return t_embedding, embeddings

    def get_config(self):
        return {
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "augmented": self.augmented,
            "precision": self.policy.name,
            "gradient_checkpointing": self.gradient_checkpointing,
            **dataclasses.asdict(self.config),
        }


class PatchEnds:
    """What lies around the trunk, for patches of one size: image -> patches -> h, and h -> patches -> images.

    Attributes:
      layers: the Keras layers that hold its weights: the stem, the head and the variance head.
    """

    def __init__(
        self,
        trunk: Trunk,
        config: NetworkConfig,
        channels: int,
        policy: keras.mixed_precision.Policy,
        patch_size: int,
        prefix: str = "",
    ):
        self._config = config
        values = channels * patch_size**2
        dense = keras.layers.Dense
        conv = partial(keras.layers.Conv2D, kernel_size=trunk.kernel_size, padding="same")
        self.to_patches = ImageToPatches(patch_size, name=f"{prefix}to_patches")
        self.stem = trunk.make_stem(prefix)
        self.head = trunk.make_head(values, prefix)
        self._t = dense(config.base_channels + trunk.width, name=f"{prefix}variance_t")
        self._conv = conv(
            config.base_channels, activation="swish", dtype=policy, name=f"{prefix}variance_conv"
        )
        self._out = conv(values, activation="sigmoid", name=f"{prefix}variance_out")
        self.to_image = PatchesToImage(patch_size, name=f"{prefix}to_image")
        self.layers = [*self.stem, *self.head.layers, self._t, self._conv, self._out]

    def features(self, z: tf.Tensor) -> tf.Tensor:
        """Images (B, H, W, C) -> float32 (B, H/P, W/P, base_channels), with positions unless local."""
        h = self.to_patches(with_blurred(z, self._config.blurred_inputs))
        for layer in self.stem:
            h = layer(h)
        if self._config.local:
            return h
        # Appendix C: the encoding is added "once, right after the first input projection".
        return h + position_encoding(*h.shape[1:])

    def images(
        self, features: tf.Tensor, h: tf.Tensor, embedding: tf.Tensor, t_embedding: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The prediction and u, float32 (B, H, W, C).

        Args:
          features, h: (B, H/P, W/P, ..), before and after the trunk.
          embedding: (B, embedding_width), the trunk's: of the timestep and perhaps the label.
          t_embedding: (B, embedding_width), of the timestep alone, which the variance head sees.
        """
        prediction = self.head(h, embedding)
        return self.to_image(prediction), self.to_image(self.u(features, h, t_embedding))

    def u(self, features: tf.Tensor, h: tf.Tensor, t_embedding: tf.Tensor) -> tf.Tensor:
        """The patches of u in [0, 1], float32 (B, H/P, W/P, C P^2): L_vlb trains these layers alone.

        The "small auxiliary network" of Appendix C, the variance head: concat[features, h] +
        Dense(swish(t)), swish Conv, sigmoid Conv.
        """
        features, h, t_embedding = map(tf.stop_gradient, (features, h, t_embedding))
        h = tf.concat([tf.cast(features, h.dtype), h], axis=-1)
        shift = tf.cast(self._t(tf.nn.swish(t_embedding)), h.dtype)
        return self._out(self._conv(h + shift[:, None, None, :]))


class Refiner:
    """The prediction, and what convolutions on smaller patches, of it beside z, add to it: zeros at first.

    It sees sharp lines in z that are too much for a narrow trunk to carry through its large patches.
    """

    def __init__(self, config: NetworkConfig, channels: int, policy: keras.mixed_precision.Policy):
        width = config.refiner_channels
        size = config.refiner_patch_size
        conv = partial(keras.layers.Conv2D, kernel_size=3, padding="same")
        self._to_patches = ImageToPatches(size)
        self._to_image = PatchesToImage(size)
        self._in = conv(width, dtype=policy, name="refiner_in")
        self._blocks = [ResBlock(width, dtype=policy, name=f"refiner{b}") for b in range(REFINER_BLOCKS)]
        self._scale = keras.layers.Dense(width, kernel_initializer="zeros", name="refiner_scale")
        self._out = conv(channels * size**2, kernel_initializer="zeros", name="refiner_out")
        self.layers = [self._in, *self._blocks, self._scale, self._out]

    def __call__(self, prediction: tf.Tensor, z: tf.Tensor, embedding: tf.Tensor) -> tf.Tensor:
        """float32 (B, H, W, C) each, and the trunk's embedding (B, embedding_width) -> (B, H, W, C)."""
        h = self._in(self._to_patches(tf.concat([prediction, z], axis=-1)))
        for block in self._blocks:
            h = block(h, embedding)
        scale = 1.0 + self._scale(embedding)
        return prediction + self._to_image(self._out(tf.cast(h, tf.float32) * scale[:, None, None, :]))
