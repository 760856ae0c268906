"""A run of one network at two patch sizes, through every mode."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.networks.warm_start import with_large_patches
from pdm_tf.run import RunFolder
from pdm_tf.training import loop
from pdm_tf.weights import read_arrays
from tests.in_process import run_mode
from tests.tiny_runs import VIT, tiny_config


def test_replicas_that_would_get_one_image_each_are_refused():
    config = tiny_config(**VIT, network__patch_switch_t=396, training__batch_size=4)
    loop.check_batch(config, 2)
    with pytest.raises(UserError, match="need two: use 8"):
        loop.check_batch(config, 4)
    loop.check_batch(config.replace({"network.patch_switch_t": 0}), 4)


@pytest.mark.heavy
def test_from_one_size_to_two_and_through_every_mode(tmp_path, capsys):
    """A run of one size begins one of two, which is resumed, described, sampled, measured and exported."""
    small = [
        "network.base_channels=32", "network.channel_multipliers=1,1", "network.attention_resolutions=",
        "network.head_channels=32", "training.batch_size=4", "training.ema_every=1", "training.log_every=1",
        "training.sample_images=2", "sampling.steps=3", "optimizer.learning_rate=1e-30",
    ]  # fmt: skip
    two = [*small, "network.patch_switch_t=396", "diffusion.large_share=0.25"]
    one, both = str(tmp_path / "one"), str(tmp_path / "two")
    train = {"mode": "train", "strategy": "cpu"}
    assert run_mode(capsys, **train, run_dir=one, train_steps=1, set=small)[0] == 0
    output = run_mode(capsys, **train, run_dir=both, train_steps=1, set=two, warm_start=one)[1]
    assert f"starting from {one}/ema" in output and "from t = 396 on, patches of 8 x 8" in output
    assert "without what does not fit" not in output
    # The rate moves nothing: what is there is what it began with.
    arrays, found = (read_arrays(RunFolder(run).newest_weights()) for run in (one, both))
    shapes = {name: array.shape for name, array in found.items()}
    assert len(shapes) > len(arrays)
    for name, array in with_large_patches(arrays, shapes, 4).items():
        np.testing.assert_allclose(found[name], array, atol=1e-12)
    status, output = run_mode(capsys, **train, run_dir=both, train_steps=2, set=two, warm_start=one)
    assert status == 0 and f"resuming {both} at step 1 of 2" in output
    draw = {"run_dir": both, "strategy": "cpu", "num_samples": 2, "sample_batch_size": 2}
    status, output = run_mode(capsys, mode="describe", run_dir=both, strategy="cpu", train_steps=2, set=two)
    assert status == 0 and "forward at P=8, t 396..999 (SNR 0.25 and less): " in output
    assert run_mode(capsys, mode="sample", **draw, out=str(tmp_path / "drawn"))[0] == 0
    exported = {"mode": "export", "run_dir": both, "out": str(tmp_path / "model")}
    assert run_mode(capsys, **exported)[0] == 0
    model = tf.saved_model.load(str(tmp_path / "model"))
    with np.load(tmp_path / "drawn/samples.npz") as drawn:
        images = model.sample(tf.constant(0), tf.constant(drawn["arr_1"]), tf.constant(1.0))["images"]
        np.testing.assert_array_equal(images, drawn["arr_0"])
