"""Finding data sets, and saying what to do when they are not there."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pdm_tf.data import find_dataset, load_batches
from pdm_tf.errors import UserError
from tests.data import fixtures


def image_record():
    return fixtures.example(fixtures.encode(fixtures.numbered_image(1)), 1)


def write(directory, **arguments):
    return fixtures.write_shards(directory, [[image_record()]], classes=3, **arguments)


@pytest.mark.parametrize(
    "name, tool, archive",
    [
        ("imagenet256", "data_tools.imagenet", "ILSVRC2012_img_train.tar"),
        ("ffhq1024", "data_tools.ffhq", "images1024x1024"),
    ],
)
def test_missing_data_name_the_command_and_the_archive(tmp_path, name, tool, archive):
    with pytest.raises(UserError) as raised:
        find_dataset(name, str(tmp_path))
    assert f"python -m {tool} --input {archive}" in str(raised.value)
    assert f"--output {tmp_path}/{name}" in str(raised.value)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"no finished.*resume"):
        find_dataset(name, str(tmp_path))
    write(tmp_path / name)
    assert find_dataset(name, str(tmp_path)).name == name


def test_tfds_with_versions_and_configurations(tmp_path):
    write(tmp_path / "flat" / "9.0.0")
    write(tmp_path / "flat" / "10.0.0")
    find = lambda name: find_dataset(name, tmp_path).directory  # noqa: E731
    assert find("tfds:flat") == tmp_path / "flat" / "10.0.0"
    assert find("tfds:flat:9.0.0") == tmp_path / "flat" / "9.0.0"
    write(tmp_path / "deep" / "small" / "1.0.0")
    assert find("tfds:deep") == tmp_path / "deep" / "small" / "1.0.0"
    write(tmp_path / "deep" / "large" / "1.0.0")
    assert find("tfds:deep/large") == tmp_path / "deep" / "large" / "1.0.0"
    with pytest.raises(UserError, match=r"several configurations.*large, small"):
        find("tfds:deep")
    with pytest.raises(UserError, match=r"tfds build mnist --data_dir"):
        find("tfds:mnist")


def test_folder(tmp_path):
    info = write(tmp_path / "set")
    assert find_dataset(f"folder:{tmp_path}/set", "nowhere") == info
    with pytest.raises(UserError, match=r"data_tools.image_folder"):
        find_dataset(f"folder:{tmp_path}", "nowhere")


@pytest.mark.parametrize("name", ["cifar", "tfds:"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=r"unknown data set.*emoji64, avatars64, lsun_church"):
        find_dataset(name, "data")


def test_damaged_metadata(tmp_path):
    info = write(tmp_path / "set")
    path = info.directory / "dataset_info.json"
    text = path.read_text()
    for broken in (text[: len(text) // 2], ""):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"metadata in .* cannot be read"):
            find_dataset(f"folder:{info.directory}", "")


def test_a_set_that_tfds_itself_wrote(tmp_path):
    class Shapes(tfds.core.GeneratorBasedBuilder):
        """Two features that are no use here, and two that are."""

        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "coarse_label": tfds.features.ClassLabel(names=["a", "b"]),
                        "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
                        "mask": tfds.features.LabeledImage(labels=3, shape=(None, None, 1)),
                        "nested": {"picture": tfds.features.Image(shape=(8, 6, 3))},
                    }
                )
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n in range(6):
                yield (
                    n,
                    {
                        "coarse_label": 1,
                        "label": n % 3,
                        "mask": np.zeros((4, 4, 1), np.uint8),
                        "nested": {"picture": fixtures.numbered_image(n)},
                    },
                )

    Shapes(data_dir=str(tmp_path)).download_and_prepare()
    info = find_dataset("tfds:shapes", str(tmp_path))
    assert info.image_key == "nested/picture" and info.label_names == ("x", "y", "z")
    batches = load_batches(info, split="train", batch_size=6, seed=0)
    batch = next(iter(batches))
    images, labels = batch["image"], batch["label"]
    found = fixtures.numbers_of(images)
    assert sorted(found) == list(range(6))
    assert [n % 3 for n in found] == list(labels.numpy())


def test_sets_without_usable_images(tmp_path):
    info = write(tmp_path / "set")
    tfds.folder_dataset.write_metadata(
        data_dir=info.directory, features={"text": tfds.features.Text()}, check_data=False
    )
    with pytest.raises(UserError, match=r"no image feature; its features: text"):
        find_dataset(f"folder:{info.directory}", "")
