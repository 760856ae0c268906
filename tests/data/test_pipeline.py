"""The order, the content and the resumption of the stream of batches."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.data import find_dataset, labelled_batches, load_batches, naming_shards, stream
from pdm_tf.errors import UserError
from tests.data import fixtures

LENGTHS = (5, 0, 9, 3, 7, 4, 8, 6)  # 42 records
COUNT = sum(LENGTHS)


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    return fixtures.numbered_dataset(tmp_path_factory.mktemp("numbered"), LENGTHS)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Three groups of shards, the last one smaller, and a buffer smaller than a group."""
    monkeypatch.setattr(stream, "SHARDS_PER_GROUP", 3)
    monkeypatch.setattr(stream, "SHUFFLE_BUFFER_BYTES", 2000)


def batches(info, count=None, **arguments):
    arguments = {"split": "train", "batch_size": 4, "seed": 7, **arguments}
    dataset = load_batches(info, **arguments)
    return list((dataset.take(count) if count else dataset).as_numpy_iterator())


def numbers(found):
    return [number for batch in found for number in fixtures.numbers_of(batch["image"])]


@pytest.mark.parametrize("start", [1, 23])
@pytest.mark.parametrize("shuffle", [True, False])
def test_start_batch_continues_bit_for_bit(info, start, shuffle):
    changes = {"horizontal_flip": True, "crop": 4}
    whole = batches(info, start + 13, shuffle=shuffle, **changes)
    resumed = batches(info, 13, shuffle=shuffle, start_batch=start, **changes)
    for batch, resumed_batch in zip(whole[start:], resumed):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, resumed_batch[name])


def test_start_batch_within_a_single_epoch(info):
    whole = batches(info, repeat=False, drop_remainder=False)
    resumed = batches(info, repeat=False, drop_remainder=False, start_batch=7)
    assert numbers(whole)[28:] == numbers(resumed)
    assert batches(info, repeat=False, start_batch=11) == []


