"""FFHQ's PNG folder, or one of StyleGAN's tfrecords of it -> a data set at that resolution.

    python -m data_tools.ffhq --input images1024x1024   --output data/ffhq1024
    python -m data_tools.ffhq --input ffhq-r10.tfrecords --output data/ffhq1024

The tfrecords are uncompressed, with features `shape` (int64 [3]: channels, height, width) and
`data` (raw uint8 bytes in that order). Pixels are kept as they are: nothing is resized.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from data_tools import convert
from data_tools.shards import Item
from pdm_tf import images
from pdm_tf.errors import UserError, run

# Before a record: its length (uint64) and that number's checksum; after it: its checksum.
HEADER_BYTES = 12
FOOTER_BYTES = 4


def list_tfrecord_items(path: Path) -> list[Item]:
    """All records of a TFRecord file, as (offset, bytes), found by reading the lengths alone.

    UserError if the file does not end where its last record does.
    """
    items, offset, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(HEADER_BYTES)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER_BYTES else size
            whole = HEADER_BYTES + length + FOOTER_BYTES
            if offset + whole > size:
                raise UserError(
                    f"{path} is no TFRecord file, or cut short or damaged at record {len(items)} "
                    f"(byte {offset}); fetch it again"
                )
            items.append(Item(f"{path.name}: record {len(items)}", (offset, whole)))
            offset += whole
    return items


def read_record(path: Path, offset: int, size: int) -> bytes:
    """The record whose frame is at `offset`; raises OSError if its checksums do not fit."""
    with path.open("rb") as file:
        file.seek(offset)
        frame = file.read(size)
    # TensorFlow verifies checksums of files only, from their beginning: give it a file in memory.
    in_memory = f"ram://data_tools.ffhq.{os.getpid()}"
    with tf.io.gfile.GFile(in_memory, "wb") as file:
        file.write(frame)
    try:
        (record,) = tf.compat.v1.io.tf_record_iterator(in_memory)
    except (tf.errors.DataLossError, ValueError) as error:
        raise OSError(f"the record is damaged ({error})") from error
    finally:
        tf.io.gfile.remove(in_memory)
    return record


def load_png(item: Item, *, resolution: int) -> Image.Image:
    """One PNG file -> RGB."""
    return _exactly(images.read_file(item.location), resolution)


def load_tfrecord(item: Item, *, path: Path, resolution: int) -> Image.Image:
    """One StyleGAN record -> RGB."""
    example = tf.train.Example.FromString(read_record(path, *item.location))
    shape = list(example.features.feature["shape"].int64_list.value)
    data = b"".join(example.features.feature["data"].bytes_list.value)
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"the record is no StyleGAN image: shape {shape}")
    pixels = np.frombuffer(data, np.uint8).reshape(shape).transpose(1, 2, 0)
    return _exactly(Image.fromarray(np.ascontiguousarray(pixels)), resolution)


def _exactly(image: Image.Image, resolution: int) -> Image.Image:
    if image.size != (resolution, resolution):
        raise ValueError(
            f"the image is {image.height}x{image.width}; pass --resolution={image.height}"
            " if all are, or use data_tools.image_folder, which resizes"
        )
    return image


def main(argv: list[str] | None = None) -> None:
    parser = convert.tool_parser(__doc__, help="images1024x1024, or ffhq-r10.tfrecords")
    parser.add_argument("--resolution", type=int, default=1024, help="that of the input")
    options = convert.checked(parser.parse_args(argv))
    tf.get_logger().setLevel("ERROR")
    source = options.input
    resolution = options.resolution
    if source.is_dir():
        items = [Item(name, source / name) for name in images.names_in(source, {".png"})]
        loader = functools.partial(load_png, resolution=resolution)
    elif source.is_file():
        items = list_tfrecord_items(source)
        loader = functools.partial(load_tfrecord, path=source, resolution=resolution)
    else:
        raise UserError(f"{source} is neither a folder nor a file")
    target = convert.Target(f"ffhq{resolution}", (resolution, resolution, 3), "FFHQ, pixels as published.")
    convert.convert(items, loader, target, options)


if __name__ == "__main__":
    sys.exit(run(main))
