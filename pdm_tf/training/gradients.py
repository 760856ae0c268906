"""Gradients of a batch, whole or in parts, and what is known of steps whose gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.training.objective import LOSSES, Examples


def mean_gradients(
    losses_of: Callable[[Examples, tf.Tensor], dict[str, tf.Tensor]],
    variables: Sequence[tf.Variable],
    batch: Examples,
    dropout_key: tf.Tensor,
    parts: int = 1,
) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """Gradients of the mean loss over a batch, dense, and the losses, each (B,).

    With several `parts` the batch is worked off in that many, one after another, so that the memory of only
    one part's activations is needed.
    """

    def part_of(part: Examples, key: tf.Tensor):
        with tf.GradientTape() as tape:
            losses = losses_of(part, key)
            mean_loss = tf.reduce_mean(losses["loss"])
        return [tf.convert_to_tensor(g) for g in tape.gradient(mean_loss, variables)], losses

    if parts == 1:
        return part_of(batch, dropout_key)
    whole = batch.each(lambda tensor: tf.reshape(tensor, [parts, -1, *tensor.shape[1:]]))

    def add_part(k, total, stacked):
        key = tf.random.experimental.stateless_fold_in(dropout_key, k)
        gradients, losses = part_of(whole.each(lambda tensor: tensor[k]), key)
        total = [sum_ + g / parts for sum_, g in zip(total, gradients)]
        return k + 1, total, stacked.write(k, tf.stack([losses[n] for n in LOSSES], axis=1))

    start = [tf.zeros(v.shape) for v in variables]
    stacked = tf.TensorArray(tf.float32, parts, element_shape=(whole.x.shape[1], len(LOSSES)))
    _, gradients, stacked = tf.while_loop(
        lambda k, *_: k < parts, add_part, [0, start, stacked],
        parallel_iterations=1, maximum_iterations=parts,
    )  # fmt: skip
    losses = tf.reshape(stacked.stack(), [-1, len(LOSSES)])
    return gradients, dict(zip(LOSSES, tf.unstack(losses, axis=1)))


class BadSteps:
    """Counts steps whose gradient is not finite, and remembers where a row of them began.

    Attributes:
      variable: int64 (4,): steps skipped in all, skipped in a row, and the step and t where that row began.
    """

    def __init__(self):
        self.variable = tf.Variable(
            [0, 0, 0, 0], trainable=False, dtype=tf.int64, name="bad_steps",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )  # fmt: skip

    def note(self, finite: tf.Tensor, losses: tf.Tensor, t: tf.Tensor, step: tf.Tensor) -> None:
        """Takes one step into account, in a replica: whether its gradient was finite, losses and t (B,)."""
        context = tf.distribute.get_replica_context()
        bad_t = tf.reduce_max(tf.where(tf.math.is_finite(losses), -1, t))
        if context.num_replicas_in_sync > 1:
            bad_t = tf.reduce_max(context.all_gather(tf.reshape(bad_t, [1]), axis=0))
        skipped, row, first_step, first_t = tf.unstack(self.variable)
        begins = tf.stack([skipped + 1, tf.constant(1, tf.int64), step, tf.cast(bad_t, tf.int64)])
        goes_on = tf.stack([skipped + 1, row + 1, first_step, first_t])
        ends = tf.stack([skipped, tf.constant(0, tf.int64), first_step, first_t])
        self.variable.assign(tf.where(finite, ends, tf.where(row > 0, goes_on, begins)))

    def check(self, limit: int) -> int:
        """The steps skipped so far.

        Raises:
          UserError: the last `limit` steps or more were.
        """
        skipped, row, first, first_t = self.variable.numpy().tolist()
        if row >= limit:
            level = f"t = {first_t}" if first_t >= 0 else "a finite loss"
            raise UserError(
                f"{row} steps in a row had a gradient that is not finite, from step {first + 1:,} on, "
                f"beginning at {level}; they were skipped, and the weights are those of the last checkpoint "
                "or newer: start from them with training.warm_start in a new run folder, at a lower "
                "optimizer.learning_rate"
            )
        return skipped
