"""The contract of a denoiser, (z_t, t, labels) -> predicted x and u, and that of networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from pdm_tf.config.fields import Config, DiffusionConfig
from pdm_tf.config.words import options_of
from pdm_tf.diffusion.predictions import predicted_x
from pdm_tf.diffusion.schedules import SCHEDULES, NoiseSchedule, take
from pdm_tf.networks.patched import PatchedNetwork


class Denoiser:
    """The function of samplers, losses, likelihood and exports: networks, or the exact x* of a data set."""

    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int  # of the data; 0 without labels
    conditional: bool  # whether labels change the result
    null_label: int  # the label for "no class"
    t_start: int  # it is defined for t_start <= t < t_stop, mostly the whole process
    t_stop: int
    schedule: NoiseSchedule  # the whole process
    variables: Sequence[tf.Variable]  # all its weights
    # A weaker one, which guidance leads away from (Karras et al., 2024); None: this one without a class.
    guide: Denoiser | None = None
    parts: Sequence[Part]  # where one network works at one patch size, ascending in t, without gaps

    def __init__(self, like: Denoiser | PatchedNetwork, schedule: NoiseSchedule, t_start: int, t_stop: int):
        """`like` is of the same images and classes."""
        self.image_shape = like.image_shape
        self.num_classes = like.num_classes
        self.conditional = like.conditional
        self.null_label = like.null_label
        self.schedule = schedule
        self.t_start = t_start
        self.t_stop = t_stop

    def __call__(
        self,
        z: tf.Tensor,
        t: tf.Tensor,
        labels: tf.Tensor | None,
        dropout_key: tf.Tensor | None = None,
        augmentation: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Predicts x, and u, the reverse variance's position between b_tilde (1) and beta (0).

        Args:
          z: float32 (B, H, W, C).
          t: int32 (B,).
          labels: int32 (B,), ignored unless `conditional`.
          dropout_key: int32 (2,) makes dropout active.
          augmentation: float32 (B, 9), the augmentation labels of z's images (`training.augmentation`), for
            networks that have such an input; None: the images are not augmented.
        Returns:
          x_theta and u, float32 (B, H, W, C).
        """


class Part(NamedTuple):
    """A denoiser's interval t_start <= t < t_stop, on which one network works at one patch size."""

    t_start: int
    t_stop: int
    patch_size: int  # the side P of a patch; 1 for a denoiser that knows no patches
    denoiser: Denoiser  # defined on this interval alone

    @property
    def title(self) -> str:
        """Short text for tables and pictures."""
        return f"P={self.patch_size}, t {self.t_start}..{self.t_stop - 1}"


class NetworkDenoiser(Denoiser):
    """The denoiser of one network at one of its patch sizes, whatever the network predicts."""

    def __init__(
        self,
        network: PatchedNetwork,
        schedule: NoiseSchedule,
        prediction: str = "x",
        t_start: int = 0,
        t_stop: int | None = None,
        large: bool = False,
    ):
        super().__init__(network, schedule, t_start, len(schedule) if t_stop is None else t_stop)
        self.network = network
        self.prediction = prediction
        self.large = large
        self.variables = network.trainable_variables

    @property
    def parts(self) -> list[Part]:
        patch_size = self.network.patch_size * (2 if self.large else 1)
        return [Part(self.t_start, self.t_stop, patch_size, self)]

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        output, u = self.network(z, t, labels, dropout_key, self.large, augmentation)
        return predicted_x(self.prediction, output, z, self.schedule.at(t, z.dtype)), u


