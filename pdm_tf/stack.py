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


@keras.utils.register_keras_serializable("pdm_tf")
class GuardedAdam(keras.optimizers.legacy.Adam):
    """Keras' legacy Adam, whose update is one fused kernel: as fast as the new one's, with less memory.

    A gradient of NaN leaves its variable and moments as they are, bit for bit. `PatchedDiffusion.train_step`
    makes the whole gradient NaN when any part of it is not finite, so a bad step is skipped as a whole;
    `iterations` counts it all the same.
    """

    def _resource_apply_dense(self, grad, var, apply_state=None):
        place = (var.device, var.dtype.base_dtype)
        rates = (apply_state or {}).get(place) or self._fallback_apply_state(*place)
        # With a rate of 0 and decays of 1 the kernel writes back what it read; a tf.cond for each variable
        # would do the same, slower.
        apply = tf.math.is_finite(tf.reshape(grad, [-1])[0])
        idle = {"lr_t": 0.0, "beta_1_t": 1.0, "beta_2_t": 1.0}
        rates = {**rates, **{name: tf.where(apply, rates[name], value) for name, value in idle.items()}}
        return super()._resource_apply_dense(tf.where(apply, grad, tf.zeros_like(grad)), var, {place: rates})


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


def create_slots(optimizer: GuardedAdam, variables: Sequence[tf.Variable]) -> None:
    """Makes an optimizer's state of some variables at once, not in its first step."""
    optimizer._create_all_weights(variables)


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
