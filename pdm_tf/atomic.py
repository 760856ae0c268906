"""Files and folders that are either whole or not there, and the hashes that tell."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from flags.errors import UserError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; on success it takes `path`'s place in one step.

    If the block fails, `path` is as it was and the temporary file is gone.

    Raises:
      UserError: the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a new temporary folder beside `path` to fill; on success it becomes `path` in one step.

    If the block fails, the temporary folder is gone. `path` must not exist, or be an empty folder.

    Raises:
      UserError: the disk is full, or `path` cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial{os.getpid()}")
    with disk_errors(path):
        partial.mkdir(parents=True)
        try:
            yield partial
            for entry in [*partial.rglob("*"), partial]:
                sync(entry)
            os.rename(partial, path)
            sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns the operating system's refusals to write `path` into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk of {path}: free some and run the command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise UserError(f"cannot write {path} ({error.strerror}): choose another place") from error
        raise


def sha256(path: str | os.PathLike, report: Callable[[int], None] = lambda size: None) -> str:
    """Hexadecimal SHA-256 of a file; calls `report` with the bytes of each block read on the way."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            report(len(block))
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Waits until a file's data, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
