"""The contract of a denoiser, (z_t, t, labels) -> predicted x and u, and that of one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

from flags.config import Config, DiffusionConfig
from flags.words import options_of
from pdm_tf.diffusion.predictions import predicted_x
from pdm_tf.diffusion.schedules import SCHEDULES, NoiseSchedule
from pdm_tf.networks.patched import PatchedNetwork


class Denoiser(Protocol):
    """What samplers, losses and exports ask: one network, several experts, or the exact x* of a data set.

    Attributes:
      image_shape: (H, W, C).
      num_classes: of the data; 0 without labels.
      conditional: whether labels change the answer.
      null_label: the label that stands for none.
      t_start, t_stop: it answers for t_start <= t < t_stop, which for most is the whole process.
      schedule: the whole process.
      variables: the weights that it answers with.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    conditional: bool
    null_label: int
    t_start: int
    t_stop: int
    schedule: NoiseSchedule
    variables: Sequence[tf.Variable]

    def __call__(
        self, z: tf.Tensor, t: tf.Tensor, labels: tf.Tensor | None, dropout_key: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Predicts x, and u, the variance's place between b_tilde (1) and beta (0).

        Args:
          z: float32 (B, H, W, C).  t: int32 (B,).  labels: int32 (B,), ignored unless `conditional`.
          dropout_key: int32 (2,) makes dropout active.
        Returns:
          x_theta and u, float32 (B, H, W, C).
        """


class NetworkDenoiser:
    """The `Denoiser` of one network, whatever it predicts."""

    def __init__(
        self,
        network: PatchedNetwork,
        schedule: NoiseSchedule,
        prediction: str = "x",
        t_start: int = 0,
        t_stop: int | None = None,
    ):
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.t_start = t_start
        self.t_stop = len(schedule) if t_stop is None else t_stop
        self.image_shape = network.image_shape
        self.num_classes = network.num_classes
        self.conditional = network.conditional
        self.null_label = network.null_label
        self.variables = network.trainable_variables

    def __call__(self, z, t, labels, dropout_key=None):
        """As `Denoiser.__call__`."""
        output, u = self.network(z, t, labels, dropout_key)
        return predicted_x(self.prediction, output, z, self.schedule.at(t, z.dtype)), u


def build_network(config: Config, precision: str = "float32", recompute: bool = False) -> PatchedNetwork:
    """The config's network, with fresh weights; `precision` and `recompute` are those of `PatchedNetwork`."""
    return PatchedNetwork(
        image_shape=config.data.image_shape,
        num_classes=config.data.num_classes,
        precision=precision,
        recompute=recompute,
        **options_of(config.network, config.network.kind, shared=True),
    )


def build_denoiser(diffusion: DiffusionConfig, network: PatchedNetwork) -> NetworkDenoiser:
    """The denoiser of a network in the process that it was, or is to be, trained on."""
    d = diffusion
    schedule = SCHEDULES[d.schedule](d, max(network.image_shape[:2]))
    return NetworkDenoiser(network, schedule, d.prediction, d.t_start, d.t_stop)
