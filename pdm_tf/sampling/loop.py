"""The loop that every sampler runs in: one `tf.while_loop`, so that all steps are one compiled graph.

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


def descend(
    steps: Steps,
    schedule: NoiseSchedule,
    z: tf.Tensor,
    noise: Callable[[tf.Tensor], tf.Tensor],
    frames: int = 1,
) -> tf.Tensor:
    """Runs a sampler from the schedule's last kept step to its first, whose x_theta is the image.

    Args:
      z: (B, H, W, C), z_t of the last kept step; its dtype is that of the computation.
      noise: standard normal (B, H, W, C), other numbers for each int32 ().
      frames: how many x_theta to return.
    Returns:
      x_theta at `frames` evenly spaced steps, (frames, B, H, W, C). The last one is the image.
    """
    last = len(schedule) - 1

    def step(k: tf.Tensor, z: tf.Tensor, *memory: tf.Tensor):
        i = last - k
        own = [] if steps.table is None else take(steps.table, i, z.dtype)
        pred_x, z, memory = steps.step(schedule.at(i, z.dtype), z, lambda: noise(i), own, memory)
        return pred_x, [z, *memory]

    return run_steps(step, len(schedule), [z] + [tf.zeros_like(z)] * steps.memory, frames)[1]


def run_steps(
    step: Callable, count: int, state: Sequence[tf.Tensor], frames: int = 1
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Runs `step` `count` times and keeps x_theta along the way.

    Args:
      step: (k int32 (), *state) -> (x_theta shaped as state[0], the new state), for k = 0..count-1.
      count: how many steps, at least 1.
      state: tensors whose shapes stay as they are; the first is z.
      frames: how many x_theta to keep, evenly spaced, at most `count`.
    Returns:
      The last state, and x_theta at the kept steps, (frames, B, H, W, C); the last frame is the last step's.
    """
    kept = tf.TensorArray(state[0].dtype, frames, element_shape=state[0].shape, clear_after_read=False)

    def body(k: tf.Tensor, kept: tf.TensorArray, *state: tf.Tensor):
        pred_x, state = step(k, *state)
        # Each frame is overwritten until the last step of its share has written it.
        return (k + 1, kept.write(k * frames // count, pred_x), *state)

    _, kept, *state = tf.while_loop(
        lambda k, *_: k < count, body, (tf.constant(0), kept, *state), maximum_iterations=count
    )
    return state, kept.stack()
