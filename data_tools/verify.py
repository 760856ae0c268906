"""Reads a data set again and says which of its shards are damaged.

    python -m data_tools.verify --input data/lsun_church [--decode]

A data set made by data_tools is compared with its manifest (size and SHA-256 of each shard); any
other TFDS set by its checksums and record counts. With --decode every image is decoded too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from data_tools import convert
from pdm_tf import images
from pdm_tf.atomic import sha256
from pdm_tf.data import DatasetInfo, describe_directory
from pdm_tf.errors import UserError, run
from pdm_tf.paths import as_path, size_of
from pdm_tf.progress import bar


def check_shard(
    path: Path,
    length: int,
    recorded: dict | None,
    check_record: Callable[[bytes], None] | None,
    report: Callable[[int], object],
) -> str | None:
    """Checks one shard.

    Args:
      path: its file.
      length: the number of records it must hold.
      recorded: what the manifest says of it, if there is one.
      check_record: raises `images.ImageError` for a record that is no good, or None to trust records
        whose bytes are right.
      report: called with the bytes read, for progress.
    Returns:
      None if it is whole, else what is wrong.
    """
    if not path.exists():
        return "is missing"
    size, problem = size_of(path), None
    if not recorded:
        report(size)
    elif recorded["sha256"] != sha256(path, report):
        problem = "differs from the manifest"
        if size != recorded["bytes"]:
            problem = f"has {size} bytes, the manifest says {recorded['bytes']}"
    if problem or not recorded or check_record:
        found = _first_bad_record(path, length, check_record)
        problem = "; ".join(filter(None, [problem, found])) or None
    return problem


def _first_bad_record(path: Path, length: int, check_record: Callable[[bytes], None] | None) -> str | None:
    index = 0
    try:
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            if check_record:
                check_record(record)
            index += 1
    except tf.errors.OpError:
        return f"record {index} of {length} is damaged or cut off"
    except images.ImageError as error:
        return f"record {index} of {length} holds no usable image ({error})"
    return None if index == length else f"holds {index} records, {length} are promised"


def image_checker(info: DatasetInfo) -> Callable[[bytes], None]:
    """A function that raises `images.ImageError` unless a record's image is as promised."""

    def check(record: bytes) -> None:
        # What the data set holds has been let in.
        with images.reading(), images.pixel_limit(None):
            features = tf.train.Example.FromString(record).features.feature
            image = images.decode(b"".join(features[info.image_key].bytes_list.value), as_stored=True)
        size = (image.height, image.width)
        if None not in info.image_shape and size != tuple(info.image_shape[:2]):
            raise images.ImageError(f"the image is {image.height}x{image.width}")

    return check


def verify(directory: Path, decode: bool) -> list[str]:
    """Checks a whole data set.

    Returns:
      a line for each file that is missing or damaged.
    Raises:
      UserError: there is no data set, or its metadata cannot be read.
    """
    if not (directory / "dataset_info.json").exists():
        raise UserError(
            f"{directory} holds no finished data set (dataset_info.json); a conversion that was"
            " stopped continues with its own command"
        )
    manifest = convert.read_manifest(directory)
    problems = []
    for name, digest in (manifest or {}).get("metadata_sha256", {}).items():
        path = directory / name
        if not path.is_file() or sha256(path) != digest:
            problems.append(f"{path}: is missing or differs from the manifest")
    info = describe_directory(directory)
    recorded = manifest["shards"] if manifest else {}
    expected = {
        path: length
        for split in info.splits.values()
        for path, length in zip(split.shards, split.shard_lengths)
    }
    total = sum(size_of(path) for path in expected if path.exists())
    check_record = image_checker(info) if decode else None
    with bar(total=total, unit="B", unit_scale=True) as progress:
        for path, length in sorted(expected.items()):
            problem = check_shard(path, length, recorded.get(path.name), check_record, progress.update)
            if problem:
                problems.append(f"{path}: {problem}")
    if not problems:
        against = "the manifest" if manifest else "the metadata; there is no manifest"
        records = sum(expected.values())
        print(f"{directory}: {len(expected)} shards, {records} records, as in {against}")
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
        raise UserError(
            f"{len(problems)} files of {arguments.input} are damaged; remove them and run the"
            " command that made the data set again: it makes only these anew"
        )


if __name__ == "__main__":
    sys.exit(run(main))
