"""The input pipeline: shards -> shuffled, decoded, scaled batches.

One endless stream of undecoded records underlies everything. Its order is a pure function of
(seed, epoch), so a batch's number alone says where in the stream it lies:

    epoch e:   shards permuted by (seed, e), taken in groups of `SHARDS_PER_GROUP`
    group g:   its shards interleaved record by record, then a shuffle buffer seeded by (seed, e, g)

A group yields a permutation of its own records and no others. A run that resumes therefore skips
whole groups by their known lengths, unread, and only within one group reads records to drop them,
undecoded. All that comes after (decoding, flips, batching) treats each position on its own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import tensorflow as tf

from flags.errors import UserError
from pdm_tf.data.damage import check_files, require
from pdm_tf.data.info import DatasetInfo

SHARDS_PER_GROUP = 16
SHUFFLE_BUFFER_BYTES = 256 << 20
# Covers the pause in which the next group's shuffle buffer fills.
PREFETCH_BYTES = 64 << 20
READ_BUFFER_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
_ENDLESS = 1 << 62


def load_batches(
    info: DatasetInfo,
    *,
    split: str,
    batch_size: int,
    seed: int,
    start_batch: int = 0,
    repeat: bool = True,
    shuffle: bool = True,
    horizontal_flip: bool = False,
    image_shape: tuple[int, int, int] | None = None,
    input_pipelines: int = 1,
    input_pipeline_id: int = 0,
    drop_remainder: bool = True,
) -> tf.data.Dataset:
    """Batches of (images float32 [B, H, W, C] in [-1, 1], labels int32 [B]), of static shape.

    Batches are a pure function of the data set and these arguments; those from `start_batch=k` on
    are bit for bit those of `start_batch=0` after the k-th. Without `repeat` there is one epoch;
    with it batches run across the ends of epochs, so a batch may be larger than the data set.

    Each of several input pipelines takes every `input_pipelines`-th record of the one stream:
    together, their batches k are, as a set and to the flip of each image, the batch k of a single
    pipeline with the global batch size. Each reads all records (undecoded) and decodes only its own
    share: n pipelines cost n times the bytes read, but no more decoding.

    Loop over the result inside `naming_shards()`.

    Args:
        info: what `find_dataset` returned.
        split: e.g. "train".
        batch_size: B, images a batch of this input pipeline.
        seed: any int; decides the order and the flips.
        start_batch: number of the first batch; those before it are skipped, not decoded.
        repeat: an endless stream instead of one epoch.
        shuffle: False yields the records as they are stored, the same every epoch.
        horizontal_flip: mirrors each image with probability 1/2.
        image_shape: the (H, W, C) wanted. Needed only when the images differ in size
            (`info.image_shape` has None): then the largest centred rectangle of this aspect ratio
            is cut out and resized (bicubic, antialiased). Otherwise it must equal
            `info.image_shape`: nothing is resized in silence.
        input_pipelines: number of input pipelines that share the stream.
        input_pipeline_id: which of them this is, from 0.
        drop_remainder: False keeps a last, smaller batch (B is then None in the static shape).

    Raises:
        UserError: no such split, a wanted shape that the data do not have, too few images for one
            batch, or a missing or empty shard (named). While looping, `naming_shards()` raises it
            for a damaged record.
    """
    _check_arguments(info, split, batch_size, start_batch, input_pipelines, input_pipeline_id)
    shape = _checked_shape(info, image_shape)
    count = info.num_examples[split]
    global_batch = batch_size * input_pipelines
    if not repeat and drop_remainder and count < global_batch:
        raise UserError(
            f"split {split!r} of {info.name} has {count} images, fewer than one batch of"
            f" {global_batch}; lower the batch size"
        )
    shards = _Shards(
        tf.constant(info.splits[split].shards),
        tf.constant(info.splits[split].shard_lengths, tf.int64),
        count,
        max(1, check_files(info, split) // count),
    )
    start = start_batch * global_batch
    records = _stream(shards, seed, start, repeat, shuffle)
    decode = functools.partial(
        _decode, info=info, shards=shards, shape=shape, flip_seed=seed if horizontal_flip else None
    )
    dataset = (
        tf.data.Dataset.zip((tf.data.Dataset.range(start, _ENDLESS), records))
        .shard(input_pipelines, input_pipeline_id)
        .prefetch(max(1, PREFETCH_BYTES // shards.record_bytes))
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=drop_remainder)
        .map(functools.partial(_scale, dtype=info.image_dtype))
        .prefetch(tf.data.AUTOTUNE)
    )
    options = tf.data.Options()
    options.deterministic = True
    # The sharding is done above; a strategy must not shard by files once more.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _check_arguments(
    info: DatasetInfo,
    split: str,
    batch_size: int,
    start_batch: int,
    input_pipelines: int,
    input_pipeline_id: int,
):
    if split not in info.splits:
        raise UserError(f"{info.name} has no split {split!r} with images; it has: {', '.join(info.splits)}")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if start_batch < 0:
        raise UserError(f"start_batch is {start_batch}; it must be at least 0")
    if not 0 <= input_pipeline_id < input_pipelines:
        raise UserError(f"input_pipeline_id is {input_pipeline_id} of {input_pipelines} pipelines")


def _checked_shape(info: DatasetInfo, wanted: tuple[int, int, int] | None) -> tuple[int, int, int]:
    stored = tuple(info.image_shape)
    if wanted is None and None in stored:
        raise UserError(f"the images of {info.name} differ in size; name a resolution to crop and resize to")
    wanted = stored if wanted is None else tuple(wanted)
    if wanted[2] != stored[2] or (None not in stored and wanted != stored):
        raise UserError(
            f"the images of {info.name} are {_times(stored)}, not {_times(wanted)}; make a resized"
            f" data set from their files with: python -m data_tools.image_folder --input IMAGES"
            f" --output FOLDER --resolution {wanted[0]}x{wanted[1]}"
        )
    return wanted


def _times(shape) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


# --- the stream of undecoded records -------------------------------------------------------------


class _Shards(NamedTuple):
    """A split's files: paths (string [n]), promised lengths (int64 [n]), their sum, and the mean
    size of a record."""

    paths: tf.Tensor
    lengths: tf.Tensor
    records: int
    record_bytes: int


def _stream(shards: _Shards, seed: int, start: int, repeat: bool, shuffle: bool) -> tf.data.Dataset:
    """Undecoded records (shard, index in it, bytes) from position `start` of the stream on."""
    first_epoch, first_record = divmod(start, shards.records)

    def epoch_records(epoch: tf.Tensor) -> tf.data.Dataset:
        skipped = tf.where(epoch == first_epoch, tf.constant(first_record, tf.int64), 0)
        if shuffle:
            epoch_seed = tf.random.experimental.stateless_fold_in(_seed_pair(seed), epoch)
            return _shuffled_epoch(shards, epoch_seed, skipped)
        return _stored_epoch(shards, skipped)

    last_epoch = _ENDLESS if repeat else 1
    return tf.data.Dataset.range(first_epoch, last_epoch).flat_map(epoch_records)


def _shuffled_epoch(shards: _Shards, epoch_seed: tf.Tensor, skipped: tf.Tensor) -> tf.data.Dataset:
    """One epoch in the order of `epoch_seed` (int [2]), without its first `skipped` records."""
    count = shards.paths.shape[0]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), epoch_seed)
    groups = -(-count // SHARDS_PER_GROUP)

    def group_members(group: tf.Tensor) -> tf.Tensor:
        begin = tf.cast(group, tf.int32) * SHARDS_PER_GROUP
        return order[begin : tf.minimum(begin + SHARDS_PER_GROUP, count)]

    def group_records(group: tf.Tensor) -> tf.data.Dataset:
        members = group_members(group)
        records = tf.data.Dataset.from_tensor_slices(members).interleave(
            lambda shard: _shard_records(shards, shard),
            cycle_length=min(SHARDS_PER_GROUP, count),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        # An empty buffer is refused, even for shards without records.
        in_group = tf.maximum(tf.reduce_sum(tf.gather(shards.lengths, members)), tf.constant(1, tf.int64))
        buffer = tf.minimum(in_group, max(1, SHUFFLE_BUFFER_BYTES // shards.record_bytes))
        return _shuffle(records, buffer, tf.random.experimental.stateless_fold_in(epoch_seed, group))

    ends = tf.gather(
        tf.cumsum(tf.gather(shards.lengths, order)),
        [min((group + 1) * SHARDS_PER_GROUP, count) - 1 for group in range(groups)],
    )
    group, rest = _locate(ends, skipped)
    return tf.data.Dataset.range(group, groups).flat_map(group_records).skip(rest)


def _stored_epoch(shards: _Shards, skipped: tf.Tensor) -> tf.data.Dataset:
    """One epoch in the order of the files, without its first `skipped` records."""
    shard, rest = _locate(tf.cumsum(shards.lengths), skipped)
    return (
        tf.data.Dataset.range(shard, shards.paths.shape[0])
        .flat_map(lambda shard: _shard_records(shards, shard))
        .skip(rest)
    )


def _locate(ends: tf.Tensor, skipped: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which part the record `skipped` lies in, and how far; `ends`: cumulative lengths, int64."""
    part = tf.searchsorted(ends, skipped[None], side="right", out_type=tf.int64)[0]
    begins = tf.concat([[tf.constant(0, tf.int64)], ends], 0)
    return part, skipped - begins[part]


