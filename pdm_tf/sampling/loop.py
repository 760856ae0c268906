"""The loop that every sampler runs in: one `tf.while_loop`, so that all steps are one compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf


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