class MagnifiedDenoiser(Denoiser):
    """A denoiser of small images, for large ones: it sees z averaged down, and its x_theta is magnified.

    Of schedules shifted by the resolution (`diffusion.schedules.shifted`), the mean of factor^2 pixels of z_t
    is z_t of the averaged image, but for its scale. The magnified x_theta is smooth, and its averages are
    x_theta. So one expert for little noise, for the details, makes a model of small images one of large ones.
    """

    def __init__(self, denoiser: Denoiser, factor: int, schedule: NoiseSchedule):
        """`factor` of a side's pixels; `schedule`: the large images' whole process."""
        super().__init__(denoiser, schedule, denoiser.t_start, denoiser.t_stop)
        self.denoiser = denoiser
        self.factor = factor
        height, width, channels = denoiser.image_shape
        self.image_shape = (factor * height, factor * width, channels)
        self.variables = denoiser.variables
        self._scales = np.sqrt(denoiser.schedule.alpha / schedule.alpha)[:, None]
        self._rows, self._columns = _magnification(height, factor), _magnification(width, factor)

    @property
    def parts(self) -> list[Part]:
        factor = self.factor
        return [
            Part(start, stop, factor * patch_size, MagnifiedDenoiser(part, factor, self.schedule))
            for start, stop, patch_size, part in self.denoiser.parts
        ]

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        (scale,) = take(self._scales, t, z.dtype)
        averages = tf.nn.avg_pool2d(z, self.factor, self.factor, "VALID")
        pred_x, u = self.denoiser(scale * averages, t, labels, dropout_key, augmentation)
        pred_x = tf.einsum("Hh,bhwc,Ww->bHWc", self._rows, pred_x, self._columns)
        return pred_x, tf.repeat(tf.repeat(u, self.factor, axis=1), self.factor, axis=2)


def _magnification(size: int, factor: int) -> np.ndarray:
    """float32 (factor size, size): cubic convolution of what makes the results' averages the values."""
    identity = Image.fromarray(np.eye(size, dtype=np.float32))
    cubic = np.asarray(identity.resize((size, factor * size), Image.Resampling.BICUBIC), np.float64)
    averages = cubic.reshape(size, factor, size).mean(axis=1)
    return (cubic @ np.linalg.inv(averages)).astype(np.float32)


class SplitDenoiser(Denoiser):
    """Denoisers of neighbouring intervals of t as one denoiser ("model splitting", Section 4.1).

    They are networks with weights of their own (experts), or one network at its two patch sizes.

    A part runs if any t of the batch lies in its interval, then on the whole batch, and each image takes the
    result of its own part. So a batch at one t, as in sampling, costs one network, and a batch of mixed t
    costs every network whose interval occurs in it. All shapes are static, as XLA needs.
    """

    def __init__(self, denoisers: Sequence[Denoiser]):
        """`denoisers` from the least noise to the most, each beginning where the one before it stops."""
        first = denoisers[0]
        super().__init__(first, first.schedule, first.t_start, denoisers[-1].t_stop)
        self.parts = [part for denoiser in denoisers for part in denoiser.parts]
        # Two patch sizes of one network have the same variables.
        variables = {id(variable): variable for one in denoisers for variable in one.variables}
        self.variables = list(variables.values())

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        pred_x, u = tf.zeros_like(z), tf.zeros_like(z)
        for part in self.parts:
            inside = (t >= part.t_start) & (t < part.t_stop)
            part_x, part_u = tf.cond(
                tf.reduce_any(inside),
                lambda part=part: part.denoiser(z, t, labels, dropout_key, augmentation),
                lambda pred_x=pred_x, u=u: (pred_x, u),
            )
            inside = inside[:, None, None, None]
            pred_x = tf.where(inside, part_x, pred_x)
            u = tf.where(inside, part_u, u)
        return pred_x, u


def build_network(
    config: Config, precision: str = "float32", gradient_checkpointing: bool = False
) -> PatchedNetwork:
    """The config's network, with fresh weights; the other arguments are those of `PatchedNetwork`."""
    return PatchedNetwork(
        image_shape=config.data.image_shape,
        num_classes=config.data.num_classes,
        augmented=config.data.augmentation > 0,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        **options_of(config.network, config.network.kind, shared=True),
    )


def build_denoiser(diffusion: DiffusionConfig, network: PatchedNetwork) -> NetworkDenoiser | SplitDenoiser:
    """The denoiser of a network in the process that it was, or is to be, trained on.

    A network of two patch sizes is split at `patch_switch_t`.
    """
    schedule = SCHEDULES[diffusion.schedule](diffusion, max(network.image_shape[:2]))
    denoiser = partial(NetworkDenoiser, network, schedule, diffusion.prediction)
    switch_t = network.patch_switch_t
    if not switch_t:
        return denoiser(diffusion.t_start, diffusion.t_stop)
    return SplitDenoiser(
        [denoiser(diffusion.t_start, switch_t), denoiser(switch_t, diffusion.t_stop, large=True)]
    )
