"""Samples shared among the replicas of a strategy. In a process of its own: devices are split at start-up."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.errors import UserError
from pdm_tf.models import Model
from pdm_tf.images import to_uint8
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.output import write_images
from pdm_tf.sampling.sampler import Sampler
from tests.tiny_runs import write_run
from pathlib import Path

run = write_run(Path(sys.argv[1]) / "run")
settings = SamplingConfig(steps=(3,), guidance=2.0)
with strategy.scope():
    shared = Sampler(Model.from_folders(run).denoiser, settings)
single = Sampler(Model.from_folders(run).denoiser, settings)
assert (shared.replicas, single.replicas) == (2, 1)

frames = shared.trajectory(5, [0, 1, 2, 3], [0, 1, 2, 0], 2)
images = np.concatenate([single(5, [0, 1], [0, 1]), single(5, [2, 3], [2, 0])])
np.testing.assert_array_equal(frames[-1], images)
try:
    shared(5, [0, 1, 2], [0, 1, 2])
except UserError as error:
    assert str(error).endswith("does not divide by 2 replicas: use one of 4"), error
else:
    raise AssertionError("three images on two replicas were not refused")

# As files, whose batches are named after the weights that the replicas hold copies of.
write_images(SampleBatches(shared, seed=5, count=3, batch_size=4, labels=[0, 1, 2]), sys.argv[1], "model")
with np.load(Path(sys.argv[1]) / "samples.npz") as file:
    np.testing.assert_array_equal(file["arr_0"], to_uint8(images[:3]))
print("all equal")
"""


@pytest.mark.slow
def test_two_replicas_draw_the_images_of_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all equal\n")
