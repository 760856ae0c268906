"""The one fake denoiser of the suite: a function of (z, t, labels) with the attributes of a `Denoiser`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from pdm_tf.denoiser import Part
from pdm_tf.diffusion.schedules import NoiseSchedule, linear


class FakeDenoiser:
    """A `Denoiser` without a network.

    Attributes:
      rows: how many images each call from Python had; in a graph, each tracing.
    """

    guide = None

    def __init__(
        self,
        answer: Callable,
        schedule: NoiseSchedule | None = None,
        image_shape: Sequence[int] = (16, 16, 3),
        num_classes: int = 3,
        t_start: int = 0,
        t_stop: int | None = None,
        variables: Sequence[tf.Variable] = (),
    ):
        """`answer` is (z, t, labels) -> (x, u), or -> x, whose u is then 0."""
        self.answer, self.rows = answer, []
        self.schedule = linear() if schedule is None else schedule
        self.image_shape = tuple(image_shape)
        self.num_classes = self.null_label = num_classes
        self.conditional = num_classes > 0
        self.t_start = t_start
        self.t_stop = len(self.schedule) if t_stop is None else t_stop
        self.variables = variables

    @property
    def parts(self) -> list[Part]:
        return [Part(self.t_start, self.t_stop, 1, self)]

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        """As `Denoiser.__call__`."""
        self.rows.append(z.shape[0])
        answer = self.answer(z, t, labels)
        return answer if isinstance(answer, tuple) else (answer, tf.zeros_like(answer))
