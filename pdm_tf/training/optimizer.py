"""Adam with a warm-up, which leaves the weights alone when a gradient is not finite."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.stack import FusedAdam, keras


@keras.utils.register_keras_serializable("pdm_tf")
class LinearWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that grows linearly to `peak` over `warmup_steps` and stays there."""

    def __init__(self, peak: float, warmup_steps: int):
        self.peak = peak
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        """The rate of the step of index `step`, float32; the first step already learns."""
        progress = (tf.cast(step, tf.float32) + 1.0) / max(self.warmup_steps, 1)
        return self.peak * tf.minimum(progress, 1.0)

    def get_config(self):
        return {"peak": self.peak, "warmup_steps": self.warmup_steps}


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
