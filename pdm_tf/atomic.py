"""Files and folders that are whole or not there, locks on folders, and hashes of files.

On this machine files are made beside their place and renamed. In a bucket, which renames file by file, they
are made in a temporary folder of this machine: a file is there once its upload is done, and a folder counts
once the file is there that is uploaded last. What differs between the two is decided here, for all others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from etils.epath import Path

from pdm_tf.errors import UserError, is_out_of_memory, one_line
from pdm_tf.paths import PATTERN, as_path, files_below, is_remote

# Set where the file system has no locks, and nobody else writes.
NO_LOCKS = "PDM_TF_NO_LOCKS"
# What file systems answer that cannot lock or sync at all.
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOLCK}
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
HOST = re.sub(r"[^\w.-]", "", socket.gethostname())


# --- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, beside: Path | None = None) -> Iterator[pathlib.Path]:
    """Yields a temporary path of this machine to write to; on success it takes `path`'s place in one step.

    If the block fails, `path` is as it was and the temporary file is gone; that of a process that was killed
    in its block is removed by the next process that writes to the folder. It lies in the folder `beside`, on
    the same disk; by default in that of `path`.
    """
    path = as_path(path)
    if is_remote(path):
        with temporary_folder() as folder:
            yield folder / "file"
            _upload(folder / "file", path)
        return
    with disk_errors(path):
        partial = _partial(path.name, beside or path.parent)
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def atomic_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, atomically, in UTF-8; file names that are none come back as they were."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def atomic_json(path: str | os.PathLike, values: Any) -> None:
    """Writes JSON, atomically; equal values give equal bytes."""
    atomic_text(path, json.dumps(values, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, last: str = "") -> Iterator[pathlib.Path]:
    """Yields a new temporary folder of this machine to fill; on success it becomes `path` in one step.

    As with `atomic_file`, nothing temporary stays. `path` must not exist, or be an empty folder. `last` is
    the file without which nobody takes the folder for whole; in a bucket it is uploaded last.
    """
    path = as_path(path)
    if is_remote(path):
        with temporary_folder() as folder:
            yield folder
            upload_folder(folder, path, last)
        return
    with disk_errors(path):
        partial = _partial(path.name, path.parent)
        partial.mkdir()
        try:
            yield partial
            for entry in [*partial.rglob("*"), partial]:
                sync(entry)
            os.rename(partial, path)
            sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replaced_folder(path: Path, partial: Path, last: str) -> Iterator[Path]:
    """Yields a new folder to fill, which then takes the place of `path`, whether that is there or not.

    While `partial` is there, a folder beside `path`, the work is not done. On this machine it is the folder
    that is filled; in a bucket a sign that an upload is under way. `last` is as of `atomic_folder`.
    """
    if is_remote(path):
        with temporary_folder() as folder:
            atomic_text(partial / "uploading", "")
            yield as_path(folder)
            remove_tree(path)
            upload_folder(folder, path, last)
        remove_tree(partial)
        return
    partial.mkdir(parents=True)
    yield partial
    remove_tree(path)
    os.rename(partial, path)
    sync(path.parent)


def upload_folder(folder: os.PathLike, path: Path, last: str) -> None:
    """Copies a folder's files into a bucket, `last` after all others; if one fails, none stays."""
    folder = as_path(folder)
    files = sorted(files_below(folder), key=lambda file: file == folder / last)
    try:
        for file in files:
            _upload(file, path / file.relative_to(folder))
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            remove_tree(path)
        raise


def _upload(file: os.PathLike, path: Path) -> None:
    with disk_errors(path):
        tf.io.gfile.copy(os.fspath(file), os.fspath(path), overwrite=True)


def append_text(path: Path, text: str) -> None:
    """Adds text to a file; in a bucket the whole file is written again."""
    with disk_errors(path), path.open("a") as file:
        file.write(text)


