"""ImageNet's ILSVRC2012_img_train.tar -> a data set of 256 x 256 images with 1000 classes.

    python -m data_tools.imagenet --input ILSVRC2012_img_train.tar --output data/imagenet256

The archive is a tar of one nXXXXXXXX.tar for each class. Nothing is unpacked: a first pass over the headers
notes where each image lies. A class's label is the index of its wnid in sorted order. Images are halved with
BOX while their shorter side is at least twice the size, resized with BICUBIC, and cropped at the centre, as
ImageNet is prepared for the paper's base code (which leaves EXIF rotation and colour profiles alone).
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from data_tools import convert
from data_tools.geometry import resize_then_crop
from data_tools.shards import Item
from pdm_tf import images
from pdm_tf.errors import UserError, run
from pdm_tf.progress import bar

BLOCK = tarfile.BLOCKSIZE
WNID = re.compile(r"(?:.*/)?(n\d{8})\.tar$")


def members(file: BinaryIO, begin: int, end: int, name: str) -> Iterator[tarfile.TarInfo]:
    """The regular files of the tar that lies at bytes `begin` to `end` of `file`.

    tarfile alone stops in silence at a damaged header, and at the end of a file that was cut: UserError here.
    """
    cut = UserError(f"{name} is cut short or damaged; fetch it again")
    following = begin
    try:
        file.seek(begin)
        # Without zero blocks at its end, a tar inside a tar would go on into the next one.
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (`file` stays open)
        while True:
            member = archive.next()
            if member is None or member.offset >= end:
                break
            archive.members.clear()  # tarfile keeps each one for ever otherwise
            following = member.offset_data
            if member.isreg():
                following += -(-member.size // BLOCK) * BLOCK
            if following > end:
                raise cut
            if member.isreg():
                yield member
    except (tarfile.TarError, OSError, EOFError) as error:
        raise cut from error
    file.seek(following)
    mark = file.read(min(BLOCK, end - following))
    if mark.strip(b"\0") or (not mark and end == os.fstat(file.fileno()).st_size):
        raise cut


def list_items(path: Path, classes: int) -> tuple[list[Item], list[str]]:
    """All images, as (name, (offset, size), label), and the wnids in sorted order.

    UserError if the archive is cut short, damaged, something else, or has not `classes` classes.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: give ILSVRC2012_img_train.tar itself, or convert a folder of classes with"
            f" python -m data_tools.image_folder --labels --resolution 256 --input {path}"
        )
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    size = path.stat().st_size
    if not tarfile.is_tarfile(path):
        raise UserError(f"{path} is no tar archive, or damaged: fetch it again")
    found: dict[str, list[Item]] = {}
    with path.open("rb") as file, bar(total=size, unit="B", unit_scale=True, desc="index") as progress:
        for class_tar in list(members(file, 0, size, str(path))):
            match = WNID.match(class_tar.name)
            if not match:
                raise UserError(
                    f"{path} holds {class_tar.name}, not nXXXXXXXX.tar files:"
                    " give ILSVRC2012_img_train.tar as --input"
                )
            begin, end = class_tar.offset_data, class_tar.offset_data + class_tar.size
            found[match.group(1)] = [
                Item(f"{path.name}: {member.name}", (member.offset_data, member.size))
                for member in members(file, begin, end, f"{path}: {class_tar.name}")
            ]
            progress.update(end - progress.n)
    wnids = sorted(found)
    if len(wnids) != classes:
        raise UserError(
            f"{path} holds {len(wnids)} classes, not {classes};"
            f" for a subset of ImageNet pass --classes={len(wnids)}"
        )
    return [item._replace(label=i) for i, wnid in enumerate(wnids) for item in found[wnid]], wnids


def load(item: Item, *, path: Path, resolution: int) -> Image.Image:
    """One image -> RGB `resolution` x `resolution`."""
    offset, size = item.location
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    return resize_then_crop(images.decode(data, as_stored=True), resolution, resolution)


def main(argv: list[str] | None = None) -> None:
    parser = convert.tool_parser(__doc__, help="ILSVRC2012_img_train.tar")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--classes", type=int, default=1000, help="classes that must be there")
    options = convert.checked(parser.parse_args(argv))
    items, wnids = list_items(options.input, options.classes)
    target = convert.Target(
        f"imagenet{options.resolution}",
        (options.resolution, options.resolution, 3),
        "ImageNet ILSVRC2012 train: BOX halving, BICUBIC resize, centre crop.",
        wnids,
    )
    loader = functools.partial(load, path=options.input, resolution=options.resolution)
    convert.convert(items, loader, target, options)


if __name__ == "__main__":
    sys.exit(run(main))
