"""Any folder of images (JPEG, PNG, WebP, GIF, BMP) -> a data set of one image size.

    python -m data_tools.image_folder --input photos --output data/photos --resolution 128
    python main.py --mode=train --dataset=folder:data/photos

Sub-folders are searched too; with --labels those of the first level are the classes, in the order of their
names, or of their numbers if all are whole numbers. EXIF rotation is applied, colour profiles are converted
to sRGB, transparent parts take the colour --background, grey, palette and CMYK become RGB (--channels keeps
grey or transparency), and of an animation the first frame is taken.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

from PIL import Image, ImageColor

from data_tools import convert
from data_tools.geometry import resize_then_crop
from data_tools.shards import Item, image_limit
from pdm_tf import images
from pdm_tf.errors import UserError, run


def list_items(directory: Path, labels: bool) -> tuple[list[Item], list[str] | None]:
    """All images below a folder sorted by path, and the class names (None without `labels`).

    UserError if there is no such folder, no image, or, with `labels`, one outside of any sub-folder.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no folder")
    names = images.names_in(directory)
    if not labels:
        return [Item(name, os.path.join(directory, name)) for name in names], None
    outside = [name for name in names if os.sep not in name]
    if outside:
        raise UserError(
            f"--labels: {outside[0]} lies in no sub-folder of {directory}; move it into its class"
        )
    class_of = {name: name.split(os.sep)[0] for name in names}
    classes = sorted(set(class_of.values()))
    if all(re.fullmatch("[0-9]+", name) for name in classes):
        classes.sort(key=int)
    index = {name: i for i, name in enumerate(classes)}
    return [Item(name, os.path.join(directory, name), index[class_of[name]]) for name in names], classes


def load(item: Item, *, shape: tuple[int, int, int], crop: str, background: str) -> Image.Image:
    """One file, upright -> `shape` = (H, W, C); with crop "exact" it must have that size."""
    height, width, channels = shape
    image = images.read_file(item.location, channels, background)
    if crop == "center":
        return resize_then_crop(image, height, width)
    if crop == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if image.size != (width, height):
        raise UserError(
            f"{item.name} is {image.height}x{image.width}, the first image {height}x{width}: pass "
            "--resolution to crop and resize all"
        )
    return image


def parse_resolution(text: str) -> tuple[int, int]:
    """ "256" or "128x256" (height x width) -> (height, width); raises UserError."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise UserError(f"--resolution={text}: write a size such as 256, or HEIGHTxWIDTH")
    height = int(match.group(1))
    return height, int(match.group(2) or height)


def size_of_first(items: list[Item], max_megapixels: float) -> tuple[int, int]:
    """(height, width) of the first image, upright; raises UserError if it cannot be read."""
    try:
        with image_limit(max_megapixels):
            width, height = images.read_size(items[0].location)
    except images.ImageError as error:
        raise UserError(f"cannot read {items[0].name} ({error}); mend it, or pass --resolution") from error
    return height, width


def dataset_name(directory: os.PathLike) -> str:
    """A name that TFDS accepts, from the output folder's."""
    name = re.sub(r"\W+", "_", os.path.basename(os.path.abspath(directory)), flags=re.ASCII)
    return name.lower().strip("_") if re.match("[A-Za-z]", name) else f"images_{name.lower()}"


def main(argv: list[str] | None = None) -> None:
    parser = convert.tool_parser(__doc__, help="folder of images")
    parser.add_argument("--resolution", help="256 or HEIGHTxWIDTH; default: that of the images")
    crops = "center: cover the size and cut the rest (default); stretch: change the aspect ratio"
    parser.add_argument("--crop", choices=("center", "stretch"), default="center", help=crops)
    parser.add_argument("--background", default="white", help="under transparency, e.g. '#808080'")
    channels = "1: grey; 3: RGB (default); 4: RGB and transparency, which --background is then not under"
    parser.add_argument("--channels", type=int, choices=(1, 3, 4), default=3, help=channels)
    parser.add_argument("--labels", action="store_true", help="sub-folders are classes")
    options = convert.checked(parser.parse_args(argv))
    try:
        ImageColor.getrgb(options.background)
    except ValueError as error:
        raise UserError(f"--background={options.background}: {error}") from error
    if options.channels == 4 and options.encoding == "jpeg":
        raise UserError("--channels=4 needs --encoding=png: JPEG has no transparency")
    if os.path.realpath(options.input) == os.path.realpath(options.output):
        raise UserError(f"--output={options.output} is the folder of images itself: name another")
    items, classes = list_items(options.input, options.labels)
    if options.resolution:
        crop = options.crop
        height, width = parse_resolution(options.resolution)
    else:
        crop = "exact"
        height, width = size_of_first(items, options.max_megapixels)
    target = convert.Target(
        dataset_name(options.output),
        (height, width, options.channels),
        f"A folder of images; crop: {crop}; background: {options.background}.",
        classes,
    )
    loader = functools.partial(load, shape=target.image_shape, crop=crop, background=options.background)
    convert.convert(items, loader, target, options)


if __name__ == "__main__":
    sys.exit(run(main))
