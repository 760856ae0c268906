"""The data of the real presets at their real resolutions, from raw archive to batch."""

from __future__ import annotations

import pytest

from pdm_tf.data import find_dataset, load_batches, naming_shards
from tests.data import fixtures


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name, size, classes, count",
    [("lsun_church", 256, 0, 6), ("imagenet256", 256, 1000, 1500), ("ffhq1024", 1024, 0, 6)],
)
def test_preset(tmp_path, name, size, classes, count):
    fixtures.make_preset_dataset(name, tmp_path)
    info = find_dataset(name, str(tmp_path))
    assert info.image_shape == (size, size, 3)
    assert info.num_classes == classes and info.num_examples["train"] == count
    with naming_shards():
        images, labels, _ = next(iter(load_batches(info, split="train", batch_size=4, seed=0)))
    assert images.shape == (4, size, size, 3) and images.numpy().std() > 0.1
    assert classes == 0 or len(set(labels.numpy())) > 1
