"""Settings of the whole suite."""

import os

# Tests run on the CPU of whatever machine they find.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pdm_tf  # noqa: F401, I001 (before TensorFlow: it sets its environment)
import pytest
import tensorflow as tf

from pdm_tf.stack import keras, release_graphs

# Two logical CPUs, so that MirroredStrategy can be tested; must precede any other use of TensorFlow.
_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True, scope="module")
def _give_memory_back():
    """Keras and TensorFlow keep every graph of a process; a module's are of no use to the next one."""
    yield
    keras.backend.clear_session()
    release_graphs()


@pytest.fixture
def repository(request):
    """The project's root folder."""
    return request.config.rootpath
