"""The stack below: Keras, GroupNormalization, environment variables, private attributes of Keras.

It is TensorFlow 2.15 with tensorflow-addons, or a newer one with tf_keras (requirements.txt).

No other file names tensorflow-addons, `tf.keras`, an environment variable of TensorFlow, or a private
attribute of Keras or TFDS. Importing any part of `pdm_tf` imports this file, and before TensorFlow unless the
importer has imported that already.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib.util
import os
import pathlib
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence

# TensorFlow leaves oneDNN off on CPUs without AVX512-VNNI, where training is 1.4 times faster with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Its start-up chatter on stderr buries a program's own lines; its exceptions still arrive.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A GPU's memory is taken as it is needed, not all at once: others may use it, and what is used can be seen.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# From TensorFlow 2.16 on `tf.keras` is Keras 3, unless this asks for the package tf_keras, which is Keras 2.
if importlib.util.find_spec("tf_keras"):
    os.environ["TF_USE_LEGACY_KERAS"] = "1"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the block's output on stderr, unless the block raises.

    TensorFlow 2.21 writes there, when it is loaded, before it reads any setting. A crash in it (a CPU
    without AVX) still shows Python's own traceback.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # closed: there is nothing to keep back
        yield
        return
    crashes = not faulthandler.is_enabled()
    with os.fdopen(stderr, "wb") as shown, tempfile.TemporaryFile() as kept:
        if crashes:
            faulthandler.enable(shown)
        sys.stderr.flush()
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            shown.write(kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            if crashes:
                faulthandler.disable()


with _quiet():
    import tensorflow as tf

keras = tf.keras
if getattr(keras, "__version__", "2").startswith("3"):
    raise ImportError(
        "pdm_tf needs Keras 2, and tf.keras is Keras 3 here: install tf_keras of TensorFlow's version, and "
        "import pdm_tf before tf.keras is first used"
    )
from tensorflow.python.framework import ops  # noqa: E402 (a stand-in of Keras 3 has none)

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
        """The kernel's inputs for one variable; a subclass may change them.

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
    """Versions and settings that results may depend on: JSON values."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "onednn": "on" if onednn_is_on() else "off",
    }


def onednn_is_on() -> bool:
    """Whether TensorFlow was asked to use oneDNN on CPUs; the user's own setting counts."""
    return os.environ["TF_ENABLE_ONEDNN_OPTS"] != "0"


def cpu_has_bfloat16() -> bool:
    """Whether oneDNN has instructions for bfloat16 here: AMX or AVX512-BF16, as Linux lists them.

    With the others it computes bfloat16 by way of float32, which is slower than float32 itself.
    """
    listing = pathlib.Path("/proc/cpuinfo")
    words = listing.read_text().split() if listing.exists() else []
    return onednn_is_on() and not {"amx_bf16", "avx512_bf16"}.isdisjoint(words)


def create_slots(optimizer: FusedAdam, variables: Sequence[tf.Variable]) -> None:
    """Makes an optimizer's state of some variables at once, not in its first step."""
    optimizer._create_all_weights(variables)


def learning_rate(optimizer: FusedAdam, step: int) -> float:
    """The rate of the step of index `step`."""
    rate = optimizer.learning_rate
    return float(rate(step) if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else rate)


def release_graphs() -> None:
    """Free the graphs that only TensorFlow still holds: no gradient of a graph that exists can be taken then.

    Each call of a custom gradient in a graph (tf.nn.silu is one) is registered for good, with its graph.
    """
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]
    gc.collect()


def test_batch(model: keras.Model) -> tf.Variable:
    """The number of the batch that `test_step` works on, from 0 in each `evaluate`."""
    return model._test_counter


def image_encoding(feature) -> str | None:
    """How a `tfds.features.Image` is stored: "png", "jpeg", or None where it may be either."""
    return feature._encoding_format