def remove_tree(path: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    with contextlib.suppress(OSError):
        as_path(path).rmtree(missing_ok=True)


def free_bytes(folder: Path) -> float:
    """Free space on a folder's disk; a bucket's has no end."""
    return math.inf if is_remote(folder) else shutil.disk_usage(folder).free


# --- temporary files and folders -----------------------------------------------------------------


@contextlib.contextmanager
def temporary_folder() -> Iterator[pathlib.Path]:
    """Yields a folder of this machine, which goes after the block."""
    with tempfile.TemporaryDirectory(prefix="pdm_tf_") as folder:
        with disk_errors(folder):
            yield pathlib.Path(folder)


@contextlib.contextmanager
def for_tensorflow(folder: os.PathLike) -> Iterator[str]:
    """Yields a name for a folder by which TensorFlow finds its checkpoints.

    It takes a checkpoint's path for a pattern: under a folder such as `lr[3e-4]` it finds none. So the name
    is that of a link to the folder; of a folder in a bucket, that of a copy.
    """
    if not is_remote(folder) and not PATTERN.search(os.fspath(folder)):
        yield os.fspath(folder)
        return
    with temporary_folder() as temporary:
        plain = temporary / "folder"
        if is_remote(folder):
            for file in files_below(folder):
                copy = plain / file.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                tf.io.gfile.copy(os.fspath(file), os.fspath(copy))
        else:
            plain.symlink_to(os.path.abspath(folder), target_is_directory=True)
        yield str(plain)


def _partial(name: str, folder: os.PathLike) -> pathlib.Path:
    """This process' temporary name for `name`, with the machine's: others may share the disk."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.resolve())
    return folder / f".{name}.partial-{HOST}-{os.getpid()}"


@functools.cache
def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes temporary files and folders of this machine's killed processes; once for each folder."""
    for entry in folder.iterdir():
        leftover = re.fullmatch(rf"\..+\.partial-{re.escape(HOST)}-(\d+)", entry.name)
        if not leftover or _other_runs(int(leftover[1])):
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # somebody else's, or gone
                entry.unlink()


def _other_runs(process: int) -> bool:
    """Whether another process of that number runs on this machine; containers use one number again."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return process != os.getpid()


# --- locks, errors, hashes -----------------------------------------------------------------------


@contextlib.contextmanager
def sole_writer(folder: str | os.PathLike, busy: str) -> Iterator[None]:
    """Holds a folder's lock, which the system lets go of when the process ends, however it ends.

    Buckets have no locks: a note says that nothing keeps a second process away.
    UserError `busy` if another process holds the lock; another if the disk has no locks (`NO_LOCKS` lets it).
    """
    folder = as_path(folder)
    if is_remote(folder):
        print(f"note: {folder} is in a bucket, which has no locks: let no second process write there")
        yield
        return
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 (closed below, after the work)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(busy) from error
            if not os.environ.get(NO_LOCKS):
                raise UserError(
                    f"the file system of {folder} has no locks ({error.strerror}) against a second process: "
                    f"choose another disk, or see to it yourself and set {NO_LOCKS}=1"
                ) from error
            _note_once(f"{folder} is not locked ({error.strerror}): start nothing else that writes there")
        yield


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns the refusals to write `path` of system and TensorFlow into a UserError that says what to do."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        number = getattr(error, "errno", None)
        if is_out_of_memory(error):  # of images that are drawn while they are written
            raise
        if isinstance(error, tf.errors.ResourceExhaustedError) or number in FULL:
            raise UserError(
                f"no space left on the disk of {path}: free some and run the command again"
            ) from error
        if number in FORBIDDEN:
            raise UserError(f"cannot write {path} ({error.strerror}): choose another place") from error
        if is_remote(path):
            raise UserError(
                f"cannot write {path} ({one_line(error)}): see that you may, and run the command again"
            ) from error
        raise


def sha256(path: str | os.PathLike, report: Callable[[int], None] = lambda size: None) -> str:
    """Hexadecimal SHA-256 of a file; calls `report` with the bytes of each block read on the way."""
    digest = hashlib.sha256()
    with as_path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            report(len(block))
    return digest.hexdigest()


def sync(path: os.PathLike) -> None:
    """Waits until a file's data, or a folder's entries, are on the disk, if its file system can do that."""
    if is_remote(path):  # whose data are safe when they are written
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _note_once(f"a disk does not tell when data are safe ({error.strerror}): beware of power cuts")
    finally:
        os.close(descriptor)


@functools.cache
def _note_once(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
