"""The endless stream of undecoded records that underlies all batches.

Its order is a pure function of (seed, epoch), so a batch's number alone says where in the stream it lies:

    epoch e:   shards permuted by (seed, e), taken in groups of `SHARDS_PER_GROUP`
    group g:   its shards interleaved record by record, then a shuffle buffer seeded by (seed, e, g)

A group yields a permutation of its own records and no others. A run that resumes therefore skips whole groups
by their known lengths, unread, and only within one group reads records to drop them, undecoded.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pdm_tf.data.damage import check_files
from pdm_tf.data.info import DatasetInfo

SHARDS_PER_GROUP = 16
SHUFFLE_BUFFER_BYTES = 256 << 20
READ_BUFFER_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
ENDLESS = 1 << 62


class Shards(NamedTuple):
    """A split's files: paths (string [n]), promised lengths (int64 [n]), their sum, a record's mean size."""

    paths: tf.Tensor
    lengths: tf.Tensor
    records: int
    record_bytes: int


def shards_of(info: DatasetInfo, split: str) -> Shards:
    """A split's files, which must be there (`check_files`)."""
    files = info.splits[split]
    count = info.num_examples[split]
    return Shards(
        tf.constant([str(path) for path in files.shards]),
        tf.constant(files.shard_lengths, tf.int64),
        count,
        max(1, check_files(info, split) // count),
    )


def stream(shards: Shards, seed: int, start: int, repeat: bool, shuffle: bool) -> tf.data.Dataset:
    """Undecoded records (shard, index in it, bytes) from position `start` of the stream on."""
    first_epoch, first_record = divmod(start, shards.records)

    def epoch_records(epoch: tf.Tensor) -> tf.data.Dataset:
        skipped = tf.where(epoch == first_epoch, tf.constant(first_record, tf.int64), 0)
        if shuffle:
            epoch_seed = tf.random.experimental.stateless_fold_in(seed_pair(seed), epoch)
            return _shuffled_epoch(shards, epoch_seed, skipped)
        return _stored_epoch(shards, skipped)

    last_epoch = ENDLESS if repeat else 1
    return tf.data.Dataset.range(first_epoch, last_epoch).flat_map(epoch_records)


def _shuffled_epoch(shards: Shards, epoch_seed: tf.Tensor, skipped: tf.Tensor) -> tf.data.Dataset:
    """One epoch in the order of `epoch_seed` (int [2]), without its first `skipped` records."""
    count = shards.paths.shape[0]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), epoch_seed)
    groups = -(-count // SHARDS_PER_GROUP)

    def group_records(group: tf.Tensor) -> tf.data.Dataset:
        begin = tf.cast(group, tf.int32) * SHARDS_PER_GROUP
        members = order[begin : tf.minimum(begin + SHARDS_PER_GROUP, count)]
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


def _stored_epoch(shards: Shards, skipped: tf.Tensor) -> tf.data.Dataset:
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


def _shard_records(shards: Shards, shard: tf.Tensor) -> tf.data.Dataset:
    """(shard, index, record bytes) of one shard: exactly as many as are promised.

    From damage on, the reader gives nothing more; the rest is filled with empty records, which
    `_decode` refuses. Any record beyond the promised ones is passed on for `_decode` to refuse.
    """
    shard = tf.cast(shard, tf.int64)
    path = shards.paths[shard]
    length = shards.lengths[shard]
    # ignore_errors would try for ever to open a file that is gone: this fails instead.
    opened = tf.data.FixedLengthRecordDataset(path, record_bytes=1).take(1)
    readable = opened.flat_map(
        lambda _: tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES).ignore_errors()
    )
    padded = readable.concatenate(tf.data.Dataset.from_tensors("").repeat())
    numbered = tf.data.Dataset.zip((tf.data.Dataset.range(length + 1), padded))

    def promised_or_surplus(index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, ...]:
        kept = (index < length) | (tf.strings.length(record) > 0)
        index = tf.boolean_mask(index, kept)
        record = tf.boolean_mask(record, kept)
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


def seed_pair(seed: int, purpose: int = 0) -> tf.Tensor:
    """Any Python int -> a stateless seed, int64 [2]; flips and crops have purposes of their own."""
    return tf.constant([seed % (1 << 63), purpose], tf.int64)
