"""Users' text -> paths: on this machine pathlib's, in a bucket those of etils.epath; made nowhere else."""

from __future__ import annotations

import functools
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from etils import epath

from pdm_tf.errors import UserError, one_line

# TensorFlow takes the path of a checkpoint for a pattern: these characters keep it from finding one.
PATTERN = re.compile(r"[][*?\\]")
ANSWER_SECONDS = 60  # for a bucket; usually it takes one
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)([^/]*)")


def as_path(text: str | os.PathLike) -> Path:
    """What a user calls a file or folder -> its path; paths go through as they are.

    A leading `~` is home, `file://` this machine, and `gs://bucket/name` (of the services that TensorFlow
    opens here) a path in a bucket: an `epath.Path`, which has the methods of pathlib's that we use. All other
    names are taken as they are; `./gs:/x` is a folder `gs:`.

    Raises:
      UserError: an address of no service that TensorFlow opens here, or a bucket that cannot be reached.
    """
    if not isinstance(text, str):
        return text if is_remote(text) else Path(text)
    address = _ADDRESS.match(text)
    if not address:
        return _local(text)
    scheme, second_slash, bucket = address.groups()
    if scheme == "file" and second_slash and not bucket:
        return _local(text[len("file://") :])
    if not second_slash or not bucket or scheme not in _services():
        known = " or ".join(f"{name}://BUCKET/NAME" for name in _services())
        raise UserError(f"{text} is no address that can be opened here: write {known}, or a local path")
    _check_bucket(f"{scheme}://{bucket}")
    return epath.Path(text)


def local_path(text: str | os.PathLike) -> Path:
    """As `as_path`, for what must lie on this machine.

    Raises:
      UserError: it is in a bucket.
    """
    path = as_path(text)
    if is_remote(path):
        raise UserError(f"{text} is in a bucket, where it cannot be read from: copy it to this machine first")
    return path


def is_remote(path: os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return not isinstance(path, Path) and "://" in os.fspath(path)


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
      FileNotFoundError: there is none.
    """
    if not is_remote(path):
        return path.stat().st_size
    try:
        return tf.io.gfile.stat(os.fspath(path)).length
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(2, "No such file or directory", os.fspath(path)) from error


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing if there is none."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except (tf.errors.NotFoundError, FileNotFoundError):  # TensorFlow remembers buckets' folders for seconds
        return []


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its folders, by name."""
    for entry in entries(folder):
        yield from files_below(entry) if entry.is_dir() else [entry]


def _local(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: no such user's home is known: write the path in full") from error


@functools.cache
def _services() -> list[str]:
    """The schemes of what TensorFlow and etils.epath both know; a plugin such as tensorflow-io adds some."""
    known = []
    for scheme in sorted(map(tf.compat.as_str, tf.io.gfile.get_registered_schemes())):
        try:
            epath.Path(f"{scheme}://bucket/name")
        except KeyError:
            continue
        known += [scheme] if scheme not in ("", "file") else []
    return known


@functools.cache
def _check_bucket(bucket: str) -> None:
    """Asks once whether there is such a bucket, so that nobody waits for hours to hear that there is none."""
    found = []
    # Without a network TensorFlow tries for minutes, and hears no signal meanwhile: so another thread waits.
    asking = threading.Thread(target=lambda: found.append(_problem_of(bucket)), daemon=True)
    asking.start()
    end = time.monotonic() + ANSWER_SECONDS
    while asking.is_alive() and (left := end - time.monotonic()) > 0:
        asking.join(min(left, 0.2))  # in turns: a signal that comes just before a wait does not end it
    problem = found[0] if found else f"no answer within {ANSWER_SECONDS} s"
    if problem:
        raise UserError(
            f"{bucket} cannot be reached ({problem}): check its name, the network and who you are"
        )


def _problem_of(bucket: str) -> str:
    try:
        return "" if tf.io.gfile.exists(bucket) else "there is no such bucket"
    except tf.errors.PermissionDeniedError:  # one may be allowed a bucket's objects and not the bucket
        return ""
    except tf.errors.OpError as error:
        return one_line(error)
