"""The loop that every sampler runs in: a `tf.while_loop` over all steps, or over some of them at a time.

A sampler is a plain function `(denoise, schedule, *, its own options) -> Steps`. The descending index, the
noise of each step, what a multistep solver remembers, and the frames of a trajectory are the loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, take

# (z (B, H, W, C), t int32 ()) -> x_theta and u, both (B, H, W, C).
Denoise = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Steps(NamedTuple):
    """How a sampler goes from one kept step to the one before it.

    Attributes:
      step: (level, z, noise, own, memory) -> x_theta, z of the step before, and the new memory. `level` is
        the `NoiseLevel` of z, `noise()` draws standard normal numbers shaped as z, `own` is the step's row of
        `table`, and `memory` a list of tensors shaped as z, zeros at first.
      table: the sampler's own numbers for each kept step, float64 (N, K).
      memory: how many tensors it remembers.
    """

    step: Callable
    table: np.ndarray | None = None
    memory: int = 0


class Walk(NamedTuple):
    """All the moves from noise to images, ready to be taken at once or a part at a time.

    Attributes:
      move: (k int32 (), *state) -> (x_theta shaped as state[0], the new state), for k = 0..count-1.
      count: how many moves, at least 1.
      state: tensors before the first move, whose shapes stay as they are; the first is z.
    """

    move: Callable
    count: int
    state: Sequence[tf.Tensor]

    def run(self, frames: int = 1) -> tf.Tensor:
        """x_theta at `frames` evenly spaced moves, (frames, B, H, W, C); the last one is the image."""
        return self.part(0, self.count, self.begin(frames))[0]

    def begin(self, frames: int = 1) -> list[tf.Tensor]:
        """What `part` takes before the first move: room for frames, (frames, B, H, W, C), and the state."""
        z = self.state[0]
        return [tf.zeros(tf.concat([[frames], tf.shape(z)], axis=0), z.dtype), *self.state]

    def part(self, begin: tf.Tensor | int, end: tf.Tensor | int, at: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Takes the moves begin <= k < end, int32 (), in one `tf.while_loop`.

        Args:
          at: what `begin` returned, or `part` for the moves before these.
        Returns:
          The same, after these moves.
        """
        frames, *state = at
        shown = frames.shape[0]
        kept = tf.TensorArray(state[0].dtype, shown, element_shape=state[0].shape, clear_after_read=False)

        def body(k: tf.Tensor, kept: tf.TensorArray, *state: tf.Tensor):
            pred_x, state = self.move(k, *state)
            # Each frame is overwritten until the last move of its share has written it.
            return (k + 1, kept.write(k * shown // self.count, pred_x), *state)

        _, kept, *state = tf.while_loop(
            lambda k, *_: k < end, body, (tf.convert_to_tensor(begin), kept.unstack(frames), *state),
            maximum_iterations=self.count,
        )  # fmt: skip
        return [kept.stack(), *state]


def descend(
    steps: Steps, schedule: NoiseSchedule, z: tf.Tensor, noise: Callable[[tf.Tensor], tf.Tensor]
) -> Walk:
    """A sampler's way from the schedule's last kept step to its first, whose x_theta is the image.

    Args:
      z: (B, H, W, C), z_t of the last kept step; its dtype is that of the computation.
      noise: standard normal (B, H, W, C), other numbers for each int32 ().
    """
    last = len(schedule) - 1

    def move(k: tf.Tensor, z: tf.Tensor, *memory: tf.Tensor):
        i = last - k
        own = [] if steps.table is None else take(steps.table, i, z.dtype)
        pred_x, z, memory = steps.step(schedule.at(i, z.dtype), z, lambda: noise(i), own, memory)
        return pred_x, [z, *memory]

    return Walk(move, len(schedule), [z] + [tf.zeros_like(z)] * steps.memory)
