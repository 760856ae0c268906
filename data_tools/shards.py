"""Writing one shard, and what is recorded of it. Runs in the worker processes."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import tensorflow as tf
from PIL import Image

from data_tools import images
from flags.errors import UserError
from pdm_tf.atomic import sha256, sync

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
    """One shard to write: the file, a folder for its parts, and its items in order."""

    path: str
    work_dir: str
    items: list[Item]


class Encoder(NamedTuple):
    """How items become records: `load` gives RGB images of `size` (width, height)."""

    load: Callable[[Item], Image.Image]
    size: tuple[int, int]
    encoding: str
    png_level: int
    jpeg_quality: int
    on_error: str

    def record(self, item: Item) -> bytes:
        """Loads one item and makes its record.

        Raises:
            one of `images.UNREADABLE`: the item cannot be read, or has the wrong size.
        """
        image = self.load(item)
        if image.mode != "RGB" or image.size != self.size:
            raise ValueError(
                f"the image is {image.mode} {image.height}x{image.width},"
                f" not RGB {self.size[1]}x{self.size[0]}"
            )
        data = images.encode(image, self.encoding, png_level=self.png_level, jpeg_quality=self.jpeg_quality)
        feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
        if item.label is not None:
            feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[item.label]))
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        # Map fields have no fixed order on the wire unless asked for.
        return example.SerializeToString(deterministic=True)


def one_line(error: BaseException) -> str:
    """An error's message on one line; its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


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
    """Writes a shard under a temporary name, then renames it: it exists whole or not at all.

    Returns:
        its outcome, as in the manifest: records, bytes of the file, payload_bytes of the records,
        sha256, and skipped, a list of [name, reason].

    Raises:
        UserError: an item is unreadable (with on_error=fail), or the disk does not take it.
    """
    name = os.path.basename(task.path)
    partial = os.path.join(task.work_dir, f"{name}.{os.getpid()}.partial")
    outcome = {"records": 0, "payload_bytes": 0, "skipped": []}
    records = _records(task.items, encoder, outcome["skipped"], report)
    try:
        with tf.io.TFRecordWriter(partial) as writer:
            for record in records:
                writer.write(record)
                outcome["records"] += 1
                outcome["payload_bytes"] += len(record)
        outcome["bytes"] = os.path.getsize(partial)
        outcome["sha256"] = sha256(partial)
        sync(partial)
        os.replace(partial, task.path)
        write_json(os.path.join(task.work_dir, f"{name}.json"), outcome)
    except (OSError, tf.errors.OpError) as error:
        # The parent is gone: not the disk's fault.
        if isinstance(error, (BrokenPipeError, ConnectionResetError)):
            raise
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
        except images.UNREADABLE as error:
            if encoder.on_error == "fail":
                raise UserError(
                    f"cannot read {item.name} ({one_line(error)});"
                    " mend it, or leave such images out with --on_error=skip"
                ) from error
            skipped.append([item.name, one_line(error)])
        else:
            yield record
        report(1)


def write_json(path: str, content: Any) -> None:
    """Writes JSON that appears whole or not at all."""
    partial = f"{path}.{os.getpid()}.partial"
    with open(partial, "w") as file:
        json.dump(content, file, indent=1, sort_keys=True, ensure_ascii=True)
        file.write("\n")
    sync(partial)
    os.replace(partial, path)
