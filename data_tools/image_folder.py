"""Any folder of images (JPEG, PNG, WebP, GIF, BMP) -> a data set of one image size.

    python -m data_tools.image_folder --input photos --output data/photos --resolution 128
    python main.py --mode=train --dataset=folder:data/photos

Sub-folders are searched too; with --labels those of the first level are the classes. EXIF rotation
is applied, transparent parts take the colour --background, grey, palette and CMYK become RGB, and
of an animation the first frame is taken.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import re
import sys
from pathlib import Path

from PIL import Image, ImageColor

from data_tools import convert
from data_tools.geometry import resize_then_crop
from data_tools.shards import Item
from flags.errors import UserError, one_line, run
from pdm_tf import images


def list_items(directory: Path, labels: bool) -> tuple[list[Item], list[str] | None]:
    """All images below a folder sorted by path, and the class names (None without `labels`).

    Says on stderr how many files were left out for their names' sake.

    Raises:
      UserError: no such folder, or `labels` with images outside of any sub-folder.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no folder")
    names, left_out = [], collections.Counter()
    for folder, _, files in os.walk(directory, followlinks=True):
        for file in files:
            extension = os.path.splitext(file)[1].lower()
            if extension in images.EXTENSIONS:
                names.append(os.path.relpath(os.path.join(folder, file), directory))
            else:
                left_out[extension or "no extension"] += 1
    if left_out:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items()))
        print(f"left out, not named as images: {counts}", file=sys.stderr)
    names.sort()
    if not labels:
        return [Item(name, os.path.join(directory, name)) for name in names], None
    outside = [name for name in names if os.sep not in name]
    if outside:
        raise UserError(
            f"--labels: {outside[0]} lies in no sub-folder of {directory}; move it into its class"
        )
    classes = sorted({name.split(os.sep)[0] for name in names})
    index = {name: i for i, name in enumerate(classes)}
    items = [Item(name, os.path.join(directory, name), index[name.split(os.sep)[0]]) for name in names]
    return items, classes


def open_rgb(item: Item, background: str) -> Image.Image:
    """One file -> RGB, upright."""
    image = images.decode(Path(item.location).read_bytes())
    return images.to_rgb(images.upright(image), background)


def load(item: Item, *, height: int, width: int, crop: str, background: str) -> Image.Image:
    """One file -> RGB `height` x `width`; with crop "exact" it must have that size."""
    image = open_rgb(item, background)
    if crop == "center":
        return resize_then_crop(image, height, width)
    if crop == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if image.size != (width, height):
        raise ValueError(
            f"the image is {image.height}x{image.width}, the first one {height}x{width};"
            " pass --resolution to crop and resize all"
        )
    return image


def parse_resolution(text: str) -> tuple[int, int]:
    """ "256" or "128x256" (height x width) -> (height, width).

    Raises:
      UserError: it is neither.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise UserError(f"--resolution={text}: write a size such as 256, or HEIGHTxWIDTH")
    height = int(match.group(1))
    return height, int(match.group(2) or height)


def common_size(items: list[Item], background: str) -> tuple[int, int]:
    """(height, width) of the first image, which all must have where no resolution is given.

    Raises:
      UserError: it cannot be read.
    """
    try:
        image = open_rgb(items[0], background)
    except images.UNREADABLE as error:
        raise UserError(
            f"cannot read {items[0].name} ({one_line(error)}); mend it, or pass --resolution"
        ) from error
    return image.height, image.width


def dataset_name(directory: Path) -> str:
    """A name that TFDS accepts, from the output folder's."""
    name = re.sub(r"\W+", "_", os.path.basename(os.path.abspath(directory)), flags=re.ASCII)
    return name.lower().strip("_") if re.match("[A-Za-z]", name) else f"images_{name.lower()}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="folder of images")
    parser.add_argument("--resolution", help="256 or HEIGHTxWIDTH; default: that of the images")
    parser.add_argument(
        "--crop",
        choices=("center", "stretch"),
        default="center",
        help="center: cover the size and cut the rest (default); stretch: change the aspect ratio",
    )
    parser.add_argument("--background", default="white", help="under transparency, e.g. '#808080'")
    parser.add_argument("--labels", action="store_true", help="sub-folders are classes")
    convert.add_arguments(parser)
    arguments = parser.parse_args(argv)
    options = convert.options_from(arguments)
    try:
        ImageColor.getrgb(arguments.background)
    except ValueError as error:
        raise UserError(f"--background={arguments.background}: {error}") from error
    items, classes = list_items(arguments.input, arguments.labels)
    if not items:
        raise UserError(f"there are no images in {arguments.input}")
    if arguments.resolution:
        crop, (height, width) = arguments.crop, parse_resolution(arguments.resolution)
    else:
        crop, (height, width) = "exact", common_size(items, arguments.background)
    target = convert.Target(
        name=dataset_name(arguments.output),
        height=height,
        width=width,
        label_names=classes,
        description=f"A folder of images; crop: {crop}; background: {arguments.background}.",
    )
    loader = functools.partial(load, height=height, width=width, crop=crop, background=arguments.background)
    convert.convert(items, loader, target, options)


if __name__ == "__main__":
    sys.exit(run(main))
