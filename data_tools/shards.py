"""Writing one shard, and its outcome. Runs in the worker processes."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from etils.epath import Path
from PIL import Image

from pdm_tf.atomic import atomic_file, atomic_json, sha256
from pdm_tf.errors import UserError, one_line
from pdm_tf.images import PILLOW_MODES, ImageError, TooManyPixelsError, encode, pixel_limit, reading

# Errors of a disk or a mount that is gone, and not of one file.
FAILING = {errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTCONN, errno.ENODEV, errno.ETIMEDOUT, errno.ENOMEM}


class Item(NamedTuple):
    """One image of a raw archive: its name in messages, its class index, and where the loader finds it."""

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
    """Items -> records of images of `image_shape` = (H, W, C); `load` is as of `convert.convert`."""

    load: Callable[[Item], Image.Image]
    image_shape: tuple[int, int, int]
    encoding: str = "png"
    png_level: int = 6
    jpeg_quality: int = 95
    on_error: str = "fail"
    max_megapixels: float = 179

    def record(self, item: Item) -> bytes:
        """One item's record; raises ImageError if it cannot be read, or has the wrong size, and UserError if
        the disk or the memory fails: an image is not to blame."""
        try:
            with image_limit(self.max_megapixels), reading():
                image = self.load(item)
        except ImageError as error:
            cause = error.__cause__
            if isinstance(cause, MemoryError) or getattr(cause, "errno", None) in FAILING:
                raise UserError(
                    f"cannot read {item.name} ({error}): when the disk, or memory, is there again, run the "
                    "same command"
                ) from error
            raise
        height, width, channels = self.image_shape
        mode = PILLOW_MODES[channels]
        if image.mode != mode or image.size != (width, height):
            raise ImageError(
                f"the image is {image.mode} {image.height}x{image.width}, not {mode} {height}x{width}"
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


def write_shard(task: Task, encoder: Encoder, report: Callable[[int], None] = lambda items: None) -> dict:
    """Writes a shard, which exists whole or not at all, and then its outcome.

    Returns:
      the outcome, as in the manifest: records, bytes of the file, payload_bytes of the records, sha256, and
        skipped, a list of [name, reason].
    Raises:
      UserError: an item is unreadable (with on_error=fail), or the disk does not take it.
    """
    outcome = {"records": 0, "payload_bytes": 0, "skipped": []}
    try:
        # What kills leave goes when the work folder goes.
        with atomic_file(task.path, beside=task.work_dir) as partial:
            with tf.io.TFRecordWriter(str(partial)) as writer:
                for record in _records(task.items, encoder, outcome["skipped"], report):
                    writer.write(record)
                    outcome["records"] += 1
                    outcome["payload_bytes"] += len(record)
            outcome["bytes"] = partial.stat().st_size
            outcome["sha256"] = sha256(partial)
        atomic_json(task.outcome_path, outcome)
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
