"""Fashion-MNIST's four IDX files -> a labelled data set of grey 32 x 32 images.

    apt install dataset-fashion-mnist
    python -m data_tools.fashion_mnist --output data/fashion_mnist32

The 70,000 photographs of 28 x 28 pixels get a black margin of two, as is the custom: 32 halves five times.
Both published parts are taken as one, and a seventh of it is held out, as many as the published test set.
"""

from __future__ import annotations

import functools
import gzip
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_tools import convert
from data_tools.shards import Item
from pdm_tf.errors import UserError, one_line, run

DEBIAN = "/usr/share/datasets/fashion-mnist"  # where the package puts them
PARTS = ("train", "t10k")
CLASSES = (
    "T-shirt or top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
SIDE = 28
MARGIN = 2
UNSIGNED_BYTES = 0x08  # the IDX format's code for them
FETCH = "install the Debian package dataset-fashion-mnist again, or give its folder as --input"


@functools.lru_cache(maxsize=4)
def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, by gzip or not; raises UserError if it is missing, damaged or none.

    Its form: two zeros, the type, the number of axes, a big-endian size of each axis, then the values.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        zeros, kind, axes = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"cannot read {path} ({one_line(error)}): {FETCH}") from error
    size = len(data) - 4 - 4 * axes
    if (zeros, kind) != (0, UNSIGNED_BYTES) or size != math.prod(shape):
        raise UserError(f"{path} is no IDX file of {math.prod(shape):,} bytes, or is damaged: {FETCH}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def file_of(directory: Path, part: str, kind: str) -> Path:
    """The images or labels of a part, as the package has them (.gz), or unpacked."""
    name = f"{part}-{kind}-ubyte"
    unpacked = directory / name
    return unpacked if unpacked.exists() else directory / f"{name}.gz"


def list_items(directory: Path) -> list[Item]:
    """All images of both parts; raises UserError if images and labels do not belong together."""
    items = []
    for part in PARTS:
        path = file_of(directory, part, "images-idx3")
        images, labels = read_idx(path), read_idx(file_of(directory, part, "labels-idx1"))
        if images.shape != (len(labels), SIDE, SIDE) or labels.ndim != 1 or labels.max() >= len(CLASSES):
            raise UserError(
                f"{path} holds images of shape {images.shape}, and its labels are {labels.shape} up to "
                f"{labels.max()}: that is no Fashion-MNIST; {FETCH}"
            )
        items += [Item(f"{part} {n}", (path, n), int(label)) for n, label in enumerate(labels)]
    return items


def load(item: Item) -> Image.Image:
    """One image with its margin: grey, 32 x 32."""
    path, number = item.location
    return ImageOps.expand(Image.fromarray(read_idx(path)[number]), MARGIN, fill=0)


def main(argv: list[str] | None = None) -> None:
    parser = convert.tool_parser(__doc__, default=DEBIAN, help=f"folder of the four files, default {DEBIAN}")
    parser.set_defaults(validation_fraction=1 / 7)
    options = convert.checked(parser.parse_args(argv))
    target = convert.Target(
        "fashion_mnist32",
        (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN, 1),
        "Fashion-MNIST of Zalando SE, both parts, with a black margin of two pixels. MIT.",
        CLASSES,
    )
    convert.convert(list_items(options.input), load, target, options)


if __name__ == "__main__":
    sys.exit(run(main))
