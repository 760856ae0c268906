"""Damaged data never pass in silence: each case, and what it says."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.data import has_labels, load_batches, naming_shards
from pdm_tf.errors import UserError
from tests.data import fixtures


@pytest.fixture
def info(tmp_path):
    return fixtures.numbered_dataset(tmp_path, (6, 6, 6))


def read_epoch(info, **arguments):
    """Reads an epoch; returns the UserError's message, or fails if there is none."""
    with pytest.raises(UserError) as raised, naming_shards():
        arguments = {"batch_size": 3, "repeat": False, "drop_remainder": False, **arguments}
        for _ in load_batches(info, split="train", seed=0, **arguments):
            pass
    message = str(raised.value)
    assert "\n" not in message and "data_tools.verify" in message
    return message


@pytest.mark.parametrize("shuffle", [True, False])
def test_flipped_byte(info, shuffle):
    shard = info.splits["train"].shards[1]
    fixtures.flip_byte(shard, os.path.getsize(shard) // 2)
    message = read_epoch(info, shuffle=shuffle)
    assert f"{shard}: record 3 of 6 cannot be read" in message


@pytest.mark.parametrize("shuffle", [True, False])
def test_cut_tail(info, shuffle):
    shard = info.splits["train"].shards[2]
    os.truncate(shard, os.path.getsize(shard) - 10)
    assert f"{shard}: record 5 of 6 cannot be read" in read_epoch(info, shuffle=shuffle)


def test_missing_last_records(info):
    # Cut where one record ends: no checksum can show this.
    shard = info.splits["train"].shards[2]
    lengths = [len(record) + 16 for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator()]
    assert sum(lengths) == os.path.getsize(shard)
    os.truncate(shard, sum(lengths[:4]))
    # Which of the two missing records comes first is the shuffle's choice.
    assert f"{shard}: record 4 of 6 cannot be read" in read_epoch(info, shuffle=False)
    assert f"{shard}: record" in read_epoch(info, shuffle=True)


def test_surplus_record(info):
    first, second, _ = info.splits["train"].shards
    one = next(tf.data.TFRecordDataset(str(second)).as_numpy_iterator())
    first.write_bytes(first.read_bytes() + second.read_bytes()[: len(one) + 16])
    message = read_epoch(info)
    assert f"{first}: record 6 of 6 is one more than the metadata promise" in message


def test_empty_shard(info):
    shard = info.splits["train"].shards[0]
    os.truncate(shard, 0)
    assert f"{shard} is empty, 6 records are promised" in read_epoch(info)


def test_missing_shard(info):
    shard = info.splits["train"].shards[0]
    shard.unlink()
    assert f"{shard} is missing" in read_epoch(info)


def test_shard_that_disappears_after_opening(info):
    dataset = load_batches(info, split="train", seed=0, batch_size=3)
    shard = info.splits["train"].shards[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"shard {shard} has disappeared"), naming_shards():
        for _ in dataset.take(20):
            pass


def test_image_of_another_size_names_its_record(tmp_path):
    sizes = [(8, 6), (8, 6), (6, 8)]
    records = [fixtures.example(fixtures.encode(np.zeros((*size, 3), np.uint8))) for size in sizes]
    info = fixtures.write_shards(tmp_path, [records])
    assert "record 2 of 3 is not 8x6x3" in read_epoch(info, batch_size=1)


@pytest.mark.parametrize("label", [-2, 5, 1 << 40])
def test_a_label_that_no_class_has_names_its_record(tmp_path, label):
    image = fixtures.encode(fixtures.numbered_image(0))
    info = fixtures.write_shards(tmp_path, [[fixtures.example(image, label)]], classes=5)
    assert "record 0 of 1 has no label in 0..4" in read_epoch(info)


def test_unlabelled_images_have_the_null_label(tmp_path):
    image = fixtures.encode(fixtures.numbered_image(0))
    records = [fixtures.example(image, label) for label in (-1, 3, -1)]
    info = fixtures.write_shards(tmp_path, [records], classes=5)
    (batch,) = load_batches(info, split="train", seed=0, batch_size=3, repeat=False, shuffle=False)
    assert batch["label"].numpy().tolist() == [5, 3, 5] and not has_labels(info, "train")
    others = fixtures.write_shards(tmp_path / "b", [records[1:]], classes=5)
    assert has_labels(others, "train")
    assert not has_labels(fixtures.write_shards(tmp_path / "c", [records]), "train")
    assert has_labels(fixtures.write_shards(tmp_path / "d", [[b"no example"]], classes=5), "train")


def test_a_record_that_is_no_example_is_damage_whatever_its_bytes_are(tmp_path):
    info = fixtures.write_shards(tmp_path, [[b"\xff\xfe\x1b[31m no example"]], classes=5)
    message = read_epoch(info)
    assert "verify --decode" in message and message.isprintable()


def test_damage_shows_through_keras_fit(info):
    shard = info.splits["train"].shards[1]
    os.truncate(shard, 40)
    model = tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(5)])
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = load_batches(info, split="train", seed=0, batch_size=3).map(
        lambda batch: (batch["image"], batch["label"])
    )
    with pytest.raises(UserError, match="cannot be read"), naming_shards():
        model.fit(batches, steps_per_epoch=10, verbose=0)


def test_other_errors_go_through_untouched():
    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"), naming_shards():
        tf.debugging.Assert(False, ["mine"])
