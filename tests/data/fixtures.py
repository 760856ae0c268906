"""Small data sets for the tests: finished ones in TFDS layout, raw archives in their own forms."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from pdm_tf.data import DatasetInfo, describe_directory


def encode(image: np.ndarray, image_format: str = "PNG", **options) -> bytes:
    """uint8 [h, w] or [h, w, c], or uint16 [h, w] -> an encoded image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def numbered_image(number: int, height: int = 8, width: int = 6) -> np.ndarray:
    """uint8 RGB noise whose upper corners hold `number` (below 2**16), to tell it by."""
    image = np.random.RandomState(number).randint(0, 256, (height, width, 3)).astype(np.uint8)
    image[0, 0] = image[0, -1] = (number >> 8, number & 255, 0)
    return image


def numbers_of(images: tf.Tensor) -> list[int]:
    """The numbers of a batch of `numbered_image`s, flipped or not."""
    corners = np.round((np.asarray(images)[:, 0, 0] + 1) * 127.5).astype(int)
    return [int(high << 8 | low) for high, low, _ in corners]


def example(image: bytes, label: int | None = None) -> bytes:
    """A record as TFDS writes it."""
    feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))}
    if label is not None:
        feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_shards(
    directory: str,
    shards: Sequence[Sequence[bytes]],
    *,
    shape: Sequence[int | None] = (8, 6, 3),
    classes: int = 0,
    dtype: type = np.uint8,
    encoding: str | None = "png",
    split: str = "train",
) -> DatasetInfo:
    """Writes records to shards, and TFDS metadata that promise exactly these."""
    os.makedirs(directory, exist_ok=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name="made", split=split, filetype_suffix="tfrecord"
    )
    for index, records in enumerate(shards):
        path = template.sharded_filepath(shard_index=index, num_shards=len(shards))
        with tf.io.TFRecordWriter(os.fspath(path)) as writer:
            for record in records:
                writer.write(record)
    features = {"image": tfds.features.Image(shape=shape, dtype=dtype, encoding_format=encoding)}
    if classes:
        features["label"] = tfds.features.ClassLabel(num_classes=classes)
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(records) for records in shards],
        num_bytes=sum(len(record) for records in shards for record in records),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features, split_infos=[info], check_data=False
    )
    return describe_directory(directory)


def numbered_dataset(directory: str, shard_lengths: Sequence[int], classes: int = 5) -> DatasetInfo:
    """Images numbered from 0 on through the shards, labelled by number modulo classes."""
    shards, number = [], 0
    for length in shard_lengths:
        numbers = range(number, number + length)
        shards.append([example(encode(numbered_image(n)), n % classes) for n in numbers])
        number += length
    return write_shards(directory, shards, classes=classes)
