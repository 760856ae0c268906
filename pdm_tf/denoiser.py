"""The contract of a denoiser, (z_t, t, labels) -> predicted x and u, and that of one network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import tensorflow as tf

from pdm_tf.config.fields import Config, DiffusionConfig
from pdm_tf.config.words import options_of
from pdm_tf.diffusion.predictions import predicted_x
from pdm_tf.diffusion.schedules import SCHEDULES, NoiseSchedule
from pdm_tf.networks.patched import PatchedNetwork


class Denoiser(Protocol):
    """What samplers, losses and exports ask: one network, several experts, or the exact x* of a data set.

    Those that learn are told of changes to images, too: see `NetworkDenoiser`.

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
    """The `Denoiser` of one network, whatever it predicts, at one of its patch sizes."""

    def __init__(
        self,
        network: PatchedNetwork,
        schedule: NoiseSchedule,
        prediction: str = "x",
        t_start: int = 0,
        t_stop: int | None = None,
        large: bool = False,
    ):
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.large = large
        self.t_start = t_start
        self.t_stop = len(schedule) if t_stop is None else t_stop
        self.image_shape = network.image_shape
        self.num_classes = network.num_classes
        self.conditional = network.conditional
        self.null_label = network.null_label
        self.variables = network.trainable_variables

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        """As `Denoiser.__call__`; `augmentation` as `PatchedNetwork.call`."""
        output, u = self.network(z, t, labels, dropout_key, self.large, augmentation)
        return predicted_x(self.prediction, output, z, self.schedule.at(t, z.dtype)), u


class Experts:
    """Denoisers of neighbouring intervals of t, used as one `Denoiser` ("model splitting").

    They are networks of their own, or one network at its two patch sizes.

    An expert runs if any t of the batch lies in its interval, then on the whole batch, and each image takes
    the answer of its own expert. So a batch at one t, as in sampling, costs one network, and a batch of
    mixed t costs every network whose interval occurs in it. All shapes are static, as XLA needs.
    """

    def __init__(self, experts: Sequence[Denoiser]):
        """`experts` from the least noise to the most, each beginning where the one before it stops.

        Raises:
          ValueError: they leave a gap, or overlap.
        """
        if any(one.t_stop != following.t_start for one, following in zip(experts, experts[1:])):
            raise ValueError(f"intervals that do not meet: {[(e.t_start, e.t_stop) for e in experts]}")
        first = experts[0]
        self.experts = list(experts)
        self.t_start, self.t_stop = first.t_start, experts[-1].t_stop
        self.schedule = first.schedule
        self.image_shape = first.image_shape
        self.num_classes = first.num_classes
        self.conditional = first.conditional
        self.null_label = first.null_label
        # Two patch sizes of one network have the same.
        own = {id(variable): variable for expert in experts for variable in expert.variables}
        self.variables = list(own.values())

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        """As `Denoiser.__call__`; `augmentation` as `PatchedNetwork.call`."""
        told = {} if augmentation is None else {"augmentation": augmentation}
        pred_x, u = tf.zeros_like(z), tf.zeros_like(z)
        for expert in self.experts:
            own = (t >= expert.t_start) & (t < expert.t_stop)
            answer = tf.cond(
                tf.reduce_any(own),
                lambda expert=expert: expert(z, t, labels, dropout_key, **told),
                lambda before=(pred_x, u): before,
            )
            own = own[:, None, None, None]
            pred_x, u = tf.where(own, answer[0], pred_x), tf.where(own, answer[1], u)
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


def build_denoiser(diffusion: DiffusionConfig, network: PatchedNetwork) -> NetworkDenoiser | Experts:
    """The denoiser of a network in the process that it was, or is to be, trained on.

    A network of two patch sizes is two experts with one trunk.
    """
    d = diffusion
    schedule = SCHEDULES[d.schedule](d, max(network.image_shape[:2]))
    denoiser = partial(NetworkDenoiser, network, schedule, d.prediction)
    boundary = network.patch_switch_t
    if not boundary:
        return denoiser(d.t_start, d.t_stop)
    return Experts([denoiser(d.t_start, boundary), denoiser(boundary, d.t_stop, large=True)])