def _shard_records(shards: _Shards, shard: tf.Tensor) -> tf.data.Dataset:
    """(shard, index, record bytes) of one shard: exactly as many as are promised.

    From damage on, the reader gives nothing more; the rest is filled with empty records, which
    `_decode` refuses. Any record beyond the promised ones is passed on for `_decode` to refuse.
    """
    shard = tf.cast(shard, tf.int64)
    path, length = shards.paths[shard], shards.lengths[shard]
    # ignore_errors would try for ever to open a file that is gone: this fails instead.
    opened = tf.data.FixedLengthRecordDataset(path, record_bytes=1).take(1)
    readable = opened.flat_map(
        lambda _: tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES).ignore_errors()
    )
    padded = readable.concatenate(tf.data.Dataset.from_tensors("").repeat())
    numbered = tf.data.Dataset.zip((tf.data.Dataset.range(length + 1), padded))

    def promised_or_surplus(index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, ...]:
        kept = (index < length) | (tf.strings.length(record) > 0)
        index, record = tf.boolean_mask(index, kept), tf.boolean_mask(record, kept)
        return tf.fill(tf.shape(index), shard), index, record

    # In chunks, because a function call for each small record costs as much as half its decoding.
    chunk = max(1, min(64, CHUNK_BYTES // shards.record_bytes))
    return numbered.batch(chunk).map(promised_or_surplus).unbatch()


def _shuffle(records: tf.data.Dataset, buffer: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
    """Shuffles by `seed` (int [2]) alone."""
    # tf.data mixes the program's global seed, as its graph has it, into the seed it is given;
    # this replaces it (by 1: a 0 makes tf.data compare the seed, a tensor, to 0 in Python).
    tf.compat.v1.get_default_graph().seed = 1
    seed = tf.random.stateless_uniform([], seed, minval=None, maxval=None, dtype=tf.int64)
    return records.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)


def _seed_pair(seed: int, purpose: int = 0) -> tf.Tensor:
    """Any Python int -> a stateless seed, int64 [2]; flips have a purpose of their own."""
    return tf.constant([seed % (1 << 63), purpose], tf.int64)


# --- records -> images ---------------------------------------------------------------------------


def _decode(
    position: tf.Tensor,
    located_record: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    *,
    info: DatasetInfo,
    shards: _Shards,
    shape: tuple[int, int, int],
    flip_seed: int | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One record -> (image [H, W, C], still in the range of its dtype, and label int32)."""
    shard, index, record = located_record
    length = shards.lengths[shard]
    where = shards.paths[shard], index, length
    readable = [
        require(tf.strings.length(record) > 0, "cannot be read: the file is cut or damaged", *where),
        require(index < length, "is one more than the metadata promise", *where),
    ]
    with tf.control_dependencies(readable):
        features = {info.image_key: tf.io.FixedLenFeature([], tf.string)}
        if info.label_key:
            features[info.label_key] = tf.io.FixedLenFeature([], tf.int64)
        example = tf.io.parse_single_example(record, features)
    image = _decode_image(example[info.image_key], info)
    if None in info.image_shape:
        image = _crop_and_resize(image, shape)
    else:
        same = tf.reduce_all(tf.shape(image) == shape)
        with tf.control_dependencies([require(same, f"is not {_times(shape)}", *where)]):
            image = tf.ensure_shape(tf.identity(image), shape)
    if flip_seed is not None:
        seed = tf.random.experimental.stateless_fold_in(_seed_pair(flip_seed, 1), position)
        image = tf.image.stateless_random_flip_left_right(image, seed)
    return image, _checked_label(example, info, where)


def _checked_label(example, info: DatasetInfo, where) -> tf.Tensor:
    if not info.label_key:
        return tf.constant(0, tf.int32)
    label = example[info.label_key]
    # TFDS marks the examples of an unlabelled split with -1.
    known = (label >= 0) & (label < info.num_classes)
    problem = f"has no label in 0..{info.num_classes - 1} (an unlabelled split?)"
    with tf.control_dependencies([require(known, problem, *where)]):
        return tf.cast(label, tf.int32)


def _decode_image(encoded: tf.Tensor, info: DatasetInfo) -> tf.Tensor:
    """Encoded bytes -> uint8 or uint16 [h, w, C]."""
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


def _scale(images: tf.Tensor, labels: tf.Tensor, *, dtype: str) -> tuple[tf.Tensor, tf.Tensor]:
    """0..max of the stored dtype -> [-1, 1]."""
    return tf.cast(images, tf.float32) / (tf.as_dtype(dtype).max / 2.0) - 1.0, labels
