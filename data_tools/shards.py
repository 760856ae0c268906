"""Writing one shard, and what is recorded of it. Runs in the worker processes."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from PIL import Image

from pdm_tf.atomic import atomic_file, atomic_json, sha256
from pdm_tf.errors import UserError, one_line
from pdm_tf.images import ImageError, TooManyPixelsError, encode, pixel_limit, reading
from pdm_tf.paths import is_remote

PROGRESS_SECONDS = 0.2


class Item(NamedTuple):
    """One image of a raw archive.

    Attributes:
      name: how messages and reports call it.
      location: where the tool's loader finds it (a path, a key, an offset and size).
      label: class index; None in an unlabelled set.
    """

    name: str
    location: Any
    label: int | None = None


class Task(NamedTuple):
    """One shard to write: its split, its file, a folder for unfinished things, and its items in order."""

    split: str
    path: Path
    work_dir: Path
    items: list[Item]

    @property
    def outcome_path(self) -> Path:
        """Where the finished shard's outcome is kept until the manifest is written."""
        return self.work_dir / f"{self.path.name}.json"


class Encoder(NamedTuple):
    """How items become records: `load` gives images of `mode` and `size` (width, height).

    Whatever it raises but a UserError means that the item cannot be read.
    """

    load: Callable[[Item], Image.Image]
    size: tuple[int, int]
    mode: str
    encoding: str
    png_level: int
    jpeg_quality: int
    on_error: str
    max_megapixels: float

    def record(self, item: Item) -> bytes:
        """Loads one item and makes its record.

        Raises:
          ImageError: the item cannot be read, or has the wrong size.
        """
        with image_limit(self.max_megapixels), reading():
            image = self.load(item)
        if image.mode != self.mode or image.size != self.size:
            raise ImageError(
                f"the image is {image.mode} {image.height}x{image.width},"
                f" not {self.mode} {self.size[1]}x{self.size[0]}"
            )
        data = encode(image, self.encoding, png_level=self.png_level, jpeg_quality=self.jpeg_quality)
        feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
        if item.label is not None:
            feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[item.label]))
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        # Map fields have no fixed order on the wire unless asked for.
        return example.SerializeToString(deterministic=True)

    def refuse_or_skip(self, item: Item, error: ImageError) -> None:
        """Raises UserError for an unreadable item, unless such items are to be skipped."""
        if self.on_error == "fail":
            raise UserError(
                f"cannot read {item.name} ({error}); mend it, or leave such images out with --on_error=skip"
            ) from error


@contextlib.contextmanager
def image_limit(megapixels: float) -> Iterator[None]:
    """Inside the block larger images are refused, with the flag that lets them in."""
    try:
        with pixel_limit(round(megapixels * 1e6)):
            yield
    except TooManyPixelsError as error:
        raise ImageError(f"{error}: let it in with --max_megapixels") from error


def work(connection: Connection, encoder: Encoder) -> None:
    """A worker process: writes the shards it is sent, until it is sent None.

    Sends ("progress", items), ("done", path, outcome) or ("error", line). If the parent dies,
    sending or receiving fails and the worker ends with it.
    """
    try:
        for task in iter(connection.recv, None):
            report = _progress_reporter(connection)
            outcome = write_shard(task, encoder, report)
            connection.send(("done", task.path, outcome))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except UserError as error:
        connection.send(("error", str(error)))
    except Exception:
        connection.send(("crash", traceback.format_exc()))


def _progress_reporter(connection: Connection) -> Callable[[int], None]:
    last, waiting = time.monotonic(), 0

    def report(items: int) -> None:
        nonlocal last, waiting
        waiting += items
        if time.monotonic() - last > PROGRESS_SECONDS:
            connection.send(("progress", waiting))
            last, waiting = time.monotonic(), 0

    return report


def write_shard(task: Task, encoder: Encoder, report: Callable[[int], None]) -> dict:
    """Writes a shard, which exists whole or not at all, and then its outcome.

    Returns:
      the outcome, as in the manifest: records, bytes of the file, payload_bytes of the records, sha256, and
        skipped, a list of [name, reason].
    Raises:
      UserError: an item is unreadable (with on_error=fail), or the disk does not take it.
    """
    outcome = {"records": 0, "payload_bytes": 0, "skipped": []}
    # Not beside its place: what kills leave goes when the work folder goes. In a bucket they leave nothing.
    made = task.path if is_remote(task.path) else task.work_dir / task.path.name
    try:
        with atomic_file(made) as partial:
            with tf.io.TFRecordWriter(str(partial)) as writer:
                for record in _records(task.items, encoder, outcome["skipped"], report):
                    writer.write(record)
                    outcome["records"] += 1
                    outcome["payload_bytes"] += len(record)
            outcome["bytes"] = partial.stat().st_size
            outcome["sha256"] = sha256(partial)
        if made != task.path:
            os.replace(made, task.path)
        atomic_json(task.outcome_path, outcome)
    except (BrokenPipeError, ConnectionResetError):  # the parent is gone: not the disk's fault
        raise
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"cannot write {task.path} ({one_line(error)}); make room or mend the disk, then run"
            " the same command again: finished shards are kept"
        ) from error
    return outcome


def _records(
    items: list[Item], encoder: Encoder, skipped: list, report: Callable[[int], None]
) -> Iterator[bytes]:
    for item in items:
        try:
            record = encoder.record(item)
        except ImageError as error:
            encoder.refuse_or_skip(item, error)
            skipped.append([item.name, str(error)])
        else:
            yield record
        report(1)
