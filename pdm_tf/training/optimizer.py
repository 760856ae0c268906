"""Adam with a warm-up, which leaves the weights alone when a gradient is not finite."""

from __future__ import annotations

import tensorflow as tf


@tf.keras.utils.register_keras_serializable("pdm_tf")
class LinearWarmup(tf.keras.optimizers.schedules.LearningRateSchedule):
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


@tf.keras.utils.register_keras_serializable("pdm_tf")
class GuardedAdam(tf.keras.optimizers.legacy.Adam):
    """Adam that keeps a variable and its moments as they are, bit for bit, for a gradient of NaN.

    `PatchedDiffusion.train_step` makes the whole gradient NaN when any part of it is not finite, so a bad
    step is skipped as a whole; `iterations` counts it all the same. The class is Keras' legacy Adam because
    its update is one fused kernel: as fast as the new one's, and with less memory.
    """

    def _resource_apply_dense(self, grad, var, apply_state=None):
        place = (var.device, var.dtype.base_dtype)
        state = (apply_state or {}).get(place) or self._fallback_apply_state(*place)
        apply = tf.math.is_finite(tf.reshape(grad, [-1])[0])
        # With a rate of 0 and decays of 1 the kernel writes back what it read; a tf.cond for each variable
        # would do the same, slower.
        one = tf.ones_like(state["beta_1_t"])
        guarded = {
            **state,
            "lr_t": tf.where(apply, state["lr_t"], 0.0),
            "beta_1_t": tf.where(apply, state["beta_1_t"], one),
            "beta_2_t": tf.where(apply, state["beta_2_t"], one),
        }
        gradient = tf.where(apply, grad, tf.zeros_like(grad))
        return super()._resource_apply_dense(gradient, var, {place: guarded})
