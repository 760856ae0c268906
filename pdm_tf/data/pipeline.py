"""The input pipeline: the stream of records -> decoded, scaled batches, each image with its place.

Decoding, flips and batching treat each place of the stream on its own: what an image looks like depends on
neither the batch that it comes in nor the number of input pipelines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from pdm_tf.data.damage import naming_shards, require
from pdm_tf.data.info import DatasetInfo
from pdm_tf.data.stream import ENDLESS, Shards, seed_pair, shards_of, stream
from pdm_tf.errors import UserError
from pdm_tf.images import to_uint8

# Covers the pause in which the next group's shuffle buffer fills.
PREFETCH_BYTES = 64 << 20
UNLABELLED = -1  # TFDS' mark
FLIPS, CROPS = 1, 2  # purposes of random streams; the order's is 0


def load_batches(
    info: DatasetInfo,
    *,
    split: str,
    batch_size: int,
    seed: int = 0,
    start_batch: int = 0,
    repeat: bool = True,
    shuffle: bool = True,
    horizontal_flip: bool = False,
    crop: int = 0,
    image_shape: Sequence[int] | None = None,
    input_pipelines: int = 1,
    input_pipeline_id: int = 0,
    drop_remainder: bool = True,
) -> tf.data.Dataset:
    """Batches {"image": float32 (B, H, W, C) in [-1, 1], "label": int32 (B,), "place": int64 (B,)}.

    A label is a class, or `info.num_classes`, the null label, for an image that TFDS marks as unlabelled. A
    place is an image's number in the endless stream, from 0 on through all epochs.

    Batches are a pure function of the data set and these arguments; those from `start_batch=k` on are bit for
    bit those of `start_batch=0` after the k-th. With `repeat` they run across the ends of epochs, so a batch
    may be larger than the data set.

    Each of several input pipelines takes every `input_pipelines`-th record of the one stream: together, their
    batches k are, as a set, the batch k of a single pipeline with the global batch size. Each reads all
    records and decodes its own share.

    Args:
      batch_size: B, images a batch of this input pipeline.
      seed: any int; decides the order, the flips and the crops.
      start_batch: number of the first batch; those before it are skipped, not decoded.
      repeat: an endless stream instead of one epoch.
      shuffle: False yields the records as they are stored, the same every epoch.
      horizontal_flip: mirrors each image with probability 1/2.
      crop: side of a random square to take of each image, in pixels; 0 takes the whole.
      image_shape: (H, W, C). Images that differ in size (`info.image_shape` has None) are cropped to the
        largest centred rectangle of this aspect ratio and resized (bicubic, antialiased); others must have
        it: nothing is resized in silence.
      input_pipelines, input_pipeline_id: how many share the stream, and which of them this is, from 0.
      drop_remainder: False keeps a last, smaller batch (B is then None in the static shape).
    Raises:
      UserError: no such split, images of another shape, too few for one batch, or a missing or empty shard.
        While looping, `naming_shards()` raises it for a damaged record.
    """
    if split not in info.splits:
        raise UserError(f"{info.name} has no split {split!r} with images; it has: {', '.join(info.splits)}")
    shape = _checked_shape(info, image_shape)
    global_batch = batch_size * input_pipelines
    count = info.num_examples[split]
    if not repeat and drop_remainder and count < global_batch:
        raise UserError(
            f"split {split!r} of {info.name} has {count} images, fewer than one batch of {global_batch}"
        )
    shards = shards_of(info, split)
    decoder = _Decoder(info, shards, shape, seed, horizontal_flip, crop)
    start = start_batch * global_batch
    half_range = tf.as_dtype(info.image_dtype).max / 2.0

    def scale(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**batch, "image": tf.cast(batch["image"], tf.float32) / half_range - 1.0}

    records = stream(shards, seed, start, repeat, shuffle)
    dataset = (
        tf.data.Dataset.zip((tf.data.Dataset.range(start, ENDLESS), records))
        .shard(input_pipelines, input_pipeline_id)
        .prefetch(max(1, PREFETCH_BYTES // shards.record_bytes))
        .map(decoder, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=drop_remainder)
        .map(scale)
        .prefetch(tf.data.AUTOTUNE)
    )
    options = tf.data.Options()
    options.deterministic = True
    # The sharding is done above; a strategy must not shard by files once more.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def has_labels(info: DatasetInfo, split: str) -> bool:
    """Whether a split's first image has a label; a split without any is labelled -1 throughout."""
    if not info.label_key:
        return False
    records = stream(shards_of(info, split), seed=0, start=0, repeat=False, shuffle=False)
    for _, _, record in records.take(1):
        try:
            example = tf.train.Example.FromString(record.numpy())
        except DecodeError:  # whoever reads the images names the damage
            return True
    return list(example.features.feature[info.label_key].int64_list.value) != [UNLABELLED]


def split_in_order(
    info: DatasetInfo,
    split: str,
    batch_size: int,
    image_shape: Sequence[int] | None = None,
    start_batch: int = 0,
) -> tf.data.Dataset:
    """Each image of a split once, in the order of its records, as `load_batches` gives them; the last batch
    may be smaller. Arguments and errors as of `load_batches`."""
    return load_batches(
        info,
        split=split,
        batch_size=batch_size,
        start_batch=start_batch,
        repeat=False,
        shuffle=False,
        image_shape=image_shape,
        drop_remainder=False,
    )


