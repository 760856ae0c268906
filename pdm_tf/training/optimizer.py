"""Adam's rate, with warm-up and cooldown; a count of the steps whose gradient is not finite."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.stack import keras


@keras.utils.register_keras_serializable("pdm_tf")
class WarmupCooldown(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `peak`, then linear cooldown towards 0 over the last `cooldown_steps` of `steps`.

    Of 0 warm-up or cooldown steps there is none.
    """

    def __init__(self, peak: float, warmup_steps: int, steps: int = 0, cooldown_steps: int = 0):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.steps = steps
        self.cooldown_steps = cooldown_steps

    def __call__(self, step):
        """The rate of the step of index `step`, float32; the first and the last still learn."""
        step = tf.cast(step, tf.float32)
        share = tf.minimum((step + 1.0) / max(self.warmup_steps, 1), 1.0)
        if self.cooldown_steps:
            share = tf.minimum(share, tf.maximum(self.steps - step, 0.0) / self.cooldown_steps)
        return self.peak * share

    def get_config(self):
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "steps", "cooldown_steps")}


class BadSteps:
    """A count of the steps whose gradient is not finite."""

    def __init__(self):
        # Steps skipped in all, skipped in a row, and the step and t where that row began.
        self.variable = tf.Variable(
            [0, 0, 0, 0],
            trainable=False,
            dtype=tf.int64,
            name="bad_steps",
            # Each replica writes its own, all the same: on GPUs XLA compiles no exchange.
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def note(self, finite: tf.Tensor, losses: tf.Tensor, t: tf.Tensor, step: tf.Tensor) -> None:
        """Counts a step, in a replica: whether its gradient was finite, its images' losses and t, (B,)."""
        context = tf.distribute.get_replica_context()
        bad_t = tf.reduce_max(tf.where(tf.math.is_finite(losses), -1, t))
        replicas = context.num_replicas_in_sync
        if replicas > 1:  # the largest, by a sum, which XLA compiles
            own = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=tf.float32)
            every = context.all_reduce(tf.distribute.ReduceOp.SUM, own * tf.cast(bad_t, tf.float32))
            bad_t = tf.reduce_max(every)
        skipped, row, first_step, first_t = tf.unstack(self.variable)
        begins = tf.stack([skipped + 1, tf.constant(1, tf.int64), step, tf.cast(bad_t, tf.int64)])
        goes_on = tf.stack([skipped + 1, row + 1, first_step, first_t])
        ends = tf.stack([skipped, tf.constant(0, tf.int64), first_step, first_t])
        self.variable.assign(tf.where(finite, ends, tf.where(row > 0, goes_on, begins)))

    def check(self, limit: int) -> int:
        """The steps skipped so far; UserError if the last `limit` steps or more were."""
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
