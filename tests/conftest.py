"""Settings of the whole suite."""

import gc
import os

# Tests run on the CPU of whatever machine they find.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pdm_tf  # noqa: F401, I001 (before TensorFlow: it sets its environment)
import pytest
import tensorflow as tf

from tensorflow.python.framework import ops

from pdm_tf.stack import keras

# Two logical CPUs, so that MirroredStrategy can be tested; must precede any other use of TensorFlow.
_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True, scope="module")
def _give_memory_back():
    """Keras and TensorFlow keep every graph of a process; a module's are of no use to the next one."""
    yield
    keras.backend.clear_session()
    # Each call of a custom gradient (tf.nn.silu is one) in a graph is registered for good, with its graph.
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]
    gc.collect()


@pytest.fixture
def repository(request):
    """The project's root folder."""
    return request.config.rootpath
