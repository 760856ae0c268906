r"""Makes the embedded data set `emoji64` from the npm package `emoji-datasource-google`.

64 x 64 RGB on white, the base glyphs (no skin-tone variations), the Unicode category as label.

    npm pack emoji-datasource-google@16.0.0
    python -m data_tools.emoji64 --input emoji-datasource-google-16.0.0.tgz \
        --output pdm_tf/data/emoji64
"""

from __future__ import annotations

import functools
import json
import sys
import tarfile
from pathlib import Path

from PIL import Image

from data_tools import convert
from data_tools.shards import Item
from pdm_tf import images
from pdm_tf.errors import UserError, one_line, run

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
FETCH = f"fetch it with: npm pack {PACKAGE}@{VERSION}"
IMAGES = "img/google/64/"
# The five "Component" entries are bare skin-tone swatches: parts of glyphs, not glyphs.
LEFT_OUT_CATEGORY = "Component"


@functools.lru_cache(maxsize=1)
def read_package(package: Path) -> dict[str, bytes]:
    """The descriptions and 64-pixel images in the `.tgz` of `npm pack`: path in it -> bytes.

    UserError if it cannot be read, or is not version 16.0.0.
    """
    wanted = ("package.json", "emoji.json", IMAGES)
    files = {}
    try:
        with tarfile.open(package) as archive:
            for member in archive:
                path = member.name.partition("/")[2]
                if member.isfile() and path.startswith(wanted):
                    files[path] = archive.extractfile(member).read()
        found = json.loads(files["package.json"])
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise UserError(f"cannot read the npm package {package} ({one_line(error)}); {FETCH}") from error
    if (found.get("name"), found.get("version")) != (PACKAGE, VERSION):
        raise UserError(
            f"{package} is {found.get('name')} {found.get('version')}, not {PACKAGE} {VERSION}; {FETCH}"
        )
    return files


def load(item: Item, *, package: Path) -> Image.Image:
    """One glyph -> RGB 64 x 64 on white."""
    return images.decode(read_package(package)[item.location], as_stored=True)


def list_items(package: Path) -> tuple[list[Item], list[str]]:
    """The distinct base glyphs, in the order of the package's `emoji.json`, and their categories.

    Entries that share one picture (the flags of France and of Clipperton Island, say) count once:
    a twin in the held-out split would make it a copy of training data.
    """
    entries = json.loads(read_package(package)["emoji.json"])
    entries = [entry for entry in entries if entry["category"] != LEFT_OUT_CATEGORY]
    categories = sorted({entry["category"] for entry in entries})
    items, seen = [], set()
    for entry in entries:
        item = Item(entry["short_name"], IMAGES + entry["image"], categories.index(entry["category"]))
        pixels = load(item, package=package).tobytes()
        if pixels not in seen:
            seen.add(pixels)
            items.append(item)
    return items, categories


def main(argv: list[str] | None = None) -> None:
    parser = convert.tool_parser(__doc__, help="the package's .tgz")
    parser.set_defaults(validation_fraction=0.05, png_level=9)
    options = convert.checked(parser.parse_args(argv))
    items, categories = list_items(options.input)
    target = convert.Target(
        "emoji64",
        (64, 64, 3),
        "Google's Noto emoji, 64 x 64 RGB on white, labelled by category. Apache-2.0.",
        categories,
    )
    loader = functools.partial(load, package=options.input)
    convert.convert(items, loader, target, options)


if __name__ == "__main__":
    sys.exit(run(main))