def stored_image(
    info: DatasetInfo, split: str, place: int, image_shape: Sequence[int] | None = None
) -> np.ndarray:
    """The image at a place of the stored order, as `labelled_batches` has it; no other is decoded."""
    batches = split_in_order(info, split, 1, image_shape, start_batch=place)
    with naming_shards():
        (batch,) = batches.take(1).as_numpy_iterator()
    return to_uint8(batch["image"])[0]


def labelled_batches(
    info: DatasetInfo, split: str, batch_size: int, image_shape: Sequence[int] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch in stored order: uint8 (B, H, W, C), the very pixels that are stored, and labels int32 (B,).

    The last batch may be smaller. 16-bit images, and those resized to `image_shape`, are rounded to the
    nearest level. Errors as of `load_batches` come at once, that of a damaged record where it is met.
    """
    batches = split_in_order(info, split, batch_size, image_shape)

    def converted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with naming_shards():
            for batch in batches.as_numpy_iterator():
                yield to_uint8(batch["image"]), batch["label"]

    return converted()


def _checked_shape(info: DatasetInfo, wanted: Sequence[int] | None) -> tuple[int, int, int]:
    stored = tuple(info.image_shape)
    if wanted is None and None in stored:
        raise UserError(f"the images of {info.name} differ in size; name a resolution to crop and resize to")
    wanted = stored if wanted is None else tuple(wanted)
    if wanted[2] != stored[2] or (None not in stored and wanted != stored):
        raise UserError(
            f"the images of {info.name} are {_times(stored)}, not {_times(wanted)}; make a resized data set "
            "from their files with: python -m data_tools.image_folder --input IMAGES --output FOLDER "
            f"--resolution {wanted[0]}x{wanted[1]}"
        )
    return wanted


def _times(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


@dataclass(frozen=True)
class _Decoder:
    """A record -> {"image" (h, w, C) in the range of its dtype, "label", "place"}."""

    info: DatasetInfo
    shards: Shards
    shape: tuple[int, int, int]  # (H, W, C) of the whole image
    seed: int  # of flips and crops
    flip: bool  # whether every other image is mirrored
    crop: int  # side of the square (h, w) that is taken of an image; 0: all of it

    def __call__(self, place: tf.Tensor, record: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """`record`: its shard, its index in the shard, its bytes."""
        shard, index, content = record
        length = self.shards.lengths[shard]
        where = (self.shards.paths[shard], index, length)
        readable = [
            require(tf.strings.length(content) > 0, "cannot be read: the file is cut or damaged", *where),
            require(index < length, "is one more than the metadata promise", *where),
        ]
        features = {self.info.image_key: tf.io.FixedLenFeature([], tf.string)}
        if self.info.label_key:
            features[self.info.label_key] = tf.io.FixedLenFeature([], tf.int64)
        with tf.control_dependencies(readable):
            example = tf.io.parse_single_example(content, features)
        image = self._of_shape(_decode_image(example[self.info.image_key], self.info), where)
        if self.flip:
            image = tf.image.stateless_random_flip_left_right(image, self._seed_of(FLIPS, place))
        if self.crop:
            size = (self.crop, self.crop, self.shape[2])
            image = tf.image.stateless_random_crop(image, size, self._seed_of(CROPS, place))
        return {"image": image, "label": self._label(example, where), "place": place}

    def _seed_of(self, purpose: int, place: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_fold_in(seed_pair(self.seed, purpose), place)

    def _of_shape(self, image: tf.Tensor, where: tuple[tf.Tensor, ...]) -> tf.Tensor:
        if None in self.info.image_shape:
            return _crop_and_resize(image, self.shape)
        same = tf.reduce_all(tf.shape(image) == self.shape)
        with tf.control_dependencies([require(same, f"is not {_times(self.shape)}", *where)]):
            return tf.ensure_shape(tf.identity(image), self.shape)

    def _label(self, example: dict[str, tf.Tensor], where: tuple[tf.Tensor, ...]) -> tf.Tensor:
        if not self.info.label_key:
            return tf.constant(0, tf.int32)
        label = example[self.info.label_key]
        classes = self.info.num_classes
        known = (label >= UNLABELLED) & (label < classes)
        with tf.control_dependencies([require(known, f"has no label in 0..{classes - 1}", *where)]):
            return tf.cast(tf.where(label == UNLABELLED, tf.constant(classes, label.dtype), label), tf.int32)


def _decode_image(encoded: tf.Tensor, info: DatasetInfo) -> tf.Tensor:
    """Encoded bytes -> uint8 or uint16 (h, w, C)."""
    channels = info.image_shape[2]
    if info.encoding == "png":
        return tf.io.decode_png(encoded, channels, dtype=info.image_dtype)
    if info.encoding == "jpeg":
        # The default method is the machine's choice; this one gives the same pixels everywhere.
        return tf.io.decode_jpeg(encoded, channels, dct_method="INTEGER_ACCURATE")
    return tf.io.decode_image(encoded, channels, expand_animations=False)


def _crop_and_resize(image: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Any size -> float32 `shape`: the largest centred rectangle of its aspect, resized."""
    dtype = image.dtype
    height, width = tf.unstack(tf.shape(image)[:2])
    crop_height = tf.minimum(height, tf.maximum(1, width * shape[0] // shape[1]))
    crop_width = tf.minimum(width, tf.maximum(1, height * shape[1] // shape[0]))
    image = tf.image.crop_to_bounding_box(
        image, (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
    )
    image = tf.image.resize(image, shape[:2], method="bicubic", antialias=True)
    # Bicubic overshoots at edges.
    return tf.ensure_shape(tf.clip_by_value(image, 0.0, float(dtype.max)), shape)
