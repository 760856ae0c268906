"""Paths on this machine and in buckets: `etils.epath.Path`, made of users' text here and nowhere else."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterator

import tensorflow as tf
from etils.epath import Path

from pdm_tf.errors import UserError, one_line

# TensorFlow takes the path of a checkpoint for a pattern: these characters keep it from finding one.
PATTERN = re.compile(r"[][*?\\]")
SYSTEM_FILES = {".DS_Store", "desktop.ini", "Thumbs.db"}  # desktops leave them in any folder
ANSWER_SECONDS = 60  # for a bucket; usually it takes one
_SCHEMES = ("gs", "s3", "az", "hf")  # of epath
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)([^/]*)")
_LIKE_A_BUCKET = re.compile(rf"^/+(?=({'|'.join(_SCHEMES)})(/|$))")


def as_path(text: str | os.PathLike) -> Path:
    """Path of a file or folder as a user writes it; paths are kept.

    A leading `~` is home, `file://` this machine, and `gs://bucket/name` (of the services that TensorFlow
    opens here) a path in a bucket. All other names are taken as they are; `./gs:/x` is a folder `gs:`.
    Do not call `stat()` of the result: it fails for a user without a name, as in containers (see `size_of`).

    Raises:
      UserError: nothing, an address of no service that TensorFlow opens here, or a bucket that cannot be
        reached.
    """
    if text == "":
        raise UserError("an empty path: name a file or folder")
    if isinstance(text, Path):
        return text
    if isinstance(text, os.PathLike):
        return _local(os.fspath(text))
    address = _ADDRESS.match(text)
    if not address:
        return _local(os.path.expanduser(text))
    scheme, second_slash, bucket = address.groups()
    if scheme == "file" and second_slash and not bucket:
        return _local(text[len("file://") :])
    if not second_slash or not bucket or scheme not in _services():
        known = " or ".join(f"{name}://BUCKET/NAME" for name in _services())
        raise UserError(f"{text} is no address that can be opened here: write {known}, or a local path")
    _check_bucket(f"{scheme}://{bucket}")
    return Path(text)


def local_path(text: str | os.PathLike) -> pathlib.Path:
    """Path of a file or folder that must lie on this machine: UserError if it is in a bucket."""
    path = as_path(text)
    if is_remote(path):
        raise UserError(f"{text} is in a bucket, where it cannot be read from: copy it to this machine first")
    return pathlib.Path(path)


def is_remote(path: os.PathLike) -> bool:
    return "://" in os.fspath(path)


def size_of(path: Path) -> int:
    """Bytes of a file; FileNotFoundError without one."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        return file.tell()


def entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, by name; none if there is no such folder."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except (tf.errors.NotFoundError, FileNotFoundError):  # TensorFlow remembers buckets' folders for seconds
        return []


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its folders, by name."""
    for entry in entries(folder):
        yield from files_below(entry) if entry.is_dir() else [entry]


def _local(text: str) -> Path:
    """Path on this machine; `/gs/x` as `//gs/x`, the same folder, since epath takes the former for gs://x."""
    return Path(_LIKE_A_BUCKET.sub("//", text))


@functools.cache
def _services() -> list[str]:
    """The schemes that TensorFlow and epath both know; a plugin such as tensorflow-io adds some."""
    registered = {tf.compat.as_str(scheme) for scheme in tf.io.gfile.get_registered_schemes()}
    return [scheme for scheme in _SCHEMES if scheme in registered]


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
        raise UserError(f"{bucket} cannot be reached ({problem}): check its name and who you are")


def _problem_of(bucket: str) -> str:
    try:
        return "" if tf.io.gfile.exists(bucket) else "there is no such bucket"
    except tf.errors.PermissionDeniedError:  # one may be allowed a bucket's objects and not the bucket
        return ""
    except tf.errors.OpError as error:
        return one_line(error)
