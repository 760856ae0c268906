"""The stack underneath: which Keras, which GroupNormalization, oneDNN, and what they do not say in public.

No other file names tensorflow-addons, `tf.keras`, an environment variable of TensorFlow, or a private
attribute of Keras or TFDS: another stack is this file's work. Importing any part of `pdm_tf` runs it, before
TensorFlow is imported if the importer has not done so itself.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Sequence

# TensorFlow leaves oneDNN off on CPUs without AVX512-VNNI, where training is 1.4 times faster with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Its start-up chatter on stderr buries a program's own lines; its exceptions still arrive.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

keras = tf.keras

try:
    with warnings.catch_warnings():
        # Its end-of-life notice is for us, not for whoever runs this program.
        warnings.simplefilter("ignore")
        from tensorflow_addons.layers import GroupNormalization
except ImportError:  # Keras' own has the same weights, epsilon and meaning
    GroupNormalization = keras.layers.GroupNormalization


class FusedAdam(keras.optimizers.legacy.Adam):
    """Keras' legacy Adam, whose update is one fused kernel: as fast as the new one's, with less memory."""

    def guard(
        self, gradient: tf.Tensor, rates: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """What the kernel is given for one variable, for a subclass to change.

        Args:
          gradient: dense, of the variable's shape.
          rates: the kernel's scalars "lr_t", "beta_1_t", "beta_2_t" and others.
        """
        return gradient, rates

    def _resource_apply_dense(self, grad, var, apply_state=None):
        place = (var.device, var.dtype.base_dtype)
        rates = (apply_state or {}).get(place) or self._fallback_apply_state(*place)
        grad, rates = self.guard(grad, rates)
        return super()._resource_apply_dense(grad, var, {place: rates})


def versions() -> dict[str, str]:
    """What results may depend on: JSON values."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "onednn": "on" if onednn_is_on() else "off",
    }


def onednn_is_on() -> bool:
    """Whether TensorFlow was asked to use oneDNN on CPUs; the user's own setting counts."""
    return os.environ["TF_ENABLE_ONEDNN_OPTS"] != "0"


def create_slots(optimizer: FusedAdam, variables: Sequence[tf.Variable]) -> None:
    """Makes an optimizer's state of some variables at once, not in its first step."""
    optimizer._create_all_weights(variables)


def learning_rate(optimizer: FusedAdam) -> float:
    """The rate of the next step."""
    return float(optimizer._decayed_lr(tf.float32))


def test_batch(model: keras.Model) -> tf.Variable:
    """The number of the batch that `test_step` works on, from 0 in each `evaluate`."""
    return model._test_counter


def image_encoding(feature) -> str | None:
    """How a `tfds.features.Image` is stored: "png", "jpeg", or None where it may be either."""
    return feature._encoding_format