def test_every_epoch_is_another_permutation(info):
    stream = numbers(batches(info, 3, batch_size=COUNT))
    epochs = [tuple(stream[i * COUNT : (i + 1) * COUNT]) for i in range(3)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({*epochs, tuple(range(COUNT))}) == 4


def test_unshuffled_order_is_that_of_the_files(info):
    found = batches(info, repeat=False, shuffle=False, drop_remainder=False)
    assert numbers(found) == list(range(COUNT))
    assert [len(batch["image"]) for batch in found] == [4] * 10 + [2]


def test_order_depends_on_seed_and_on_nothing_else(info):
    tf.random.set_seed(1)
    first = numbers(batches(info, 12))
    tf.random.set_seed(2)
    assert numbers(batches(info, 12)) == first
    assert numbers(batches(info, 12, seed=8)) != first
    assert numbers(batches(info, 1, seed=-3 - (1 << 70)))  # any int will do


def test_shuffles_within_a_shard_and_across_shards(tmp_path):
    info = fixtures.numbered_dataset(tmp_path, (40, 40, 40))
    steps = np.abs(np.diff(numbers(batches(info, 30))))
    assert np.mean(steps == 1) < 0.2 and np.mean(steps > 40) > 0.3


@pytest.mark.parametrize("pipelines", [3])
def test_pipelines_split_each_global_batch(info, pipelines):
    whole = batches(info, 9, batch_size=2 * pipelines, horizontal_flip=True)
    shared = {"batch_size": 2, "start_batch": 3, "input_pipelines": pipelines, "horizontal_flip": True}
    parts = [batches(info, 6, input_pipeline_id=i, **shared) for i in range(pipelines)]
    for step, batch in enumerate(whole[3:], start=3):
        size = len(batch["place"])
        assert list(batch["place"]) == list(range(size * step, size * (step + 1)))
        together = {name: np.concatenate([part[step - 3][name] for part in parts]) for name in batch}
        order = np.argsort(together["place"])
        for name, values in batch.items():
            np.testing.assert_array_equal(together[name][order], values)


def test_images_are_the_stored_ones_scaled(info):
    spec = load_batches(info, split="train", batch_size=4, seed=0).element_spec
    assert spec == {
        "image": tf.TensorSpec((4, 8, 6, 3), tf.float32),
        "label": tf.TensorSpec((4,), tf.int32),
        "place": tf.TensorSpec((4,), tf.int64),
    }
    for batch in batches(info, repeat=False):
        for image, label in zip(batch["image"], batch["label"]):
            number = fixtures.numbers_of(image[None])[0]
            stored = fixtures.numbered_image(number)
            np.testing.assert_allclose(image, stored / 127.5 - 1, atol=1e-6)
            assert label == number % 5


def test_batches_of_bytes_are_the_stored_pixels_in_stored_order(info):
    found = [images for images, _ in labelled_batches(info, "train", 5)]
    assert [len(batch) for batch in found] == [5] * 8 + [2] and found[0].dtype == np.uint8
    stored = np.stack([fixtures.numbered_image(number) for number in range(COUNT)])
    np.testing.assert_array_equal(np.concatenate(found), stored)
    with pytest.raises(UserError, match="no split 'test'"):  # before the first batch is asked for
        labelled_batches(info, "test", 5)


def test_batches_of_bytes_of_other_images(tmp_path):
    levels = np.array([[0, 257 * 3], [257 * 200, 65535]], np.uint16)
    shards = [[fixtures.example(fixtures.encode(levels))]]
    info = fixtures.write_shards(tmp_path / "16", shards, shape=(2, 2, 1), dtype=np.uint16)
    ((found, _),) = labelled_batches(info, "train", 3)
    np.testing.assert_array_equal(found[0, ..., 0], levels // 257)


def test_flips_mirror_half_of_the_images_anew_each_epoch(info):
    found = batches(info, 2, batch_size=COUNT, horizontal_flip=True)
    flipped = np.zeros((2, COUNT), bool)
    for epoch, batch in enumerate(found):
        for image, number in zip(batch["image"], fixtures.numbers_of(batch["image"])):
            stored = fixtures.numbered_image(number) / 127.5 - 1
            flipped[epoch, number] = not np.allclose(image, stored, atol=1e-6)
            expected = stored[:, ::-1] if flipped[epoch, number] else stored
            np.testing.assert_allclose(image, expected, atol=1e-6)
    assert 0.25 < flipped.mean() < 0.75
    assert (flipped[0] != flipped[1]).any()


def test_crops_are_squares_of_the_images_anywhere_in_them_and_others_each_epoch(info):
    found = np.concatenate(
        [batch["image"] for batch in batches(info, 2, batch_size=COUNT, shuffle=False, crop=4)]
    )
    places = []
    for place, crop in enumerate(found):
        stored = fixtures.numbered_image(place % COUNT) / 127.5 - 1
        squares = np.lib.stride_tricks.sliding_window_view(stored, (4, 4, 3))[:, :, 0]
        (square,) = np.argwhere(np.isclose(squares, crop, atol=1e-6).all((2, 3, 4)))
        places.append(tuple(square))
    assert set(places) == {(top, left) for top in range(5) for left in range(3)}
    assert places[:COUNT] != places[COUNT:]


def test_batch_larger_than_the_data_set(info):
    (batch,) = batches(info, 1, batch_size=100)
    counts = np.bincount(fixtures.numbers_of(batch["image"]), minlength=COUNT)
    assert counts.min() == 2 and counts.max() == 3
    assert list(batch["place"]) == list(range(100))  # on and on through the epochs
    with pytest.raises(UserError, match="42 images, fewer than one batch of 100"):
        batches(info, repeat=False, batch_size=100)


def test_resuming_neither_reads_skipped_groups_nor_decodes_skipped_records(tmp_path):
    # One shard a group when unshuffled: the first is unreadable, the second holds no images.
    good = [fixtures.example(fixtures.encode(fixtures.numbered_image(n))) for n in range(8)]
    shards = [good[:4], [fixtures.example(b"no image")] * 4 + good[4:]]
    info = fixtures.write_shards(tmp_path, shards)
    info.splits["train"].shards[0].write_bytes(b"rubbish")
    assert numbers(batches(info, 1, shuffle=False, start_batch=2)) == [4, 5, 6, 7]
    with pytest.raises(UserError, match=r"00000-of-00002: record 0 of 4 cannot be read"):
        with naming_shards():
            batches(info, 1, shuffle=False)
    with pytest.raises(UserError, match="no image that can be decoded"):
        with naming_shards():
            batches(info, 1, shuffle=False, start_batch=1)


def test_images_of_any_size_are_cropped_and_resized_when_asked(tmp_path):
    left_to_right = np.zeros((40, 120, 3), np.uint8)
    left_to_right[:, 40:80] = 255
    shards = [[fixtures.example(fixtures.encode(left_to_right, "JPEG"))] * 2]
    info = fixtures.write_shards(tmp_path, shards, shape=(None, None, 3), encoding=None)
    with pytest.raises(UserError, match="differ in size"):
        batches(info)
    (batch,) = batches(info, 1, batch_size=2, image_shape=(20, 20, 3))
    assert batch["image"].shape == (2, 20, 20, 3) and batch["image"][:, :, 3:-3].min() > 0.9
    assert list(batch["label"]) == [0, 0]
    (batch,) = batches(info, 1, batch_size=1, image_shape=(10, 30, 3))
    wide = batch["image"]
    assert wide[0, :, 13:17].min() > 0.9 and wide[0, :, :8].max() < -0.9


def test_emoji64_ships_with_the_project():
    info = find_dataset("emoji64", data_dir="nowhere")
    assert info.image_shape == (64, 64, 3)
    assert info.num_examples == {"train": 1797, "validation": 95}
    assert info.num_classes == len(info.label_names) == 9
    assert list(info.label_names) == sorted(info.label_names)
    seen = {}
    for split, count in info.num_examples.items():
        found = batches(info, split=split, repeat=False, batch_size=128, drop_remainder=False)
        images = np.concatenate([batch["image"] for batch in found])
        assert len(images) == count and images.min() >= -1 and images.max() <= 1
        seen[split] = {image.tobytes() for image in images}
        assert len(seen[split]) == count  # no picture twice
    assert not seen["train"] & seen["validation"]
