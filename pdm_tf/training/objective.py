"""The training objective: the paper's losses at timesteps and noise that are drawn for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.losses import simple_loss, vlb_loss
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS, timestep_drawer
from pdm_tf.randomness import draw_each


class Examples(NamedTuple):
    """Images with their timesteps and noise, for one denoiser."""

    denoiser: Denoiser
    x: tf.Tensor  # clean images, float32 (B, H, W, C)
    labels: tf.Tensor  # int32 (B,)
    t: tf.Tensor  # int32 (B,)
    eps: tf.Tensor  # Gaussian noise, float32 (B, H, W, C)
    augmentation: tf.Tensor | None = (
        None  # the images' labels of it, float32 (B, 9), if the network takes them
    )
    weight: float = 1.0  # of these images' losses in the mean
    places: np.ndarray | None = None  # of these images in the batch, int32 (B,); None: they are all of it


class Objective:
    """gamma_t ||x_theta - x||^2, whatever the network predicts (Eq. 3), plus L_vlb, which trains u alone.

    Batches are {"image": float32 (B, H, W, C), "label": int32 (B,), "index": int32 (B,)} and, for a network
    that takes it, "augmentation": float32 (B, 9). An index is that of an image in the global batch: it alone
    decides the image's timestep, noise and label dropout.

    A network of two patch sizes learns each from its own interval of t. A share `diffusion.large_share` of
    every batch is trained at large patches, and weights make the mean loss an unbiased estimate of the mean
    under the timestep distribution all the same.
    """

    def __init__(self, denoiser: Denoiser, diffusion: DiffusionConfig):
        self.denoiser = denoiser
        self.diffusion = diffusion
        side = max(denoiser.image_shape[:2])
        self._mass = T_DISTRIBUTIONS[diffusion.t_distribution](diffusion, denoiser.schedule, side)

    def losses(self, examples: Examples, dropout_key: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Losses of each image, (B,): "loss" = "simple_loss" + "vlb_loss", weighted; "mse" of x; and "t"."""
        denoiser, x, labels, t, eps, augmentation, weight, _ = examples
        level = denoiser.schedule.at(t, x.dtype)
        z = diffuse(x, eps, level)
        pred_x, u = denoiser(z, t, labels, dropout_key, augmentation)
        simple = simple_loss(x, pred_x, level, self.diffusion.loss_weighting, self.diffusion.loss_bias)
        vlb = vlb_loss(x, z, pred_x, u, level)
        return {
            "loss": weight * (simple + vlb),
            "simple_loss": weight * simple,
            "vlb_loss": weight * vlb,
            "mse": tf.reduce_mean(tf.square(pred_x - x), axis=[1, 2, 3]),
            "t": t,
        }

    def training_examples(self, key: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> list[Examples]:
        """A batch as examples, one group for each patch size; `key`: int32 (2,), of a random stream."""
        draw = partial(self._examples, key, label_dropout=self.diffusion.label_dropout)
        parts = self.denoiser.parts
        if len(parts) == 1:
            return [draw(batch, self.denoiser)]
        size = batch["image"].shape[0]
        groups = []
        for part, places, probability in zip(parts, self._places(size), self._probabilities()):
            chosen = {name: tf.gather(values, places) for name, values in batch.items()}
            weight = probability * size / len(places)
            groups.append(draw(chosen, part.denoiser)._replace(weight=weight, places=places))
        return groups

    def training_losses(self, groups: Sequence[Examples], dropout_key: tf.Tensor) -> dict[str, tf.Tensor]:
        """`losses` of all groups of a batch, in the order of the batch."""
        found = [self.losses(group, dropout_key) for group in groups]
        if len(found) == 1:
            return found[0]
        places = [group.places for group in groups]
        return {name: tf.dynamic_stitch(places, [losses[name] for losses in found]) for name in found[0]}

    def held_out_examples(self, key: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> Examples:
        """A batch as examples of the whole denoiser, without label dropout; `key`: int32 (2,)."""
        return self._examples(key, batch, self.denoiser, label_dropout=0.0)

    def _examples(
        self, key: tf.Tensor, batch: Mapping[str, tf.Tensor], denoiser: Denoiser, label_dropout: float
    ) -> Examples:
        x = batch["image"]
        draw_t: Callable = timestep_drawer(self._mass, denoiser.t_start, denoiser.t_stop)

        def draw(image_key):
            t_key, eps_key, dropout_key = tf.unstack(tf.random.experimental.stateless_split(image_key, 3))
            t = draw_t(t_key)
            eps = tf.random.stateless_normal(x.shape[1:], eps_key)
            dropped = tf.random.stateless_uniform((), dropout_key) < label_dropout
            return t, eps, dropped

        signature = (tf.TensorSpec((), tf.int32), tf.TensorSpec(x.shape[1:]), tf.TensorSpec((), tf.bool))
        t, eps, dropped = draw_each(key, batch["index"], draw, signature)
        labels = tf.where(dropped, denoiser.null_label, batch["label"])
        return Examples(denoiser, x, labels, t, eps, batch.get("augmentation"))

    def _probabilities(self) -> list[float]:
        """How often the timestep distribution draws a t of each part of the denoiser."""
        mass = np.ones(len(self.denoiser.schedule)) if self._mass is None else self._mass
        masses = [mass[part.t_start : part.t_stop].sum() for part in self.denoiser.parts]
        return [one / sum(masses) for one in masses]

    def _places(self, size: int | None) -> list[np.ndarray]:
        """Places in a batch, int32 (n,), of the images of small patches and of those of large ones.

        They are spread evenly, so that an image is of one patch size however a batch is cut, if the share of
        the pieces is a whole number of images.
        """
        if not size or size < 2:
            raise ValueError(
                "a network of two patch sizes is trained on batches of a fixed size (drop_remainder), two "
                f"images or more on each replica and for each part of grad_accum; these have {size}"
            )
        count = min(max(round(self.diffusion.large_share * size), 1), size - 1)
        large = np.diff(np.arange(size + 1) * count // size) > 0
        return [np.flatnonzero(chosen).astype(np.int32) for chosen in (~large, large)]
