"""Errors of the input pipeline that name the shard and the record they come from.

A TFRecord reader alone does not: it takes an empty shard for a finished one, and its message for a damaged
record holds a byte offset without the file. Inside a tf.data graph no UserError can be raised either, so
`require` raises an assertion with a recognisable text there, and `naming_shards` turns it into the one-line
UserError outside.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import tensorflow as tf

from pdm_tf.data.info import DatasetInfo
from pdm_tf.errors import UserError, one_line
from pdm_tf.paths import size_of

_TAG = "pdm_tf.data"
_ASSERTION = re.compile(re.escape(f"[{_TAG}] [") + r"(.*?)\] \[(.*?)\] \[(\d+)\] \[(\d+)\]")
_MISSING = re.compile(r"(\S*\.tfrecord\S*); No such file")
# What TF's messages name when a record with a good checksum holds no usable image.
_DECODING = re.compile(r"DecodeImage|DecodePng|DecodeJpeg|ParseSingleExample|Example proto|parse example")


def require(
    condition: tf.Tensor, problem: str, path: tf.Tensor, record: tf.Tensor, count: tf.Tensor
) -> tf.Operation:
    """An assertion, for `tf.control_dependencies`, that fails inside tf.data unless `condition` holds.

    The others are scalars: what is then wrong with "record 3 of 120" of the shard `path`, the record's index
    from 0, int64, and the promised number of records, int64.
    """
    return tf.debugging.Assert(condition, [_TAG, problem, path, record, count])


@contextlib.contextmanager
def naming_shards() -> Iterator[None]:
    """Wrap this around any loop over `load_batches`, `Model.fit` among them.

    Raises:
      UserError: a shard is damaged, short, or too long; names it and the record. An error that does not come
        from the data goes through untouched.
    """
    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        # TensorFlow's messages quote records, and Python's reader of them may fail at the bytes of one.
        text = str(error)
        if isinstance(error, UnicodeDecodeError):
            text = error.object.decode("utf-8", "replace")
        found = _ASSERTION.search(text)
        if found:
            problem, path, record, count = found.groups()
            raise UserError(
                f"{path}: record {record} of {count} {problem}; {_advice(os.path.dirname(path))}"
            ) from error
        missing = isinstance(error, tf.errors.NotFoundError) and _MISSING.search(text)
        if missing:
            path = missing.group(1)
            raise UserError(f"shard {path} has disappeared; {_advice(os.path.dirname(path))}") from error
        if _DECODING.search(text):
            raise UserError(
                f"a record holds no image that can be decoded ({one_line(text.partition(', value:')[0])});"
                " find it with: python -m data_tools.verify --decode --input DATASET_FOLDER"
            ) from error
        raise


def check_files(info: DatasetInfo, split: str) -> int:
    """The bytes of all shards of a split; UserError names the first that is missing or empty."""
    total = 0
    for path, length in zip(info.splits[split].shards, info.splits[split].shard_lengths):
        try:
            size = size_of(path)
        except OSError as error:
            raise UserError(
                f"shard {path} is missing ({error.strerror}); {_advice(info.directory)}"
            ) from error
        if length and not size:
            raise UserError(
                f"shard {path} is empty, {length} records are promised; {_advice(info.directory)}"
            )
        total += size
    return total


def _advice(directory: str | os.PathLike) -> str:
    return f"list all damage with: python -m data_tools.verify --input {directory}"
