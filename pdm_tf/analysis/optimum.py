"""x*(z_t, t), the best possible denoiser of a data set (Section 2.2, Eq. 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from pdm_tf.data import DatasetInfo, naming_shards, split_in_order
from pdm_tf.denoiser import Denoiser, Part
from pdm_tf.diffusion.schedules import NoiseSchedule

CHUNK = 256  # images of the data set at a time
LARGEST_KEPT = 2 << 30  # bytes of decoded images


@dataclasses.dataclass(eq=False)
class Optimum(Denoiser):
    """The exact denoiser of the empirical distribution of a data set. Construction reads nothing yet.

    x*(z, t) = E[x q(z | x)] / E[q(z | x)] is the mean of q(x | z): a softmax over the images of
    -||z - sqrt(alpha) x||^2 / (2 (1 - alpha)), whose largest exponent is kept apart (log-sum-exp), in
    float64, in one pass over the data. With label c only the images of class c count; with the null label
    all do. u is 0, the variance beta: x* has none.

    Args:
      images: one epoch of batches (images float32 (n, H, W, C) in [-1, 1], labels int32 (n,)), read once
        for each call.
      schedule: the whole process.
      num_classes: 0: unconditional, all images count whatever the label.
      horizontal_flip: the distribution is that of the images and their mirror images.
      in_memory: `images` are there, not decoded for each call.
    """

    images: tf.data.Dataset
    schedule: NoiseSchedule
    image_shape: Sequence[int]
    num_classes: int = 0
    horizontal_flip: bool = False
    in_memory: bool = True

    t_start = 0
    variables = ()

    def __post_init__(self):
        self.null_label = self.num_classes
        self.conditional = self.num_classes > 0
        self.t_stop = len(self.schedule)

    @property
    def parts(self) -> list[Part]:
        """One part, without patches."""
        return [Part(self.t_start, self.t_stop, 1, self)]

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        """As `Denoiser.__call__`; NaN for a class without images."""
        mean, _ = self.posterior(z, t, labels)
        return mean, tf.zeros_like(mean)

    def posterior(self, z: tf.Tensor, t: tf.Tensor, labels: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """x*, float32 (B, H, W, C), and the effective number of images it averages, float64 (B,).

        That number is 1 / sum w^2 of the images' weights w: 1 where z tells which image it was made of.
        """
        level = self.schedule.at(t, tf.float64)
        signal = tf.reshape(level.signal, [-1, 1])
        noise = tf.reshape(level.noise, [-1, 1])
        size = int(np.prod(self.image_shape))
        flat = tf.reshape(tf.cast(z, tf.float64), [-1, size])

        def add(state, batch):
            images, image_labels = batch
            if self.horizontal_flip:
                images = tf.concat([images, tf.reverse(images, [2])], axis=0)
                image_labels = tf.tile(image_labels, [2])
            x = tf.reshape(tf.cast(images, tf.float64), [-1, size])
            # The exponent without -||z||^2 / (2 (1 - alpha)), which all images share.
            products = tf.matmul(flat, x, transpose_b=True)
            exponents = signal * (products - 0.5 * signal * tf.reduce_sum(x * x, axis=1)) / noise**2
            if self.conditional and labels is not None:
                same_class = labels[:, None] == image_labels[None, :]
                counts = same_class | (labels[:, None] == self.null_label)
                exponents = tf.where(counts, exponents, -np.inf)
            largest, total, squares, weighted = state
            now = tf.maximum(largest, tf.reduce_max(exponents, axis=1, keepdims=True))
            shrunk = tf.exp(largest - now)
            weights = tf.exp(exponents - now)
            return (
                now,
                shrunk * total + tf.reduce_sum(weights, axis=1, keepdims=True),
                shrunk**2 * squares + tf.reduce_sum(weights**2, axis=1, keepdims=True),
                shrunk * weighted + tf.matmul(weights, x),
            )

        zeros = tf.zeros_like(flat[:, :1])
        state = (zeros + tf.float64.min, zeros, zeros, tf.zeros_like(flat))
        _, total, squares, weighted = self.images.reduce(state, add)
        mean = tf.reshape(weighted / total, tf.shape(z))
        return tf.cast(tf.ensure_shape(mean, z.shape), tf.float32), (total**2 / squares)[:, 0]


def optimum_of(
    info: DatasetInfo,
    schedule: NoiseSchedule,
    image_shape: Sequence[int],
    *,
    conditional: bool,
    horizontal_flip: bool,
) -> Optimum:
    """x* of the training images, kept in memory where that takes no more than 2 GiB, else read each time.

    Args:
      conditional: x* given the class, as a class-conditional model learns it; otherwise labels do nothing.
      horizontal_flip: as the model's data were mirrored in training.
    """
    batches = split_in_order(info, "train", CHUNK, image_shape)
    images = batches.map(lambda batch: (batch["image"], batch["label"]))
    in_memory = 4 * info.num_examples["train"] * int(np.prod(image_shape)) <= LARGEST_KEPT
    if in_memory:
        images = images.cache()
        with naming_shards():
            images.reduce(0, lambda read, _: read + 1)
    num_classes = info.num_classes if conditional else 0
    return Optimum(images, schedule, image_shape, num_classes, horizontal_flip, in_memory)
