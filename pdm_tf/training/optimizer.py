"""Adam with a warm-up and a cooldown, which leaves the weights alone when a gradient is not finite."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.stack import FusedAdam, keras


@keras.utils.register_keras_serializable("pdm_tf")
class WarmupCooldown(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that grows linearly to `peak` over the first steps, and so falls from it over the last.

    Args:
      peak: the rate between the two.
      warmup_steps: 0: none.
      steps: of the whole run.
      cooldown_steps: how many at its end the rate falls in, towards 0 after the last; 0: none.
    """

    def __init__(self, peak: float, warmup_steps: int, steps: int = 0, cooldown_steps: int = 0):
        self.peak, self.warmup_steps = peak, warmup_steps
        self.steps, self.cooldown_steps = steps, cooldown_steps

    def __call__(self, step):
        """The rate of the step of index `step`, float32; the first and the last still learn."""
        step = tf.cast(step, tf.float32)
        share = tf.minimum((step + 1.0) / max(self.warmup_steps, 1), 1.0)
        if self.cooldown_steps:
            share = tf.minimum(share, tf.maximum(self.steps - step, 0.0) / self.cooldown_steps)
        return self.peak * share

    def get_config(self):
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "steps", "cooldown_steps")}


@keras.utils.register_keras_serializable("pdm_tf")
class GuardedAdam(FusedAdam):
    """Adam that keeps a variable and its moments as they are, bit for bit, for a gradient of NaN.

    `PatchedDiffusion.train_step` makes the whole gradient NaN when any part of it is not finite, so a bad
    step is skipped as a whole; `iterations` counts it all the same.
    """

    def guard(self, gradient, rates):
        """With a rate of 0 and decays of 1 the kernel writes back what it read; a tf.cond for each variable
        would do the same, slower."""
        apply = tf.math.is_finite(tf.reshape(gradient, [-1])[0])
        one = tf.ones_like(rates["beta_1_t"])
        guarded = {
            **rates,
            "lr_t": tf.where(apply, rates["lr_t"], 0.0),
            "beta_1_t": tf.where(apply, rates["beta_1_t"], one),
            "beta_2_t": tf.where(apply, rates["beta_2_t"], one),
        }
        return tf.where(apply, gradient, tf.zeros_like(gradient)), guarded
