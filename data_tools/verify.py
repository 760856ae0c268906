"""Reads a data set again and names its damaged shards.

    python -m data_tools.verify --input data/lsun_church [--decode]

A data set made by data_tools is compared with its manifest (size and SHA-256 of each shard); any
other TFDS set by its checksums and record counts. With --decode every image is decoded too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import tensorflow as tf
from etils.epath import Path

from data_tools import convert
from pdm_tf import images
from pdm_tf.atomic import sha256
from pdm_tf.data import DatasetInfo, describe_directory
from pdm_tf.errors import UserError, run
from pdm_tf.paths import as_path, size_of
from pdm_tf.progress import bar

CheckRecord = Callable[[bytes], None]


def check_shard(
    path: Path,
    length: int,
    recorded: dict | None,
    check_record: CheckRecord | None,
    report: Callable[[int], object],
) -> str | None:
    """The damage of a shard of `length` records, or None if it is whole.

    Args:
      recorded: its entry in the manifest, if there is one.
      check_record: raises `images.ImageError` for a record that is no good; None trusts right bytes.
      report: called with the bytes read, for progress.
    """
    if not path.exists():
        return "is missing"
    size = size_of(path)
    problems = []
    if not recorded:
        report(size)
    elif recorded["sha256"] != sha256(path, report):
        same_size = size == recorded["bytes"]
        other_size = f"has {size} bytes, the manifest says {recorded['bytes']}"
        problems.append("differs from the manifest" if same_size else other_size)
    if problems or not recorded or check_record:
        problems += _first_bad_record(path, length, check_record)
    return "; ".join(problems) or None


def _first_bad_record(path: Path, length: int, check_record: CheckRecord | None) -> list[str]:
    index = 0
    try:
        for record in tf.compat.v1.io.tf_record_iterator(os.fspath(path)):
            if check_record:
                check_record(record)
            index += 1
    except tf.errors.OpError:
        return [f"record {index} of {length} is damaged or cut off"]
    except images.ImageError as error:
        return [f"record {index} of {length} holds no usable image ({error})"]
    return [] if index == length else [f"holds {index} records, {length} are promised"]


def image_checker(info: DatasetInfo) -> CheckRecord:
    """A function that raises `images.ImageError` unless a record's image is as promised."""

    def check(record: bytes) -> None:
        # Images of any size were let in when the data set was made.
        with images.reading(), images.pixel_limit(None):
            features = tf.train.Example.FromString(record).features.feature
            image = images.decode(b"".join(features[info.image_key].bytes_list.value), as_stored=True)
        size = (image.height, image.width)
        if None not in info.image_shape and size != tuple(info.image_shape[:2]):
            raise images.ImageError(f"the image is {image.height}x{image.width}")

    return check


def verify(directory: os.PathLike, decode: bool) -> list[str]:
    """A line for each missing or damaged file of a data set; UserError if its metadata cannot be read."""
    directory = as_path(directory)
    if not (directory / "dataset_info.json").exists():
        raise UserError(
            f"{directory} holds no finished data set (dataset_info.json); a conversion that was"
            " stopped continues with its own command"
        )
    manifest = convert.read_manifest(directory) or {}
    damaged = convert.damaged_metadata(directory, manifest)
    problems = [f"{path}: is missing or differs from the manifest" for path in damaged]
    info = describe_directory(directory)
    expected = {}
    for split in info.splits.values():
        expected.update(zip(split.shards, split.shard_lengths))
    recorded = manifest.get("shards", {})
    check_record = image_checker(info) if decode else None
    total = sum(size_of(path) for path in expected if path.exists())
    with bar(total=total, unit="B", unit_scale=True) as progress:
        for path, length in sorted(expected.items()):
            problem = check_shard(path, length, recorded.get(path.name), check_record, progress.update)
            if problem:
                problems.append(f"{path}: {problem}")
    if not problems:
        source = "the manifest" if manifest else "the metadata; there is no manifest"
        shards = f"{len(expected)} shard{'s' * (len(expected) != 1)}"
        print(f"{directory}: {shards}, {sum(expected.values())} records, as in {source}")
    return problems


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="folder with dataset_info.json, here or gs://")
    parser.add_argument("--decode", action="store_true", help="decode every image, too")
    arguments = parser.parse_args(argv)
    tf.get_logger().setLevel("ERROR")
    problems = verify(as_path(arguments.input), arguments.decode)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        advice = "remove them and run the command that made the data set again: it makes only these"
        if not convert.read_manifest(as_path(arguments.input)):
            advice = "prepare the data set again, as with tfds build NAME --overwrite"
        raise UserError(f"{len(problems)} files of {arguments.input} are damaged; {advice}")


if __name__ == "__main__":
    sys.exit(run(main))
