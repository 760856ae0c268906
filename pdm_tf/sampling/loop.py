"""Step functions, and the sampling loop that calls them: all steps in one graph, or one step at a time.

A sampler is a plain function `(denoise, schedule, *, its own options) -> StepFunction`. The descending index,
the noise of each step and the memory of a multistep solver are the loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, take

# (z (B, H, W, C), t int32 ()) -> x_theta and u, both (B, H, W, C).
Denoise = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class StepFunction(NamedTuple):
    """One step of a sampler, from z_t to z_s, s being the respaced timestep before t.

    `step`: (level, z, noise, row, memory) -> x_theta, z_s, and the new memory. `level` is the `NoiseLevel` of
    z_t and `level.before` that of z_s, each with its t; `noise()` draws standard normal numbers shaped as
    z; `row` is the step's row of `table`; `memory` is a list of tensors shaped as z, zeros at first.
    """

    step: Callable
    table: np.ndarray | None = None  # coefficients of each step, float64 (N, K)
    memory: int = 0  # how many tensors the solver remembers
    passes: int = 1  # network passes of a step; the last step, to the data, always takes one


class SamplingLoop(NamedTuple):
    """All steps from noise to images."""

    step: Callable  # (k int32 (), z, *memory) -> (x_theta, [z, *memory]), the step k = 0..num_steps-1
    num_steps: int  # at least 1
    memory: int  # how many tensors, zeros at first, come with z

    def begin(self, z: tf.Tensor) -> list[tf.Tensor]:
        """The state [z, *memory] before the first step."""
        return [z] + [tf.zeros_like(z)] * self.memory

    def run(
        self, state: Sequence[tf.Tensor], begin: tf.Tensor | int, end: tf.Tensor | int
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Takes the steps begin <= k < end, int32 (), in one `tf.while_loop`.

        Always in a loop, of a single step too: TensorFlow optimizes what is outside of one otherwise, and
        the last bits of images would depend on how their steps are cut. Returns x_theta of the last step,
        (B, H, W, C), and the state after it.
        """

        def body(k: tf.Tensor, x: tf.Tensor, *state: tf.Tensor):
            x, after = self.step(k, *state)
            return (k + 1, tf.ensure_shape(x, state[0].shape), *after)

        _, x, *state = tf.while_loop(
            lambda k, *_: k < end,
            body,
            (tf.convert_to_tensor(begin), tf.zeros_like(state[0]), *state),
            maximum_iterations=self.num_steps,
        )
        return x, state


def sampling_loop(
    step_function: StepFunction, schedule: NoiseSchedule, noise: Callable[[tf.Tensor], tf.Tensor]
) -> SamplingLoop:
    """The steps of a sampler from the last timestep of a schedule to its first, whose x_theta is the image.

    Args:
      noise: standard normal (B, H, W, C), other numbers for each int32 (), the index of a timestep.
    """
    last = len(schedule) - 1

    def step(k: tf.Tensor, z: tf.Tensor, *memory: tf.Tensor):
        i = last - k
        row = [] if step_function.table is None else take(step_function.table, i, z.dtype)
        level = schedule.at(i, z.dtype)
        pred_x, z, memory = step_function.step(level, z, lambda: noise(i), row, memory)
        return pred_x, [z, *memory]

    return SamplingLoop(step, len(schedule), step_function.memory)
